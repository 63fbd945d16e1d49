"""metrics.jsonl: rows are appended whole or not at all; while the disk is full they wait in memory."""

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any


class Journal:
    """A file of JSON lines that only grows. The thread that writes checkpoints calls `sync`.

    Args:
        path: of the file; its folder exists.
    """

    def __init__(self, path: Path):
        self.file = path.open("ab", buffering=0)
        self.end = self.file.tell()
        self.waiting: list[bytes] = []
        self.lock = threading.RLock()

    def add(self, row: dict[str, Any]) -> None:
        """Appends a row, after those that still wait.

        Raises:
            OSError: the disk is full or gone; the rows wait for the next call.
        """
        with self.lock:
            self.waiting.append(json.dumps(row).encode() + b"\n")
            self.flush()

    def flush(self) -> None:
        """Appends the rows that wait; raises OSError as `add` does."""
        with self.lock:
            data = b"".join(self.waiting)
            try:
                if data and self.file.write(data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self.file.truncate(self.end)
                raise
            self.end += len(data)
            self.waiting = []

    def sync(self) -> None:
        """Waits until every row is on the disk; raises OSError as `add` does, and if the file is closed."""
        with self.lock:
            if self.file.closed:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self.flush()
            copy = os.dup(self.file.fileno())  # which `close` does not close
        try:
            os.fsync(copy)
        finally:
            os.close(copy)

    def close(self) -> None:
        with self.lock:
            self.file.close()
