"""The datasets, read from files in their true formats, and their splits."""

import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tests.disk import write_idx, write_images, write_mnist
from vitlab.config.build import assemble
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError, DataError, DatasetMissing
from vitlab.data.dataset import read_once, split_off
from vitlab.data.datasets.digits import Digits
from vitlab.data.datasets.image_folder import ImageFolder
from vitlab.data.datasets.mnist import FashionMnist, Mnist, read_idx
from vitlab.data.datasets.synthetic import Synthetic
from vitlab.data.examples import Files, Pixels
from vitlab.data.loader import EvalSampler, loader
from vitlab.data.split import stratified_folds, stratified_split

COMMON = {
    "image_size": None,
    "validation_fraction": 0.1,
    "train_fraction": 1.0,
    "train_examples": None,
    "split_seed": 0,
    "folds": None,
    "fold": 0,
    "evaluation_crop": 1.0,
}
FOLDER = COMMON | {
    "image_size": 16,
    "test_fraction": 0.2,
    "channels": 3,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "flip": True,
    "background": "white",
    "range": "auto",
    "verify": True,
    "train": "auto",
    "validation": "auto",
    "test": "auto",
    "skip_corrupted": False,
}


def digits(**values):
    return Digits(**(COMMON | {"test_fraction": 0.2} | values))


def test_stratified_slices_keep_the_class_balance_of_a_class_ordered_set():
    labels = np.repeat([0, 1, 2], [500, 300, 200])
    chosen, rest = stratified_split(labels, 100, seed=3)
    assert np.bincount(labels[chosen]).tolist() == [50, 30, 20]
    assert sorted([*chosen, *rest]) == list(range(1000))


def test_stratified_slices_round_to_the_count_and_depend_on_the_seed_alone():
    labels = np.random.default_rng(0).integers(0, 7, 997)
    one, two, other = (stratified_split(labels, 100, seed)[0] for seed in (1, 1, 2))
    assert len(one) == 100
    assert (one == two).all()
    assert not (one == other).all()


def test_digits_are_real_images_with_all_three_splits():
    splits = digits().splits()
    assert {name: len(part) for name, part in splits.items()} == {"train": 1294, "validation": 144, "test": 359}
    for part in splits.values():
        assert part.pixels.shape[1:] == (1, 8, 8)
        assert (np.bincount(part.labels) > 10).all()
    pixels = torch.cat([part.pixels for part in splits.values()]).float() / 255
    assert pixels.mean().item() == pytest.approx(digits().mean[0], abs=1e-3)
    assert pixels.std().item() == pytest.approx(digits().std[0], abs=1e-3)


def test_digits_equal_those_that_scikit_learn_loads():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    pixels = torch.cat([part.pixels for part in digits().splits().values()])
    labels = np.concatenate([part.labels for part in digits().splits().values()])
    ours = sorted(zip(labels.tolist(), (pixels.flatten(1).float() / 255 * 16).round().int().tolist(), strict=True))
    assert ours == sorted(zip(theirs.target.tolist(), theirs.data.astype(int).tolist(), strict=True))


def test_splits_share_no_image_and_depend_on_their_own_seed():
    splits = digits().splits()
    seen = [{bytes(p.numpy().tobytes()) for p in splits[name].pixels} for name in ("train", "validation", "test")]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    again, other = digits().splits(), digits(split_seed=1).splits()
    assert torch.equal(again["validation"].pixels, splits["validation"].pixels)
    assert not torch.equal(other["validation"].pixels, splits["validation"].pixels)


def test_folds_are_stratified_and_of_nearly_equal_size():
    labels = np.random.default_rng(0).integers(0, 7, 997)
    of, again, other = (stratified_folds(labels, 5, seed) for seed in (1, 1, 2))
    assert sorted(np.bincount(of)) == [199, 199, 199, 200, 200]
    for label in range(7):
        assert np.ptp(np.bincount(of[labels == label], minlength=5)) <= 1
    assert (of == again).all()
    assert not (of == other).all()


def test_each_image_is_a_test_image_of_one_fold_and_never_of_two_splits_of_it():
    whole = digits().splits()
    everything = torch.cat([part.pixels for part in whole.values()]).flatten(1).tolist()
    tested = []
    for fold in range(5):
        splits = digits(folds=5, fold=fold).splits()
        together = torch.cat([part.pixels for part in splits.values()]).flatten(1).tolist()
        assert sorted(together) == sorted(everything)  # so no image is in two splits
        assert {name: len(part) for name, part in splits.items()} in (
            {"train": 1294, "validation": 144, "test": 359},
            {"train": 1293, "validation": 144, "test": 360},
        )
        assert np.ptp(np.bincount(splits["test"].labels) - np.bincount(splits["validation"].labels) * 2.5) < 5
        tested += splits["test"].pixels.flatten(1).tolist()
    assert sorted(tested) == sorted(everything)


