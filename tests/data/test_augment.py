"""Augmentation and batches: who sees what, when, and that it never depends on the number of workers."""

import numpy as np
import pytest
import torch

from tests.data.test_dataset import COMMON, FOLDER, write_images
from vitlab.config.build import build
from vitlab.config.compose import compose
from vitlab.config.groups import menu
from vitlab.data.augment import Augment, eval_transform
from vitlab.data.datasets.digits import Digits
from vitlab.data.datasets.image_folder import ImageFolder
from vitlab.data.datasets.synthetic import Synthetic
from vitlab.data.loader import EvalSampler, TrainSampler, loader
from vitlab.data.preprocess import Normalize, Preprocess, Resize
from vitlab.data.seeding import seed_of, seeded

OFF = {
    "crop": "none",
    "pad": 0.125,
    "area": (0.8, 1.0),
    "flip": 0.0,
    "color_jitter": 0.0,
    "auto_augment": None,
    "erase": 0.0,
    "repeats": 1,
    "mixup": 0.0,
    "cutmix": 0.0,
    "mix_probability": 1.0,
    "cutmix_share": 0.5,
    "batched": "auto",
}


def augment(**values):
    return Augment(**(OFF | values))


def digits():
    return Digits(**COMMON, test_fraction=0.2)


def colours(size=16, **values):
    return Synthetic(**(COMMON | {"image_size": size}), examples=40, classes_count=4, channels=3, **values)


def first_batches(dataset, augmentation, workers, steps=3, seed=0, **more):
    train = dataset.splits()["train"]
    order = TrainSampler(examples=len(train), batch=8, start=0, stop=steps, seed=seed, **more)
    batches = list(loader(train, augmentation.transform(dataset), order, seed=seed, workers=workers))
    return torch.cat([pixels for pixels, _ in batches]), torch.cat([labels for _, labels in batches])


STRONG = {"crop": "pad", "flip": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1"}


@pytest.mark.parametrize("dataset", [digits, colours])
def test_the_same_image_seed_and_epoch_give_the_same_image_whatever_the_workers(dataset):
    runs = [first_batches(dataset(), augment(**STRONG), workers) for workers in (0, 1, 2)]
    for pixels, labels in runs[1:]:
        assert torch.equal(pixels, runs[0][0])
        assert torch.equal(labels, runs[0][1])
    other, _ = first_batches(dataset(), augment(**STRONG), 0, seed=1)
    assert not torch.equal(other, runs[0][0])


def test_augmentation_leaves_the_global_random_states_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first_batches(colours(), augment(**STRONG), 0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_an_image_is_augmented_anew_in_every_epoch():
    dataset = colours()
    train = dataset.splits()["train"]
    view = loader(train, augment(crop="pad").transform(dataset), EvalSampler(examples=1, batch=1)).dataset
    first, again, later = (view.__getitems__([(epoch, 5)])[0] for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_digits_are_never_flipped():
    assert augment(flip=1.0).transform(digits()) is None
    flipped = augment(flip=1.0).transform(colours())
    image = colours().splits()["train"].image(0)
    assert (np.asarray(flipped(image)) == np.asarray(image.transpose(0)).transpose(2, 0, 1)).all()


def test_pad_crops_are_shifts_of_the_image_by_at_most_the_border():
    dataset = digits()
    image = dataset.splits()["train"].image(0)
    padded = np.pad(np.asarray(image), 1)
    shifts = {padded[y : y + 8, x : x + 8].tobytes() for y in range(3) for x in range(3)}
    transform = augment(crop="pad").transform(dataset)
    seen = set()
    for i in range(60):
        with seeded(i):
            seen.add(np.asarray(transform(image)).tobytes())
    assert seen <= shifts
    assert len(seen) > 5


def test_nothing_to_do_is_no_transform():
    assert augment().transform(digits()) is None
    assert eval_transform(digits()) is None


def test_evaluation_of_small_images_keeps_every_pixel():
    dataset = digits()
    test = dataset.splits()["test"]
    pixels, _ = next(iter(loader(test, eval_transform(dataset), EvalSampler(examples=len(test), batch=len(test)))))
    assert torch.equal(pixels, test.pixels)


def test_evaluation_resizes_the_shorter_side_and_crops_the_centre():
    from torchvision import transforms

    image = colours(40).splits()["train"].image(0).resize((60, 40))
    ours = Resize((28, 28), 0.875)(image)
    theirs = transforms.Compose(
        [transforms.Resize(32, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(28)]
    )
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs(image), int)).max() <= 1
    assert Resize((10, 30), 1.0)(image).size == (30, 10)


def test_files_of_any_size_become_batches(tmp_path):
    write_images(tmp_path, n=8, size=(20, 30))
    dataset = ImageFolder(**(FOLDER | {"root": str(tmp_path), "image_size": (12, 16)}))
    for kind in ({}, {"crop": "pad"}, {"crop": "resized", "flip": 0.5}):
        pixels, _ = first_batches(dataset, augment(**kind), 0, steps=1)
        assert pixels.shape == (8, 3, 12, 16)
        assert pixels.dtype == torch.uint8


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"flip": 1.5}, "augment.flip=1.5"),
        ({"mixup": -1.0}, "augment.mixup=-1.0"),
        ({"repeats": 0}, "augment.repeats=0"),
        ({"color_jitter": 0.2, "auto_augment": "rand-m9"}, "set one of them to 0 or null"),
        ({"area": (0.9, 0.1)}, "augment.area"),
        ({"auto_augment": "rand-m9-nonsense"}, "timm knows no .*nonsense"),
        ({"auto_augment": "nonsense"}, "timm knows no .*nonsense"),
    ],
)
def test_invalid_augmentations_are_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        augment(**values).transform(colours())


