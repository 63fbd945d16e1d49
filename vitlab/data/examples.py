"""Examples: labelled images, in memory or in files. What a dataset gives for each of its splits."""

import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from copy import copy
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vitlab.config.errors import DataError
from vitlab.data.preprocess import to_pixels, upright


class Examples:
    """The contract: labels, and the image of each as a PIL image."""

    labels: np.ndarray
    min_size: int | None = None  # see `reduced`

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        raise NotImplementedError(f"{type(self).__name__} has no image")

    def item(self, index: int) -> tuple[Image.Image, int]:
        """The image and its label; to override where the two are read together."""
        return self.image(index), int(self.labels[index])

    def shuffle(self, draw: np.random.Generator, batch: int) -> np.ndarray:
        """The order of one epoch: every index once; to override where some orders are read faster than others.

        Args:
            draw: where all randomness comes from.
            batch: images of a step, over all processes.
        """
        return draw.permutation(len(self))

    def take(self, indices: np.ndarray) -> "Examples":
        """The examples at these indices."""
        raise NotImplementedError(f"{type(self).__name__} has no take")

    def reduced(self, min_size: int | None) -> "Examples":
        """The same examples, for one who has no use for more than `min_size` pixels on an image's shorter side."""
        same = copy(self)
        same.min_size = min_size
        return same


class Pixels(Examples):
    """Images of one size, held in memory.

    Args:
        pixels: 0 to 255, on any device.
        labels: class of each (n,).
    """

    def __init__(self, pixels: UInt8[Tensor, "n c y x"], labels: np.ndarray):
        self.pixels = pixels
        self.labels = np.asarray(labels, dtype=np.int64)

    def image(self, index: int) -> Image.Image:
        pixels = self.pixels[index].cpu().numpy()
        return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))

    def take(self, indices: np.ndarray) -> "Pixels":
        return Pixels(self.pixels[torch.from_numpy(indices)], self.labels[indices])

    def to(self, device: torch.device) -> "Pixels":
        """The same images in a device's memory."""
        return Pixels(self.pixels.to(device), self.labels)

    def resized(self, size: tuple[int, int]) -> "Pixels":
        """The same images at another (height, width), bicubic."""
        if tuple(self.pixels.shape[2:]) == size:
            return self
        pixels = torch.empty((*self.pixels.shape[:2], *size), dtype=torch.uint8)
        for i in range(len(self)):
            pixels[i] = to_pixels(self.image(i).resize((size[1], size[0]), Image.Resampling.BICUBIC))
        return Pixels(pixels, self.labels)


class Files(Examples):
    """Images in files, of any size, decoded when asked for.

    Args:
        paths: one file an image; names in an array, which worker processes share, are kept as they are.
        labels: class of each (n,).
        mode: PIL's name of the mode each is converted to: "RGB" or "L".
        remedy: what to do about a file that cannot be read.
        min_size: see `Examples.reduced`.
    """

    def __init__(
        self,
        paths: list[Path] | np.ndarray,
        labels: np.ndarray,
        mode: str,
        remedy: str = "fetch it again",
        min_size: int | None = None,
    ):
        self.names = paths if isinstance(paths, np.ndarray) else np.array([os.fsencode(p) for p in paths], dtype=bytes)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.mode = mode
        self.remedy = remedy
        self.min_size = min_size

    @property
    def paths(self) -> list[Path]:
        return [Path(os.fsdecode(name)) for name in self.names]

    def image(self, index: int) -> Image.Image:
        path = Path(os.fsdecode(self.names[index]))
        try:
            return decode_image(path, self.mode, self.min_size)
        except (OSError, SyntaxError, ValueError) as error:
            raise unreadable(path, error, self.remedy) from error

    def take(self, indices: np.ndarray) -> "Files":
        return Files(self.names[indices], self.labels[indices], self.mode, self.remedy, self.min_size)


def decode_image(file: Path | BytesIO, mode: str, min_size: int | None = None) -> Image.Image:
    """The image in a file, upright, in one of PIL's modes.

    Args:
        file: a path, or the file's bytes.
        mode: PIL's name of the mode.
        min_size: pixels that the shorter side of a JPEG must have left; see `exif_transposed`.

    Raises:
        OSError, SyntaxError, ValueError: it cannot be read, whatever its decoder raised.
    """
    try:
        with ignore_pillow_warnings(), Image.open(file) as image:
            return upright(image, mode, min_size)
    except (OSError, SyntaxError, ValueError):
        raise
    except Exception as error:
        raise DataError(decode_error(error)) from error


@contextmanager
def ignore_pillow_warnings() -> Generator[None]:
    """What Pillow finds odd in a file, it reads all the same. Not for several threads at once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def decode_error(error: Exception) -> str:
    """Why an image cannot be read, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image, or of a kind that Pillow does not read"
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"it has more than {limit:,} pixels, which may be an attack on the memory: make it smaller"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return f"it cannot be read ({' '.join(said.split())})"


def unreadable(name: Path | str, error: Exception, remedy: str) -> DataError:
    """The error for an image file that cannot be decoded."""
    return DataError(f"{name} is not a readable image ({error}): {remedy}")