def test_folds_depend_on_the_seed_of_the_splits_alone():
    one, other = (digits(folds=5, fold=1, split_seed=seed).splits()["test"].pixels for seed in (0, 1))
    assert torch.equal(one, digits(folds=5, fold=1).splits()["test"].pixels)
    assert not torch.equal(one[:359], other[:359])


def test_folds_leave_a_validation_split_alone_and_images_for_the_test_refuse_them(tmp_path):
    for split in ("train", "val"):
        write_images(tmp_path / split, n=6)
    parts = [ImageFolder(root=str(tmp_path), **(FOLDER | {"folds": 3, "fold": fold})).splits() for fold in range(3)]
    assert {len(part["validation"]) for part in parts} == {12}
    assert sorted(os.fsdecode(name) for part in parts for name in part["test"].names) == sorted(
        map(str, (tmp_path / "train").rglob("*.*"))
    )
    write_images(tmp_path / "test", n=2)
    with pytest.raises(ConfigError, match=r"dataset.folds=3: this dataset has test images of its own.*put the test"):
        ImageFolder(root=str(tmp_path), **(FOLDER | {"folds": 3})).splits()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["dataset=cifar10", "dataset.folds=5"], "dataset.folds=5: this dataset has test images of its own"),
        (["dataset.folds=5", "dataset.test_fraction=0.3"], "dataset.folds and dataset.test_fraction: a fold is the"),
    ],
)
def test_folds_that_cannot_be_are_refused_before_any_file_is_read(words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        assemble(check(compose(words)[0]))


def test_trainings_in_a_row_read_a_dataset_once(monkeypatch):
    reads = []
    read = Digits.read
    monkeypatch.setattr(Digits, "read", lambda self: reads.append(self.split_seed) or read(self))

    def splits(seed=0):
        return Digits(**(COMMON | {"split_seed": seed}), test_fraction=0.2).splits()

    with read_once():
        first = splits()
        first["train"] = None
        assert torch.equal(splits()["test"].pixels, first["test"].pixels)
        assert splits()["train"] is not None
        splits(1)
        assert reads == [0, 1]
    splits(1)
    assert reads == [0, 1, 1]


def test_a_subset_of_the_training_images_leaves_validation_and_test_alone():
    whole, part = digits().splits(), digits(train_examples=100).splits()
    assert len(part["train"]) == 100
    assert np.ptp(np.bincount(part["train"].labels)) <= 1
    assert torch.equal(part["validation"].pixels, whole["validation"].pixels)
    assert len(digits(train_fraction=0.5).splits()["train"]) == 647


def test_images_in_memory_are_resized_once_to_what_the_model_sees():
    splits = digits(image_size=(12, 10)).splits()
    assert splits["test"].pixels.shape[1:] == (1, 12, 10)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"validation_fraction": 0.0}, "validation_fraction=0.0: must lie between 0 and 1"),
        ({"validation_fraction": 0.0001}, "would take 0 of 1438 images"),
        ({"train_examples": 5000}, "there are 1294 training images: use 1 to 1294"),
        ({"train_examples": 0}, "train_examples=0"),
        ({"train_fraction": 0.5, "train_examples": 7}, "give one"),
        ({"train_fraction": 1.5}, "train_fraction=1.5"),
        ({"test_fraction": 1.0}, "test_fraction=1.0"),
        ({"evaluation_crop": 0.0}, "evaluation_crop=0.0"),
        ({"image_size": 0}, "image_size=0"),
        ({"folds": 1}, "dataset.folds=1: must be at least 2"),
        ({"folds": 5, "fold": 5}, "dataset.fold=5 with dataset.folds=5: use 0 to 4"),
        ({"folds": 5, "fold": -1}, "dataset.fold=-1 with"),
        ({"fold": 2}, "dataset.fold=2 with dataset.folds=null: give dataset.folds=K as well"),
        ({"folds": 1798}, "dataset.folds=1798: there are 1797 images: use fewer"),
    ],
)
def test_impossible_splits_are_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        digits(**values).splits()


