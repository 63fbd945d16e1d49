"""Random pixels with random labels, for benchmarks: nothing can be learned from them."""

from dataclasses import dataclass

import numpy as np
import torch

from vitlab.config.errors import DataError
from vitlab.data.dataset import Dataset
from vitlab.data.examples import Examples, Pixels
from vitlab.system.memory import check_fits


@dataclass(kw_only=True)
class Synthetic(Dataset):
    """Random pixels with random labels; prints that they are.

    Args:
        examples: number of training images; a fifth as many are test images.
        classes_count: number of classes.
        channels: colour channels.
    """

    size = None
    mean = (0.5,)
    std = (0.289,)
    flip = True
    citation = "random numbers"
    licence = "none needed"

    examples: int
    classes_count: int
    channels: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, minimum in {"examples": 10, "classes_count": 2, "channels": 1}.items():
            value = getattr(self, name)
            if value < minimum:
                raise DataError(f"dataset.{name}={value}: must be at least {minimum}")
        images, (height, width) = self.examples + self.test_examples, self.shape
        of_each = f"{self.channels}x{height}x{width} numbers each, of {self.classes_count} classes"
        size = images * (self.channels * height * width + 8) + self.classes_count * 64
        check_fits(size, f"dataset.examples={self.examples}: {images} images of {of_each}, take", "use fewer of them")
        self.classes = tuple(f"noise {i}" for i in range(self.classes_count))
        self.mean = self.mean * self.channels
        self.std = self.std * self.channels

    @property
    def test_examples(self) -> int:
        """Number of test images."""
        return max(self.classes_count, self.examples // 5)

    def listed(self) -> dict[str, Examples]:
        return {}  # the options alone determine the pixels

    def read(self) -> dict[str, Examples]:
        print(
            "dataset=synthetic: random pixels with random labels, for benchmarks only; no accuracy here means anything"
        )
        draw = np.random.default_rng(self.split_seed)

        def noise(count: int) -> Pixels:
            pixels = draw.integers(0, 256, (count, self.channels, *self.shape), dtype=np.uint8)
            return Pixels(torch.from_numpy(pixels), np.arange(count) % self.classes_count)

        return {"train": noise(self.examples), "test": noise(self.test_examples)}
