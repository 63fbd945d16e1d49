"""Completion with the tab key: what the shell asks, answered."""

import os
from collections.abc import Iterable

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
    try:
        added, rest_words = take(overrides.split(" "))
        with using(added):
            os.environ["COMP_LINE"] = f"{program} {' '.join(rest_words)}"
            return train_with_hydra(words)
    except ConfigError:  # a flag that is not complete yet
        return DONE
