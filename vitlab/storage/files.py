"""Atomic writes, bounded reads of untrusted files, and errors of files with a remedy."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vitlab.config.errors import DiskFull, StorageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def file_errors(
    path: Path | None = None, verb: str = "read", remedy: str = "look whether it is there and may be read"
) -> Generator[None]:
    """Turns an OSError into a StorageError, or a DiskFull; as a `with` block or a decorator.

    Args:
        path: to be named; None is the file that the OSError names.
        verb: what was tried: read or written.
        remedy: what the user can do, where the disk is not full.
    """
    try:
        yield
    except (StorageError, BrokenPipeError):
        raise
    except OSError as error:
        message = f"{path or error.filename or 'a file'} cannot be {verb} ({error.strerror or error})"
        if error.errno in FULL:
            raise DiskFull(f"{message}: free some space, or give a folder on another disk") from error
        raise StorageError(f"{message}: {remedy}") from error


def make_folder(path: Path, remedy: str = "give another folder") -> None:
    """Makes a folder, and those above it, where there is none; raises StorageError."""
    with file_errors(path, "written", remedy):
        path.mkdir(parents=True, exist_ok=True)


def write_whole(path: Path, write: Callable[[Path], object], before: Path | None = None) -> None:
    """Writes a temporary file beside `path`, flushes it to disk, then renames it.

    Args:
        path: of the file.
        write: writes the file whose path it is given.
        before: a second name, under which an older file at `path` is kept.

    Raises:
        StorageError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    with file_errors(path, "written", "give a place that can be written to"):
        part.unlink(missing_ok=True)  # left by a process that was killed, or a link that somebody put there
        try:
            write(part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            if before is not None and path.exists():
                path.replace(before)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    with suppress(OSError):  # some file systems cannot, and Windows opens no folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name too
        finally:
            os.close(folder)


@contextmanager
def whole_folder(path: Path) -> Generator[Path]:
    """A temporary folder beside `path`, renamed to it at the end of the block; where that fails, nothing is left.

    Raises:
        StorageError: it cannot be written, or `path` is there already.
    """
    part = path.with_name(f".{path.name}.part")
    with file_errors(path, "written", "give another place, which can be written to"):
        shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
        part.mkdir(parents=True)
        try:
            yield part
            for file in filter(Path.is_file, part.rglob("*")):
                with file.open("rb+") as written:
                    os.fsync(written.fileno())
            part.rename(path)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def read_text(path: Path, most: int) -> str:
    """The text of an untrusted file.

    Args:
        path: of the file.
        most: bytes allowed.

    Raises:
        StorageError: it does not exist, cannot be read, is larger, is not UTF-8, or is not a regular file.
    """
    with file_errors(path):
        if not path.is_file() and os.path.lexists(path):
            raise StorageError(f"{path} is no regular file: remove it")
        with path.open("rb") as file:
            data = file.read(most + 1)
    if len(data) > most:
        raise StorageError(f"{path} has more than {most:,} bytes, which vitlab never writes there: remove it")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise StorageError(f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}): remove it") from None


def read_json(path: Path, most: int = 1_000_000) -> dict[str, Any]:
    """The JSON object in an untrusted file; raises what `read_text` does."""
    text = read_text(path, most)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} is damaged ({error}): remove it") from error
    if not isinstance(found, dict):
        raise StorageError(f"{path} is damaged (it holds {text[:20]!r}, no object): remove it")
    return found


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, each list of numbers on one line, atomically."""
    text = re.sub(r"\[[^\[\]{}\"]*\]", lambda found: re.sub(r"\n\s*", " ", found[0]), json_text(value))
    write_whole(path, lambda part: part.write_text(f"{text}\n", encoding="utf-8"))


def json_text(value: Any, encoding: str = "utf-8") -> str:
    """Indented JSON; letters that the encoding lacks are escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value, indent=2)
    return text


def name_text(name: str) -> str:
    """A file's name as text, the same in every locale: bytes that are not UTF-8 are written as `\\xe9`."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")
