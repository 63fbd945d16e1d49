"""MNIST and Fashion-MNIST: gzipped or plain IDX files, as torchvision or a Debian package lays them out."""

import gzip
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from vitlab.config.errors import DataError, DatasetMissing
from vitlab.data.dataset import Dataset
from vitlab.data.examples import Examples, Pixels


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file of unsigned bytes, gzipped if its name says so (LeCun's format).

    Raises:
        DataError: the file is not such a file, or is cut short.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        axes = data[3]
        shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes))
        if data[:3] != b"\0\0\x08" or len(data) != 4 + 4 * axes + math.prod(shape):
            raise DataError(f"{len(data)} bytes for the shape {shape}")
    except (ValueError, IndexError, EOFError, OSError) as error:
        raise DataError(f"{path} is not a whole IDX file of bytes ({error}): fetch it again") from error
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


@dataclass(kw_only=True)
class Mnist(Dataset):
    """70,000 grey images of 28x28 in 10 classes; the last 10,000 are the test set.

    Args:
        root: folder that holds the four IDX files, directly, in `raw/` or in `MNIST/raw/` (torchvision's layout); None
            looks in `data/`.
        download: fetch the files to `root` where they are missing.
    """

    classes = tuple("0123456789")
    channels = 1
    size = (28, 28)
    mean = (0.1307,)
    std = (0.3081,)
    flip = False
    published = (60_000, 10)
    citation = "LeCun, Bottou, Bengio and Haffner 1998, Gradient-based learning applied to document recognition"

    name: ClassVar[str] = "mnist"
    folder: ClassVar[str] = "MNIST"  # torchvision's class and folder
    elsewhere: ClassVar[tuple[str, ...]] = ()  # where a system keeps it
    package: ClassVar[str] = ""  # how else to get it

    root: str | None
    download: bool

    def read(self) -> dict[str, Examples]:
        return {"train": self.part("train"), "test": self.part("t10k")}

    def part(self, prefix: str) -> Pixels:
        images = read_idx(self.find(f"{prefix}-images-idx3-ubyte"))
        labels = read_idx(self.find(f"{prefix}-labels-idx1-ubyte"))
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(images):
            raise DataError(
                f"{self.name} has {images.shape} images and {labels.shape} labels: the files do not belong together"
            )
        if labels.max() >= len(self.classes):
            raise DataError(f"{self.name} has a label {labels.max()}, but {len(self.classes)} classes")
        return Pixels(torch.from_numpy(images)[:, None], labels)

    def find(self, file: str) -> Path:
        root = Path(self.root) if self.root is not None else Path("data")
        folders = [root, root / "raw", root / self.folder / "raw"]
        folders += [Path(place) for place in self.elsewhere if self.root is None]
        found = [f for folder in folders for f in (folder / file, folder / f"{file}.gz") if f.is_file()]
        if found:
            return found[0]
        if self.download:
            from torchvision import datasets

            getattr(datasets, self.folder)(str(root), download=True)
            return root / self.folder / "raw" / file
        remedy = f"Get it with: vitlab train dataset={self.name} dataset.download=true dataset.root={root}"
        raise DatasetMissing(f"{self.name}'s {file}[.gz]", folders, remedy + self.package)


class FashionMnist(Mnist):
    """Photographs of clothing from a shop, in MNIST's format (Xiao, Rasul and Vollgraf 2017)."""

    classes = (
        "t-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    )
    mean = (0.2860,)
    std = (0.3530,)
    flip = True
    citation = "Xiao, Rasul and Vollgraf 2017, Fashion-MNIST: a novel image dataset for benchmarking machine learning"

    name = "fashion_mnist"
    folder = "FashionMNIST"
    elsewhere = ("/usr/share/datasets/fashion-mnist",)
    package = " (on Debian: apt-get install dataset-fashion-mnist)"


class Kmnist(Mnist):
    """Cursive Japanese characters in MNIST's format (Clanuwat et al. 2018); mean and std are the commonly published."""

    classes = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
    mean = (0.1918,)
    std = (0.3483,)
    citation = "Clanuwat et al. 2018, Deep learning for classical Japanese literature"

    name = "kmnist"
    folder = "KMNIST"
