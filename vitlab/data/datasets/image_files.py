"""Datasets of image files: the checks that all of them share, and what they say of the files that they pass over."""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from vitlab.config.errors import DataError
from vitlab.data.dataset import Dataset
from vitlab.data.datasets.listing import PassedOver
from vitlab.data.examples import Examples, Files, ignore_pillow_warnings, unreadable
from vitlab.data.labels import listed

REMEDY = "repair or remove it, or skip such files with dataset.skip_corrupted=true"

Samples = list[tuple[Path, int]]  # image files and the class of each


@dataclass(kw_only=True)
class ImageFiles(Dataset):
    """Base class of the datasets of image files.

    Files are listed by name at the start, without opening them: a million take less than a minute.

    Args:
        root: the directory.
        verify: decode every file before training; a broken one is an error.
        skip_corrupted: leave broken files out instead, and say how many.
    """

    size = None
    path_options = ("verify",)

    name: ClassVar[str]

    root: str | None
    verify: bool
    skip_corrupted: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self.passed, self.remarks = PassedOver(), []

    @property
    def passed_over(self) -> str:
        counted = str(self.passed)
        return "; ".join([*self.remarks, *self.cut_remarks.values(), *([f"passed over {counted}"] if counted else [])])

    def check_split(self, split: str, where: Path, names: Collection[str], known: Sequence[str]) -> None:
        """Refuses a split with classes that are not those of the training images; a lack of some is said.

        Args:
            split: its name.
            where: what has it, for the error.
            names: its classes.
            known: those of the training images.
        """
        if more := [name for name in names if name not in known]:
            raise DataError(
                f"{where} has {len(names)} classes, {len(more)} of them not among the {len(known)} of the training"
                f" images: {listed(more)}. Give the {split} images the same classes{self.remedy(split)}"
            )
        if lacking := [name for name in known if name not in names]:
            self.remarks.append(f"the {split} images have none of {listed(lacking)}")

    def remedy(self, split: str) -> str:
        """What else can be done about a split of other classes."""
        return f", or leave them out with dataset.{split}=null" if hasattr(self, split) else ""

    def listed(self) -> dict[str, Examples]:
        return replace(self, verify=False, skip_corrupted=False).read()

    def files(self, samples: Samples, where: str | Path) -> Files:
        """The examples of a split; `where` they lie is named in errors."""
        if self.verify or self.skip_corrupted:
            with ignore_pillow_warnings(), ThreadPoolExecutor() as pool:
                errors = list(pool.map(verify_image, (path for path, _ in samples)))
            if broken := [error for error in errors if error is not None]:
                if not self.skip_corrupted:
                    raise broken[0]
                self.passed["unreadable", Path(where).name] = len(broken)
            before = {label for _, label in samples}
            samples = [sample for sample, error in zip(samples, errors, strict=True) if error is None]
            if empty := sorted(before - {label for _, label in samples}):
                raise DataError(f"{where}: {self.classes[empty[0]]} has no readable image")
        labels = np.array([label for _, label in samples], dtype=np.int64)
        return Files([path for path, _ in samples], labels, "RGB" if self.channels == 3 else "L", REMEDY)


def verify_image(path: Path) -> DataError | None:
    """The error of an image that cannot be decoded. JPEGs are decoded at a reduced size, which reads every byte too."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (32, 32))
            image.load()
    except Exception as error:  # the decoder of a damaged file raises anything
        return unreadable(path, error, REMEDY)
    return None
