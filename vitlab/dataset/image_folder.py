"""A directory of class folders: the layout of most image sets that people bring."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vitlab.dataset.dataset import Dataset, DatasetMissing, cut
from vitlab.dataset.examples import Examples, Files, UnreadableImage

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp"}
SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


@dataclass(kw_only=True)
class ImageFolder(Dataset):
    """`root/CLASS/*.jpg`, or `root/train/CLASS/...` with `val/` and `test/` beside it where they exist.

    A validation or test folder of its own is used as it is; one that is missing is cut from the training images,
    stratified.

    Args:
        root: the directory.
        test_fraction: share of the images kept for the test where there is no test folder.
        channels: 3 decodes to colour, 1 to grey.
        mean: of the training pixels, each channel in 0 ... 1.
        std: the same.
        flip: whether a mirrored image keeps its class.
        verify: decode every file before training; a broken one is an error, named.
        skip_corrupted: leave broken files out instead, and say how many.
    """

    size = None
    citation = "your own images"
    places = ("verify",)

    root: str | None
    test_fraction: float
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    verify: bool
    skip_corrupted: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels not in (1, 3):
            raise ValueError(f"dataset.channels={self.channels}: use 3 (colour) or 1 (grey)")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(
                    f"dataset.{name} has {len(values)} values for {self.channels} channels: give one a channel"
                )
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"dataset.test_fraction={self.test_fraction}: must lie between 0 and 1; 0.2 is usual")
        root = Path(self.root) if self.root is not None else None
        if root is None or not root.is_dir():
            raise DatasetMissing(
                "image_folder", [self.root], "Give the directory of your class folders: dataset.root=PATH"
            )
        self.folders = {
            split: found[0]
            for split, names in SPLITS.items()
            if (found := [root / name for name in names if (root / name).is_dir()])
        }
        if "train" not in self.folders:
            if self.folders:
                here = ", ".join(str(folder) for folder in self.folders.values())
                raise ValueError(f"{root} has {here} and no train/: put the training images in {root / 'train'}")
            self.folders = {"train": root}
        self.classes = class_folders(self.folders["train"])
        if len(self.classes) < 2:
            names = ", ".join(self.classes) or "none"
            raise ValueError(
                f"{self.folders['train']} has {len(self.classes)} class folder(s) with images ({names}): a classifier"
                " needs at least 2"
            )
        for split, folder in self.folders.items():
            if (own := class_folders(folder)) != self.classes:
                odd = ", ".join(sorted(set(own) ^ set(self.classes)))
                raise ValueError(
                    f"{folder} has {len(own)} classes and {self.folders['train']} has {len(self.classes)}; not in both:"
                    f" {odd}. Give the {split} images the same class folders"
                )

    def read(self) -> dict[str, Examples]:
        splits: dict[str, Examples] = {split: self.files(folder) for split, folder in self.folders.items()}
        if "test" not in splits:
            count = round(len(splits["train"]) * self.test_fraction)
            splits["test"], splits["train"] = cut(splits["train"], count, self.split_seed + 2, "dataset.test_fraction")
        return splits

    def files(self, folder: Path) -> Files:
        pairs = [(path, label) for label, name in enumerate(self.classes) for path in images(folder / name)]
        if self.verify or self.skip_corrupted:
            with ThreadPoolExecutor() as pool:
                faults = list(pool.map(lambda pair: fault(pair[0]), pairs))
            broken = [f for f in faults if f is not None]
            if broken and not self.skip_corrupted:
                raise broken[0]
            if broken:
                print(f"image_folder: left out {len(broken)} unreadable file(s) of {len(pairs)} in {folder}")
            pairs = [pair for pair, f in zip(pairs, faults, strict=True) if f is None]
            emptied = sorted(set(range(len(self.classes))) - {label for _, label in pairs})
            if emptied:
                raise ValueError(f"{folder / self.classes[emptied[0]]} has no readable image")
        return Files(
            [p for p, _ in pairs], np.array([label for _, label in pairs]), "RGB" if self.channels == 3 else "L"
        )


def images(folder: Path) -> list[Path]:
    """The image files below a folder, sorted by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the folders that hold an image, sorted: the classes."""
    return tuple(sorted(f.name for f in folder.iterdir() if f.is_dir() and images(f)))


def fault(path: Path) -> UnreadableImage | None:
    """Why an image cannot be decoded, if so. JPEGs are decoded at reduced size, which reads every byte all the same."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (32, 32))
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return UnreadableImage(path, error)
    return None
