"""Examples: labelled images, in memory or in files. What a dataset returns for each split."""

import itertools
import os
import warnings
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vitlab.config.errors import DataError
from vitlab.data.preprocess import Decoding, to_pixels, upright

Found = TypeVar("Found")

STAT_CHUNK = 4096  # files that a thread stats at a time


class Examples:
    """Base class of labelled images. A subclass overrides `image`, and lists in `arrays` what has a row per image."""

    arrays: ClassVar[tuple[str, ...]] = ("labels",)

    labels: np.ndarray
    decoding: Decoding = Decoding("RGB")  # see `decoded`
    min_size: int | None = None  # see `reduced`

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        raise NotImplementedError(f"{type(self).__name__} has no image")

    def item(self, index: int) -> tuple[Image.Image, int]:
        """The image and its label; to override where the two are read together."""
        return self.image(index), int(self.labels[index])

    def hash_contents(self, digest: Any) -> int:
        """Updates a digest with what tells these images from others, without decoding them; gives their bytes.

        Where they lie is no part of it. To override where `arrays` do not tell.
        """
        for name in self.arrays:
            digest.update(np.ascontiguousarray(getattr(self, name)).data)
        return 0

    def shuffle(self, draw: np.random.Generator, batch: int) -> np.ndarray:
        """A permutation of the indices for one epoch; to override where some orders are read faster than others.

        Args:
            draw: the source of all randomness.
            batch: global batch size.
        """
        return draw.permutation(len(self))

    def take(self, indices: np.ndarray) -> "Examples":
        """The examples at these indices."""
        taken = copy(self)
        for name in self.arrays:
            setattr(taken, name, getattr(self, name)[indices])
        return taken

    def sample(self, count: int) -> np.ndarray:
        """Indices of at most so many examples, evenly spaced; to override where some are read faster than others."""
        return np.linspace(0, len(self) - 1, min(count, len(self))).astype(int)

    def decoded(self, decoding: Decoding) -> "Examples":
        """The same examples, with image files decoded in this way."""
        examples = copy(self)
        examples.decoding = decoding
        return examples

    def reduced(self, min_size: int | None) -> "Examples":
        """The same examples, with JPEGs decoded at a reduced size.

        Args:
            min_size: smallest size that the shorter side may have then, in pixels (see `exif_transposed`); None
                decodes at full size.
        """
        examples = copy(self)
        examples.min_size = min_size
        return examples


class Pixels(Examples):
    """Images of one size in memory.

    Args:
        pixels: 0 to 255, on any device.
        labels: class of each (n,).
    """

    arrays = ("pixels", "labels")

    def __init__(self, pixels: UInt8[Tensor, "n c y x"], labels: np.ndarray):
        self.pixels = pixels
        self.labels = np.asarray(labels, dtype=np.int64)
        self.moved: Pixels | None = None

    def image(self, index: int) -> Image.Image:
        pixels = self.pixels[index].cpu().numpy()
        return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))

    def hash_contents(self, digest: Any) -> int:
        pixels = np.ascontiguousarray(self.pixels.cpu().numpy())
        digest.update(pixels.data)
        return pixels.nbytes

    def to(self, device: torch.device) -> "Pixels":
        """The images on a device, where trainings that share these images share them too."""
        if self.moved is None or self.moved.pixels.device != device:
            self.moved = Pixels(self.pixels.to(device), self.labels)
        return self.moved

    def resized(self, size: tuple[int, int]) -> "Pixels":
        """The images resized to (height, width), bicubic."""
        if tuple(self.pixels.shape[2:]) == size:
            return self
        pixels = torch.empty((*self.pixels.shape[:2], *size), dtype=torch.uint8)
        for i in range(len(self)):
            pixels[i] = to_pixels(self.image(i).resize((size[1], size[0]), Image.Resampling.BICUBIC))
        return Pixels(pixels, self.labels)


class Encoded(Examples):
    """Base class of images that are decoded on access. A subclass overrides `open`."""

    def open(self, index: int, use: Callable[[Image.Image], Found]) -> Found:
        """What `use` makes of an image whose pixels are not decoded yet.

        Raises:
            DataError: it cannot be decoded.
        """
        raise NotImplementedError(f"{type(self).__name__} has no open")

    def image(self, index: int) -> Image.Image:
        return self.open(index, partial(upright, decoding=self.decoding, min_size=self.min_size))


