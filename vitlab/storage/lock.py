"""Locks between processes: `filelock`'s, which the kernel releases when a process ends, however it ends.

On Windows, where nothing of this was run, a locked file cannot be read, so a file beside it says who holds the lock.
"""

import json
import os
import socket
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from vitlab.config.errors import Locked
from vitlab.storage.files import file_errors

PATIENCE = 1.0  # seconds to wait first: `holder` takes the lock for a moment


class Lock:
    """An exclusive lock on a file, held while entered; the file says who holds it, and stays afterwards.

    Args:
        path: of the file.
        waiting: is called once with a message that says who holds the lock, before waiting for it; None does not wait.

    Raises:
        Locked: another process holds it, and `waiting` is None.
    """

    def __init__(self, path: Path, waiting: Callable[[str], object] | None = None):
        self.path = path
        self.waiting = waiting
        self.lock = FileLock(path, fallback_to_soft=False)  # a soft lock outlives its process

    @file_errors(verb="written", remedy="give another folder")
    def __enter__(self) -> "Lock":
        try:
            self.lock.acquire(timeout=PATIENCE)
        except Timeout:
            who = holder(self.path) or {}
            message = (
                f"{self.path.parent} is being written by process {who.get('process', '?')} on"
                f" {who.get('host', '?')}, since {who.get('since', '?')}"
            )
            if self.waiting is None:
                raise Locked(f"{message}: wait for it, or stop it") from None
            self.waiting(message)
            self.lock.acquire()
        since = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        told_in(self.path).write_text(
            json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since}), encoding="utf-8"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def holder(path: Path) -> dict[str, Any] | None:
    """The `process`, `host` and `since` of who holds the lock on this file; None if nobody does."""
    try:
        if not path.is_file() or not is_held(path):
            return None
        found = json.loads(told_in(path).read_text(encoding="utf-8") or "{}")
        return found if isinstance(found, dict) else {}
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def is_held(path: Path) -> bool:
    """Whether a process holds the lock on this file.

    A shared lock, which filelock lacks, tells: it works in read-only folders, and two readers are not in each
    other's way. Windows has none, so the lock is taken for a moment.
    """
    try:
        if fcntl is None:
            FileLock(path, fallback_to_soft=False).acquire(timeout=0).lock.release()
        else:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, Timeout):
        return True
    return False


def told_in(path: Path) -> Path:
    """The file that says who holds the lock on `path`."""
    return path.with_name(f"{path.name}.json") if fcntl is None else path
