"""Index of the images in a tar shard: one pass over the file makes every later access random."""

import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.config.errors import DataError

Sample = tuple[str, dict[str, tuple[int, int]], bytes | None]  # name; first byte and size by extension; label
META = re.compile(r"__[^/]*__($|/)")  # members that webdataset keeps for itself


@dataclass(frozen=True)
class Index:
    """The samples of a shard, in their order.

    Args:
        bytes: size of the shard.
        offsets: first byte of each image (n,).
        sizes: bytes of each image (n,).
        labels: label of each image (n,), as an index into `names`.
        names: the distinct labels, as they are written.
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
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(int(arrays["bytes"]), *(arrays[key] for key in ("offsets", "sizes", "labels", "names")))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is not a whole index of a shard ({error}): remove it") from error


class CountingReader:
    """A stream that counts the bytes that were read from it."""

    def __init__(self, file: Any):
        self.file = file
        self.bytes = 0

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.bytes += len(data)
        return data


def index_shard(file: Any, shard: str, image: tuple[str, ...], label: str, *, stream: bool) -> Index:
    """The index of a shard in webdataset's format.

    Args:
        file: the open tar file.
        shard: its name, for errors.
        image: extensions of the image, the preferred one first.
        label: extension of the label, or `json:KEY`.
        stream: whether the file can only be read sequentially.

    Raises:
        DataError: no tar file, a truncated one, or a sample without an image or a label.
    """
    reader = CountingReader(file)
    extension, _, key = label.partition(":")
    images, texts = [], []
    for name, members, text in read_samples(reader if stream else file, shard, extension, stream):
        candidates = [members[suffix] for suffix in image if suffix in members]
        for missing, option, value in (
            (not candidates, "image", ", ".join(image)),
            (text is None, "label", extension),
        ):
            if missing:
                raise DataError(
                    f"{shard}: sample {name} has no {option} ({value}) but {', '.join(members)}: name the extension in"
                    f" dataset.{option}, or make the shard again without such samples"
                )
        images.append(candidates[0])
        texts.append(label_text(text, key, f"{shard}: the label of sample {name}"))
    if not images:
        raise DataError(f"{shard} has no samples: leave it out, or make it again")
    while stream and reader.read(1 << 20):
        pass
    names, labels = np.unique(np.array(texts, dtype=np.str_), return_inverse=True)
    offsets, sizes = np.array(images, dtype=np.int64).T
    return Index(reader.bytes if stream else file.seek(0, 2), offsets, sizes, labels, names)


def read_samples(file: Any, shard: str, extension: str, stream: bool) -> Iterator[Sample]:
    """Consecutive members of one name, by webdataset's rule: the name ends at the first dot, the extension follows."""
    from webdataset.tariterators import base_plus_ext

    sample: Sample | None = None
    for member, at in read_members(file, shard, stream):
        name, suffix = base_plus_ext(member.name)
        if name is None or suffix is None or not member.isreg() or META.match(member.name):
            continue
        suffix = suffix.lower()
        if sample is None or sample[0] != name:
            if sample is not None:
                yield sample
            sample = (name, {}, None)
        if suffix in sample[1]:
            raise DataError(f"{shard}: sample {name} has two members .{suffix}: give every sample a name of its own")
        sample[1][suffix] = (member.offset_data, member.size)
        if suffix == extension:
            sample = (*sample[:2], at.read(member.size))
    if sample is not None:
        yield sample


def read_members(file: Any, shard: str, stream: bool) -> Iterator[tuple[tarfile.TarInfo, Any]]:
    """The members of a tar file, each with the file at its first byte, up to the empty block at the end.

    Read header by header, because tarfile's own iteration ends silently where a file is truncated or damaged.
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


def label_text(content: bytes | None, key: str, label: str) -> str:
    """The label in a member: its text, or the value of a key in its JSON; `label` names it in errors."""
    assert content is not None
    try:
        text = content.decode()
        value = json.loads(text)[key] if key else text.strip()
        reason = repr(value)
    except (ValueError, KeyError, TypeError) as error:
        value, reason = None, f"{type(error).__name__} {error}"
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "" or "\n" in str(value):
        raise DataError(
            f"{label} is neither a number nor one line of text ({reason[:80]}): name its member in dataset.label, such"
            " as cls, txt or json:label"
        )
    return str(value)


def member_name(header: bytes) -> str:
    """The name in a member's header of 512 bytes; names over 100 bytes are cut."""
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "replace").name
    except tarfile.HeaderError:
        return "an image"
