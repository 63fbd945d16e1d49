"""Every YAML in conf/, and what a configuration refuses."""

import inspect
import re

import pytest
import torch
import yaml

from tests.disk import WRITERS
from vitlab.config.build import assemble, build
from vitlab.config.check import MODELS, check, locate
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError
from vitlab.config.groups import CONF, help_text, menu
from vitlab.config.identity import cell_identity, identity, slug

OPTIONS = [(group, option) for group, options in menu().items() for option in options]
NEEDS = {
    "image_folder": ["dataset.root=somewhere"],
    "image_csv": ["dataset.root=somewhere"],
    "imagenet": ["dataset.root=somewhere"],
    "hf": ["dataset.path=somewhere"],
    "webdataset": ["dataset.train=somewhere"],
    "vit": ["model.width=8", "model.depth=1", "model.heads=2"],
    "online": [],
    "axial": ["model/pool=gap"],
    "resnet_small": ["patch=p4"],
    "resnet50_16": ["dataset=synthetic", "dataset.image_size=32", "patch=p16"],
}
for resnet in ("resnet26", "resnet50", "resnet101", "resnet152"):
    NEEDS[resnet] = ["dataset=synthetic", "dataset.image_size=32", "patch=p32"]
NEED_FILES = (
    "image_folder",
    "image_csv",
    "imagenet",
    "tiny_imagenet",
    "hf",
    "webdataset",
)  # whose classes are what the files say


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_says_when_one_would_choose_it(group, option):
    first = menu()[group][option]
    assert first in (CONF / group / f"{option}.yaml").read_text()
    assert len(first) > 20
    assert ":" in first or "." in first


def written(group, option):
    """What its file holds, and those of the group that it starts from."""
    node = yaml.safe_load((CONF / group / f"{option}.yaml").read_text())
    for other in node.pop("defaults", ()):
        if isinstance(other, str) and other != "_self_":
            node = written(group, other) | node
    return node


@pytest.mark.parametrize(("group", "option"), [(g, o) for g, o in OPTIONS if g not in ("experiment", "patch")])
def test_every_option_spells_out_its_constructors_arguments(group, option):
    node = written(group, option)
    signature = inspect.signature(locate(node["_target_"]))
    keys = {key for key in node if not key.startswith("_")}
    keys |= {part.removeprefix(f"{group}/") for part in menu() if part.startswith(f"{group}/")}
    assert keys <= set(signature.parameters)
    given_by_code = {"image_size", "channels", "classes", "patch", "width", "heads", "head_width", "grid", "dropout"}
    given_by_code |= {
        "output_dropout",
        "init",
        "params",
        "fused",
        "foreach",
        "maximize",
        "capturable",
        "differentiable",
    }
    given_by_code |= {"amsgrad", "dampening"}
    if node["_target_"].startswith("vitlab."):
        assert set(signature.parameters) - given_by_code <= keys


