"""Random erasing of whole batches: timm's distribution, and draws that depend on the key and the place alone."""

import random

import numpy as np
import pytest
import torch

from vitlab.data.batch import Batch
from vitlab.data.erasing import Erasing
from vitlab.data.seeding import normal_keys, normals, seeded
from vitlab.system.lazy_imports import modules

SIZE = (3, 12, 20)


def test_as_many_as_large_and_as_tall_rectangles_as_timms_in_the_same_places():
    (erasing,) = modules("timm.data.random_erasing")
    count = 4000
    ours = erased_by(0.6, torch.zeros(count, *SIZE), np.arange(count), 7, 1)[:, 0] != 0
    theirs = torch.zeros(count, *SIZE)
    with seeded(5):
        theirs = erasing.RandomErasing(0.6, mode="pixel", device="cpu")(theirs)[:, 0] != 0
    for facts in zip(described(ours), described(theirs), strict=True):
        one, two = facts
        spread = (one.var() / len(one) + two.var() / len(two)).sqrt()
        assert abs(one.mean() - two.mean()) < 4 * spread, facts
        assert float(one.std()) == pytest.approx(float(two.std()), rel=0.1)


def erased_by(probability, images, indices, *key, **options):
    erasing = Erasing(probability, **options)
    draws = Batch("plain", erasing.draws(images.shape[2:], indices, *key))
    return erasing.apply(images, draws.to(images.device).tensors)


def described(erased):
    """Whether, and of those that are: height, width, area, and where the middle is."""
    some = erased.flatten(1).any(dim=1)
    rows, columns = erased[some].any(dim=2).double(), erased[some].any(dim=1).double()
    high, wide = rows.sum(dim=1), columns.sum(dim=1)
    middles = [(lines * torch.arange(lines.shape[1])).sum(dim=1) / lines.sum(dim=1) for lines in (rows, columns)]
    return [some.double(), high, wide, high * wide, *middles]


def test_what_is_erased_is_noise_and_what_is_not_stays():
    images = torch.full((600, *SIZE), 5.0)
    erased = erased_by(1.0, images, np.arange(600), 3)
    noise = erased[erased != 5]
    assert abs(noise.mean()) < 0.02
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert torch.equal(images, torch.full_like(images, 5.0))
    assert 0.1 < (erased != 5).double().mean() < 0.25
    assert torch.equal(erased[:, 0] != 5, erased[:, 2] != 5)


def test_an_image_is_erased_by_its_place_whatever_is_beside_it():
    images = torch.randn(16, *SIZE)
    whole = erased_by(0.5, images, np.arange(16), 2, 9)
    some = np.array([3, 12, 0])
    assert torch.equal(erased_by(0.5, images[some], some, 2, 9), whole[some])
    assert not torch.equal(erased_by(0.5, images, np.arange(16), 2, 10), whole)


@pytest.mark.parametrize("probability", [0.5, 1e-9])
def test_with_fixed_shapes_every_image_is_computed_and_the_same_are_erased(probability):
    images, indices = torch.randn(16, *SIZE), np.arange(3, 19)
    few = Erasing(probability).draws(SIZE[1:], indices, 4)
    every = Erasing(probability, fixed_shapes=True).draws(SIZE[1:], indices, 4)
    assert (0 < len(few["erase_rows"]) < 16) == (probability == 0.5)
    assert {name: len(values) for name, values in every.items()} == dict.fromkeys(few, 16)
    assert sorted(every["erase_rows"].tolist()) == list(range(16))
    erased = Erasing(probability).apply(images, few)
    assert torch.equal(erased, Erasing(probability).apply(images, every))
    assert torch.equal(erased, images) == (probability < 0.5)


def test_nothing_is_drawn_from_the_global_generators():
    before = torch.get_rng_state(), random.getstate()
    erased_by(1.0, torch.zeros(4, *SIZE), np.arange(4), 1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_an_image_of_one_pixel_has_no_rectangle_to_lose():
    images = torch.ones(50, 1, 1, 1)
    assert torch.equal(erased_by(1.0, images, np.arange(50), 1), images)


def test_normals_are_normal_and_independent_of_each_other():
    some = normals(torch.from_numpy(normal_keys(3, np.arange(500))), 401).double()
    assert some.shape == (500, 401)
    assert abs(some.mean()) < 0.01
    for power, moment in ((2, 1), (3, 0), (4, 3)):
        assert float(some.pow(power).mean()) == pytest.approx(moment, abs=0.05)
    assert torch.corrcoef(some.T[:200]).fill_diagonal_(0).abs().max() < 0.25
    assert torch.corrcoef(some[:200]).fill_diagonal_(0).abs().max() < 0.28
    assert len(some.unique()) > 0.98 * some.numel()


def test_a_gpu_erases_as_a_cpu_does(accelerator):
    images = torch.randn(16, *SIZE)
    dist, there = (erased_by(0.5, images.to(device), np.arange(16), 2) for device in ("cpu", accelerator))
    torch.testing.assert_close(there.cpu(), dist, atol=1e-5, rtol=1e-5)
