"""Crop and mirror of whole batches do to each image what torchvision does to it alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp, kstest

from tests.data.test_augment import augment, colours, digits, first_batches
from vitlab.data.geometry import Geometry, resized_crop
from vitlab.data.preprocess import to_pixels
from vitlab.data.seeding import uniforms
from vitlab.system.lazy_imports import modules

transforms, vision = modules("torchvision.transforms", "torchvision.transforms.functional")


def images(count=40, size=(20, 24), channels=3):
    smooth = np.random.default_rng(0).integers(0, 256, (count, channels, 5, 6), dtype=np.uint8)
    wide = [Image.fromarray(image.transpose(1, 2, 0)).resize((size[1], size[0])) for image in smooth]
    return torch.stack([to_pixels(image) for image in wide])


def keys(count, start=0):
    return np.zeros(count, dtype=np.int64), np.arange(start, start + count)


def pil(pixels):
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def geometry(**values):
    return Geometry(**{"size": (20, 24), "crop": "none", "padding": (3, 2), "area": (0.2, 1.0), "flip": 0.5} | values)


def test_numbers_are_uniform_and_a_function_of_each_part_of_their_key():
    numbers = uniforms(3, *keys(4000), 4)
    assert kstest(numbers.ravel(), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.05
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.05
    assert (uniforms(3, *keys(10, start=7), 4) == numbers[7:17]).all()
    assert (uniforms(3, *keys(10), 2) == numbers[:10, :2]).all()
    for other in (uniforms(4, *keys(4000), 4), uniforms(3, keys(4000)[0] + 1, keys(4000)[1], 4)):
        assert abs(np.corrcoef(other.ravel(), numbers.ravel())[0, 1]) < 0.03


def seen_by(chosen, pixels, *key):
    return chosen.apply(pixels, chosen.draws(*key))


@pytest.mark.slow
def test_padded_crops_are_torchvisions_and_every_window_comes_as_often():
    pixels, chosen = images(), geometry(crop="pad")
    seen = seen_by(chosen, pixels, 0, *keys(len(pixels)))
    tops, lefts = [], []
    for image, window in zip(pixels, seen, strict=True):
        padded = vision.pad(pil(image), [2, 3])
        candidates = {
            (top, left, flipped): vision.crop(padded, top, left, 20, 24)
            for top in range(7)
            for left in range(5)
            for flipped in (False, True)
        }
        found = [
            key
            for key, crop in candidates.items()
            if torch.equal(to_pixels(vision.hflip(crop) if key[2] else crop), window)
        ]
        assert len(found) == 1
        tops.append(found[0][0])
        lefts.append(found[0][1])
    assert {*tops} == {*range(7)}
    assert {*lefts} == {*range(5)}


@pytest.mark.parametrize(
    "box", [(0, 0, 20, 24), (3, 5, 9, 7), (0, 0, 1, 1), (19, 0, 1, 24), (2, 20, 18, 4), (7, 7, 2, 3)]
)
@pytest.mark.parametrize("flipped", [False, True])
def test_a_resized_crop_is_pils_to_a_level(box, flipped):
    pixels = images(6)
    ours = resized_crop(pixels, torch.tensor([box] * 6), torch.tensor([flipped] * 6))
    for image, mine in zip(pixels, ours, strict=True):
        resized = vision.resized_crop(pil(image), *box, (20, 24), vision.InterpolationMode.BICUBIC)
        theirs = to_pixels(vision.hflip(resized) if flipped else resized)
        assert (mine.int() - theirs.int()).abs().max() <= 1
        assert (mine == theirs).float().mean() > 0.98


@pytest.mark.slow
@pytest.mark.parametrize("area", [(0.08, 1.0), (0.8, 1.0), (1.0, 1.0)])
def test_crops_are_drawn_as_torchvision_draws_them(area):
    numbers = uniforms(1, *keys(3000), 22)
    ours = geometry(crop="resized", area=area).crop_boxes(numbers)
    torch.manual_seed(0)
    draw, image = transforms.RandomResizedCrop.get_params, pil(images(1)[0])
    theirs = np.array([draw(image, area, (3 / 4, 4 / 3)) for _ in range(3000)])
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column], method="asymp").pvalue > 0.001
    assert ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3], method="asymp").pvalue > 0.001


def test_half_are_flipped_and_none_with_probability_zero():
    pixels = images(2).repeat(1000, 1, 1, 1)
    seen = seen_by(geometry(), pixels, 5, *keys(2000))
    flipped = (seen == pixels.flip(3)).flatten(1).all(dim=1)
    assert 0.46 < flipped.float().mean() < 0.54
    assert torch.equal(seen[~flipped], pixels[~flipped])
    assert seen_by(geometry(flip=0.0), pixels, 5, *keys(2000)) is pixels


@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
def test_an_image_looks_the_same_in_any_batch_and_anew_in_each_round(crop):
    pixels, chosen = images(), geometry(crop=crop)
    whole = seen_by(chosen, pixels, 2, *keys(40))
    turned = torch.arange(39, -1, -1)
    assert torch.equal(seen_by(chosen, pixels[turned], 2, np.zeros(40, dtype=np.int64), turned.numpy()), whole[turned])
    assert torch.equal(seen_by(chosen, pixels[7:8], 2, *keys(1, start=7)), whole[7:8])
    assert not torch.equal(seen_by(chosen, pixels, 2, keys(40)[0] + 1, keys(40)[1]), whole)
    assert not torch.equal(seen_by(chosen, pixels, 3, *keys(40)), whole)


def flippable_digits():
    dataset = digits()
    dataset.flip = True
    return dataset


def test_whole_batches_are_cropped_and_flipped_where_possible_and_not_forbidden():
    assert augment(crop="pad").geometry(digits()) is not None
    assert augment(crop="pad", batched=True).geometry(digits()) is not None
    assert augment(crop="pad", batched=False).geometry(digits()) is None
    assert augment(flip=0.5).geometry(flippable_digits()) is not None
    assert augment(flip=0.5).geometry(digits()) is None  # digits are never flipped
    assert augment(batched=True).geometry(flippable_digits()) is None
    assert augment(crop="pad", color_jitter=0.4).geometry(flippable_digits()) is None
    assert augment(crop="pad", auto_augment="rand-m9-mstd0.5-inc1").geometry(flippable_digits()) is None
    assert augment(crop="pad").geometry(colours()) is None  # decoded on access, at any size
    assert augment(crop="resized").geometry(flippable_digits()).size == (8, 8)
    assert augment(crop="pad", batched=True).geometry(colours()) is not None  # cached, at the model's input size
    with pytest.raises(ValueError, match=r"augment.batched=true, but .* one image after the other"):
        augment(color_jitter=0.4, batched=True).geometry(digits())


def test_a_training_sees_whole_batches_cropped_and_flipped(monkeypatch):
    batched = augment(crop="pad", flip=0.5)
    monkeypatch.setattr(batched, "transform", batched.geometry)
    pixels, labels = first_batches(flippable_digits(), batched, 0)
    again, _ = first_batches(flippable_digits(), batched, 2)
    assert torch.equal(pixels, again)
    plain, same = first_batches(flippable_digits(), augment(), 0)
    assert torch.equal(labels, same)
    assert not torch.equal(pixels, plain)
    assert pixels.dtype == torch.uint8
