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
from vitlab.data.dataset import CustomDataset, Dataset
from vitlab.data.examples import Examples, Files, ignore_pillow_warnings, unreadable
from vitlab.storage.files import file_errors

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
REMEDY = "repair or remove it, or skip such files with dataset.skip_corrupted=true"

Samples = list[tuple[Path, int]]  # image files and the class of each


@dataclass(kw_only=True)
class ClassFolders(Dataset):
    """Base class of the datasets in class folders, `SPLIT/CLASS/*.jpg`. A subclass overrides `split_folders`.

    Files are listed by name at the start, without opening them: a million take less than a minute.

    Args:
        root: the directory.
        verify: decode every file before training; a broken one is an error.
        skip_corrupted: leave broken files out instead, and print how many.

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

    @file_errors()
    def __post_init__(self) -> None:
        super().__post_init__()
        self.folders = self.split_folders()
        train = self.folders["train"]
        self.folder_names = class_folders(train)
        if len(self.folder_names) < 2:
            names = ", ".join(self.folder_names) or "none"
            raise DataError(
                f"{train} has {len(self.folder_names)} class folder(s) with images ({names}): a classifier needs at"
                " least 2"
            )
        for split, folder in self.folders.items():
            if folder != train and (names := class_folders(folder)) != self.folder_names:
                differing = sorted(set(names) ^ set(self.folder_names))
                more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
                raise DataError(
                    f"{folder} has {len(names)} classes and {train} has {len(self.folder_names)}; not in both:"
                    f" {', '.join(differing[:5])}{more}. Give the {split} images the same class folders"
                )
        self.classes = self.class_names()

    def split_folders(self) -> dict[str, Path]:
        """The folder of each split; `train` at least."""
        raise NotImplementedError(f"{type(self).__name__} has no split_folders")

    def class_names(self) -> tuple[str, ...]:
        """Readable names of the classes, in the order of `folder_names`."""
        return self.folder_names

    def read(self) -> dict[str, Examples]:
        return {split: self.files(self.samples(folder), folder) for split, folder in self.folders.items()}

    def samples(self, folder: Path) -> Samples:
        return [(path, label) for label, name in enumerate(self.folder_names) for path in list_images(folder / name)]

    def files(self, samples: Samples, folder: Path) -> Files:
        """The examples of a split; `folder` is named in errors."""
        if self.verify or self.skip_corrupted:
            with ignore_pillow_warnings(), ThreadPoolExecutor() as pool:
                errors = list(pool.map(verify_image, (path for path, _ in samples)))
            if broken := [error for error in errors if error is not None]:
                if not self.skip_corrupted:
                    raise broken[0]
                print(f"{self.name}: left out {len(broken)} unreadable file(s) of {len(samples)} in {folder}")
            samples = [sample for sample, error in zip(samples, errors, strict=True) if error is None]
            empty = sorted(set(range(len(self.folder_names))) - {label for _, label in samples})
            if empty:
                raise DataError(f"{folder / self.folder_names[empty[0]]} has no readable image")
        labels = np.array([label for _, label in samples], dtype=np.int64)
        return Files([path for path, _ in samples], labels, "RGB" if self.channels == 3 else "L", REMEDY)


@dataclass(kw_only=True)
class ImageFolder(CustomDataset, ClassFolders):
    """`root/CLASS/*.jpg`, or `root/train/CLASS/...` with `val/` and `test/` beside it where they exist.

    A missing validation or test folder is cut from the training images, stratified.
    """

    name = "image_folder"

    def split_folders(self) -> dict[str, Path]:
        root = Path(self.root) if self.root is not None else None
        if root is None or not root.is_dir():
            raise DatasetMissing(
                "image_folder", [self.root], "Give the directory of your class folders: dataset.root=PATH"
            )
        folders = {
            split: existing[0]
            for split, names in SPLITS.items()
            if (existing := [root / name for name in names if (root / name).is_dir()])
        }
        if folders and "train" not in folders:
            others = ", ".join(str(folder) for folder in folders.values())
            raise DataError(f"{root} has {others} and no train/: put the training images in {root / 'train'}")
        return folders or {"train": root}


def walk_images(folder: str | Path) -> Iterator[str]:
    """The image files below a folder, unordered. Goes by the names: no file is opened, no regular file is stat-ed."""
    pending = [os.fspath(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.name.lower().endswith(SUFFIXES) and is_file(entry):
                    yield entry.path
                elif entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)


def is_file(entry: os.DirEntry[str]) -> bool:
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()  # noqa: PTH113 (links in a circle too)


@file_errors()
def list_images(folder: Path) -> list[Path]:
    """The image files below a folder, sorted by name, folder by folder."""
    return [Path(path) for path in sorted(walk_images(folder), key=lambda path: path.replace(os.sep, "\0"))]


def class_folders(folder: Path) -> tuple[str, ...]:
    """The sorted names of the folders that hold an image."""
    with os.scandir(folder) as entries:
        return tuple(sorted(e.name for e in entries if e.is_dir() and next(walk_images(e.path), None) is not None))


def verify_image(path: Path) -> DataError | None:
    """The error of an image that cannot be decoded. JPEGs are decoded at a reduced size, which reads every byte too."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (32, 32))
            image.load()
    except Exception as error:  # the decoder of a damaged file raises anything
        return unreadable(path, error, REMEDY)
    return None
