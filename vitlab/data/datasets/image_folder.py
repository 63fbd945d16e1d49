"""A directory of class folders: the layout of most image sets that people bring."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from vitlab.config.errors import DataError, DatasetMissing
from vitlab.data.dataset import Dataset, split_off
from vitlab.data.examples import Examples, Files, ignore_pillow_warnings, unreadable

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
SKIP = "mend or remove it, or skip such files with dataset.skip_corrupted=true"

Pairs = list[tuple[Path, int]]  # image files and the class of each


@dataclass(kw_only=True)
class ClassFolders(Dataset):
    """`SPLIT/CLASS/*.jpg`: what every set of class folders shares. A kind says in `find` where its splits are.

    Only names are read at the start, one listing a folder: a million files take less than a minute.

    Args:
        root: the directory.
        verify: decode every file before training; a broken one is an error, named.
        skip_corrupted: leave broken files out instead, and say how many.

    Raises:
        DatasetMissing: no such directory.
        DataError: fewer than 2 classes, or a split with other classes than the training images.
    """

    size = None
    path_options = ("verify",)

    name: ClassVar[str]

    root: str | None
    verify: bool
    skip_corrupted: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self.folders = self.find()
        train = self.folders["train"]
        self.folder_names = class_folders(train)
        if len(self.folder_names) < 2:
            names = ", ".join(self.folder_names) or "none"
            raise DataError(
                f"{train} has {len(self.folder_names)} class folder(s) with images ({names}): a classifier needs at"
                " least 2"
            )
        for split, folder in self.folders.items():
            if folder != train and (own := class_folders(folder)) != self.folder_names:
                odd = sorted(set(own) ^ set(self.folder_names))
                shown = ", ".join(odd[:5]) + (f" and {len(odd) - 5} more" if len(odd) > 5 else "")
                raise DataError(
                    f"{folder} has {len(own)} classes and {train} has {len(self.folder_names)}; not in both: {shown}."
                    f" Give the {split} images the same class folders"
                )
        self.classes = self.names()

    def find(self) -> dict[str, Path]:
        """The folder of each split; `train` at least."""
        raise NotImplementedError(f"{type(self).__name__} has no find")

    def names(self) -> tuple[str, ...]:
        """The classes as people call them, in the order of `folder_names`."""
        return self.folder_names

    def read(self) -> dict[str, Examples]:
        return {split: self.files(self.pairs(folder), folder) for split, folder in self.folders.items()}

    def pairs(self, folder: Path) -> Pairs:
        return [(path, label) for label, name in enumerate(self.folder_names) for path in list_images(folder / name)]

    def files(self, pairs: Pairs, folder: Path) -> Files:
        """These files, without the broken ones where that is asked for; `folder` is the one to blame."""
        if self.verify or self.skip_corrupted:
            with ignore_pillow_warnings(), ThreadPoolExecutor() as pool:
                faults = list(pool.map(lambda pair: fault(pair[0]), pairs))
            broken = [f for f in faults if f is not None]
            if broken and not self.skip_corrupted:
                raise broken[0]
            if broken:
                print(f"{self.name}: left out {len(broken)} unreadable file(s) of {len(pairs)} in {folder}")
            pairs = [pair for pair, f in zip(pairs, faults, strict=True) if f is None]
            emptied = sorted(set(range(len(self.folder_names))) - {label for _, label in pairs})
            if emptied:
                raise DataError(f"{folder / self.folder_names[emptied[0]]} has no readable image")
        labels = np.array([label for _, label in pairs], dtype=np.int64)
        return Files([path for path, _ in pairs], labels, "RGB" if self.channels == 3 else "L", SKIP)


@dataclass(kw_only=True)
class ImageFolder(ClassFolders):
    """`root/CLASS/*.jpg`, or `root/train/CLASS/...` with `val/` and `test/` beside it where they exist.

    A validation or test folder of its own is used as it is; one that is missing is cut from the training images,
    stratified.

    Args:
        test_fraction: share of the images kept for the test where there is no test folder.
        channels: 3 decodes to colour, 1 to grey.
        mean: of the training pixels, each channel in 0 ... 1.
        std: the same.
        flip: whether a mirrored image keeps its class.
    """

    citation = "your own images"
    name = "image_folder"

    test_fraction: float
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool

    def __post_init__(self) -> None:
        check_facts(self)
        super().__post_init__()

    def find(self) -> dict[str, Path]:
        root = Path(self.root) if self.root is not None else None
        if root is None or not root.is_dir():
            raise DatasetMissing(
                "image_folder", [self.root], "Give the directory of your class folders: dataset.root=PATH"
            )
        folders = {
            split: found[0]
            for split, names in SPLITS.items()
            if (found := [root / name for name in names if (root / name).is_dir()])
        }
        if folders and "train" not in folders:
            here = ", ".join(str(folder) for folder in folders.values())
            raise DataError(f"{root} has {here} and no train/: put the training images in {root / 'train'}")
        return folders or {"train": root}

    def read(self) -> dict[str, Examples]:
        return with_test(super().read(), self.test_fraction, self.split_seed)


def check_facts(dataset: Dataset) -> None:
    """Raises ValueError where the facts that a user gives (channels, mean, std, test_fraction) do not fit together."""
    if dataset.channels not in (1, 3):
        raise DataError(f"dataset.channels={dataset.channels}: use 3 (colour) or 1 (grey)")
    for name, values in (("mean", dataset.mean), ("std", dataset.std)):
        if len(values) != dataset.channels:
            raise DataError(
                f"dataset.{name} has {len(values)} values for {dataset.channels} channels: give one a channel"
            )
    check_test_fraction(getattr(dataset, "test_fraction", 0.5))


def check_test_fraction(share: float) -> None:
    """Raises ValueError where this share of the images cannot be kept for the test."""
    if not 0 < share < 1:
        raise DataError(f"dataset.test_fraction={share}: must lie between 0 and 1; 0.2 is usual")


def with_test(splits: dict[str, Examples], share: float, seed: int) -> dict[str, Examples]:
    """The splits, with a test set cut from the training images, stratified, where they have none."""
    if "test" not in splits:
        count = round(len(splits["train"]) * share)
        splits["test"], splits["train"] = split_off(splits["train"], count, seed + 2, "dataset.test_fraction")
    return splits


def walk_images(folder: str | Path) -> Iterator[str]:
    """The image files below a folder, in no order, by their names alone: no file is opened or asked for more."""
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.name.lower().endswith(SUFFIXES) and is_file(entry):
                    yield entry.path
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def is_file(entry: os.DirEntry[str]) -> bool:
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()  # noqa: PTH113 (links in a circle too)


def list_images(folder: Path) -> list[Path]:
    """The image files below a folder, sorted by name, folder by folder."""
    return [Path(path) for path in sorted(walk_images(folder), key=lambda path: path.replace(os.sep, "\0"))]


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the folders that hold an image, sorted: the classes."""
    with os.scandir(folder) as entries:
        return tuple(sorted(e.name for e in entries if e.is_dir() and next(walk_images(e.path), None) is not None))


def fault(path: Path) -> DataError | None:
    """Why an image cannot be decoded, if so. JPEGs are decoded at reduced size, which reads every byte all the same."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (32, 32))
            image.load()
    except Exception as error:  # decoders of damaged files raise whatever they like
        return unreadable(path, error, SKIP)
    return None
