"""Trainings in a pack: each is the training that it is alone, whatever is beside it."""

import copy

import pytest
import torch

from tests.config.test_check import check, compose
from tests.training.test_loop import ALONE
from vitlab.config.build import assemble
from vitlab.config.groups import menu
from vitlab.training.batches import train_batches
from vitlab.training.pack import Pack
from vitlab.training.setup import prepare
from vitlab.training.state import TrainState
from vitlab.training.step import train_step

SMALL = [
    "tracking=off",
    "patch=p4",
    "dataset.train_examples=60",
    "model.width=16",
    "model.depth=1",
    "model.heads=2",
    "fit.batch_size=8",
    "fit.steps=50",
    "fit.precision=fp32",
]
GROUPS = [group for group in menu() if group not in ("dataset", "experiment", "system", "tracking")]
LARGE = ["dataset=synthetic", "dataset.image_size=32", "dataset.train_examples=60", "fit.batch_size=4"]
NARROW = [*LARGE, "model.stem.widen=0.125", "model.stem.blocks=[1,1]", "patch=p8"]
NEEDS = {
    **{("model", name): [*NARROW, "model.width=64"] for name in ("resnet26", "resnet50", "resnet101", "resnet152")},
    ("model", "resnet_small"): ["model.stem.widen=0.125", "model.width=128"],
    **{("model/stem", name): NARROW for name in ("resnet26", "resnet50", "resnet50_16")},
    ("model/stem", "resnet_small"): ["model.stem.widen=0.125"],
    ("model/attention", "axial"): ["model/pool=gap"],
    **{("patch", name): LARGE for name in ("p16", "p32")},
    ("patch", "p7"): ["dataset.image_size=14"],
    ("patch", "p14"): ["dataset.image_size=14"],
}


def training(*words, **changes):
    """The state of a small training, and its batches."""
    return begin(compose([*SMALL, *words])[0], **changes)


def begin(node, **changes):
    setup = prepare(**assemble(check({**copy.deepcopy(node), **changes})), dist=ALONE)
    return TrainState(setup, "test"), train_batches(setup, 0)


def advance(trainings, steps, pack=None):
    """The loss of each training in each step; computed in a pack, or alone."""
    losses = []
    for _ in range(steps):
        pending = [(state, next(batches)) for state, batches in trainings]
        for state, _ in pending:
            state.setup.schedule.set(state.step)
        if pack:
            pack.step(pending)
        else:
            for update in pending:
                train_step(*update)
        losses.append([state.fetch() and state.meter.sums["loss"] / state.meter.counted for state, _ in pending])
        for state, _ in pending:
            state.meter.clear()
    return torch.tensor(losses, dtype=torch.float64)


def difference(nodes, steps):
    """The largest difference of a loss between trainings in a pack and alone."""
    alone = advance([begin(node) for node in nodes], steps)
    packed = advance([begin(node) for node in nodes], steps, Pack(8))
    assert alone.isfinite().all()
    return float((alone - packed).abs().max())


def seeds(words, count=3):
    node = compose([*SMALL, *words])[0]
    return [{**node, "seed": seed} for seed in range(count)]


OPTIONS = [(group, option) for group in GROUPS for option in menu()[group]]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_the_losses_of_each_option_are_those_of_the_runs_alone(group, option):
    words = [f"{group}={option}", *NEEDS.get((group, option), [])]
    assert difference(seeds(words), 6) < 1e-5