@pytest.mark.slow
@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_checks_and_builds(group, option, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    found = re.search(r"override /dataset: (\w+)", (CONF / group / f"{option}.yaml").read_text())
    dataset = option if group == "dataset" else found and found[1]
    needs = WRITERS[dataset](tmp_path, monkeypatch) if dataset in NEED_FILES else NEEDS.get(option, [])
    overrides = [f"{group}={option}", *needs]
    if group == "patch":
        overrides += ["dataset=synthetic", "dataset.image_size=224"]
    node, choices = compose(overrides)
    assert choices[group] == option
    with torch.device("meta"):
        parts = assemble(check(node))
        data = parts["dataset"]
        parts["model"](image_size=data.shape, channels=data.channels, classes=len(data.classes))


def test_the_reference_model_has_exactly_its_parameters():
    node, _ = compose(["model=reference", "dataset=synthetic", "dataset.image_size=32", "patch=p4"])
    model = assemble(check(node))["model"](image_size=32, channels=3, classes=10)
    assert sum(p.numel() for p in model.parameters()) == 207_946
    assert isinstance(model.norm, torch.nn.Identity)
    assert model.blocks[0].mlp.branch.activation.approximate == "tanh"
    assert model.blocks[0].attention.branch.dropout == 0.1


@pytest.mark.parametrize(
    ("size", "width", "depth", "heads"),
    [
        ("tiny", 192, 12, 3),
        ("small", 384, 12, 6),
        ("base", 768, 12, 12),
        ("large", 1024, 24, 16),
        ("huge", 1280, 32, 16),
    ],
)
def test_sizes_are_the_published_ones(size, width, depth, heads):
    node, _ = compose([f"model={size}"])
    assert (node["model"]["width"], node["model"]["depth"], node["model"]["heads"]) == (width, depth, heads)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model=tyni"], "model=tyni: there is no such option; model is one of .*tiny.*did you mean tiny"),
        (["patch=16"], "patch=16: .*did you mean patch=p16"),
        (["patch=12"], "patch=12: .*for a size of your own: model.patch=12"),
        (["patch=p5"], "patch is one of p1, p2, p4, p7"),
        (["optimizer.lrr=1"], "there is no optimizer.lrr; did you mean optimizer.lr?"),
        (["optimzer=adamw"], "there is no optimzer; did you mean optimizer?"),
        (["+model.classes=5"], "there is no model.classes"),
        (["optimizer.momentum=0.9"], "the chosen options have no such key; optimizer=muon, optimizer=sgd have it"),
        (["model.depth=abc"], "model.depth=abc: expected a whole number"),
        (["model.depth=[1,2]"], r"model.depth=\[1, 2\]: expected a whole number"),
        (["model.depth=2.5"], "model.depth=2.5: expected a whole number"),
        (["model.depth=true"], "model.depth=true: expected a whole number"),
        (["optimizer.lr=big"], "optimizer.lr=big: expected a number"),
        (["model.attention.kernel=flash"], "model.attention.kernel=flash: expected one of auto, explicit, fused"),
        (["model.position=rope"], "model.position=rope: expected an option of the group: model/position="),
        (["patch=p1,p2"], "several options for one run; add -m"),
        (["seed=0,1"], "several values for one run; add -m"),
        (["model=vit"], "model.width has no value"),
        (
            ["dataset=image_folder"],
            "dataset.root has no value: give one, the folder of the images, dataset.root=FOLDER",
        ),
        (["loss.class_weights={fish: 2}"], "expected balanced, a list of numbers, or null"),
        (["optimizer.betas=x"], "optimizer.betas=x: expected a list of 2 numbers"),
        (["fit.clip=x"], "fit.clip=x: expected a number or null"),
        (["patch=p4 fit.epochs=5"], r"several overrides in one: .*\['patch=p4', 'fit.epochs=5'\]"),
        (["optimizer.lr=1e-3 seed=1"], "several overrides in one"),
        (["train"], "train: write group=option or key=value"),
        (["fit.precision=float8"], "fit.precision=float8: expected one of auto, fp32, bf16, fp16"),
        (["model.position.at=everywhere"], "expected one of stem, every_block, every_block_shared"),
        (["model/position=rope", "model.position.at=stem"], "model.position.at: the chosen options have no such key"),
        (["optimizer._target_=os.system"], "_target_: os.system is refused"),
        (["seed=-1"], "seed=-1: must be 0 or more"),
        (["seed=one"], "seed=one: expected a whole number"),
        (["model.patch=0"], "patch=0 does not divide"),
        (["model.patch=two"], "model.patch=two: expected a whole number"),
        (["patch.size=two"], "model.patch=two: expected a whole number"),
        (["patch.siz=2"], "there is no patch.siz"),
        (["fit.epochs=3", "fit.steps=4"], "fit.epochs=3.0 and fit.steps=4: give one"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(overrides, sentence):
    def build_all():
        parts = assemble(check(compose(overrides)[0]))
        parts["model"](image_size=parts["dataset"].shape, channels=1, classes=10)

    with pytest.raises(ValueError, match=sentence) as caught:
        build_all()
    assert "\n" not in str(caught.value)


def test_one_way_to_say_a_duration_takes_the_others_away():
    fit = compose(["fit.steps=7"])[0]["fit"]
    assert (fit["epochs"], fit["steps"], fit["images"]) == (None, 7, None)
    schedule = compose(["schedule.warmup_steps=3"])[0]["schedule"]
    assert (schedule["warmup_fraction"], schedule["warmup_steps"]) == (None, 3)


def test_a_patch_of_any_size_is_a_value_of_the_model_and_of_its_earlier_name():
    sizes = ["patch=p1", "model.patch=4"], ["patch.size=4"], ["patch=p4"], ["patch=p4", "model=tiny", "model=micro"]
    assert [compose(words)[0]["model"]["patch"] for words in sizes] == [4] * 4
    assert len({identity(check(compose(words)[0])) for words in sizes}) == 1
    assert compose(["experiment=fashion_mnist"])[0]["model"]["patch"] == 8


def test_an_experiment_is_chosen_with_or_without_its_plus():
    assert compose(["+experiment=fashion_mnist"])[0] == compose(["experiment=fashion_mnist"])[0]


def test_what_cannot_change_a_result_does_not_identify_a_run():
    def of(*overrides):
        return identity(check(compose(overrides)[0]))

    same = of()
    for override in ("system.device=cpu", "system.workers=3", "tracking=off", "system.runs=elsewhere", "fit.epochs=60"):
        assert of(override) == same, override
    assert of("dataset=mnist") == of("dataset=mnist", "dataset.root=x", "dataset.download=true")
    others = [of(o) for o in ("seed=1", "patch=p4", "optimizer.lr=0.1", "model/pool=gap", "dataset.split_seed=1")]
    assert len({same, *others}) == 6


def test_folds_and_seeds_are_runs_of_one_cell():
    def of(*overrides):
        config, choices = compose(overrides)
        return identity(config := check(config)), cell_identity(config), slug(config, choices)

    runs = [of("dataset.folds=5", f"dataset.fold={fold}", f"seed={seed}") for fold in range(3) for seed in range(2)]
    names, cells, slugs = map(set, zip(*runs, strict=True))
    assert (len(names), len(cells)) == (6, 1)
    assert slugs == {f"digits-micro-p2-f{fold}-s{seed}" for fold in range(3) for seed in range(2)}
    assert of("dataset.folds=4")[1] not in cells
    assert of()[1:] == (of("seed=1")[1], "digits-micro-p2-s0")
    assert of()[1] not in cells


def test_a_folder_of_images_is_identified_by_where_it_is(tmp_path):
    def of(root):
        return identity(check(compose(["dataset=image_folder", f"dataset.root={root}"])[0]))

    assert of("one") != of("two")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "vitlab.config.check.importlib.import_module",
        "vitlab.config.check.Path",
        "vitlab.storage.files.os.system",
        "vitlab.model.vit.torch.load",
        "torch.load",
        "torch.optim.swa_utils.copy.deepcopy",
        "vitlab.cli.run.run",
        "vitlab.nothing.Here",
        "vitlabs.model.ViT",
        "",
        "x",
    ],
)
def test_targets_outside_the_allowlist_are_refused(target):
    with pytest.raises(ConfigError, match="_target_"):
        build({"_target_": target, "args": ["touch hacked"]})


def test_a_strangers_configuration_may_name_models_only():
    with pytest.raises(ConfigError, match="refused"):
        build({"_target_": "torch.optim.AdamW"}, MODELS)
    assert build({"_target_": "vitlab.model.mlp.Mlp", "width": 4, "dropout": 0.0}, MODELS)


def test_the_help_has_every_option_and_its_line():
    text = help_text()
    for group, option in OPTIONS:
        assert option in text
        assert menu()[group][option] in text
