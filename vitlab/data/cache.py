"""Cache of decoded images: each file is decoded once for all epochs and trainings, then read from a memory map."""

import hashlib
import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from jaxtyping import Int, Integer, UInt8
from PIL import Image, features
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vitlab.config.errors import DataError, DiskFull, StorageError
from vitlab.data.examples import STAT_CHUNK, Examples, Files, Pixels, unreadable
from vitlab.data.loader import START_METHOD, as_is
from vitlab.storage.files import make_folder, write_whole
from vitlab.storage.lock import Lock

FORMAT = 1  # version of the files; caches of another version are made again
CHUNK = 8  # images that a worker decodes at a time
SAMPLE = 32  # images of a split from which its size is estimated
RESERVED = 2**28  # bytes of the disk that stay free

Chunk = tuple[Int[np.ndarray, "n two"], UInt8[Tensor, " bytes"]]  # height and width of each image; all their pixels


@dataclass(kw_only=True, eq=False)
class Cached(Examples):
    """Decoded images, one after the other, in a memory-mapped file that worker processes share.

    Args:
        pixels: pixels of all images, row by row.
        starts: first byte of each image (n,).
        sizes: height and width of each image.
        labels: class of each image (n,).
        channels: bytes of a pixel.
    """

    arrays = ("starts", "sizes", "labels")

    pixels: UInt8[np.ndarray, " bytes"]
    starts: Int[np.ndarray, " n"]
    sizes: Integer[np.ndarray, "n two"]
    labels: Int[np.ndarray, " n"]
    channels: int

    def image(self, index: int) -> Image.Image:
        start, (height, width) = int(self.starts[index]), self.sizes[index].tolist()
        pixels = self.pixels[start : start + height * width * self.channels]
        return Image.fromarray(pixels.reshape((height, width) if self.channels == 1 else (height, width, -1)))

    def in_memory(self) -> Pixels:
        """The images, all of one size, as an array."""
        height, width = self.sizes[0].tolist()
        length = height * width * self.channels
        pixels = np.stack([self.pixels[start : start + length] for start in self.starts.tolist()])
        pixels = torch.from_numpy(pixels).view(-1, height, width, self.channels)
        return Pixels(pixels.permute(0, 3, 1, 2).contiguous(), self.labels)


def reduce_cached(cached: Cached) -> tuple[Any, ...]:
    """What a spawned worker is sent of cached images: the file of the pixels, not the pixels."""
    file = getattr(cached.pixels.base, "filename", None)
    return open_cached, (vars(cached) if file is None else vars(cached) | {"pixels": str(file)},)


def open_cached(state: dict[str, Any]) -> Cached:
    pixels = state["pixels"]
    cached = object.__new__(Cached)
    vars(cached).update(state | {"pixels": map_pixels(pixels) if isinstance(pixels, str) else pixels})
    return cached


ForkingPickler.register(Cached, reduce_cached)


def map_pixels(file: Path | str) -> np.ndarray:
    return np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray)


def cache_images(splits: dict[str, Examples], folder: Path, workers: int) -> dict[str, Examples]:
    """The splits, with those of image files read from the cache; images that are not in it are decoded first.

    One process decodes, and others wait for it.

    Args:
        splits: examples of any kind; all but `Files` are returned as they are.
        folder: folder of all caches. A file that changed is decoded again; caches may be removed at any time.
        workers: number of worker processes that decode.

    Raises:
        DataError: a file that cannot be decoded.
        DiskFull: the images do not fit on the disk.
        StorageError: the folder cannot be written.
    """
    files = {name: part for name, part in splits.items() if isinstance(part, Files)}
    paths = {name: folder / f"{name}-{key(part)}" for name, part in files.items()}
    cached = {name: open_cache(paths[name], part) for name, part in files.items()}
    if None in cached.values():
        try:
            make_folder(folder)
            with Lock(folder / "lock", waiting=lambda who: print(f"{who}: waiting for its decoded images", flush=True)):
                cached = {name: open_cache(paths[name], part) for name, part in files.items()}
                missing = {name: part for name, part in files.items() if cached[name] is None}
                check_disk_space(missing, folder)
                for name, part in missing.items():
                    write_cache(paths[name], part, name, workers)
                    cached[name] = open_cache(paths[name], part)
        except StorageError as error:
            raise type(error)(f"system.cache={folder}: {error}") from error
    return {name: cached.get(name) or part for name, part in splits.items()}


def key(examples: Files) -> str:
    """Hash of everything that determines the decoded pixels: paths, sizes and times of the files, and the decoder.

    Raises:
        DataError: a file is gone.
    """

    def versions(start: int) -> bytes:
        files = []
        for name in examples.names[start : start + STAT_CHUNK].tolist():
            path = os.path.abspath(name)  # noqa: PTH100 (a million names)
            try:
                file = os.stat(path)  # noqa: PTH116
            except OSError as error:
                raise unreadable(Path(os.fsdecode(name)), error, examples.remedy) from error
            files.append((path, file.st_size, file.st_mtime_ns))
        return repr(files).encode()

    how = (value for value in examples.decoding if value is not None)
    decoder = (FORMAT, *how, examples.min_size, PIL.__version__, features.version("libjpeg_turbo"))
    digest = hashlib.sha256(repr(decoder).encode())
    with ThreadPoolExecutor(8) as pool:  # a network disk answers several at once
        for chunk in pool.map(versions, range(0, len(examples), STAT_CHUNK)):
            digest.update(chunk)
    return digest.hexdigest()[:24]


