"""`vitlab train -m`: the runs that a sweeper of Hydra asks for, by any launcher, and their comparison."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from vitlab.cli.exit import DONE, FAILED, refuse
from vitlab.cli.hydra_task import (
    Task,
    launcher_overrides,
    multirun_folder,
    plugin_name,
    read_records,
    run_hydra,
    tolerate_lost_jobs,
)
from vitlab.cli.run import find_run
from vitlab.config.build import assemble
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError, VitlabError
from vitlab.config.groups import TEXTS
from vitlab.config.overrides import key_of, parse, quoted, several
from vitlab.config.own import command


def multirun(flags: list[str], given: list[str], words: list[str]) -> int:
    """Trains every run that Hydra's sweeper asks for, compares them, and returns the worst exit status.

    Args:
        flags: of Hydra's command line.
        given: overrides, complete.
        words: of the command, as they were given.
    """
    checked = check_runs(given) if plugin_name(given, "sweeper") == "basic" else 0
    task, given, folder, runs = Task(argv=sys.argv, multirun=True), launcher_overrides(given), None, runs_folder(given)
    if int(os.environ.get("RANK", "0")) == 0:
        task.folder = folder = multirun_folder(runs)
    if not any(word.lstrip("+").startswith("hydra.sweep.dir=") for word in given):
        given = [*given, f"hydra.sweep.dir={quoted(folder or runs / '.multirun')}"]
    failure = None
    from vitlab.data.dataset import read_once
    from vitlab.tracking.options import ignore_run_id

    ignore_run_id()
    try:
        with tolerate_lost_jobs(given), read_once():
            run_hydra(task, [*flags, *given])
    except SystemExit:
        if not (task.codes and task.codes[-1] >= 128):
            raise
    except Exception as error:
        if folder is None or not read_records(folder):
            if folder is not None:
                with suppress(OSError):  # Hydra may have written there
                    folder.rmdir()
            if isinstance(error, OSError | ValueError | TypeError) and not isinstance(error, VitlabError):
                raise ConfigError(f"Hydra has started no run: {error}") from error  # a plugin refuses a value
            raise
        failure = error
    if folder is None:
        return max(task.codes, default=DONE)
    records = read_records(folder)
    ended = [record for record in records.values() if record["status"] is not None]
    code = max((record["status"] for record in ended), default=DONE)
    if code >= 128:
        return code
    reason = " ".join(str(failure).split())[:400] if failure else ""
    if lost := max(checked, len(records)) - len(ended):
        because = f" ({reason})" if reason else ""
        print(
            f"vitlab: {lost} runs were lost by their launcher{because}; the same command trains them", file=sys.stderr
        )
    elif failure:
        print(f"vitlab: {reason}", file=sys.stderr)
    failed = FAILED if lost or failure else DONE
    return max(code, failed, compare_runs(folder, [record["run"] for record in ended if record["run"]], words))


def compare_runs(folder: Path, runs: list[str], words: list[str]) -> int:
    """Writes and prints the comparison of the runs, where at least two are finished."""
    from vitlab.report.conclude import conclude
    from vitlab.storage.run import Run
    from vitlab.storage.runs_table import select_runs

    runs = sorted({run for run in runs if (Path(run) / "config.yaml").is_file()})
    try:
        if sum(Run(Path(run)).result()["status"] == "finished" for run in runs) > 1:
            question = f"How do the runs of `{command('train', *words)}` differ?"
            conclude({"name": "multirun", "question": question}, select_runs(runs, folder), folder)
    except VitlabError as error:
        refuse(error)
        return FAILED
    return DONE


def runs_folder(given: list[str]) -> Path:
    """The folder of all runs."""
    chosen = [word for word in given if word.startswith("system.runs=") and len(several(word)) == 1]
    return Path(compose(chosen[-1:])[0]["system"]["runs"])


def planned(overrides: list[str]) -> list[list[str]]:
    """The overrides of every run of the basic sweeper, but for Hydra's own."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    parsed = [parse(word) for word in overrides if not word.lstrip("+~").startswith("hydra")]
    return [run for batch in BasicSweeper.split_arguments(parsed, None) for run in batch]


def check_runs(overrides: list[str]) -> int:
    """Composes and checks every run of the basic sweeper before the first one starts; returns their number.

    Raises:
        ConfigError: a run that cannot be, or two that are the same.
    """
    from vitlab.system import footprint

    runs, seen = planned(overrides), {}
    for run in runs:
        try:
            node, choices = compose(run)
            parts = assemble(config := check(node))
            data = parts["dataset"]
            footprint.check_memory(
                parts["model"], image_size=data.shape, channels=data.channels, classes=len(data.classes), copies=3
            )
        except VitlabError as error:
            comma = [key for word in overrides if (key := key_of(word)) in TEXTS and len(several(word)) > 1]
            hint = f"; a value with a comma in it is quoted, {comma[0]}=\"'a,b'\"" if comma else ""
            raise ConfigError(f"[{' '.join(run)}] {error}{hint}") from error
        same = seen.setdefault(find_run(config, choices).folder, run)
        if same is not run and not parts["system"].retrain:
            raise ConfigError(f"[{' '.join(same)}] and [{' '.join(run)}] are the same run: leave one out")
    return len(runs)
