"""Handwritten digits that ship inside scikit-learn: real images with no download."""

import gzip
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from vitlab.config.errors import DataError, DatasetMissing
from vitlab.data.dataset import Dataset, split_off
from vitlab.data.examples import Examples, Pixels


@dataclass(kw_only=True)
class Digits(Dataset):
    """1,797 handwritten digits of 8x8 pixels and 17 grey levels (Alpaydin and Kaynak 1998).

    The file is read where scikit-learn keeps it, without importing scikit-learn, which takes seconds. It has no split
    of its own: the test images are a stratified slice as well.

    Args:
        test_fraction: share of all images kept for the test.
    """

    classes = tuple("0123456789")
    channels = 1
    size = (8, 8)
    mean = (0.3053,)
    std = (0.3761,)
    flip = False
    citation = (
        "Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI (the test part, in scikit-learn)"
    )

    test_fraction: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.test_fraction < 1:
            raise DataError(f"dataset.test_fraction={self.test_fraction}: must lie between 0 and 1; 0.2 is usual")

    def read(self) -> dict[str, Examples]:
        package = find_spec("sklearn")
        file = Path(str(package and package.origin)).parent / "datasets" / "data" / "digits.csv.gz"
        if not file.is_file():
            raise DatasetMissing("digits", [file], "Get it with: uv pip install scikit-learn")
        with gzip.open(file, "rt") as text:
            table = np.loadtxt(text, delimiter=",", dtype=np.uint8)
        pixels = np.rint(table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
        everything = Pixels(torch.from_numpy(pixels), table[:, -1])
        test, train = split_off(
            everything, round(len(table) * self.test_fraction), self.split_seed + 2, "dataset.test_fraction"
        )
        return {"train": train, "test": test}
