"""Trainings that Hydra starts: one, or with `vitlab train -m` one for each combination, by any sweeper and launcher."""

import os
import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path

from vitlab.cli.exit import DONE, FAILED, refuse
from vitlab.cli.hydra_task import Task, handed, launcher_overrides, notes, option, timed, tolerate_lost_jobs
from vitlab.config.build import assemble
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError, VitlabError
from vitlab.config.groups import CONF
from vitlab.config.overrides import quoted


def multirun(flags: list[str], given: list[str], words: list[str]) -> int:
    """One training for each combination, by Hydra's sweeper and launcher, whichever they are; then their comparison."""
    first = int(os.environ.get("RANK", "0")) == 0
    planned = rehearse(given) if option(given, "sweeper") == "basic" else None
    task, given = Task(typed=sys.argv, many=True), launcher_overrides(given)
    if first:
        task.folder = folder = timed(runs_of(given))
        if not any(word.lstrip("+").startswith("hydra.sweep.dir=") for word in given):
            given = [*given, f"hydra.sweep.dir={quoted(folder)}"]
    broken = None
    from vitlab.data.dataset import read_once

    try:
        with tolerate_lost_jobs(given), read_once():
            handed(task, [*flags, *given])
    except SystemExit:
        if not (task.codes and task.codes[-1] >= 128):
            raise
    except Exception as error:
        if not first or not notes(folder):
            if first:
                with suppress(OSError):  # it is empty, or Hydra's
                    folder.rmdir()
            if isinstance(error, OSError | ValueError | TypeError) and not isinstance(error, VitlabError):
                raise ConfigError(f"Hydra has started no run: {error}") from error  # a plugin refuses a value
            raise
        broken = error
    if not first:
        return max(task.codes, default=DONE)
    found = notes(folder)
    ended = [note for note in found.values() if note["status"] is not None]
    code = max([note["status"] for note in ended], default=DONE)
    if code < 128 and (lost := max(planned or 0, len(found)) - len(ended)):
        reason = f" ({' '.join(str(broken).split())[:200]})" if broken else ""
        print(f"vitlab: {lost} runs were lost by their launcher{reason}; the same command trains them", file=sys.stderr)
        broken = broken or ChildProcessError(lost)
    elif code < 128 and broken is not None:
        print(f"vitlab: {' '.join(str(broken).split())[:400]}", file=sys.stderr)
    code = max(code, FAILED) if broken is not None else code
    return code if code >= 128 else max(code, compared(folder, [note["run"] for note in ended], words))


def compared(folder: Path, runs: list[str | None], words: list[str]) -> int:
    """Writes and says how these runs differ, where there are several that are finished."""
    from vitlab.storage.run import Run

    there = sorted({each for each in runs if each is not None and (Path(each) / "config.yaml").is_file()})
    try:
        if sum(Run(Path(each)).result()["status"] == "finished" for each in there) < 2:
            return DONE
        from vitlab.report.conclude import conclude, picked

        question = f"How do the runs of `vitlab train {shlex.join(words)}` differ?"
        conclude({"name": "multirun", "question": question}, picked(there, folder), folder)
    except VitlabError as error:
        refuse(error)
        return FAILED
    return DONE


def runs_of(given: list[str]) -> Path:
    """The folder of all runs."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    said = OverridesParser.create().parse_overrides([word for word in given if word.startswith("system.runs=")])
    found = [str(word.value()) for word in said if not word.is_sweep_override()]
    default = re.search(r"^runs: (.*)$", (CONF / "system" / "default.yaml").read_text(), flags=re.MULTILINE)
    return Path(found[-1] if found else default[1] if default else "runs")


def rehearse(overrides: list[str]) -> int:
    """Composes, checks and counts every run of a multirun, before the first one starts; gives their number."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from vitlab.system import footprint

    parsed = OverridesParser.create().parse_overrides(overrides)
    cells = [cell for batch in BasicSweeper.split_arguments(parsed, None) for cell in batch]
    for cell in cells:
        try:
            node, _ = compose(cell)
            parts = assemble(check(node))
            data = parts["dataset"]
            footprint.check_memory(
                parts["model"], image_size=data.shape, channels=data.channels, classes=len(data.classes), copies=3
            )
        except VitlabError as error:
            raise ConfigError(f"[{' '.join(cell)}] {error}") from error
    return len(cells)
