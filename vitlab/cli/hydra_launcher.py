"""The runs of a sweep by any of Hydra's launchers that is installed: joblib, submitit (Slurm), Ray, ...

A run is known by its configuration, and the store says how far it is: so a job may be started again wherever it was
lost. It finds its run finished, or goes on from its last checkpoint.
"""

import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from vitlab.cli.exit import DONE, FAILED
from vitlab.cli.hydra_task import Task, launcher_overrides, notes, option, timed, tolerate_lost_jobs
from vitlab.config.compose import explained
from vitlab.config.errors import ConfigError, StorageError
from vitlab.config.groups import CONF
from vitlab.config.overrides import complete, quoted
from vitlab.sweep.job import Job

EXTRAS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray", "ray_aws": "ray"}
LOOK = 1.0  # seconds between two looks at a run that is at work elsewhere


@dataclass(kw_only=True)
class Launch:
    """Starts jobs and waits for them.

    Args:
        launcher: Hydra's.
        overrides: of each job.
        folder: of their notes.
        numbers: job of each start so far, in the order of the starts, which number the notes.
    """

    launcher: Any
    overrides: Sequence[Sequence[str]]
    folder: Path
    numbers: list[int] = field(default_factory=list)

    def __call__(self, numbers: Sequence[int]) -> Sequence[Any]:
        first = len(self.numbers)
        self.numbers += numbers
        return self.launcher.launch([self.overrides[number] for number in numbers], initial_job_idx=first)

    def told(self) -> dict[int, int | None]:
        """Exit status of each job's last start; None where it only began."""
        return {self.numbers[start]: note["status"] for start, note in sorted(notes(self.folder).items())}


def run(jobs: list[Job], words: list[str]) -> int:
    """Trains the jobs with a Hydra launcher, and says which did not end well.

    Args:
        jobs: of a sweep.
        words: about Hydra: `hydra/launcher=submitit_slurm hydra.launcher.partition=gpu`; the basic launcher, one after
            the other in this process, when nothing is said.

    Returns:
        0, 1 where some failed, or 128 + the signal that asked to leave.

    Raises:
        ValueError: a launcher that is not there or does not start anything, or words that it does not take.
    """
    if not jobs:
        return DONE
    with tolerate_lost_jobs(words), listening():
        launch = prepared(jobs, words)
        try:
            lost = persist(jobs, launch)
            for job in jobs:
                settled(job)
        except SystemExit as leave:
            return leave.code if isinstance(leave.code, int) else FAILED
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    return complain(jobs, lost, launch)


def chosen(words: Sequence[str]) -> None:
    """Looks for the launcher that is asked for.

    Raises:
        ValueError: it is not installed.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    name = option(words, "launcher")
    Plugins.instance()  # imports them, which then store their options
    there = sorted(file.removesuffix(".yaml") for file in ConfigStore.instance().list("hydra/launcher"))
    if name not in there:
        extra = f"; install vitlab[{EXTRAS[name]}]" if name in EXTRAS else ""
        more = ", ".join(f"vitlab[{extra}]" for extra in ("slurm", "ray", "joblib"))
        raise ConfigError(
            f"hydra/launcher={name}: there is no such launcher here{extra} (there are {', '.join(there)}; more come"
            f" with {more})"
        )


def prepared(jobs: list[Job], words: list[str]) -> Launch:
    """The launcher that is asked for."""
    from hydra import initialize_config_dir
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    chosen(words)
    folder = timed(jobs[0].run.folder.parent)
    given = launcher_overrides(words)
    if not any(word.startswith("hydra.sweep.dir=") for word in words):
        given.append(f"hydra.sweep.dir={quoted(folder)}")
    task = Task(typed=list(sys.argv), many=True, folder=folder)
    GlobalHydra.instance().clear()
    try:
        with explained(words), initialize_config_dir(str(CONF), version_base="1.3", job_name="vitlab"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            config = hydra.compose_config("train", given, run_mode=RunMode.MULTIRUN)
            context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
            launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
    except BaseException:
        folder.rmdir()
        raise
    overrides = [complete(job.words) for job in jobs]
    return Launch(launcher=launcher, overrides=overrides, folder=folder)


def persist(jobs: list[Job], launch: Launch) -> dict[int, BaseException]:
    """Launches until every job has ended, or was lost alone.

    With joblib and Ray the death of one worker is an error of the whole: then those that had begun, of which one has
    died, go on one by one, and the others together.

    Returns:
        What is known of those that were lost, by number.

    Raises:
        ConfigError: the launcher starts nothing.
    """
    lost: dict[int, BaseException] = {}
    waiting = deque([list(range(len(jobs)))])
    while waiting:
        group = [number for number in waiting.popleft() if state(jobs[number]) != "finished"]
        if not group:
            continue
        try:
            returned = launch(group)
        except Exception as error:
            for number in group:
                settled(jobs[number])
            begun = launch.told()
            if not begun:
                said = " ".join(str(error).split())[:300] or type(error).__name__
                raise ConfigError(f"the launcher has started no run: {said}") from error
            if len(group) == 1:
                lost[group[0]] = error
                continue
            left = [number for number in group if begun.get(number) is None]
            suspects = [number for number in left if number in begun]
            rest = [number for number in left if number not in begun]
            waiting.extend([number] for number in suspects)
            if rest and suspects:
                waiting.appendleft(rest)
            else:
                waiting.extend([number] for number in rest)
        else:
            for number, each in zip(group, returned, strict=False):
                if isinstance(error := getattr(each, "_return_value", None), BaseException):
                    lost[number] = error
    return lost


def state(job: Job) -> str:
    try:
        return job.run.result()["status"]
    except StorageError:
        return "damaged"


def settled(job: Job) -> None:
    """Waits while somebody trains it."""
    while state(job) == "running":
        time.sleep(LOOK)


@contextmanager
def listening() -> Generator[None]:
    """Leaves in good order on SIGTERM, so that launchers stop what they have started."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def complain(jobs: list[Job], lost: dict[int, BaseException], launch: Launch) -> int:
    """Says which runs are not finished, why, and how to see it again."""
    told, bad = launch.told(), 0
    for number, job in enumerate(jobs):
        if (status := state(job)) == "finished":
            continue
        bad += 1
        code = told.get(number)
        reason = f": {' '.join(str(lost[number]).split())[:300]}" if number in lost else ""
        if status == "failed":
            reason = f": {' '.join(str(job.run.result().get('error', '')).split())[:300]}"
        elif code is not None and code >= 128:
            reason = f": signal {code - 128}; it is saved, and the same command goes on"
        print(f"\n{job} {status}{reason}\n  {job.command}", file=sys.stderr)
    if bad and (logs := launch.folder / ".submitit").is_dir():
        print(f"what they said is in {logs}", file=sys.stderr)
    return FAILED if bad else DONE
