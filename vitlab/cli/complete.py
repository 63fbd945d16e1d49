"""Completion with the tab key: what the shell asks, answered."""

import io
import os
import re
from collections.abc import Iterable
from contextlib import redirect_stdout, suppress
from importlib import import_module

from vitlab.cli.exit import DONE
from vitlab.cli.hydra_task import train_with_hydra
from vitlab.config.errors import ConfigError
from vitlab.config.own import take, using

COMPOSING = ("train", "data", "schedule", "bench")


def complete_line(words: list[str], commands: Iterable[str]) -> int:
    """Answers the shell's question for completions; after a command that composes, Hydra knows them."""
    line = os.environ.get("COMP_LINE", "")
    program, _, rest = line.partition(" ")
    command, space, overrides = rest.partition(" ")
    if "query" in "".join(words) and not (command in COMPOSING and space):
        print(" ".join(name for name in commands if name.startswith(command)))
        return DONE
    last = rest.split(" ")[-1]
    if command in commands and last.startswith("-"):
        print(" ".join(flag for flag in flags_of(command) if flag.startswith(last)))
        return DONE
    try:
        added, rest_words = take(overrides.split(" "))
        with using(added):
            known = [word for word in rest_words[:-1] if "=" in word and not word.startswith("-")]
            os.environ["COMP_LINE"] = f"{program} {' '.join([*known, *rest_words[-1:]])}"
            return train_with_hydra(words)
    except ConfigError:  # a flag that is not complete yet
        return DONE


def flags_of(command: str) -> list[str]:
    """The flags of a command, as its help has them."""
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        import_module(f"vitlab.cli.{command}").main(["--help"])
    return sorted({*re.findall(r"(?<!\S)\[?(--[a-z][\w-]+)", text.getvalue())})
