"""Tar shards in the WebDataset format, local or remote: for data that does not fit one disk."""

import glob
import io
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from vitlab.config.errors import DataError, DatasetMissing
from vitlab.data.dataset import CustomDataset
from vitlab.data.datasets.download import (
    READ,
    ShardCache,
    cache_name,
    check_address,
    is_remote,
    locked,
    open_url,
    read_at,
)
from vitlab.data.datasets.tar_index import Index, index_shard, member_name
from vitlab.data.examples import Encoded, Examples, Found, open_image, unreadable
from vitlab.data.labels import clean_label, sort_labels, strip_zeros
from vitlab.storage.files import file_errors, read_text, write_whole

log = logging.getLogger("vitlab")


@dataclass(kw_only=True)
class WebDataset(CustomDataset):
    """Samples in tar files: members `NAME.jpg` and `NAME.cls` are an image and its label (webdataset's convention).

    One pass over a shard makes an index, which is kept; after that images can be read in any order, so splits, subsets
    and resumed runs are the same as for other datasets. A remote shard is downloaded when its first image is read.
    Validation images that are cut from remote training shards would download all of them at every evaluation: give
    such data validation shards of its own.

    Args:
        train: the training shards: a path, a folder, or a URL (http, https, s3, gs), with braces (`x-{000..099}.tar`)
            and, for local files, wildcards (`x-*.tar`); several are separated by `::`.
        validation: the same; None takes a stratified split of the training images.
        test: the same; None takes a stratified split of the training images.
        image: extensions of the image, the preferred one first.
        label: extension of the label, a number or a text; `json:KEY` takes it from a JSON member.
        classes_file: file of class names, one per line; a label is a name or a line number from 0. None takes the
            distinct labels of the training images.
        lanes: shards that a batch draws from in parallel; a multiple of the number of processes gives each process
            shards of its own.
        window: shards of a lane that are shuffled together; lanes * (window + 1) are read at a time.
        cache: folder of the indices and of downloaded shards.
        cache_bytes: limit of the downloaded shards; the least recently used are removed. None for no limit, which also
            keeps the shards that are downloaded to make the indices.

    Raises:
        DatasetMissing: no such shard.
        DataError: a URL that may not be downloaded, a damaged shard, a label that is no class.
    """

    path_options = ("cache", "cache_bytes")
    hashed_paths = frozenset({"train", "validation", "test", "classes_file"})
    in_shards = True

    train: str
    validation: str | None
    test: str | None
    image: tuple[str, ...]
    label: str
    classes_file: str | None
    lanes: int
    window: int
    cache: str
    cache_bytes: int | None

    @file_errors()
    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lanes", "window", "cache_bytes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise DataError(f"dataset.{name}={value}: must be at least 1")
        patterns = {"train": self.train, "validation": self.validation, "test": self.test}
        self.shards = {split: list_shards(pattern) for split, pattern in patterns.items() if pattern is not None}
        names = sorted(name for part in self.shards.values() for name in part)
        if repeated := [a for a, b in pairwise(names) if a == b]:
            raise DataError(f"{repeated[0]} is named twice: give every shard to one split, once")
        folder = Path(self.cache)
        self.indices, self.store = folder / "indices", ShardCache(folder / "shards", self.cache_bytes)
        self.classes = self.class_names()
        if len(self.classes) < 2 and not self.for_evaluation:
            raise DataError(
                f"{self.train} has {len(self.classes)} class ({', '.join(self.classes)}): a classifier needs at least 2"
            )

    def read(self) -> dict[str, Examples]:
        shards = zip(self.shards["train"], self.train_indices, strict=True)
        sizes = [index.bytes for name, index in shards if is_remote(name)]
        working_set = min(sum(sizes), self.lanes * (self.window + 1) * max(sizes, default=0))
        if self.cache_bytes is not None and self.cache_bytes < working_set:
            log.warning(
                "dataset.cache_bytes=%d: one machine reads shards of up to %d bytes at a time, and would fetch them"
                " again and again: allow more, or take fewer dataset.lanes (%d) or a smaller dataset.window (%d)",
                *(self.cache_bytes, working_set, self.lanes, self.window),
            )
        return {split: self.examples(split) for split in self.shards}

    def class_names(self) -> tuple[str, ...]:
        """The lines of `classes_file`, or the distinct labels of the training images, numbers in numeric order."""
        if self.classes_file is not None:
            path = Path(self.classes_file)
            if not path.is_file():
                raise DatasetMissing("webdataset's dataset.classes_file", [path], "Give a file with a name a line")
            lines = read_text(path, 100_000_000).splitlines()
            return tuple(clean_label(line) for line in lines if line.strip("\ufeff \t"))
        more = [split for split in self.shards if split != "train"] if self.for_evaluation else []
        indices = [*self.train_indices, *(index for split in more for index in self.read_indices(split))]
        return sort_labels(strip_zeros(clean_label(text)) for index in indices for text in index.names.tolist())

    def labels(self, index: Index, shard: str) -> np.ndarray:
        """The classes of a shard's samples as integers."""
        numbers = {name: i for i, name in enumerate(self.classes)}
        if self.classes_file is not None:
            numbers = {str(i): i for i in range(len(self.classes))} | numbers
        texts = [clean_label(text) for text in index.names.tolist()]
        labels = [numbers.get(text, numbers.get(strip_zeros(text))) for text in texts]
        if None in labels:
            raise DataError(
                f"{shard}: the label {index.names[labels.index(None)]} is none of the {len(self.classes)} classes"
                f" ({self.classes[0]} to {self.classes[-1]}): give all of them in dataset.classes_file"
            )
        return np.array(labels, dtype=np.int64)[index.labels]

    @cached_property
    def train_indices(self) -> list[Index]:
        return self.read_indices("train")

    def examples(self, split: str) -> "Tars":
        """The samples of a split, in the order of its shards."""
        indices = self.train_indices if split == "train" else self.read_indices(split)
        names = self.shards[split]
        return Tars(
            names=names,
            bytes=tuple(index.bytes for index in indices),
            store=self.store,
            shard=np.repeat(np.arange(len(names)), [len(index.labels) for index in indices]),
            offsets=np.concatenate([index.offsets for index in indices]),
            sizes=np.concatenate([index.sizes for index in indices]),
            labels=np.concatenate([self.labels(*pair) for pair in zip(indices, names, strict=True)]),
            lanes=self.lanes,
            window=self.window,
        )

    def read_indices(self, split: str) -> list[Index]:
        """The indices of a split's shards; missing ones are made, several at a time."""
        names = self.shards[split]
        with ThreadPoolExecutor(8) as pool:
            indices = pool.map(self.index, names)
            return list(tqdm(indices, f"{split} shards", len(names), unit="shard", leave=False, disable=None))

    def index(self, name: str) -> Index:
        """The kept index of a shard; made if there is none for these extensions and, for a local file, this version."""
        source, version = name, []
        if not is_remote(name):
            source, file = str(Path(name).resolve()), Path(name).stat()
            version = [file.st_size, file.st_mtime_ns]
        path = self.indices / f"{cache_name(source, *version, self.image, self.label)}.npz"
        if not path.exists():
            with locked(self.indices / "locks" / path.name):
                if not path.exists():
                    write_whole(path, self.scan(name).save)
        return Index.load(path)

    def scan(self, name: str) -> Index:
        """Makes the index of a shard."""
        if is_remote(name) and self.cache_bytes is not None:
            with open_url(name) as stream:
                return index_shard(stream, name, self.image, self.label, stream=True)
        path = self.store.fetch(name) if is_remote(name) else Path(name)
        try:
            with path.open("rb") as file:
                return index_shard(file, name, self.image, self.label, stream=False)
        except DataError:
            if is_remote(name):
                path.unlink()  # so that a repaired shard is downloaded
            raise