@pytest.mark.parametrize("layout", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_is_read_from_every_layout(tmp_path, layout, suffix):
    write_mnist(tmp_path / layout, suffix)
    splits = Mnist(**COMMON, root=str(tmp_path), download=False).splits()
    assert {name: len(part) for name, part in splits.items()} == {"train": 54, "validation": 6, "test": 20}
    assert splits["train"].pixels.shape[1:] == (1, 28, 28)


def test_fashion_mnist_has_its_own_folder_and_names(tmp_path):
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    dataset = FashionMnist(**COMMON, root=str(tmp_path), download=False)
    assert len(dataset.splits()["test"]) == 20
    assert dataset.classes[9] == "ankle boot"
    assert dataset.flip
    assert not Mnist.flip


def test_a_missing_dataset_says_where_it_was_looked_for_and_what_gets_it(tmp_path):
    with pytest.raises(DatasetMissing) as caught:
        Mnist(**COMMON, root=str(tmp_path), download=False).splits()
    assert str(tmp_path / "MNIST" / "raw") in str(caught.value)
    assert f"vitlab train dataset=mnist dataset.download=true dataset.root={tmp_path}" in str(caught.value)


@pytest.mark.parametrize("damage", [b"", b"\0\0\x08", b"hello world", b"\0\0\x08\x01\0\0\0\x09abc"])
def test_a_damaged_idx_file_is_refused_by_name(tmp_path, damage):
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(damage)
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is not a complete IDX file"):
        read_idx(file)


def test_a_truncated_gzip_is_refused_by_name(tmp_path):
    write_idx(tmp_path / "x.gz", np.zeros((5, 5)))
    whole = (tmp_path / "x.gz").read_bytes()
    (tmp_path / "x.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"x\.gz is not a complete IDX file"):
        read_idx(tmp_path / "x.gz")


def folder(root, **values):
    return ImageFolder(**(FOLDER | {"root": str(root)} | values))


def test_a_folder_of_class_folders_is_cut_into_three_splits(tmp_path):
    write_images(tmp_path, n=20)
    dataset = folder(tmp_path)
    splits = dataset.splits()
    assert dataset.classes == ("cat", "dog")
    assert {name: np.bincount(part.labels).tolist() for name, part in splits.items()} == {
        "train": [15, 14],
        "validation": [1, 2],
        "test": [4, 4],
    } or {name: len(part) for name, part in splits.items()} == {"train": 29, "validation": 3, "test": 8}


def test_own_validation_and_test_folders_are_used_as_they_are(tmp_path):
    for split, n in (("train", 10), ("val", 4), ("test", 6)):
        write_images(tmp_path / split, n=n)
    splits = folder(tmp_path).splits()
    assert {name: len(part) for name, part in splits.items()} == {"train": 20, "validation": 8, "test": 12}


def test_a_folder_without_a_test_set_gets_one_from_its_training_images(tmp_path):
    write_images(tmp_path / "train", n=10)
    write_images(tmp_path / "val", n=4)
    splits = folder(tmp_path).splits()
    assert {name: len(part) for name, part in splits.items()} == {"train": 16, "validation": 8, "test": 4}


def test_a_broken_image_is_named_or_left_out_and_counted(tmp_path):
    write_images(tmp_path, n=10)
    (tmp_path / "cat" / "broken.png").write_bytes((tmp_path / "cat" / "0.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cat/broken\.png is not a readable image.*skip_corrupted"):
        folder(tmp_path).splits()
    dataset = folder(tmp_path, skip_corrupted=True)
    assert sum(len(part) for part in dataset.splits().values()) == 20
    assert "passed over 1 image that cannot be decoded" in dataset.passed_over


def test_a_truncated_jpeg_is_found_before_training(tmp_path):
    write_images(tmp_path, n=10, size=(200, 200))
    whole = (tmp_path / "dog" / "1.jpg").read_bytes()
    (tmp_path / "dog" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"dog/1\.jpg is not a readable image"):
        folder(tmp_path).splits()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda root: None, "has 0 class folder"),
        (lambda root: write_images(root, classes=("cat",)), r"has 1 class folder\(s\) with images \(cat\)"),
        (lambda root: (root / "cat").mkdir(), "has 0 class folder"),
        (lambda root: write_images(root / "test"), "and no train/"),
        (
            lambda root: (write_images(root / "train"), write_images(root / "val", classes=("cat", "cow"))),
            "1 of them not among the 2 of .*: cow",
        ),
    ],
)
def test_folders_that_hold_no_dataset_are_refused(tmp_path, make, sentence):
    make(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        folder(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DatasetMissing, match="nowhere"):
        folder(tmp_path / "nowhere")


def test_grey_and_colour_files_are_read_in_the_mode_that_is_asked_for(tmp_path):
    write_images(tmp_path)
    assert folder(tmp_path).splits()["test"].image(0).mode == "RGB"
    grey = folder(tmp_path, channels=1, mean=(0.5,), std=(0.5,))
    assert grey.splits()["test"].image(0).mode == "L"


def test_synthetic_images_say_so(capsys):
    dataset = Synthetic(**(COMMON | {"image_size": (4, 6)}), examples=50, classes_count=5, channels=3)
    splits = dataset.splits()
    assert splits["train"].pixels.shape == (45, 3, 4, 6)
    assert len(dataset.classes) == 5
    assert "benchmarks only" in capsys.readouterr().out


def test_pixels_give_back_the_images_they_hold():
    pixels = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    image = Pixels(pixels, np.array([0, 1])).image(1)
    assert image.size == (5, 4)
    assert torch.equal(torch.from_numpy(np.array(image)).permute(2, 0, 1), pixels[1])


def test_photos_are_turned_upright_and_sixteen_bits_become_eight(tmp_path):
    write_images(tmp_path, n=4)
    image = Image.new("RGB", (6, 8))
    image.putpixel((0, 0), (255, 255, 255))
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.full((4, 5), 0x8000, dtype=np.uint16)).save(tmp_path / "deep.png")
    examples = Files([tmp_path / "turned.png", tmp_path / "deep.png"], np.array([0, 1]), "RGB")
    assert examples.image(0).getpixel((5, 7)) == (255, 255, 255)
    assert examples.image(0).getpixel((0, 0)) == (0, 0, 0)
    assert examples.image(1).getpixel((2, 2)) == (128, 128, 128)