class Files(Encoded):
    """Image files of any size, decoded on access.

    Args:
        paths: path of each image; an array of encoded paths, which worker processes share, is kept as it is.
        labels: class of each (n,).
        mode: PIL mode to convert to: "RGB" or "L".
        remedy: what to do about an unreadable file, for the error.
    """

    arrays = ("names", "labels")

    def __init__(self, paths: list[Path] | np.ndarray, labels: np.ndarray, mode: str, remedy: str = "fetch it again"):
        self.names = paths if isinstance(paths, np.ndarray) else np.array([os.fsencode(p) for p in paths], dtype=bytes)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.decoding = Decoding(mode)
        self.remedy = remedy

    @property
    def paths(self) -> list[Path]:
        return [Path(os.fsdecode(name)) for name in self.names]

    def hash_contents(self, digest: Any) -> int:
        names = self.names.tolist()
        first, last = min(names), max(names)
        alike = next((i for i, pair in enumerate(zip(first, last, strict=False)) if len({*pair}) > 1), len(first))
        start = first.rfind(b"/", 0, alike) + 1  # after the last folder that all share
        digest.update(b"\0".join(name[start:] for name in names))
        sizes = file_sizes(names, self.remedy)
        digest.update(sizes.data)
        return int(sizes.sum())

    def open(self, index: int, use: Callable[[Image.Image], Found]) -> Found:
        path = Path(os.fsdecode(self.names[index]))
        try:
            return open_image(path, use)
        except (OSError, SyntaxError, ValueError) as error:
            raise unreadable(path, error, self.remedy) from error


class Joined(Examples):
    """Several examples, one after the other."""

    arrays = ("part", "place", "labels")

    def __init__(self, parts: list[Examples]):
        self.parts = parts
        self.part = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        self.place = np.concatenate([np.arange(len(part)) for part in parts])
        self.labels = np.concatenate([part.labels for part in parts])

    def image(self, index: int) -> Image.Image:
        return self.parts[self.part[index]].image(int(self.place[index]))

    def decoded(self, decoding: Decoding) -> "Examples":
        return self.each(lambda part: part.decoded(decoding))

    def reduced(self, min_size: int | None) -> "Examples":
        return self.each(lambda part: part.reduced(min_size))

    def each(self, change: Callable[[Examples], Examples]) -> "Joined":
        changed = copy(self)
        changed.parts = [change(part) for part in self.parts]
        return changed


def joined(parts: list[Examples]) -> Examples:
    return parts[0] if len(parts) == 1 else Joined(parts)


def file_sizes(names: list[bytes], remedy: str) -> Int[np.ndarray, " n"]:
    """The bytes of each file.

    Raises:
        DataError: a file is gone.
    """

    def sizes(start: int) -> list[int]:
        found = []
        for name in names[start : start + STAT_CHUNK]:
            try:
                found.append(os.stat(name).st_size)  # noqa: PTH116 (a million names)
            except OSError as error:
                raise unreadable(Path(os.fsdecode(name)), error, remedy) from error
        return found

    with ThreadPoolExecutor(8) as pool:  # a network disk answers several at once
        chunks = pool.map(sizes, range(0, len(names), STAT_CHUNK))
        return np.fromiter(itertools.chain.from_iterable(chunks), dtype=np.int64, count=len(names))


def open_image(file: Path | BytesIO, use: Callable[[Image.Image], Found]) -> Found:
    """What `use` makes of the image in a file.

    Args:
        file: a path, or the file's bytes.
        use: takes the image, whose pixels are not decoded yet.

    Raises:
        OSError, SyntaxError, ValueError: it cannot be decoded, whatever its decoder raised.
    """
    try:
        with ignore_pillow_warnings(), Image.open(file) as image:
            return use(image)
    except (OSError, SyntaxError, ValueError):
        raise
    except Exception as error:
        raise DataError(decode_error(error)) from error


@contextmanager
def ignore_pillow_warnings() -> Generator[None]:
    """Context without Pillow's warnings about odd files, which it reads all the same. Not thread-safe."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def decode_error(error: Exception) -> str:
    """Why an image cannot be decoded, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image, or of a kind that Pillow does not read"
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"it has more than {limit:,} pixels, which may be an attack on the memory: make it smaller"
    text = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return f"it cannot be read ({text})"


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def unreadable(name: Path | str, error: Exception, remedy: str) -> DataError:
    """The error for an image that cannot be decoded."""
    return DataError(f"{name} is not a readable image ({error}): {remedy}")