def test_a_train_sampler_shows_every_image_once_an_epoch_and_drops_none():
    keys = [key for batch in TrainSampler(examples=10, batch=4, start=0, stop=5, seed=0) for key in batch]
    assert [epoch for epoch, _ in keys] == [0] * 10 + [1] * 10
    for epoch in (0, 1):
        assert sorted(index for e, index in keys if e == epoch) == list(range(10))
    assert [i for _, i in keys[:10]] != [i for _, i in keys[10:]]


def test_an_epoch_has_the_order_that_the_examples_ask_for():
    seen = []

    def backwards(draw, batch):
        seen.append((batch, draw.random()))
        return np.arange(10)[::-1]

    keys = list(TrainSampler(examples=10, shuffle=backwards, batch=5, start=0, stop=4, seed=0))
    assert keys[:2] == [[(0, i) for i in (9, 8, 7, 6, 5)], [(0, i) for i in (4, 3, 2, 1, 0)]]
    assert [batch for batch, _ in seen] == [5, 5]
    assert seen[0] != seen[1]
    train = digits().splits()["train"]
    plain, asked = (
        list(TrainSampler(examples=len(train), batch=8, start=0, stop=9, seed=3, shuffle=shuffle))
        for shuffle in (None, train.shuffle)
    )
    assert plain == asked


@pytest.mark.parametrize("repeats", [2, 3, 4])
def test_repeated_augmentation_shows_each_image_several_times_and_each_time_anew(repeats):
    batches = list(TrainSampler(examples=12, batch=12, start=0, stop=2, seed=0, repeats=repeats))
    once = list(TrainSampler(examples=12, batch=12, start=0, stop=2, seed=0))
    for epoch, (shown, plain) in enumerate(zip(batches, once, strict=True)):
        images = [index for _, index in plain[: 12 // repeats]]
        expected = [(epoch * repeats + copy, index) for copy in range(repeats) for index in images]
        assert shown == expected  # copies of one image are apart: mixup pairs an image with another


def test_copies_of_an_image_differ_and_depend_on_no_worker():
    runs = [first_batches(colours(), augment(**STRONG), workers, repeats=2) for workers in (0, 2)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    pixels, labels = (part.unflatten(0, (3, 2, 4)).transpose(0, 1) for part in runs[0])
    assert torch.equal(labels[0], labels[1])
    assert all(not torch.equal(a, b) for a, b in zip(*pixels.flatten(1, 2), strict=True))


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_train_sampler_resumes_from_any_step(repeats):
    whole = list(TrainSampler(examples=10, batch=4, start=0, stop=9, seed=7, repeats=repeats))
    assert list(TrainSampler(examples=10, batch=4, start=5, stop=9, seed=7, repeats=repeats)) == whole[5:]


def test_seeds_are_unrelated_and_repeatable():
    assert seed_of(1, 2) == seed_of(1, 2)
    assert len({seed_of(a, b) for a in range(50) for b in range(50)}) == 2500


def test_normalized_pixels_have_mean_zero_and_deviation_one():
    pixels = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    scaled = pixels.float() / 255
    mean, std = scaled.mean(dim=(0, 2, 3)).tolist(), scaled.std(dim=(0, 2, 3)).tolist()
    out = Normalize(mean, std)(pixels)
    torch.testing.assert_close(out.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)


def test_preprocess_takes_any_mode_and_turns_photos_upright(tmp_path):
    from PIL import Image

    preprocess = Preprocess(size=(8, 6), channels=3, crop=1.0, mean=(0.5,) * 3, std=(0.5,) * 3)
    for mode in ("L", "RGBA", "P", "CMYK", "1", "I;16"):
        assert preprocess(Image.new(mode, (20, 10))).shape == (3, 8, 6)
    image = Image.new("RGB", (6, 8))
    image.putpixel((0, 0), (255, 255, 255))
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "turned.png", exif=exif)
    assert preprocess(tmp_path / "turned.png")[:, 7, 5].tolist() == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.slow
@pytest.mark.parametrize("option", menu()["augment"])
def test_every_augmentation_works_at_whatever_strength_it_draws(option):
    for dataset in (digits(), colours(32)):
        transform = build(compose([f"augment={option}"])[0]["augment"]).transform(dataset)
        train = dataset.splits()["train"]
        if transform is None:
            continue
        for draw in range(400):
            with seeded(draw):
                pixels = transform(train.image(draw % len(train)))
            assert tuple(pixels.shape) == (dataset.channels, *dataset.shape)
            assert pixels.dtype == torch.uint8
