"""Where the images of a tar file lie: an index that is made by one pass and makes every later access random."""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.config.errors import DataError

META = re.compile(r"__[^/]*__($|/)")  # members that webdataset keeps for itself


@dataclass(frozen=True)
class Index:
    """The samples of a shard, in their order.

    Args:
        bytes: of the whole shard.
        offsets: of each image's first byte (n,).
        sizes: bytes of each image (n,).
        labels: of each sample (n,), as a place in `names`.
        names: the different labels, as they are written.
    """

    bytes: int
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    names: np.ndarray

    def save(self, path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> "Index":
        with np.load(path, allow_pickle=False) as arrays:
            return cls(int(arrays["bytes"]), *(arrays[key] for key in ("offsets", "sizes", "labels", "names")))


@dataclass
class Sample:
    """Members of one name and several extensions, one after the other.

    Args:
        name: what is common to them.
        places: first byte and number of bytes of each, by extension.
        text: what the member of the label says.
    """

    name: str
    places: dict[str, tuple[int, int]]
    text: bytes | None = None


class Counted:
    """A stream that knows how many bytes of it were read."""

    def __init__(self, file: Any):
        self.file = file
        self.bytes = 0

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.bytes += len(data)
        return data


def scan(file: Any, shard: str, image: tuple[str, ...], label: str, *, stream: bool) -> Index:
    """The index of a shard in webdataset's format.

    Args:
        file: the tar, open.
        shard: its name, for errors.
        image: extensions of the image, the preferred one first.
        label: extension of the label, or `json:KEY`.
        stream: whether the file can only be read from its beginning to its end.

    Raises:
        DataError: no tar, a tar that is cut short, a sample without image or label.
    """
    counted = Counted(file)
    extension, _, key = label.partition(":")
    places, texts = [], []
    for sample in samples(members(counted if stream else file, shard, stream), shard, extension):
        found = [sample.places[ending] for ending in image if ending in sample.places]
        for missing, option, value in (
            (not found, "image", ", ".join(image)),
            (sample.text is None, "label", extension),
        ):
            if missing:
                raise DataError(
                    f"{shard}: sample {sample.name} has no {option} ({value}) but {', '.join(sample.places)}: name the"
                    f" extension in dataset.{option}, or make the shard again without such samples"
                )
        places.append(found[0])
        texts.append(said(sample, key, shard))
    if not places:
        raise DataError(f"{shard} has no samples: leave it out, or make it again")
    while stream and counted.read(1 << 20):
        pass
    names, labels = np.unique(np.array(texts, dtype=np.str_), return_inverse=True)
    offsets, sizes = np.array(places, dtype=np.int64).T
    return Index(counted.bytes if stream else file.seek(0, 2), offsets, sizes, labels, names)


def samples(members: Iterator[tuple[tarfile.TarInfo, Any]], shard: str, extension: str) -> Iterator[Sample]:
    """The members put together by webdataset's rule: the name ends at the first dot, the extension begins there."""
    from webdataset.tariterators import base_plus_ext

    sample = None
    for member, file in members:
        name, ending = base_plus_ext(member.name)
        if name is None or ending is None or not member.isreg() or META.match(member.name):
            continue
        ending = ending.lower()
        if sample is None or sample.name != name:
            if sample is not None:
                yield sample
            sample = Sample(name, {})
        if ending in sample.places:
            raise DataError(f"{shard}: sample {name} has two members .{ending}: give every sample a name of its own")
        sample.places[ending] = (member.offset_data, member.size)
        if ending == extension:
            sample.text = file.read(member.size)
    if sample is not None:
        yield sample


def members(file: Any, shard: str, stream: bool) -> Iterator[tuple[tarfile.TarInfo, Any]]:
    """The members of a tar, each with the file at its first byte, up to the empty block that ends a whole tar.

    Read header by header, because tarfile's own loop takes a tar that is cut short or damaged for one that ends there.
    """
    try:
        mode: Any = "r|" if stream else "r:"
        with tarfile.open(fileobj=file, mode=mode) as tar:
            assert tar.fileobj is not None
            member = tar.next()
            while member is not None:
                yield member, tar.fileobj
                tar.fileobj.seek(tar.offset)
                member = tarfile.TarInfo.fromtarfile(tar)
    except tarfile.EOFHeaderError:  # ty: ignore[missing-attribute]
        return
    except tarfile.TarError as error:
        raise DataError(
            f"{shard} is cut short or no tar ({error}): fetch or make it again; one that is compressed must be unpacked"
        ) from error


def said(sample: Sample, key: str, shard: str) -> str:
    """The label as it is written in a sample: all of its member, or what the member has under a key."""
    assert sample.text is not None
    try:
        text = sample.text.decode()
        value = json.loads(text)[key] if key else text.strip()
    except (ValueError, KeyError, TypeError) as error:
        value, reason = None, f"{type(error).__name__} {error}"
    else:
        reason = repr(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "" or "\n" in str(value):
        raise DataError(
            f"{shard}: the label of sample {sample.name} is neither a number nor one line of text ({reason[:80]}): name"
            " its member in dataset.label, such as cls, txt or json:label"
        )
    return str(value)


def member_name(header: bytes) -> str:
    """The name in the block of 512 bytes that stands before a member's first byte, as far as it has room there."""
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "replace").name
    except tarfile.HeaderError:
        return "an image"
