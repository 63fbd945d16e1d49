"""What may be typed: paths as people have them, Hydra's grammar of sweeps, and what is refused."""

import inspect
import typing

import pytest
import yaml
from omegaconf import OmegaConf

from vitlab.cli.multirun import check_runs, planned
from vitlab.config.check import check, locate
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError
from vitlab.config.groups import CONF, TEXTS, menu, nearest
from vitlab.config.identity import identity
from vitlab.config.overrides import complete, parse, several

# fmt: off
NAMES = [
    "~/pics", "~anna/pics", "My Data (1)", "a=b", "naïve_Büro", "数据", "it's", "#1", "x[1]", "R&D", "a,b", "[1]",
    "123", "1e3", "1_000", "true", "{a: 1}", "x-{000..010}.tar", "it's \\", "a: b", "(", "a\\'b", "'", '"',
]
# fmt: on
WORDS_OF_A_FORM = {"augment.auto_augment", "dataset.background", "system.device"}  # neither a path nor a free text


def root_of(*words):
    return compose(["dataset=image_folder", *words])[0]["dataset"]["root"]


def texts_of(words):
    """The folder of every run of a multirun, as Hydra reads it for the job."""
    runs = planned(complete(["dataset=image_folder", *words], many=True))
    roots = (next(word for word in run if word.startswith("dataset.root=")) for run in runs)
    return [OmegaConf.create({"root": parse(root).value()}).root for root in roots]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_taken_as_it_is_typed(name):
    assert root_of(f"dataset.root={name}") == name
    assert root_of(f"dataset.root=P/{name}") == f"P/{name}"


@pytest.mark.parametrize("name", [name for name in NAMES if "," not in name])
def test_a_path_is_taken_as_it_is_typed_in_a_multirun(name):
    assert texts_of([f"dataset.root=P/{name}", "seed=0,1"]) == [f"P/{name}"] * 2
    assert texts_of([f"dataset.root=P/{name},other"]) == [f"P/{name}", "other"]


@pytest.mark.parametrize("key", sorted(TEXTS))
def test_every_key_of_a_text_takes_what_is_typed(key):
    groups = {"dataset.root": "image_folder", "dataset.path": "hf", "dataset.config": "hf", "dataset.revision": "hf"}
    groups |= {f"dataset.{each}": "hf" for each in ("image_column", "label_column")}
    groups |= {f"dataset.{each}_split": "hf" for each in ("train", "validation", "test")}
    needs = {"image_folder": "dataset.root=x", "hf": "dataset.path=x", "webdataset": "dataset.train=x"}
    name = groups.get(key, "webdataset")
    node = check(compose([f"dataset={name}", needs[name], f"{key}=12e3, R&D"])[0])
    group, _, leaf = key.partition(".")
    assert node[group][leaf] == "12e3, R&D"
    assert check(compose([f"dataset={name}", needs[name], f"{key}=12e3"])[0])[group][leaf] == "12e3"


def test_keys_of_a_text_are_those_whose_argument_is_a_string():
    found = set()
    for group, options in menu().items():
        for option in options if group != "experiment" else ():
            target = yaml.safe_load((CONF / group / f"{option}.yaml").read_text()).get("_target_")
            for key, argument in inspect.signature(locate(target), eval_str=True).parameters.items() if target else ():
                if argument.annotation is str or str in typing.get_args(argument.annotation):
                    found.add(f"{group}.{key}".replace("/", "."))
    found -= {key for key in found if "tags" in key or key == "dataset.image"}  # lists of words
    assert found == TEXTS | WORDS_OF_A_FORM


def test_a_quoted_text_is_what_the_quotes_hold_and_null_is_none():
    assert root_of("dataset.root='a, (b)'") == root_of('dataset.root="a, (b)"') == "a, (b)"
    assert compose(["tracking.notes=null"])[0]["tracking"]["notes"] is None
    assert compose(["tracking.notes='null'"])[0]["tracking"]["notes"] == "null"


