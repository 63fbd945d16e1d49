"""The handwritten digits in scikit-learn: real images without a download."""

import gzip
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from vitlab.config.errors import DatasetMissing
from vitlab.data.dataset import Dataset
from vitlab.data.examples import Examples, Pixels


@dataclass(kw_only=True)
class Digits(Dataset):
    """1,797 handwritten digits of 8x8 pixels and 17 grey levels (Alpaydin and Kaynak 1998).

    The file is read from scikit-learn's folder, without importing scikit-learn, which takes seconds.

    Args:
        test_fraction: fraction of all images kept for the test.
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
    licence = "CC BY 4.0"

    test_fraction: float

    def read(self) -> dict[str, Examples]:
        package = find_spec("sklearn")
        file = Path(str(package and package.origin)).parent / "datasets" / "data" / "digits.csv.gz"
        if not file.is_file():
            raise DatasetMissing("digits", [file], "Get it with: uv pip install scikit-learn")
        with gzip.open(file, "rt", encoding="utf-8") as text:
            table = np.loadtxt(text, delimiter=",", dtype=np.uint8)
        pixels = np.rint(table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
        return {"train": Pixels(torch.from_numpy(pixels), table[:, -1])}
