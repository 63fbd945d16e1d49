"""A directory of class folders: the layout of most image sets that people bring."""

from dataclasses import dataclass
from pathlib import Path

from vitlab.config.errors import DataError, DatasetMissing
from vitlab.data.dataset import CustomDataset
from vitlab.data.datasets.image_files import ImageFiles, Samples
from vitlab.data.datasets.listing import PassedOver, class_folders, data_folder, has_images, list_images
from vitlab.data.datasets.split_folders import csv_hint, find_some_splits, find_splits, unwrap
from vitlab.data.examples import Examples
from vitlab.storage.files import file_errors, name_text


@dataclass(kw_only=True)
class ClassFolders(ImageFiles):
    """Base class of the datasets in class folders, `SPLIT/CLASS/*.jpg`. A subclass overrides `split_folders`.

    Raises:
        DatasetMissing: no such directory.
        DataError: fewer than 2 classes, or a split with classes that the training images lack.
    """

    @file_errors()
    def __post_init__(self) -> None:
        super().__post_init__()
        self.left_out: list[Path] = []
        self.folders = self.split_folders()
        if self.for_evaluation:
            names = sorted({name for folder in self.folders.values() for name in self.class_folders(folder)})
            if not names:
                place, seen = next(iter(self.folders.values())), PassedOver()
                self.class_folders(place, seen)
                raise DataError(
                    f"{place} has no class folders with images: sort the images into folders named as the classes,"
                    f" {place}/CLASS/{f'; passed over {seen}' if seen else ''}"
                )
            self.folder_names = tuple(names)
            self.classes = self.class_names()
            return
        train, seen = self.folders["train"], PassedOver()
        self.folder_names = tuple(self.class_folders(train, seen))
        if len(self.folder_names) < 2:
            names = ", ".join(self.folder_names) or "none"
            more = [f"passed over {seen}"] * bool(seen) + [csv_hint(train)] * has_images(train)
            raise DataError(
                f"{train} has {len(self.folder_names)} class folder(s) with images ({names}):"
                f" {'; '.join(['a classifier needs at least 2', *more])}"
            )
        for split, folder in self.folders.items():
            self.check_split(split, folder, self.class_folders(folder), self.folder_names)
        self.classes = self.class_names()

    def split_folders(self) -> dict[str, Path]:
        """The folder of each split; `train` at least."""
        raise NotImplementedError(f"{type(self).__name__} has no split_folders")

    def class_names(self) -> tuple[str, ...]:
        """Readable names of the classes, in the order of `folder_names`."""
        return tuple(map(name_text, self.folder_names))

    def read(self) -> dict[str, Examples]:
        self.passed, known = PassedOver(), [*self.levels(), *self.folders.values()]
        unused = [class_folders(level, self.passed, known).values() for level in self.levels()]
        for folder in [*self.left_out, *(place for found in unused for places in found for place in places)]:
            self.passed.add("unused", folder.name, len(list_images(folder, self.passed)))
        return {split: self.files(self.samples(folder), folder) for split, folder in self.folders.items()}

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
