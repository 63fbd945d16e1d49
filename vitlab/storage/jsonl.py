"""metrics.jsonl: rows appended whole or not at all; those for which the disk has no room wait."""

import errno
import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """A file of JSON lines that only grows.

    Args:
        path: of the file; its folder is there.
    """

    def __init__(self, path: Path):
        self.file = path.open("ab", buffering=0)
        self.end = self.file.tell()
        self.waiting: list[bytes] = []

    def add(self, row: dict[str, Any]) -> None:
        """Appends a row, with those that still wait.

        Raises:
            OSError: the disk is full or gone; the rows wait for the next call.
        """
        self.waiting.append(json.dumps(row).encode() + b"\n")
        self.flush()

    def flush(self) -> None:
        """Appends the rows that wait; raises OSError as `add` does."""
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
        """Until every row is on the disk; raises OSError as `add` does."""
        self.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()