def list_shards(pattern: str) -> tuple[str, ...]:
    """The shards of a pattern: webdataset's braces and `::`, and for local files wildcards and folders.

    Raises:
        DataError: webdataset is not installed, or something that is neither a path nor a URL that may be downloaded.
        DatasetMissing: no file at a path.
    """
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise DataError(
            "dataset=webdataset needs the library `webdataset`, which is not installed: uv sync --extra webdataset, or"
            ' pip install "vitlab[webdataset]"'
        ) from error
    shards: list[str] = []
    for name in expand_urls(pattern):
        check_address(name)
        if is_remote(name):
            shards.append(name)
            continue
        path = Path(name).expanduser()
        pattern = str(path / "*.tar" if path.is_dir() else path)
        files = [pattern] if path.is_file() else sorted(glob.glob(pattern))  # noqa: PTH207 (it may be absolute)
        if not files:
            raise DatasetMissing("webdataset", [path], "Give shards that are there, such as dataset.train=data/x-*.tar")
        shards += files
    return tuple(shards)


@dataclass(kw_only=True, eq=False)
class Tars(Encoded):
    """Images in tar files, decoded on access.

    Args:
        names: path or URL of each shard.
        bytes: size of each shard.
        store: cache of remote shards.
        shard: shard of each image (n,), as an index into `names`.
        offsets: first byte of each image (n,).
        sizes: bytes of each image (n,).
        labels: class of each image (n,).
        lanes: see `WebDataset`.
        window: see `WebDataset`.
    """

    arrays = ("shard", "offsets", "sizes", "labels")

    names: tuple[str, ...]
    bytes: tuple[int, ...]
    store: ShardCache
    shard: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    lanes: int
    window: int

    def hash_contents(self, digest: Any) -> int:
        shards = [name.rpartition("/")[2] for name in self.names]
        digest.update(repr((shards, self.bytes)).encode())
        super().hash_contents(digest)
        return int(self.sizes.sum())

    def open(self, index: int, use: Callable[[Image.Image], Found]) -> Found:
        shard, offset, size = (int(array[index]) for array in (self.shard, self.offsets, self.sizes))
        name = self.names[shard]
        with file_errors():
            file = self.store.open(name, self.bytes[shard]) if is_remote(name) else os.open(name, READ)
        try:
            data = read_at(file, size, offset)
            return open_image(io.BytesIO(data), use)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = ValueError("its format is not known") if isinstance(error, UnidentifiedImageError) else error
            member = member_name(read_at(file, 512, offset - 512))
            raise unreadable(f"{member} in {name}", reason, "make the shard again without it") from error
        finally:
            os.close(file)

    def sample(self, count: int) -> np.ndarray:
        """Indices of at most so many examples; where shards are remote, of the first one alone."""
        if not any(map(is_remote, self.names)):
            return super().sample(count)
        of_first = np.flatnonzero(self.shard == self.shard[0])
        return of_first[np.linspace(0, len(of_first) - 1, min(count, len(of_first))).astype(int)]

    def shuffle(self, draw: np.random.Generator, batch: int) -> np.ndarray:
        """A permutation that reads few shards at a time, whatever the number of processes.

        The shuffled shards are divided among lanes, one after the other. Every batch takes the same number of images
        from each lane, in one block. A process takes a part of every batch, and so reads the shards of some lanes.
        Within a lane an image may come up to `window` shards later.
        """
        lanes, n = min(self.lanes, batch), len(self)
        shards, shard = np.unique(self.shard, return_inverse=True)
        position = draw.permutation(len(shards))[shard]  # of each image's shard
        order = np.argsort(position, kind="stable")
        block = split_evenly(batch, lanes)
        length = block * (n // batch) + split_evenly(n % batch, lanes)
        lane = np.repeat(np.arange(lanes), length)
        order = order[np.lexsort((position[order] + self.window * draw.random(n), lane))]
        step = (np.arange(n) - (np.cumsum(length) - length)[lane]) // block[lane]
        return order[np.lexsort((lane, step))]


def split_evenly(total: int, parts: int) -> np.ndarray:
    """An integer as a sum of parts that differ by at most 1, the larger ones first."""
    return total // parts + (np.arange(parts) < total % parts)