def cache_files(path: Path) -> tuple[Path, Path]:
    """The files of the pixels and of the sizes; the sizes are written last."""
    return path.with_name(f"{path.name}.pixels"), path.with_name(f"{path.name}.npy")


def open_cache(path: Path, examples: Files) -> Cached | None:
    """The cached images; None where there is no complete cache of these examples."""
    pixels_file, sizes_file = cache_files(path)
    try:
        sizes = np.load(sizes_file, allow_pickle=False)
        if sizes.dtype != np.int32 or sizes.shape != (len(examples), 2) or sizes.min() < 1:
            return None
        channels = len(examples.decoding.mode)  # L or RGB
        ends = np.cumsum(sizes.astype(np.int64).prod(axis=1) * channels)
        if pixels_file.stat().st_size != ends[-1]:
            return None
        pixels = map_pixels(pixels_file)
    except (OSError, ValueError, EOFError):
        return None
    starts = np.concatenate(([0], ends[:-1]))
    return Cached(pixels=pixels, starts=starts, sizes=sizes, labels=examples.labels, channels=channels)


def check_disk_space(missing: dict[str, Files], folder: Path) -> None:
    """Raises DiskFull where the images, by an estimate from a sample, do not fit on the disk."""
    images, size = 0, 0.0
    for part in missing.values():
        sample = (part.image(i) for i in np.linspace(0, len(part) - 1, min(SAMPLE, len(part))).astype(int).tolist())
        images += len(part)
        size += len(part) * float(np.mean([image.width * image.height * len(part.decoding.mode) for image in sample]))
    free = shutil.disk_usage(folder).free
    if size + RESERVED > free:
        available = f"of {free / 1e9:,.1f} GB that are free there, {RESERVED / 1e9:.1f} are left to others"
        raise disk_full(f"{images:,} decoded images take about {size / 1e9:,.1f} GB, and {available}")


def write_cache(path: Path, examples: Files, name: str, workers: int) -> None:
    """Decodes all images into the files of a cache, under the lock.

    Raises:
        DataError: an image cannot be decoded.
        DiskFull: the disk is nearly full.
    """
    sizes = np.zeros((len(examples), 2), dtype=np.int32)

    def write_pixels(part: Path) -> None:
        done = 0
        progress = {"desc": f"decoding {name}", "total": len(examples), "unit": "image"}
        with part.open("wb") as out, tqdm(**progress, leave=False, disable=None, dynamic_ncols=True) as bar:
            for shapes, pixels in decode_chunks(examples, workers):
                if shutil.disk_usage(path.parent).free < RESERVED:
                    raise disk_full(f"the disk is nearly full after {done:,} of {len(examples):,} images")
                out.write(pixels.numpy().data)
                sizes[done : done + len(shapes)] = shapes
                done += len(shapes)
                bar.update(len(shapes))

    def write_sizes(part: Path) -> None:
        with part.open("wb") as out:
            np.save(out, sizes)

    print(f"decoding {len(examples):,} {name} images, once, into {path.parent}", flush=True)
    pixels_file, sizes_file = cache_files(path)
    sizes_file.unlink(missing_ok=True)
    write_whole(pixels_file, write_pixels)
    write_whole(sizes_file, write_sizes)


class Chunks(Dataset):
    """Chunks of decoded images. An error is returned, because a worker's exception would not keep its message."""

    def __init__(self, examples: Files):
        self.examples = examples

    def __len__(self) -> int:
        return math.ceil(len(self.examples) / CHUNK)

    def __getitem__(self, index: int) -> Chunk | DataError:
        indices = range(index * CHUNK, min(len(self.examples), (index + 1) * CHUNK))
        try:
            images = [np.asarray(self.examples.image(i)) for i in indices]
        except DataError as error:
            return error
        sizes = np.array([image.shape[:2] for image in images])
        return sizes, torch.from_numpy(np.concatenate([image.ravel() for image in images]))


def decode_chunks(examples: Files, workers: int) -> Iterator[Chunk]:
    """All images in order, decoded in worker processes."""
    loader = DataLoader(
        Chunks(examples),
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),  # keeps the loader off the global generator
        collate_fn=as_is,
        multiprocessing_context=START_METHOD if workers else None,
    )
    for chunk in loader:
        if isinstance(chunk, DataError):
            raise chunk
        yield chunk


def disk_full(reason: str) -> DiskFull:
    """The error for a disk that is too small for a cache."""
    return DiskFull(f"{reason}: free some, give a folder on a larger disk, or decode in every epoch, system.cache=null")