def test_weights_of_any_path_are_given_by_init():
    for path in ("~/runs/a (1)", "runs/12e4", "a,b"):
        assert compose([f"init={path}"])[0]["init"]["weights"] == path
    runs = planned(complete(["init=~/runs/a (1),runs/b"], many=True))
    assert [compose(run)[0]["init"]["weights"] for run in runs] == ["~/runs/a (1)", "runs/b"]
    assert compose(["init=x", "init.origin=12345678"])[0]["init"]["origin"] == "12345678"


def test_a_text_that_cannot_change_a_result_has_one_value_in_a_multirun():
    given = complete(["tracking.notes=a, b", "system.runs=R&D, 2", "seed=0,1"], many=True)
    nodes = [compose(run)[0] for run in planned(given)]
    assert [node["tracking"]["notes"] for node in nodes] == ["a, b"] * 2
    assert [node["system"]["runs"] for node in nodes] == ["R&D, 2"] * 2


def test_a_multirun_over_folders_that_are_not_there_shows_how_a_comma_is_quoted(tmp_path):
    given = complete(["dataset=image_folder", f"dataset.root={tmp_path}/Smith, John"], many=True)
    with pytest.raises(ConfigError, match=r"looked for .*/Smith\. .*quoted, dataset.root=\"'a,b'\""):
        check_runs(given)
    assert texts_of(["dataset.root='Smith, John'", "seed=0,1"]) == ["Smith, John"] * 2


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("seed=range(0,2)", ["seed=0", "seed=1"]),
        ("seed=choice(0,1)", ["seed=0", "seed=1"]),
        ("seed=0,0", ["seed=0"]),
        ("seed=0,1,0", ["seed=0", "seed=1"]),
        ("seed=sort(3,1,2)", ["seed=1", "seed=2", "seed=3"]),
        ("patch=choice(p2,p4)", ["patch=p2", "patch=p4"]),
        ("patch=p2, p4", ["patch=p2", "patch=p4"]),
        ("patch='p2','p4'", ["patch=p2", "patch=p4"]),
        ("patch=p2,p2", ["patch=p2"]),
        ("patch=glob([p1*,p8],exclude=p16)", ["patch=p1", "patch=p8", "patch=p14"]),
        ("model/pool=glob(*)", ["model/pool=cls", "model/pool=gap", "model/pool=map"]),
        ("model/pool=glob(*,exclude=map)", ["model/pool=cls", "model/pool=gap"]),
        ("+experiment=glob(*)", [f"+experiment={name}" for name in menu()["experiment"]]),
        ("optimizer.betas=[0.9,0.99],[0.9,0.95]", ["optimizer.betas=[0.9,0.99]", "optimizer.betas=[0.9,0.95]"]),
        ("optimizer.betas=choice([0.9,0.99],[0.9,0.95])", ["optimizer.betas=[0.9,0.99]", "optimizer.betas=[0.9,0.95]"]),
        ("augment.auto_augment=null,rand-m9", ["augment.auto_augment=null", "augment.auto_augment=rand-m9"]),
        ("tracking.notes='a, b'", ["tracking.notes='a, b'"]),
        ("optimizer.lr=1e-3,2e-3", ["optimizer.lr=0.001", "optimizer.lr=0.002"]),
        ("fit={batch_size: 16}", ["fit.batch_size=16"]),
        ("++optimizer.lr=0.1", ["optimizer.lr=0.1"]),
        ("+optimizer.lr=0.1", ["optimizer.lr=0.1"]),
    ],
)
def test_a_multirun_has_a_run_for_each_value_as_hydra_reads_them(word, values):
    assert planned(complete([word], many=True)) == [[value] for value in values]


def test_shuffled_options_are_all_trained():
    assert sorted(planned(complete(["patch=shuffle(p2,p4,p1)"], many=True))) == [
        ["patch=p1"],
        ["patch=p2"],
        ["patch=p4"],
    ]


def test_a_dictionary_for_a_group_sets_its_keys():
    assert compose(["fit={batch_size: 16}"])[0] == compose(["fit.batch_size=16"])[0]
    assert compose(["fit={steps: 3, clip: null}"])[0] == compose(["fit.steps=3", "fit.clip=null"])[0]
    assert compose(["model={mlp: {ratio: 2.0}}"])[0] == compose(["model.mlp.ratio=2.0"])[0]
    assert compose(["tracking={notes: 'a (b)', name: '1'}"])[0]["tracking"]["name"] == "1"


