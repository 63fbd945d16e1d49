"""MNIST, Fashion-MNIST and KMNIST: gzipped or plain IDX files, as torchvision or a Debian package lays them out."""

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import ClassVar

import numpy as np
import torch

from vitlab.config.errors import DataError, DatasetMissing
from vitlab.data.dataset import Dataset
from vitlab.data.examples import Examples, Pixels


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file of unsigned bytes (LeCun's format), gzipped if its name ends in .gz.

    Raises:
        DataError: another format, or a file that is cut short.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        header = 4 + 4 * data[3]
        shape = tuple(np.frombuffer(data[4:header], ">u4").tolist())
        if data[:3] != b"\0\0\x08" or len(data) != header + math.prod(shape):
            raise ValueError(f"{len(data)} bytes for the shape {shape}")
    except (ValueError, IndexError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is not a complete IDX file of bytes ({error}): fetch it again") from error
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()


@dataclass(kw_only=True)
class Mnist(Dataset):
    """70,000 grey images of 28x28 in 10 classes; the last 10,000 are the test set.

    Args:
        root: folder of the four IDX files, directly, in `raw/` or in `MNIST/raw/` (torchvision's layout); None
            looks in `data/`.
        download: download missing files to `root`.
    """

    classes = tuple("0123456789")
    channels = 1
    size = (28, 28)
    mean = (0.1307,)
    std = (0.3081,)
    flip = False
    published = (60_000, 10)
    citation = "LeCun, Bottou, Bengio and Haffner 1998, Gradient-based learning applied to document recognition"
    licence = "none stated by the authors; Keras's documentation says CC BY-SA 3.0"

    name: ClassVar[str] = "mnist"
    folder: ClassVar[str] = "MNIST"  # name of torchvision's class and of its folder
    system_folder: ClassVar[str | None] = None  # where a system package installs it
    package_hint: ClassVar[str] = ""  # how to install that package

    root: str | None
    download: bool

    def read(self) -> dict[str, Examples]:
        return {"train": self.read_split("train"), "test": self.read_split("t10k")}

    def read_split(self, prefix: str) -> Pixels:
        images = read_idx(self.find_file(f"{prefix}-images-idx3-ubyte"))
        labels = read_idx(self.find_file(f"{prefix}-labels-idx1-ubyte"))
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(images):
            raise DataError(
                f"{self.name} has {images.shape} images and {labels.shape} labels: the files do not belong together"
            )
        if labels.max() >= len(self.classes):
            raise DataError(f"{self.name} has a label {labels.max()}, but {len(self.classes)} classes")
        return Pixels(torch.from_numpy(images)[:, None], labels)

    def find_file(self, file: str) -> Path:
        root = Path(self.root) if self.root is not None else Path("data")
        folders = [root, root / "raw", root / self.folder / "raw"]
        if self.root is None and self.system_folder is not None:
            folders.append(Path(self.system_folder))
        for path in (folder / name for folder in folders for name in (file, f"{file}.gz")):
            if path.is_file():
                return path
        if self.download:
            from torchvision import datasets

            getattr(datasets, self.folder)(str(root), download=True)
            return root / self.folder / "raw" / file
        remedy = f"Get it with: vitlab train dataset={self.name} dataset.download=true {quote(f'dataset.root={root}')}"
        raise DatasetMissing(f"{self.name}'s {file}[.gz]", folders, remedy + self.package_hint)


class FashionMnist(Mnist):
    """70,000 photographs of clothing in MNIST's format (Xiao, Rasul and Vollgraf 2017)."""

    classes = ("t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    mean = (0.2860,)
    std = (0.3530,)
    flip = True
    citation = "Xiao, Rasul and Vollgraf 2017, Fashion-MNIST: a novel image dataset for benchmarking machine learning"
    licence = "MIT"

    name = "fashion_mnist"
    folder = "FashionMNIST"
    system_folder = "/usr/share/datasets/fashion-mnist"
    package_hint = " (on Debian: apt-get install dataset-fashion-mnist)"


class Kmnist(Mnist):
    """Cursive Japanese characters in MNIST's format (Clanuwat et al. 2018); mean and std are the commonly published."""

    classes = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
    mean = (0.1918,)
    std = (0.3483,)
    citation = "Clanuwat et al. 2018, Deep learning for classical Japanese literature"
    licence = "CC BY-SA 4.0"

    name = "kmnist"
    folder = "KMNIST"
