"""Remote files, fetched whole into a folder that is kept below a limit, for several processes at once."""

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitlab.config.errors import DataError
from vitlab.storage.files import write_whole

SCHEMES = ("http", "https", "s3", "gs")


def is_remote(name: str) -> bool:
    return name.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def check_address(name: str) -> None:
    """Refuses what is neither a path nor an address that one may fetch: nothing of it ever reaches a shell.

    Raises:
        DataError: another scheme (`pipe:` would run a command), or a character that a fetching program might expand.
    """
    scheme = re.match(r"(\w+):", name)
    if scheme and not is_remote(name):
        reason = "would run a command, which no configuration may" if scheme[1] == "pipe" else "is no path or address"
        raise DataError(f"{name} {reason}: give a path, or an address of {', '.join(f'{s}://' for s in SCHEMES)}")
    if scheme and (odd := re.search(r"[^\w.~:/?#@!$&'()+,;=%-]", name, flags=re.ASCII)):
        raise DataError(
            f"{name} has {odd[0]!r}, which no address has: name the shards by braces, such as x-{{000..099}}.tar, and"
            " write other characters as %XX"
        )


def short(name: str, *key: object) -> str:
    """A file name for an address: readable, and another one for every key."""
    stem = re.sub(r"[^\w.-]", "_", re.split(r"[?#]", name)[0].rpartition("/")[2].removesuffix(".tar"), flags=re.ASCII)
    return f"{stem[-60:]}-{hashlib.sha256(repr((name, *key)).encode()).hexdigest()[:16]}"


@contextmanager
def locked(path: Path, wait: bool = True) -> Generator[None]:
    """Holds the lock in this file against other processes and threads; a process that dies lets go of it.

    Raises:
        BlockingIOError: another holds it, and we do not wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


@contextmanager
def streamed(url: str) -> Generator[Any]:
    """The bytes at an address, as webdataset opens it: curl for http, gsutil for gs; aws for s3, which it lacks.

    Raises:
        DataError: they could not be fetched.
    """
    from webdataset.gopen import Pipe, gopen, gopen_schemes

    def aws(url: str, mode: str, bufsize: int) -> Any:
        return Pipe(["aws", "s3", "cp", "--only-show-errors", url, "-"], mode=mode, bufsize=bufsize)

    gopen_schemes.setdefault("s3", aws)
    try:
        with gopen(url) as stream:
            yield stream
    except OSError as error:
        reason = re.search(r"\['(\w+)'.*(exit -?\d+)", str(error))
        raise DataError(
            f"{url} could not be fetched ({f'{reason[1]}: {reason[2]}' if reason else error}): look whether it is there"
            " and may be read from here"
        ) from error


class Store:
    """A folder of fetched files. One process fetches a file, the others wait for it; the least recently used ones go.

    Args:
        folder: where the files are.
        limit: bytes that all of them, and those being fetched, may take together; None for no limit.
    """

    def __init__(self, folder: Path, limit: int | None):
        self.folder = folder
        self.limit = limit

    def open(self, url: str, size: int) -> int:
        """The descriptor of a file of this size, fetched if it is not here: to be closed by the caller."""
        path = self.path(url)
        while True:  # another process may remove it between the fetch and the opening
            try:
                file = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                self.fetch(url, size)
            else:
                os.utime(file)  # the time of its last use
                return file

    def path(self, url: str) -> Path:
        return self.folder / f"{short(url)}.tar"

    def fetch(self, url: str, size: int | None = None) -> Path:
        """The whole file; its size may be unknown where there is no limit.

        Raises:
            DataError: it could not be fetched, is larger than the limit, or has another size than it had.
        """
        path = self.path(url)

        def write(part: Path) -> None:
            if self.limit is not None:
                assert size is not None
                self.reserve(part, size, url)
            with streamed(url) as source, part.open("r+b" if part.exists() else "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
                written = file.tell()
            if size is not None and written != size:
                raise DataError(
                    f"{url} has {written} bytes, but had {size} when its index was made: give what changes another"
                    f" name, or remove {self.folder} and the indices beside it"
                )

        with locked(self.lock(path)):
            if not path.exists():
                path.with_name(f".{path.name}.part").unlink(missing_ok=True)
                write_whole(path, write)
        return path

    def lock(self, path: Path) -> Path:
        return self.folder / "locks" / path.name

    def reserve(self, part: Path, size: int, url: str) -> None:
        """Makes an empty file of this size, once there is room for it: files being fetched count whole."""
        assert self.limit is not None
        if size > self.limit:
            raise DataError(f"dataset.cache_bytes={self.limit}: {url} alone has {size} bytes: allow more")
        while True:
            with locked(self.folder / "locks" / "room"):
                if self.room(size) >= size:
                    with part.open("wb") as file:
                        file.truncate(size)
                    return
            time.sleep(0.05)  # those that are being fetched can be removed once they are whole

    def room(self, size: int) -> int:
        """How many bytes are free, after removing the least recently used files until `size` are, if that can be."""
        assert self.limit is not None
        free = self.limit
        for part in self.folder.glob(".*.part"):
            try:
                with locked(self.lock(Path(part.name[1:-5])), wait=False):
                    part.unlink(missing_ok=True)  # nobody fetches it: its process died
            except BlockingIOError:
                free -= bytes_of(part)
        whole = sorted(self.folder.glob("*.tar"), key=last_use)
        free -= sum(bytes_of(path) for path in whole)
        for path in whole:
            if free >= size:
                break
            free += bytes_of(path)
            path.unlink(missing_ok=True)
        return free


def bytes_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
