"""A directory of class folders: the layout of most image sets that people bring."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from vitlab.config.errors import DataError, DatasetMissing
from vitlab.data.dataset import CustomDataset, Dataset
from vitlab.data.datasets.listing import PassedOver, class_folders, data_folder, has_images, list_images
from vitlab.data.datasets.split_folders import CSV, find_some_splits, find_splits, unwrap
from vitlab.data.examples import Examples, Files, ignore_pillow_warnings, unreadable
from vitlab.storage.files import file_errors, name_text

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
        self.passed, self.remarks, self.left_out = PassedOver(), [], []
        self.folders = self.split_folders()
        if self.for_evaluation:
            names = sorted({name for folder in self.folders.values() for name in self.class_folders(folder)})
            self.folder_names = tuple(names)
            self.classes = self.class_names()
            return
        train, seen = self.folders["train"], PassedOver()
        self.folder_names = tuple(self.class_folders(train, seen))
        if len(self.folder_names) < 2:
            names = ", ".join(self.folder_names) or "none"
            raise DataError(
                f"{train} has {len(self.folder_names)} class folder(s) with images ({names}): a classifier needs at"
                f" least 2{f'; passed over {seen}' if seen else ''}{f'; {CSV}{train}' if has_images(train) else ''}"
            )
        for split, folder in self.folders.items():
            names = tuple(self.class_folders(folder))
            if more := [name for name in names if name not in self.folder_names]:
                raise DataError(
                    f"{folder} has {len(names)} classes, {len(more)} of them not in {train}: {listed(more)}. Give the"
                    f" {split} images the same class folders{self.remedy(split)}"
                )
            if lacking := [name for name in self.folder_names if name not in names]:
                self.remarks.append(f"the {split} images have none of {listed(lacking)}")
        self.classes = self.class_names()

    def split_folders(self) -> dict[str, Path]:
        """The folder of each split; `train` at least."""
        raise NotImplementedError(f"{type(self).__name__} has no split_folders")

    def remedy(self, split: str) -> str:
        """What else can be done about a split of other classes."""
        return ""

    def class_names(self) -> tuple[str, ...]:
        """Readable names of the classes, in the order of `folder_names`."""
        return tuple(map(name_text, self.folder_names))

    @property
    def passed_over(self) -> str:
        counted = f"passed over {self.passed}" if self.passed else ""
        return "; ".join(filter(None, [*self.remarks, counted]))

    def read(self) -> dict[str, Examples]:
        self.passed, known = PassedOver(), [*self.levels(), *self.folders.values()]
        unused = [class_folders(level, self.passed, known).values() for level in self.levels()]
        for folder in [*self.left_out, *(place for found in unused for places in found for place in places)]:
            self.passed.add("unused", folder.name, len(list_images(folder, self.passed)))
        return {split: self.files(self.samples(folder), folder) for split, folder in self.folders.items()}

    def listed(self) -> dict[str, Examples]:
        return replace(self, verify=False, skip_corrupted=False).read()

    def levels(self) -> set[Path]:
        """The folders that hold the splits, whose other entries are passed over."""
        return set()

    def class_folders(self, folder: Path, passed: PassedOver | None = None) -> dict[str, tuple[Path, ...]]:
        """The class folders of a split; see `listing.class_folders`."""
        others = [other for other in self.folders.values() if other != folder]
        return class_folders(folder, passed, [*others, *self.left_out])

    def samples(self, folder: Path) -> Samples:
        places = self.class_folders(folder, self.passed)
        return [
            (path, label)
            for label, name in enumerate(self.folder_names)
            for place in places.get(name, ())
            for path in list_images(place, self.passed)
        ]

    def files(self, samples: Samples, folder: Path) -> Files:
        """The examples of a split; `folder` is named in errors."""
        if self.verify or self.skip_corrupted:
            with ignore_pillow_warnings(), ThreadPoolExecutor() as pool:
                errors = list(pool.map(verify_image, (path for path, _ in samples)))
            if broken := [error for error in errors if error is not None]:
                if not self.skip_corrupted:
                    raise broken[0]
                self.passed.add("unreadable", folder.name, len(broken))
            before = {label for _, label in samples}
            samples = [sample for sample, error in zip(samples, errors, strict=True) if error is None]
            empty = sorted(before - {label for _, label in samples})
            if empty:
                raise DataError(f"{folder / self.folder_names[empty[0]]} has no readable image")
        labels = np.array([label for _, label in samples], dtype=np.int64)
        return Files([path for path, _ in samples], labels, "RGB" if self.channels == 3 else "L", REMEDY)


@dataclass(kw_only=True)
class ImageFolder(CustomDataset, ClassFolders):
    """`root/CLASS/*.jpg`, or `root/train/CLASS/...` with `val/` and `test/` beside it where they exist.

    A missing validation or test folder is cut from the training images, stratified.

    Args:
        train: folder of the training images, in `root` or an absolute path; `.` is `root` itself, and `auto` finds the
            splits by their usual names.
        validation: the same; None leaves such a folder out.
        test: the same.
    """

    name = "image_folder"
    hashed_paths = frozenset({"root"})

    train: str
    validation: str | None
    test: str | None

    def split_folders(self) -> dict[str, Path]:
        root = data_folder(self.root) if self.root is not None else None
        if root is None or not root.is_dir():
            raise DatasetMissing(
                "image_folder", [self.root], "Give the directory of your class folders: dataset.root=PATH"
            )
        chosen = {"train": self.train, "validation": self.validation, "test": self.test}
        folders, self.left_out = (find_some_splits if self.for_evaluation else find_splits)(root, chosen)
        classes: tuple[str, ...] = ()
        for split, folder in folders.items():
            folders[split] = inner = unwrap(folder, classes)
            classes = classes or tuple(class_folders(inner))
            if chosen[split] == "auto" and inner != root and inner.parent != root:
                self.remarks.append(f"the {split} images are those of {inner}")
        return folders

    def levels(self) -> set[Path]:
        root, splits = data_folder(self.root or ""), self.folders.values()
        return {level for folder in splits for level in folder.parents if level.is_relative_to(root)} - {*splits}

    def remedy(self, split: str) -> str:
        return f", or leave them out with dataset.{split}=null"


def listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def verify_image(path: Path) -> DataError | None:
    """The error of an image that cannot be decoded. JPEGs are decoded at a reduced size, which reads every byte too."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (32, 32))
            image.load()
    except Exception as error:  # the decoder of a damaged file raises anything
        return unreadable(path, error, REMEDY)
    return None
