"""Odd folders of images: which are splits, which classes, and that no image is lost without a word."""

import io
import os
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.test_dataset import FOLDER
from vitlab.config.errors import DataError
from vitlab.data.datasets.image_folder import ImageFolder
from vitlab.data.datasets.split_folders import split_named

FORMATS = {"jfif": "JPEG", "jpe": "JPEG", "JPG": "JPEG", "avif": "AVIF", "webp": "WEBP", "ppm": "PPM", "tif": "TIFF"}
IMAGES = (".png", ".jfif", ".jpe", ".jpg", ".avif", ".webp", ".ppm", ".tif", ".heic")  # for the independent walk
CAFE, CAFE_NFD = "caf\u00e9", "cafe\u0301"


@cache
def encoded(suffix: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, FORMATS.get(suffix, "PNG"))
    return file.getvalue()


def write(root: Path, layout: str) -> Path:
    """Writes `FOLDER:COUNT[.SUFFIX]`, ..., where a suffix of `-` is none; `LINK->TARGET`; and other files."""
    for word in layout.split(", "):
        place, arrow, target = word.partition("->")
        place, _, what = place.partition(":")
        folder = root / place
        if arrow:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(os.path.relpath(root / target, folder.parent))
        elif what:
            count, _, suffix = what.partition(".")
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(int(count)):
                name = f"im{i:02d}" if suffix == "-" else f"im{i:02d}.{suffix or 'png'}"
                (folder / name).write_bytes(encoded(suffix))
        elif place.endswith("/"):
            folder.mkdir(parents=True)
        else:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.write_bytes(encoded("") if place.endswith(".png") else b"no image")
    return root


def images_below(root: Path) -> set[str]:
    """The images of a folder by a walk of its own: names with an image's suffix, or content of a PNG."""
    found, seen, pending = set(), set(), [root]
    while pending:
        folder = pending.pop().resolve()
        if folder in seen:
            continue
        seen.add(folder)
        for path in folder.iterdir():
            if path.name.startswith(".") or path.name in ("__MACOSX", "@eaDir") or not os.path.exists(path):  # noqa: PTH110
                continue
            if path.is_dir():
                pending.append(path)
            elif path.suffix.lower() in IMAGES or (not path.suffix and path.read_bytes().startswith(b"\x89PNG")):
                found.add(str(path.resolve()))
    return found


def image_folder(root: Path, *options: str) -> ImageFolder:
    given = dict(option.split("=") for option in options)
    given = {key: None if value == "null" else value for key, value in given.items()}
    return ImageFolder(**(FOLDER | {"root": str(root), "image_size": 8, "verify": False} | given))


PAIR = "cat:6, dog:6"


def splits(train: str, test: str, more: str = "") -> str:
    return f"{train}/cat:6, {train}/dog:6, {test}/cat:3, {test}/dog:3{more}"


