"""Locks between processes: `filelock` on `flock`, which the kernel releases when a process ends, however it ends."""

import fcntl
import json
import os
import socket
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

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
        self.path.write_text(
            json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since}), encoding="utf-8"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def holder(path: Path) -> dict[str, Any] | None:
    """The `process`, `host` and `since` of who holds the lock on this file; None if nobody does.

    A shared lock, which filelock lacks, tells: it works in read-only folders, and two readers are not in each
    other's way.
    """
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found = json.loads(file.read() or "{}")
                return found if isinstance(found, dict) else {}
            return None
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