@pytest.mark.parametrize(
    ("word", "many", "sentence"),
    [
        ("seed=0,1", False, "seed=0,1: several values for one run; add -m to train each"),
        ("seed=range(0,2)", False, "several values for one run; add -m"),
        ("patch=choice(p2,p4)", False, "several options for one run; add -m"),
        ("model/pool=glob(*)", False, "several options for one run; add -m"),
        ("augment.auto_augment=null,rand-m9", False, "several values for one run; add -m"),
        ("model/pool=glob(x*)", True, r"no option is like that; model/pool is one of cls, gap, map"),
        ("patch=choice(p2,p5)", True, "patch=p5: there is no such option"),
        ("seed=glob(*)", True, "glob\\(\\) chooses options of a group, and seed is none"),
        ("fit={batchsize: 16}", False, "there is no fit.batchsize; did you mean fit.batch_size"),
        ("~augment", False, "~augment: a group cannot be deleted: take augment=none"),
        ("~model/pool", False, "a group cannot be deleted: take model/pool=cls|gap|map"),
        ("~experiment", False, "leave it out"),
        ("~optimizer.betas", False, "a key cannot be deleted: give it another value, optimizer.betas=VALUE"),
        ("~nothing", False, "there is no nothing"),
        ("hydra.mode=MULTIRUN", False, "hydra.mode=MULTIRUN: use -m"),
        ("hydra.run.dir=elsewhere", False, "use system.runs=FOLDER"),
        ("hydra.job.chdir=true", False, "leaves the working directory as it is"),
        ("hydra/launcher=joblib", False, "one run has no use for it: add -m"),
        ("tracking.tags=[数据,a]", False, "quote the texts in it, tracking.tags=\"\\['a b','c'\\]\""),
        ("optimizer.momentum=0.9", False, "optimizer=muon, optimizer=sgd have it"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(word, many, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        compose(complete([word], many=True)) if many else compose([word])
    assert "\n" not in str(caught.value)


def test_the_same_run_twice_is_refused_before_the_first_starts():
    with pytest.raises(ConfigError, match=r"\[system.workers=0\] and \[system.workers=2\] are the same run"):
        check_runs(complete(["system.workers=0,2"], many=True))
    assert check_runs(complete(["system.workers=0,2", "system.retrain=true"], many=True)) == 2


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("loss.weight", "loss.class_weights"),
        ("loss.origin", "init.origin"),
        ("loss.weights", "loss.class_weights"),
        ("loss.positionss", ""),
        ("optimizer.weightdecay", "optimizer.weight_decay"),
        ("optimizer.l", "optimizer.lr"),
        ("lr", "optimizer.lr"),
        ("optim.lr", "optimizer.lr"),
        ("fit.learning_rate", ""),
    ],
)
def test_a_key_is_suggested_only_where_it_is_near(word, near):
    with pytest.raises(ConfigError) as caught:
        compose([f"{word}=1"])
    assert str(caught.value) == f"{word}=1: there is no {word}" + (f"; did you mean {near}?" if near else "")


def test_an_option_is_suggested_where_two_letters_are_swapped():
    assert nearest("tyni", menu()["model"]) == "; did you mean tiny?"


def test_the_values_of_an_override_in_a_sweep_file_stay_as_typed():
    assert several("optimizer.lr=1e-3,2e-3") == ["1e-3", "2e-3"]
    assert several("init=~/a (1,2), ~/b") == ["~/a (1,2)", "~/b"]
    assert several("patch=choice(p1,p2)") == several("patch=p1,p2") == ["p1", "p2"]
    assert several("model/pool=glob(*,exclude=map)") == ["cls", "gap"]
    assert several("optimizer.betas=[[1,2],[3]],[4]") == ["[[1,2],[3]]", "[4]"]
    assert several("tracking.notes=a, b") == ["a, b"]


def test_how_a_path_is_typed_leaves_the_run_as_it_is():
    def of(word):
        return identity(check(compose(["dataset=image_folder", word])[0]))

    assert of("dataset.root=My Data (1)") == of("dataset.root='My Data (1)'")