READ = {  # a layout, options, the classes, and how many images are in test where that is a folder of its own
    "plain": (PAIR, "", "cat dog", None),
    "train and test": (splits("train", "test"), "", "cat dog", 6),
    "capitals": (splits("Train", "Test"), "", "cat dog", 6),
    "all capitals": (splits("TRAIN", "TEST"), "", "cat dog", 6),
    "long forms": (splits("training", "testing"), "", "cat dog", 6),
    "a suffix": (splits("training_set", "test_set"), "", "cat dog", 6),
    "a prefix": (splits("seg_train", "seg_test"), "", "cat dog", 6),
    "a hyphen": (splits("train-images", "test-images"), "", "cat dog", 6),
    "in one word": (splits("TrainSet", "testset"), "", "cat dog", 6),
    "a year": (splits("train2017", "test2017"), "", "cat dog", 6),
    "twice": (splits("seg_train/seg_train", "seg_test/seg_test", ", seg_pred/seg_pred:5"), "", "cat dog", 6),
    "a wrapper": (splits("archive/train", "archive/test"), "", "cat dog", 6),
    "two wrappers": (splits("a/b/Train", "a/b/Test", ", a/readme.txt, a/b/x.png"), "", "cat dog", 6),
    "wrapped classes": ("archive/cat:6, archive/dog:6", "", "cat dog", None),
    "wrapped in train": (splits("train/train", "train/test"), "", "cat dog", 6),
    "train alone": ("train/cat:6, train/dog:6", "", "cat dog", None),
    "annotations": (splits("train", "test", ", annotations/a.xml, notes.txt"), "", "cat dog", 6),
    "other folders": (splits("train", "test", ", extra:4, more/x:2"), "", "cat dog", 6),
    "a class named train": ("bus:6, car:6, train:6", "", "bus car train", None),
    "classes with such words": ("bus:6, bullet_train:6, test_tube:6", "", "bullet_train bus test_tube", None),
    "a test named by hand": (splits("train", "evaluation"), "test=evaluation", "cat dog", 6),
    "all named by hand": (splits("first", "second"), "train=first test=second", "cat dog", 6),
    "unlabelled test left out": ("train/cat:6, train/dog:6, test:5", "test=null", "cat dog", None),
    "unlabelled test beside classes": (f"{PAIR}, test:5", "test=null", "cat dog", None),
    "test left out": (splits("train", "test"), "test=null", "cat dog", None),
    "a holdout in the root": (f"{PAIR}, holdout/cat:3, holdout/dog:3", "train=. test=holdout", "cat dog", 6),
    "folders alike are classes": ("ill/left:6, ill/right:6, well/left:6, well/right:6", "train=.", "ill well", None),
    "an inner folder": ("cat/images:6, dog/images:6", "", "cat dog", None),
    "test lacks a class": ("train/cat:6, train/dog:6, test/cat:3", "", "cat dog", 3),
    "checkpoints of notebooks": (f"{PAIR}, .ipynb_checkpoints:4, dog/.ipynb_checkpoints:4", "", "cat dog", None),
    "macOS": (f"{PAIR}, __MACOSX/cat:4, cat/._im00.png, cat/.DS_Store", "", "cat dog", None),
    "macOS beside splits": (splits("z/train", "z/test", ", __MACOSX/z/train/cat:2"), "", "cat dog", 6),
    "Windows and Synology": (f"{PAIR}, cat/Thumbs.db, dog/@eaDir/im00.png:2, desktop.ini", "", "cat dog", None),
    "a class of jfif": (f"{PAIR}, bird:6.jfif", "", "bird cat dog", None),
    "jpe and JPG": ("cat:6.jpe, dog:6.JPG, cat:2", "", "cat dog", None),
    "avif": ("cat:6.avif, dog:6.webp", "", "cat dog", None),
    "ppm and tif": ("cat:6.ppm, dog:6.tif", "", "cat dog", None),
    "no suffix": ("cat:6.-, dog:6, dog/LICENSE", "", "cat dog", None),
    "heic": (f"{PAIR}, cat:3.heic, bird:4.heic", "", "cat dog", None),
    "an empty class": (f"{PAIR}, bird/", "", "cat dog", None),
    "images beside classes": (f"{PAIR}, a.png, b.png", "", "cat dog", None),
    "images beside classes of a split": (splits("train", "test", ", train/a.png, test/b.png"), "", "cat dog", 6),
    "a linked class": ("set/cat:6, set/dog:6, cows:6, set/cow->cows", "root=set", "cat cow dog", None),
    "a link in a class": ("set/cat:6, set/dog:6, more:4, set/cat/more->more", "root=set", "cat dog", None),
    "a link to itself": (f"{PAIR}, cat/loop->cat", "", "cat dog", None),
    "a link to the root": (f"{PAIR}, all->.", "", "cat dog", None),
    "two links in a circle": (f"{PAIR}, cat/a/b->cat/c, cat/c/d->cat/a, cat/c:2", "", "cat dog", None),
    "a link twice": (f"{PAIR}, cat/a:2, cat/b->cat/a", "", "cat dog", None),
    "links to nowhere": (f"{PAIR}, cat/x.png->nowhere, dog/y.png->dog/y.png", "", "cat dog", None),
    "one name in two forms": (f"{CAFE}:6, dog:6, {CAFE_NFD}:2", "", f"{CAFE} dog", None),
    "one name in two splits": (f"train/{CAFE}:6, train/dog:6, test/{CAFE_NFD}:3, test/dog :3", "", f"{CAFE} dog", 6),
}
LOST = {"outside", "unused", "unreadable", "unlabelled"}  # kinds that are images


@pytest.mark.parametrize("case", READ)
def test_every_image_is_in_a_split_or_said_to_be_passed_over(tmp_path, case):
    layout, options, classes, test = READ[case]
    given = dict(option.split("=") for option in options.split())
    root = write(tmp_path / "root", layout) / given.pop("root", "")
    dataset = image_folder(root, *(f"{key}={value}" for key, value in given.items()))
    parts = dataset.splits()
    assert dataset.classes == tuple(classes.split())
    counted = {"train": 0} | {name: len(part) for name, part in parts.items()}
    if test is not None:
        assert counted["test"] == test
    passed = sum(n for (kind, name), n in dataset.passed.items() if kind in LOST or name in IMAGES)
    assert sum(counted.values()) + passed == len(images_below(root))
    paths = [os.path.realpath(path) for part in parts.values() for path in part.paths]
    assert len(paths) == len(set(paths)) or "link" in case
    assert not [path for path in paths if "/." in path.removeprefix(str(tmp_path)) or "__MACOSX" in path]
    if passed:
        assert "passed over" in dataset.passed_over


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (
            f"{PAIR}, bird:4.heic, cat:3.heic",
            r"^passed over 1 folder without images \(bird\), 7 files that .*\(\.heic\)$",
        ),
        (f"{PAIR}, bird/", r"1 folder without images \(bird\)"),
        (f"{PAIR}, .ipynb_checkpoints:4", r"1 hidden or system entry \(\.ipynb_checkpoints\)"),
        (f"{PAIR}, cat/._im00.png", r"1 hidden or system entry \(\._im00\.png\)"),
        (f"{PAIR}, cat/.DS_Store, cat/Thumbs.db, cat/notes.txt, labels.csv", "^$"),
        (f"{PAIR}, cat/LICENSE, cat/x.mp4", r"2 files that are no images Pillow reads \(\.mp4, LICENSE\)"),
        (PAIR, "^$"),
        (f"{PAIR}, cat/loop->cat", r"1 link to a folder that is read already \(loop\)"),
        (f"{PAIR}, cat/a.png->nowhere", r"1 link or device that leads to no file \(a\.png\)"),
        (f"{PAIR}, a.png", r"1 image outside of the class folders \(a\.png\)"),
        (splits("train", "test", ", pred:5"), r"5 images in folders that are no split \(pred\)"),
        ("train/cat:6, train/dog:6, test/cat:3", "the test images have none of dog"),
        (splits("archive/train", "archive/test"), "the train images are those of .*archive/train; the test images"),
        (splits("train/train", "test"), "the train images are those of .*train/train$"),
    ],
)
def test_what_is_passed_over_is_said_with_its_number(tmp_path, layout, said):
    dataset = image_folder(write(tmp_path / "root", layout))
    dataset.validation_fraction = 0.25  # some of each class
    dataset.splits()
    assert re.search(said, dataset.passed_over)
    before = dataset.passed_over
    dataset.splits()
    assert dataset.passed_over == before