def test_an_unreadable_file_says_what_can_be_done_about_it(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"x\.png is not a readable image .*: mend it"):
        Files([tmp_path / "x.png"], np.array([0]), "RGB", "mend it").image(0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_in_one_line_whichever_process_reads_it(workers, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    batches = loader(
        Files([tmp_path / "a.png"], np.array([0]), "RGB"), np.asarray, EvalSampler(examples=1, batch=1), workers=workers
    )
    with pytest.raises(DataError, match=rf"^{tmp_path}/a.png is not a readable image \(.*\): fetch it again$"):
        list(batches)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("counts", "words", "said"),
    [
        ((24, 18, 4), {}, "the validation images have none of fish: give dataset.validation_fraction=0.35, or more"),
        ((24, 18, 4), {"validation_fraction": 0.35}, ""),
        ((30, 30, 1), {}, "the test images have none of fish: give more images of each class"),
        ((30, 30, 3), {"folds": 5, "fold": 4}, "the test images have none of fish: give more images of each class"),
    ],
)
def test_a_class_that_a_cut_split_has_none_of_is_said_with_what_to_do(tmp_path, counts, words, said):
    for name, n in zip(("cat", "dog", "fish"), counts, strict=True):
        write_images(tmp_path, (name,), n=n)
    dataset = ImageFolder(root=str(tmp_path), **FOLDER | words)
    for _ in range(2):
        splits = dataset.splits()
        assert said in dataset.passed_over
        assert bool(said) == bool(dataset.passed_over)
    lacking = min(np.bincount(splits[name].labels, minlength=3).min() for name in ("validation", "test"))
    assert (lacking == 0) == bool(said)


@pytest.mark.parametrize(
    ("n", "fraction", "remedy"),
    [
        (3, 0.1, "give dataset.x=0.34, or more images"),
        (3, 0.9, "give dataset.x=0.66, or more images"),
        (1, 0.1, "of 1 image, and must take and leave at least 1: give more images"),
    ],
)
def test_a_fraction_that_takes_no_image_or_all_is_refused_with_one_that_does(n, fraction, remedy):
    pixels = Pixels(torch.zeros((n, 1, 1, 1), dtype=torch.uint8), np.zeros(n, np.int64))
    with pytest.raises(ConfigError, match=re.escape(remedy)):
        split_off(pixels, fraction, 0, "dataset.x")
    if "x=" in remedy:
        usable = float(remedy.partition("x=")[2].partition(",")[0])
        assert len(split_off(pixels, usable, 0, "dataset.x")[0]) in (1, n - 1)


def test_images_that_trainings_share_are_on_a_device_once():
    pixels = Pixels(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), np.arange(3))
    there = pixels.to(torch.device("meta"))
    assert there is pixels.to(torch.device("meta"))
    assert there.pixels.device.type == "meta"
