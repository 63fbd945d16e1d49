"""`vitlab train`: a Hydra application, with errors in one sentence."""

import os
from typing import NoReturn

from vitlab.cli.exit import DONE
from vitlab.config.compose import explained
from vitlab.config.errors import ConfigError
from vitlab.config.groups import help_text
from vitlab.config.overrides import complete
from vitlab.config.own import command

CELL = "  vitlab train cell=SWEEP/ARM seed=0          one run of a sweep; cell=SWEEP/SCALE/ARM at one of its scales"


def main(words: list[str]) -> int:
    """Trains what the words ask for: one run, or with -m one for each combination."""
    if "--help" in words or "-h" in words:
        print(f"{help_text()}\n{CELL}")
        return DONE
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own reports hide which value was wrong
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.prog = "vitlab train"
    parser.error = unknown
    asked = parser.parse_intermixed_args(words)
    with explained():
        from vitlab.cli.hydra_task import train_with_hydra

        if asked.shell_completion:
            return train_with_hydra(words)
        many = asked.multirun
        given = complete(unfold(asked.overrides, many=many), many=many)
        flags = [word for word in words if word not in asked.overrides]
        if not many:
            return train_with_hydra([*flags, *given])
        from vitlab.cli.multirun import multirun, planned

        if not asked.cfg:
            return multirun(flags, given, words)
        flags = [word for word in flags if word not in ("-m", "--multirun")]
        for run in planned(given):
            print(f"# {command('train', *run)}")
            train_with_hydra([*flags, *run])
        return DONE


def unknown(message: str) -> NoReturn:
    """Refuses a command line in one sentence, where argparse would print its usage, which is Hydra's."""
    raise ConfigError(f"{message}: see vitlab train --help")


def unfold(overrides: list[str], many: bool = False) -> list[str]:
    """The overrides, with those of a sweep's cell for `cell=SWEEP/ARM`.

    Raises:
        SweepError: there is no such cell, or several are asked for.
    """
    if not (named := [word for word in overrides if word.startswith("cell=")]):
        return overrides
    from vitlab.config.overrides import key_of
    from vitlab.sweep import reader

    if many or len(named) > 1:
        raise ConfigError(f"{' '.join(named)}: one cell a command; vitlab sweep trains all of them")
    asked, cell = reader.cell(named[0].removeprefix("cell="))
    rest = [word for word in overrides if word not in named]
    own = [word for word in rest if key_of(word) in ("seed", "dataset.fold") or word.startswith("hydra")]
    cells = {each.name: each for each in asked.cells(word for word in rest if word not in own)}
    tracked = [] if any(word.startswith("tracking.sweep=") for word in rest) else [f"tracking.sweep={asked.name}"]
    return [*cells[cell.name].overrides, *tracked, *own]
