"""One process at a time: a lock that the kernel takes back when its holder ends, however it ends."""

import fcntl
import json
import math
import os
import socket
import time
import weakref
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from vitlab.config.errors import Locked

PATIENCE = 1.0  # seconds: somebody may just be looking


class Lock:
    """Holds a file for this process alone, while entered.

    Args:
        path: of the file, which stays when the lock is let go.
        waiting: is told, once, who has the lock, which is then waited for as long as that takes; None waits for none.

    Raises:
        Locked: another process has it, and is not waited for.
    """

    def __init__(self, path: Path, waiting: Callable[[str], object] | None = None):
        self.path = path
        self.waiting = waiting
        self.file: TextIO | None = None

    def __enter__(self) -> "Lock":
        file = self.path.open("a+")
        until = time.monotonic() + PATIENCE
        while not taken(file, fcntl.LOCK_EX):
            if time.monotonic() > until:
                who = holder(self.path) or {}
                said = (
                    f"{self.path.parent} is being written by process {who.get('process', '?')} on"
                    f" {who.get('host', '?')}, since {who.get('since', '?')}"
                )
                if self.waiting is None:
                    file.close()
                    raise Locked(f"{said}: wait for it, or stop it")
                self.waiting(said)
                until = math.inf
            time.sleep(0.05)
        file.truncate(0)
        mine = {"process": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        file.write(json.dumps(mine))
        file.flush()
        self.file = file
        HELD.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        HELD.discard(self)
        self.close()

    def close(self) -> None:
        if self.file:
            self.file.close()
            self.file = None


def holder(path: Path) -> dict[str, Any] | None:
    """Who holds the lock on this file: `process`, `host`, `since`; None where nobody does."""
    if not path.is_file():
        return None
    try:
        with path.open() as file:
            if taken(file, fcntl.LOCK_SH):
                return None
            said = json.loads(file.read() or "{}")
            return said if isinstance(said, dict) else {}
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def taken(file: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


HELD: "weakref.WeakSet[Lock]" = weakref.WeakSet()
# A forked process (one that loads images) shares its parent's lock, and would hold it when the parent is gone.
os.register_at_fork(after_in_child=lambda: [lock.close() for lock in HELD])
