"""Everything that can be chosen trains a step: on files in the true formats, at a shrunken size."""

import math
import re

import pytest
import torch

from tests.disk import WRITERS
from vitlab.config.build import assemble
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.groups import CONF, menu
from vitlab.storage.run import Run
from vitlab.system.distributed import single_process
from vitlab.training.loop import fit
from vitlab.training.setup import prepare

pytestmark = pytest.mark.usefixtures("no_curves")

SMALL = ["tracking=off", "model.width=16", "model.depth=2", "model.heads=2", "fit.steps=1", "fit.batch_size=8"]
SMALL += ["fit.precision=fp32"]
GROUPS = ("augment", "loss", "optimizer", "schedule")


def step(tmp_path, *overrides):
    """One update, one evaluation of validation and test, everything written: a whole run of one step."""
    node = check(compose([*SMALL, *overrides])[0])
    setup = prepare(**assemble(node), dist=single_process())
    run = Run(tmp_path / "run")
    run.create()
    result = fit(setup, run, node)
    assert result["status"] == "finished"
    assert math.isfinite(result["test/loss"])
    (row,) = run.rows()
    assert math.isfinite(row["train/loss"])
    assert row["train/gradient_norm"] > 0
    return setup, result


def shrunken(dataset):
    size = 8 if dataset == "digits" else 16
    return [f"dataset.image_size={size}", "patch.size=4"]


@pytest.mark.slow
@pytest.mark.parametrize("dataset", menu()["dataset"])
def test_every_dataset_trains_a_step(dataset, tmp_path, monkeypatch):
    files = WRITERS[dataset](tmp_path / "files", monkeypatch)
    setup, _ = step(tmp_path, f"dataset={dataset}", *files, *shrunken(dataset), "augment=flip_crop")
    assert set(setup.splits) == {"train", "validation", "test"}
    assert len(setup.dataset.mean) == len(setup.dataset.std) == setup.dataset.channels
    assert len(set(setup.dataset.classes)) == len(setup.dataset.classes) >= 2
    assert all(part.labels.max() < len(setup.dataset.classes) for part in setup.splits.values())


@pytest.mark.slow
@pytest.mark.parametrize(("group", "option"), [(group, option) for group in GROUPS for option in menu()[group]])
def test_every_choice_of_a_recipe_trains_a_step(group, option, tmp_path):
    colours = ["dataset=synthetic", "dataset.examples=64", "dataset.image_size=16", "patch=p4"]
    more = ["schedule.timescale=10"] if option == "rsqrt" else []  # a single step has no warm-up to take it from
    step(tmp_path, *colours, f"{group}={option}", *more)


@pytest.mark.slow
@pytest.mark.parametrize("option", menu()["augment"])
def test_every_augmentation_works_on_grey_images_too(option, tmp_path):
    step(tmp_path, f"augment={option}", "dataset.train_examples=64")


def dataset_of(experiment):
    return re.search(r"override /dataset: (\w+)", (CONF / "experiment" / f"{experiment}.yaml").read_text())[1]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", menu()["experiment"])
def test_every_experiment_trains_a_step_at_a_shrunken_size(experiment, tmp_path, monkeypatch):
    files = WRITERS[dataset_of(experiment)](tmp_path / "files", monkeypatch)
    words = [f"experiment={experiment}", *files, "dataset.image_size=32", "patch.size=8", "schedule.warmup_steps=0"]
    setup, _ = step(tmp_path, *words)
    assert setup.optimizer.param_groups[0]["initial_lr"] > 0


SIZES = {
    "reference_cifar10": (207_946, 32, 10),
    "cifar10_vit": (2_697_610, 32, 10),
    "cifar100_vit": (2_714_980, 32, 100),
    "imagenet_b16": (87_158_248, 224, 1000),
    "imagenet_s16_plain": (22_122_472, 224, 1000),
    "imagenet_deit_small": (22_050_664, 224, 1000),
    "fashion_mnist": (640_874, 32, 10),
}


@pytest.mark.parametrize("experiment", menu()["experiment"])
def test_every_experiment_has_its_true_size(experiment, tmp_path, monkeypatch):
    parameters, size, classes = SIZES[experiment]
    files = WRITERS[dataset_of(experiment)](tmp_path / "files", monkeypatch)
    parts = assemble(check(compose([f"experiment={experiment}", "tracking=off", *files])[0]))
    assert parts["dataset"].shape == (size, size)
    with torch.device("meta"):
        model = parts["model"](image_size=size, channels=parts["dataset"].channels, classes=classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("experiment", menu()["experiment"])
def test_every_experiment_opens_with_its_command_and_what_to_expect(experiment):
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    head = text[: text.index("defaults:")]
    assert f"+experiment={experiment}" in head.split("\n")[1]
    for word in ("Expected:", "Time:", "Hardware:", "Source:"):
        assert word in head, word