REFUSED = {
    "two for one split": (splits("train", "val", ", valid/cat:2"), "val and valid, and both may be the validation"),
    "two for train": (splits("train", "training"), "train and training, .* dataset.train=train"),
    "unlabelled test": ("train/cat:6, train/dog:6, test:5", "test holds images without class folders: .*test=null"),
    "unlabelled test, wrapped": ("train/cat:6, train/dog:6, test/test:5", r"dataset\.test=null"),
    "unlabelled test beside classes": (f"{PAIR}, test:5", r"may be a class or test images .*dataset\.test=null"),
    "valid and invalid": ("valid:6, invalid:6", r"dataset\.validation=null, or give dataset\.train=\."),
    "flat splits": ("train:6, test:6", r"without class folders: .*dataset=image_csv dataset\.root="),
    "flat": ("x.png, y.png", r"has 0 class folder.*dataset=image_csv"),
    "flat train alone": ("train:6", r"has 1 class folder.*\(train\).*dataset=image_csv"),
    "an unknown split": (splits("train", "evaluation"), r"train/.* and evaluation: .*dataset\.test=evaluation"),
    "a third split": (splits("train", "validation", ", eval/cat:3, eval/dog:3"), r"dataset\.test=eval"),
    "train with classes": ("train/a:3, train/b:3, bus:6", r"looks like a split, and bus: .*dataset\.train=\."),
    "unknown splits": (splits("first", "second"), r"all hold the same folders.*cat, dog.*dataset\.train=first"),
    "classes of splits": ("cat/train:6, cat/test:2, dog/train:6, dog/test:2", "all hold the same folders"),
    "no train": (splits("test", "val"), "and no train/"),
    "more classes in test": (
        splits("train", "test", ", test/cow:2"),
        r"1 of them not among the 2 .*: cow\..*dataset\.test=null",
    ),
    "only heic left": ("cat:6, dog:6.heic", r"1 class folder.*passed over 1 folder without images \(dog\), 6 files"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_can_be_read_in_two_ways_is_refused_with_what_to_give(tmp_path, case):
    layout, sentence = REFUSED[case]
    with pytest.raises(DataError, match=sentence) as caught:
        image_folder(write(tmp_path / "root", layout)).splits()
    assert "\n" not in str(caught.value)


def test_a_folder_named_by_hand_has_to_be_there_and_an_archive_to_be_unpacked(tmp_path):
    write(tmp_path / "root", PAIR)
    with pytest.raises(DataError, match=r"dataset\.test=gone: .*root/gone is no folder"):
        image_folder(tmp_path / "root", "test=gone")
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"images\.zip is a file.*unzip .*images\.zip -d .*images\)"):
        image_folder(tmp_path / "images.zip")


@pytest.mark.parametrize(
    ("name", "split", "plain"),
    [
        *((name, "train", True) for name in ("train", "Train", "TRAIN", "training", "training_set", "TrainSet")),
        *((name, "test", True) for name in ("testing", "test-images", "test_set", "images_test", "Test2")),
        *((name, "validation", True) for name in ("val", "VALID", "valid_set", "dev", "imagesVal", "Validation")),
        *((name, "test", False) for name in ("seg_test", "bus_test", "test tube")),
        *((name, None, False) for name in ("cat", "trainer", "contest", "invalid", "devil", "latest", "value")),
        *((name, None, True) for name in ("images", "train_val", "train_test")),
    ],
)
def test_a_split_is_named_in_its_usual_ways(name, split, plain):
    assert split_named(name) == (split, plain)
