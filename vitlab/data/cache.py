"""Decoded images, kept: a file is decoded once, for all epochs and all trainings, and then read from a memory map."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import torch
from jaxtyping import Int, Integer, UInt8
from PIL import Image, features
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vitlab.config.errors import DataError, DiskFull
from vitlab.data.examples import Examples, Files, unreadable
from vitlab.storage.files import write_whole
from vitlab.storage.lock import Lock

FORMAT = 1  # of what is written; with another number every cache is made anew
NAMES = 4096  # that a thread asks the disk about at a time
CHUNK = 8  # images that a worker hands over at a time
SAMPLE = 32  # images of a split whose size stands for that of all
SPARE = 2**28  # bytes of the disk that are left to others
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Packed = tuple[Int[np.ndarray, "n two"], UInt8[Tensor, " bytes"]]  # height and width of each image; all their pixels


class Cached(Examples):
    """Images that lie decoded one after the other, in a file that the worker processes share.

    Args:
        pixels: of all images, row by row.
        starts: place of each image's first byte (n,).
        sizes: height and width of each.
        labels: class of each (n,).
        channels: bytes of a pixel.
        min_size: see `Examples.reduced`; what it is, it stays.
    """

    def __init__(
        self,
        pixels: UInt8[np.ndarray, " bytes"],
        starts: Int[np.ndarray, " n"],
        sizes: Integer[np.ndarray, "n two"],
        labels: Int[np.ndarray, " n"],
        channels: int,
        min_size: int | None,
    ):
        self.pixels = pixels
        self.starts = starts
        self.sizes = sizes
        self.labels = labels
        self.channels = channels
        self.min_size = min_size

    def image(self, index: int) -> Image.Image:
        start, (height, width) = int(self.starts[index]), self.sizes[index].tolist()
        pixels = self.pixels[start : start + height * width * self.channels]
        return Image.fromarray(pixels.reshape((height, width) if self.channels == 1 else (height, width, -1)))

    def take(self, indices: np.ndarray) -> "Cached":
        starts, sizes, labels = self.starts[indices], self.sizes[indices], self.labels[indices]
        return Cached(self.pixels, starts, sizes, labels, self.channels, self.min_size)


def cache_images(splits: dict[str, Examples], folder: Path, workers: int) -> dict[str, Examples]:
    """The splits, those in files read from what lies decoded in `folder`; what does not is decoded now, by one process.

    Args:
        splits: of any kinds; images that are not in files of their own are read as they were.
        folder: of all caches. A file that changed is another image there; what is not needed any more may be removed.
        workers: processes that decode.

    Raises:
        DataError: a file that cannot be decoded, by name.
        DiskFull: they do not fit on the disk.
        OSError: the folder cannot be written.
    """
    files = {name: part for name, part in splits.items() if isinstance(part, Files)}
    places = {name: folder / f"{name}-{key(part)}" for name, part in files.items()}
    found = {name: opened(places[name], part) for name, part in files.items()}
    if None in found.values():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with Lock(folder / "lock", waiting=lambda who: print(f"{who}: waiting for its decoded images", flush=True)):
                found = {name: opened(places[name], part) for name, part in files.items()}
                missing = {name: part for name, part in files.items() if found[name] is None}
                check_room(missing, folder)
                for name, part in missing.items():
                    decode(places[name], part, name, workers)
                    found[name] = opened(places[name], part)
        except OSError as error:
            if error.errno in FULL:
                raise disk_full(folder, "the disk is full, and not all decoded images are written") from error
            raise OSError(
                f"system.cache={folder} cannot be written ({error.strerror or error}): give another"
            ) from error
    return {name: found.get(name) or part for name, part in splits.items()}


def key(examples: Files) -> str:
    """Another name for everything that can change a decoded byte: which files, of what size and time, and how read.

    Raises:
        DataError: a file is gone.
    """

    def facts(start: int) -> bytes:
        known = []
        for name in examples.names[start : start + NAMES].tolist():
            path = os.path.abspath(name)  # noqa: PTH100 (a million names)
            try:
                file = os.stat(path)  # noqa: PTH116
            except OSError as error:
                raise unreadable(Path(os.fsdecode(name)), error, examples.remedy) from error
            known.append((path, file.st_size, file.st_mtime_ns))
        return repr(known).encode()

    how = (FORMAT, examples.mode, examples.min_size, PIL.__version__, features.version("libjpeg_turbo"))
    digest = hashlib.sha256(repr(how).encode())
    with ThreadPoolExecutor(8) as pool:  # a disk in the network answers several at once
        for some in pool.map(facts, range(0, len(examples), NAMES)):
            digest.update(some)
    return digest.hexdigest()[:24]


def files_of(place: Path) -> tuple[Path, Path]:
    """Pixels and sizes; the sizes are written last, so where they are the pixels are."""
    return place.with_name(f"{place.name}.pixels"), place.with_name(f"{place.name}.npy")


def opened(place: Path, examples: Files) -> Cached | None:
    """The images that lie decoded at this place; None where there are none, or not those of these examples."""
    file, index = files_of(place)
    try:
        sizes = np.load(index, allow_pickle=False)
        if sizes.dtype != np.int32 or sizes.shape != (len(examples), 2) or sizes.min() < 1:
            return None
        channels = len(examples.mode)  # L or RGB
        ends = np.cumsum(sizes.astype(np.int64).prod(axis=1) * channels)
        if file.stat().st_size != ends[-1]:
            return None
        pixels = np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray)
    except (OSError, ValueError, EOFError):
        return None
    starts = np.concatenate(([0], ends[:-1]))
    return Cached(pixels, starts, sizes, examples.labels, channels, examples.min_size)


def check_room(missing: dict[str, Files], folder: Path) -> None:
    """Raises DiskFull where these examples, judged by some of them, will not fit on the disk."""
    images, wanted = 0, 0.0
    for part in missing.values():
        some = (part.image(i) for i in np.linspace(0, len(part) - 1, min(SAMPLE, len(part))).astype(int).tolist())
        images += len(part)
        wanted += len(part) * float(np.mean([image.width * image.height * len(part.mode) for image in some]))
    free = shutil.disk_usage(folder).free
    if wanted + SPARE > free:
        have = f"of {free / 1e9:,.1f} GB that are free there, {SPARE / 1e9:.1f} are left to others"
        raise disk_full(folder, f"{images:,} decoded images take about {wanted / 1e9:,.1f} GB, and {have}")


def decode(place: Path, examples: Files, name: str, workers: int) -> None:
    """Decodes all images into the files of this place; for the holder of the lock.

    Raises:
        DataError: one cannot be decoded.
        DiskFull: the disk has become full.
    """
    sizes = np.zeros((len(examples), 2), dtype=np.int32)

    def write(part: Path) -> None:
        done = 0
        title = {"desc": f"decoding {name}", "total": len(examples), "unit": "image"}
        with part.open("wb") as out, tqdm(**title, leave=False, disable=None, dynamic_ncols=True) as bar:
            for shapes, pixels in packs(examples, workers):
                if shutil.disk_usage(place.parent).free < SPARE:
                    raise disk_full(place.parent, f"the disk is nearly full after {done:,} of {len(examples):,} images")
                out.write(pixels.numpy().data)
                sizes[done : done + len(shapes)] = shapes
                done += len(shapes)
                bar.update(len(shapes))

    def write_sizes(part: Path) -> None:
        with part.open("wb") as out:
            np.save(out, sizes)

    print(f"decoding {len(examples):,} {name} images, once, into {place.parent}", flush=True)
    file, index = files_of(place)
    index.unlink(missing_ok=True)
    write_whole(file, write)
    write_whole(index, write_sizes)


def packs(examples: Files, workers: int) -> Iterator[Packed]:
    """All images in order, some at a time."""
    chunks = DataLoader(
        Chunks(examples),
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),  # the loader's own draw leaves the global one alone
        collate_fn=lambda pack: pack,
        multiprocessing_context="fork" if workers else None,
    )
    for number, pack in enumerate(chunks):
        yield pack or packed(examples, number)


class Chunks(Dataset):
    """Examples as the workers decode them; None in place of some that hold one that cannot be read."""

    def __init__(self, examples: Files):
        self.examples = examples

    def __len__(self) -> int:
        return -(-len(self.examples) // CHUNK)

    def __getitem__(self, index: int) -> Packed | None:
        try:
            return packed(self.examples, index)
        except DataError:  # no process can hand it over to another
            return None


def packed(examples: Files, number: int) -> Packed:
    """The images of one chunk."""
    images = [np.asarray(examples.image(i)) for i in range(number * CHUNK, min(len(examples), (number + 1) * CHUNK))]
    sizes = np.array([image.shape[:2] for image in images])
    return sizes, torch.from_numpy(np.concatenate([image.ravel() for image in images]))


def disk_full(folder: Path, why: str) -> DiskFull:
    """The error for a disk that is too small for a cache."""
    return DiskFull(
        f"system.cache={folder}: {why}: free some, give a folder on a larger disk, or decode in every epoch,"
        " system.cache=null"
    )
