"""Downloads of remote shards into a folder of limited size, shared by several processes."""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vitlab.config.errors import DataError
from vitlab.storage.files import make_folder, write_whole

SCHEMES = ("http", "https", "s3", "gs")


READ = os.O_RDONLY | getattr(os, "O_BINARY", 0)  # Windows would read a text


def read_at(file: int, size: int, offset: int) -> bytes:
    """Bytes of an open file that no one else reads (Windows has no `os.pread`)."""
    os.lseek(file, offset, os.SEEK_SET)
    return os.read(file, size)


def is_remote(name: str) -> bool:
    return name.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def check_address(name: str) -> None:
    """Refuses what is neither a path nor a URL that may be downloaded: nothing of it ever reaches a shell.

    Raises:
        DataError: another scheme (`pipe:` would run a command), or a character that a download program might expand.
    """
    scheme = re.match(r"(\w+):", name)
    if scheme and not is_remote(name):
        reason = "would run a command, which no configuration may" if scheme[1] == "pipe" else "is no path or address"
        raise DataError(f"{name} {reason}: give a path, or an address of {', '.join(f'{s}://' for s in SCHEMES)}")
    if scheme and (invalid := re.search(r"[^\w.~:/?#@!$&'()+,;=%-]", name, flags=re.ASCII)):
        raise DataError(
            f"{name} has {invalid[0]!r}, which no address has: name the shards by braces, such as x-{{000..099}}.tar,"
            " and write other characters as %XX"
        )


def cache_name(name: str, *key: object) -> str:
    """A readable file name for a URL or path, unique for each key."""
    stem = re.sub(r"[^\w.-]", "_", re.split(r"[?#]", name)[0].rpartition("/")[2].removesuffix(".tar"), flags=re.ASCII)
    return f"{stem[-60:]}-{hashlib.sha256(repr((name, *key)).encode()).hexdigest()[:16]}"


def locked(path: Path) -> FileLock:
    """A lock on this file against other processes and threads; the kernel releases it when its process dies."""
    make_folder(path.parent, "give another folder, dataset.cache=PATH")
    return FileLock(path, fallback_to_soft=False)


@contextmanager
def open_url(url: str) -> Generator[Any]:
    """A stream of the bytes at a URL, opened by webdataset: curl for http, gsutil for gs; and aws for s3.

    Raises:
        DataError: the download failed.
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


class ShardCache:
    """A folder of downloaded files, of which the least recently used are removed; one process downloads each.

    Args:
        folder: the folder.
        limit: bytes of all files, with those being downloaded; None for no limit.
    """

    def __init__(self, folder: Path, limit: int | None):
        self.folder = folder
        self.limit = limit

    def open(self, url: str, size: int) -> int:
        """The descriptor of a file of this size, downloaded if necessary; the caller closes it."""
        path = self.path(url)
        while True:  # another process may remove it between the download and the opening
            try:
                file = os.open(path, READ)
            except FileNotFoundError:
                self.fetch(url, size)
            else:
                os.utime(file if os.utime in os.supports_fd else path)  # the time of its last use
                return file

    def path(self, url: str) -> Path:
        return self.folder / f"{cache_name(url)}.tar"

    def fetch(self, url: str, size: int | None = None) -> Path:
        """The path of the complete file. Without a limit its size may be unknown.

        Raises:
            DataError: the download failed, or the file is larger than the limit or not of the expected size.
        """
        path = self.path(url)

        def write(part: Path) -> None:
            if self.limit is not None:
                assert size is not None
                self.reserve(part, size, url)
            with open_url(url) as source, part.open("r+b" if part.exists() else "wb") as file:
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
        """Creates an empty file of this size once there is room; unfinished downloads count at full size."""
        assert self.limit is not None
        if size > self.limit:
            raise DataError(f"dataset.cache_bytes={self.limit}: {url} alone has {size} bytes: allow more")
        while True:
            with locked(self.folder / "locks" / "room"):
                if self.free_bytes(size) >= size:
                    with part.open("wb") as file:
                        file.truncate(size)
                    return
            time.sleep(0.05)  # finished downloads can be removed

    def free_bytes(self, size: int) -> int:
        """The free bytes, after removing the least recently used files until `size` bytes are free, if possible."""
        assert self.limit is not None
        free = self.limit
        for part in self.folder.glob(".*.part"):
            try:
                with locked(self.lock(Path(part.name[1:-5]))).acquire(blocking=False):
                    part.unlink(missing_ok=True)  # left by a process that died
            except Timeout:
                free -= file_stat(part)[0]
        complete = sorted(self.folder.glob("*.tar"), key=lambda path: file_stat(path)[1])
        free -= sum(file_stat(path)[0] for path in complete)
        for path in complete:
            if free >= size:
                break
            free += file_stat(path)[0]
            path.unlink(missing_ok=True)
        return free


def file_stat(path: Path) -> tuple[int, float]:
    """Bytes of a file and the time of its last use; zeros where another process has removed it."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return 0, 0.0
    return stat.st_size, stat.st_mtime
