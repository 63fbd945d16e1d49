"""Exit statuses, and how an error ends a command."""

import os
import shlex
import sys
import traceback
from pathlib import Path

from vitlab.config.errors import VitlabError
from vitlab.config.own import CURRENT, take

DONE, FAILED, REFUSED = 0, 1, 2


def refuse(error: VitlabError) -> int:
    """Prints an error that the user can correct in one line, with VITLAB_TRACEBACK=1 below its traceback."""
    if int(os.environ.get("RANK", "0")) == 0:
        if os.environ.get("VITLAB_TRACEBACK"):
            traceback.print_exception(error)
        print(f"vitlab: {printable(' '.join(str(error).split()))}", file=sys.stderr)
    return REFUSED


def bug_report(error: Exception) -> str:
    """The traceback of a bug, of vitlab or of the user's own package, and what to do with it."""
    packages = {*CURRENT.get().packages, *take(sys.argv[1:])[0].packages}  # the command may have ended
    text, own = "".join(traceback.format_exception(error)), tuple(f"{package}." for package in packages)
    for frame, line in reversed([*traceback.walk_tb(error.__traceback__)]):
        module = f"{frame.f_globals.get('__name__')}."
        if module.startswith(own):
            return f"{text}\nvitlab: the error is in {frame.f_code.co_filename}, line {line}: correct it there"
        if module.startswith("vitlab.") and frame.f_code.co_name != "__torch_function__":  # which counts, and hands on
            break
    whose = f"of vitlab, or of {' or '.join(sorted(packages))}: look there first" if packages else "of vitlab"
    return (
        f"{text}\nvitlab: this is a bug {whose}. Please report it, with the traceback above and the command: vitlab"
        f" {shlex.join(sys.argv[1:])}"
    )


def print_json(value: object) -> None:
    """Prints one JSON document; letters that the terminal lacks are escaped."""
    from vitlab.storage.files import json_text

    print(json_text(value, getattr(sys.stdout, "encoding", None) or "utf-8"))


def printable(value: object) -> str:
    """What any terminal can print in one line: the name of a file or a class may be anything that steers a terminal."""
    words = os.fsencode(value).decode(errors="replace") if isinstance(value, Path) else str(value)
    return "".join(letter if letter.isprintable() else "?" for letter in words)
