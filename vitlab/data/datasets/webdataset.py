"""Tar shards in the WebDataset format, on a disk or far away: for data that does not fit one disk."""

import glob
import io
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from vitlab.config.errors import DataError, DatasetMissing
from vitlab.data.dataset import Dataset
from vitlab.data.datasets.download import Store, check_address, is_remote, locked, short, streamed
from vitlab.data.datasets.image_folder import check_facts, with_test
from vitlab.data.datasets.tar_index import Index, member_name, scan
from vitlab.data.examples import Examples, decode_image, unreadable
from vitlab.storage.files import write_whole

log = logging.getLogger("vitlab")


@dataclass(kw_only=True)
class WebDataset(Dataset):
    """Samples in tar files: members `NAME.jpg` and `NAME.cls` are an image and its label (webdataset's convention).

    One pass over a shard makes an index of it, which is kept; from then on any image can be read at once, so splits,
    subsets and resumed runs are what they are elsewhere. A remote shard is fetched whole when the first image of it is
    asked for. Validation images that are cut from remote training shards would fetch all of them at every evaluation:
    give such data validation shards of its own.

    Args:
        train: the training shards: a path, a folder, or an address (http, https, s3, gs), with braces
            (`x-{000..099}.tar`) and, on a disk, wildcards (`x-*.tar`); `::` stands between several.
        validation: the same; None takes a stratified slice of the training images.
        test: the same; None keeps test_fraction of the training images.
        test_fraction: share of the images kept for the test where there are no test shards.
        image: extensions of the image, the preferred one first.
        label: extension of the label, a number or a text; `json:KEY` takes it from a JSON member.
        classes_file: the names of the classes, one a line; a label is a name or the number of its line, from 0. None
            takes the different labels of the training images.
        channels: 3 decodes to colour, 1 to grey.
        mean: of the training pixels, each channel in 0 ... 1.
        std: the same.
        flip: whether a mirrored image keeps its class.
        lanes: shards that a batch draws from side by side; a multiple of the number of processes, so that each reads
            shards of its own.
        window: shards of a lane that are shuffled together; lanes * (window + 1) are read at a time.
        cache: folder of the indices and of fetched shards.
        cache_bytes: limit of the fetched shards; the least recently used ones are removed. None for no limit: then the
            pass that makes the indices keeps what it fetches, too.

    Raises:
        DatasetMissing: no shard where it was looked for.
        DataError: an address that may not be fetched, a damaged shard, a label that is no class.
    """

    size = None
    citation = "your own images"
    path_options = ("cache", "cache_bytes")

    train: str
    validation: str | None
    test: str | None
    test_fraction: float
    image: tuple[str, ...]
    label: str
    classes_file: str | None
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    lanes: int
    window: int
    cache: str
    cache_bytes: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_facts(self)
        for name in ("lanes", "window", "cache_bytes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise DataError(f"dataset.{name}={value}: must be at least 1")
        patterns = {"train": self.train, "validation": self.validation, "test": self.test}
        self.shards = {split: shards(pattern) for split, pattern in patterns.items() if pattern is not None}
        names = sorted(name for part in self.shards.values() for name in part)
        if twice := [a for a, b in pairwise(names) if a == b]:
            raise DataError(f"{twice[0]} is named twice: give every shard to one split, once")
        folder = Path(self.cache).expanduser()
        self.indices, self.store = folder / "indices", Store(folder / "shards", self.cache_bytes)
        self.classes = self.names()
        if len(self.classes) < 2:
            raise DataError(
                f"{self.train} has {len(self.classes)} class ({', '.join(self.classes)}): a classifier needs at least 2"
            )

    def read(self) -> dict[str, Examples]:
        splits: dict[str, Examples] = {split: self.examples(split) for split in self.shards}
        shards = zip(self.shards["train"], self.training, strict=True)
        sizes = [index.bytes for name, index in shards if is_remote(name)]
        together = min(sum(sizes), self.lanes * (self.window + 1) * max(sizes, default=0))
        if self.cache_bytes is not None and self.cache_bytes < together:
            log.warning(
                "dataset.cache_bytes=%d: one machine reads shards of up to %d bytes at a time, and would fetch them"
                " again and again: allow more, or take fewer dataset.lanes (%d) or a smaller dataset.window (%d)",
                *(self.cache_bytes, together, self.lanes, self.window),
            )
        return with_test(splits, self.test_fraction, self.split_seed)

    # --- classes ------------------------------------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        """The classes: the lines of a file, or the different labels of the training images, numbers in their order."""
        if self.classes_file is not None:
            path = Path(self.classes_file).expanduser()
            if not path.is_file():
                raise DatasetMissing("webdataset's dataset.classes_file", [path], "Give a file with a name a line")
            return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
        found = {plain(text) for index in self.training for text in index.names.tolist()}
        return tuple(sorted(found, key=int if all(map(is_number, found)) else None))

    def numbers(self, index: Index, shard: str) -> np.ndarray:
        """The classes of a shard's samples as numbers."""
        places = {name: place for place, name in enumerate(self.classes)}
        if self.classes_file is not None:
            places = {str(place): place for place in range(len(self.classes))} | places
        known = [places.get(text, places.get(plain(text))) for text in index.names.tolist()]
        if None in known:
            raise DataError(
                f"{shard}: the label {index.names[known.index(None)]} is none of the {len(self.classes)} classes"
                f" ({self.classes[0]} to {self.classes[-1]}): give all of them in dataset.classes_file"
            )
        return np.array(known, dtype=np.int64)[index.labels]

    # --- shards -------------------------------------------------------------------------------------------------------

    @cached_property
    def training(self) -> list[Index]:
        return self.read_indices("train")

    def examples(self, split: str) -> "Tars":
        """The samples of a split, in the order of its shards."""
        indices = self.training if split == "train" else self.read_indices(split)
        names = self.shards[split]
        return Tars(
            names=names,
            bytes=tuple(index.bytes for index in indices),
            store=self.store,
            shard=np.repeat(np.arange(len(names)), [len(index.labels) for index in indices]),
            offsets=np.concatenate([index.offsets for index in indices]),
            sizes=np.concatenate([index.sizes for index in indices]),
            labels=np.concatenate([self.numbers(*pair) for pair in zip(indices, names, strict=True)]),
            mode="RGB" if self.channels == 3 else "L",
            lanes=self.lanes,
            window=self.window,
        )

    def read_indices(self, split: str) -> list[Index]:
        """The indices of a split's shards; those that are not there yet are made, several at a time."""
        names = self.shards[split]
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(self.index, names)
            return list(tqdm(found, f"{split} shards", len(names), unit="shard", leave=False, disable=None))

    def index(self, name: str) -> Index:
        """The index of a shard, made once; again for other extensions, and for a file on a disk that changed."""
        address, state = name, []
        if not is_remote(name):
            address, file = str(Path(name).resolve()), Path(name).stat()
            state = [file.st_size, file.st_mtime_ns]
        path = self.indices / f"{short(address, *state, self.image, self.label)}.npz"
        if not path.exists():
            with locked(self.indices / "locks" / path.name):
                if not path.exists():
                    write_whole(path, self.scan(name).save)
        return Index.load(path)

    def scan(self, name: str) -> Index:
        """The index of a shard, made now."""
        if is_remote(name) and self.cache_bytes is not None:
            with streamed(name) as stream:
                return scan(stream, name, self.image, self.label, stream=True)
        path = self.store.fetch(name) if is_remote(name) else Path(name)
        try:
            with path.open("rb") as file:
                return scan(file, name, self.image, self.label, stream=False)
        except DataError:
            if is_remote(name):
                path.unlink()  # so that a shard that was mended is fetched again
            raise


def shards(pattern: str) -> tuple[str, ...]:
    """The shards of a pattern, by webdataset's rules for braces and `::`; on a disk wildcards and folders as well.

    Raises:
        DataError: webdataset is not installed.
        DataError: what is neither a path nor an address that one may fetch.
        DatasetMissing: a path where nothing is.
    """
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise DataError(
            "dataset=webdataset needs the library `webdataset`, which is not installed: uv sync --extra webdataset, or"
            ' pip install "vitlab[webdataset]"'
        ) from error
    found: list[str] = []
    for name in expand_urls(pattern):
        check_address(name)
        if is_remote(name):
            found.append(name)
            continue
        path = Path(name).expanduser()
        pattern = str(path / "*.tar" if path.is_dir() else path)
        here = [pattern] if path.is_file() else sorted(glob.glob(pattern))  # noqa: PTH207 (it may begin anywhere)
        if not here:
            raise DatasetMissing("webdataset", [path], "Give shards that are there, such as dataset.train=data/x-*.tar")
        found += here
    return tuple(found)


def is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def plain(text: str) -> str:
    """A label without the zeros before a number: 007 is 7."""
    return str(int(text)) if is_number(text) else text


@dataclass(kw_only=True, eq=False)
class Tars(Examples):
    """Images in tar files, read at their places.

    Args:
        names: of the shards.
        bytes: of each shard.
        store: of remote shards.
        shard: of each image (n,), as a place in `names`.
        offsets: of each image's first byte (n,).
        sizes: bytes of each image (n,).
        labels: class of each (n,).
        mode: PIL's name of the mode each is converted to: "RGB" or "L".
        lanes: shards that a batch draws from side by side.
        window: shards of a lane that are shuffled together.
        min_size: see `Examples.reduced`.
    """

    names: tuple[str, ...]
    bytes: tuple[int, ...]
    store: Store
    shard: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    mode: str
    lanes: int
    window: int
    min_size: int | None = None

    def take(self, indices: np.ndarray) -> "Tars":
        arrays = {key: getattr(self, key)[indices] for key in ("shard", "offsets", "sizes", "labels")}
        return replace(self, **arrays)

    def image(self, index: int) -> Image.Image:
        shard, offset, size = (int(array[index]) for array in (self.shard, self.offsets, self.sizes))
        name = self.names[shard]
        file = self.store.open(name, self.bytes[shard]) if is_remote(name) else os.open(name, os.O_RDONLY)
        try:
            data = os.pread(file, size, offset)
            return decode_image(io.BytesIO(data), self.mode, self.min_size)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = ValueError("its format is not known") if isinstance(error, UnidentifiedImageError) else error
            member = member_name(os.pread(file, 512, offset - 512))
            raise unreadable(f"{member} in {name}", reason, "make the shard again without it") from error
        finally:
            os.close(file)

    def shuffle(self, draw: np.random.Generator, batch: int) -> np.ndarray:
        """An order that reads few shards at a time, whatever the number of processes.

        The shuffled shards, one after the other, are cut into lanes; every batch takes the same number of images from
        each lane in one block. A process takes a part of every batch, and so reads the shards of some lanes. Within a
        lane an image may come up to `window` shards later.
        """
        lanes, n = min(self.lanes, batch), len(self)
        present, place = np.unique(self.shard, return_inverse=True)
        turn = draw.permutation(len(present))[place]  # of each image's shard
        order = np.argsort(turn, kind="stable")
        block = even(batch, lanes)
        length = block * (n // batch) + even(n % batch, lanes)
        lane = np.repeat(np.arange(lanes), length)
        order = order[np.lexsort((turn[order] + self.window * draw.random(n), lane))]
        step = (np.arange(n) - (np.cumsum(length) - length)[lane]) // block[lane]
        return order[np.lexsort((lane, step))]


def even(total: int, parts: int) -> np.ndarray:
    """A number as a sum of so many parts that differ by at most 1, the larger ones first."""
    return total // parts + (np.arange(parts) < total % parts)
