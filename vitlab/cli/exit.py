"""Exit statuses, and how an error ends a command."""

import os
import shlex
import sys
import traceback
from pathlib import Path

from vitlab.config.errors import VitlabError

DONE, FAILED, REFUSED = 0, 1, 2


def refuse(error: VitlabError) -> int:
    """Prints an error that the user can correct in one line, with VITLAB_TRACEBACK=1 below its traceback."""
    if int(os.environ.get("RANK", "0")) == 0:
        if os.environ.get("VITLAB_TRACEBACK"):
            traceback.print_exception(error)
        print(f"vitlab: {printable(' '.join(str(error).split()))}", file=sys.stderr)
    return REFUSED


def bug_report(error: Exception) -> str:
    """The traceback of a bug of vitlab, and what to do with it."""
    return (
        f"{''.join(traceback.format_exception(error))}\nvitlab: this is a bug of vitlab. Please report it, with the"
        f" traceback above and the command: vitlab {shlex.join(sys.argv[1:])}"
    )


def print_json(value: object) -> None:
    """Prints one JSON document; letters that the terminal lacks are escaped."""
    from vitlab.storage.files import json_text

    print(json_text(value, getattr(sys.stdout, "encoding", None) or "utf-8"))


def printable(value: object) -> str:
    """What any terminal can print in one line: the name of a file or a class may be anything that steers a terminal."""
    words = os.fsencode(value).decode(errors="replace") if isinstance(value, Path) else str(value)
    return "".join(letter if letter.isprintable() else "?" for letter in words)
