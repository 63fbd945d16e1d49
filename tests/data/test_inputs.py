"""Inputs of a training step: mixed as timm mixes, of fixed shapes, and without a look at a tensor's value."""

from dataclasses import replace

import pytest
import torch

from tests.data.test_augment import augment
from tests.recording import NoReads
from tests.training.test_loop import ALONE, SMALL
from vitlab.config.build import assemble
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.data.batch import Batch
from vitlab.data.loader import local_indices
from vitlab.data.seeding import seeded
from vitlab.system.distributed import Distributed
from vitlab.system.lazy_imports import modules
from vitlab.training.batches import train_batches, train_inputs
from vitlab.training.setup import prepare

SIZE = (8, 12)
KINDS = {
    "mixup": {"mixup": 0.5},
    "cutmix": {"cutmix": 1.0},
    "both": {"mixup": 0.5, "cutmix": 1.0, "mix_probability": 0.7, "cutmix_share": 0.4},
}


def mixed(mixing, images, labels, *key):
    kind, numbers = mixing.draws(tuple(images.shape[2:]), *key)
    return kind, *mixing.apply(images.clone(), labels, Batch(kind, numbers))


@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_images_and_targets_are_those_of_timm_to_the_last_bit(n, options):
    (mixup,) = modules("timm.data.mixup")
    chosen = augment(**options)
    timm = mixup.Mixup(chosen.mixup, chosen.cutmix, None, chosen.mix_probability, chosen.cutmix_share, num_classes=10)
    timm.label_smoothing = 0.0
    images, labels = torch.randn(n, 3, *SIZE), torch.arange(n) % 10
    kinds = set()
    for step in range(12):
        with seeded(3, step):
            rows = [*range(n), 0][: n + n % 2]  # timm takes even batches
            theirs, targets = timm(images[rows], labels[rows])
        kind, ours, probabilities = mixed(chosen.mixing(10), images, labels, 3, step)
        assert torch.equal(ours, theirs[:n])
        assert torch.equal(probabilities, targets[:n])
        kinds.add(kind)
    assert kinds == ({"plain", "mixup", "cutmix"} if len(options) > 1 else {*options})


def test_without_alphas_nothing_is_mixed():
    assert augment().mixing(10) is None
    assert augment(mixup=0.5, mix_probability=0.0).mixing(10) is None


def prepared(*words):
    parts = assemble(check(compose([*SMALL, "fit.batch_size=12", "fit.steps=9", *words])[0]))
    parts["dataset"].flip = True
    return prepare(**parts, dist=ALONE)


def inputs_of(setup, start=0, steps=6):
    inputs, batches = train_inputs(setup), train_batches(setup, start)
    return [inputs(next(batches).to(setup.dist.device)) for _ in range(steps)]


EVERYTHING = ("augment.flip=0.5", "augment.erase=0.5", "augment.mixup=0.3", "augment.cutmix=1.0")
CROPS = ("none", "pad", "resized")


@pytest.mark.parametrize("crop", CROPS)
def test_the_inputs_of_a_step_are_the_same_after_a_resume_with_a_worker_and_in_several_processes(crop):
    setup = prepared(*EVERYTHING, f"augment.crop={crop}", "augment.repeats=3")
    whole = inputs_of(setup)
    read = replace(setup, system=replace(setup.system, workers=1))
    for others in (inputs_of(setup, 3), inputs_of(read, 3)):
        for (images, targets), (same, too) in zip(whole[3:], others, strict=False):
            assert torch.equal(images, same)
            assert torch.equal(targets, too)
    for rank in range(3):
        part = inputs_of(replace(setup, dist=Distributed(rank, 3, torch.device("cpu"))))
        rows = local_indices(12, rank, 3)
        for (images, targets), (mine, too) in zip(whole, part, strict=True):
            assert torch.equal(images[rows], mine)
            assert torch.equal(targets[rows], too)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("crop", CROPS)
def test_inputs_read_no_value_on_the_host_and_their_shapes_are_those_of_the_kind(crop, workers):
    words = (*EVERYTHING, f"augment.crop={crop}", "augment.mix_probability=0.7", f"system.workers={workers}")
    setup = replace(prepared(*words), not_captured="")
    inputs, shapes = train_inputs(setup), {}
    for batch in train_batches(setup, 0):
        with NoReads():
            found = inputs(batch)
        now = {name: (values.shape, values.dtype) for name, values in batch.tensors.items()}
        assert shapes.setdefault(batch.kind, now) == now
        assert [tuple(values.shape) for values in found] == [(12, 1, 8, 8), (12, 10)]
    assert set(shapes) == {"plain", "mixup", "cutmix"}
