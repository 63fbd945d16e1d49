"""The commands: one module a word after `vitlab`, each with `main(words) -> exit status`."""

import os
import sys
from pathlib import Path

DONE, FAILED, REFUSED = 0, 1, 2


def refuse(error: Exception) -> int:
    """One sentence for a user's mistake; anything else is ours, and goes on as a traceback."""
    if not isinstance(error, ValueError | OSError):
        raise error
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"vitlab: {printable(' '.join(str(error).split()))}", file=sys.stderr)
    return REFUSED


def printable(said: object) -> str:
    """What any terminal can print in one line: the name of a file or a class may be anything that steers a terminal."""
    words = os.fsencode(said).decode(errors="replace") if isinstance(said, Path) else str(said)
    return "".join(letter if letter.isprintable() else "?" for letter in words)
