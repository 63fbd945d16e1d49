"""The function that Hydra runs for each job, in this process or in one that a launcher started."""

import math
import os
import signal
import socket
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.cli.exit import DONE, FAILED, bug_report, refuse
from vitlab.cli.run import place, run
from vitlab.config.check import check
from vitlab.config.compose import plain
from vitlab.config.errors import StorageError, VitlabError
from vitlab.config.groups import CONF
from vitlab.storage.files import file_errors, make_folder, read_json, write_json
from vitlab.storage.metrics import SELECTED_BY

if TYPE_CHECKING:
    from vitlab.storage.run import Run

TIMEOUTS = 100  # how often Slurm may end a training at its time limit: each time it goes on where it was


@dataclass(kw_only=True)
class Task:
    """What Hydra runs: a training, in this process or in one that a launcher has started somewhere.

    Args:
        typed: the command, which a run records and tells to type again.
        many: whether others follow, which a failure must not keep from their turn.
        folder: where a job notes, as NUMBER.json, that it has begun, and what became of it; None is nowhere.
        process: which the command was typed for.
        place: where it was typed; the machines share its file system.
        codes: exit statuses of the jobs of this process.
        begun: whether a job of this process has begun.
    """

    typed: list[str]
    many: bool = False
    folder: Path | None = None
    process: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    place: str = field(default_factory=os.getcwd)
    codes: list[int] = field(default_factory=list)
    begun: bool = False

    def __call__(self, composed: Any) -> float:
        """Trains; gives the validation accuracy, which is what a sweeper goes by, or NaN."""
        from hydra.core.hydra_config import HydraConfig

        self.begun, given = True, HydraConfig.get()
        here = self.process == f"{socket.gethostname()}:{os.getpid()}"
        words = list(given.overrides.task)
        if not here:
            os.chdir(self.place)
        self.note(given, {"status": None, "words": words})
        with isolated():
            sys.argv = self.typed if here else ["vitlab", "train", *words]
            code, folder = self.trained(composed, given.runtime.choices)
        self.codes.append(code)
        accuracy = math.nan
        if folder is not None:
            with suppress(StorageError, ValueError, TypeError):
                accuracy = float(folder.result().get(SELECTED_BY.name, math.nan)) if code == DONE else math.nan
        where = str(folder.folder.absolute()) if folder is not None else None
        self.note(given, {"status": code, "words": words, "run": where})
        if code >= 128 and self.many:
            if not here:
                reraise_signal(code - 128)
            if here or "SUBMITIT_EXECUTOR" in os.environ:  # the jobs that follow leave too; Slurm may start this again
                raise SystemExit(code)
        return accuracy

    def trained(self, composed: Any, options: Any) -> "tuple[int, Run | None]":
        try:
            node, choices = plain(composed, options)
            config = check(node)
        except VitlabError as error:  # said by us: Hydra would say it in its own words as well
            return refuse(error), None
        try:
            return run(node, choices), place(config, choices)
        except Exception as error:
            if not self.many:
                raise
            print(bug_report(error), file=sys.stderr)
            return FAILED, place(config, choices)

    def note(self, given: Any, said: dict[str, Any]) -> None:
        if self.folder is not None:
            make_folder(self.folder)
            write_json(self.folder / f"{given.job.num}.json", said)


def notes(folder: Path) -> dict[int, dict[str, Any]]:
    """What became of the jobs that have begun, by number."""
    return {int(file.stem): read_json(file) for file in folder.glob("*.json") if file.stem.isdecimal()}


@contextmanager
def isolated() -> Generator[None]:
    """Leaves the process as it was found: what one job draws or sets is not the next one's."""
    import random

    import numpy as np
    import torch

    environ, argv, threads = dict(os.environ), sys.argv, torch.get_num_threads()
    drawn = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        for name in os.environ.keys() - environ.keys():
            del os.environ[name]
        os.environ.update(environ)
        sys.argv = argv
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])  # noqa: NPY002
        torch.set_rng_state(drawn[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def reraise_signal(number: int) -> None:
    """Gives a signal that the training has answered to whoever listened before it.

    submitit listens to SIGUSR2, which comes ahead of a time limit or a preemption: it has the job queued again, and the
    job goes on from what the training has just saved.
    """
    if callable(listener := signal.getsignal(number)) and listener is not signal.default_int_handler:
        signal.raise_signal(number)


@contextmanager
def tolerate_lost_jobs(words: Iterable[str]) -> Generator[None]:
    """Has a job that submitit lost count as a failed one: its launcher would stop waiting for the others.

    Args:
        words: which may ask for submitit.
    """
    if not any(word.startswith("hydra/launcher=submitit") for word in words):
        yield
        return
    try:
        from submitit.core.core import Job
    except ImportError:  # which Hydra will say
        yield
        return
    from hydra.core.utils import JobReturn, JobStatus

    results = Job.results

    def found(job: Any) -> list[Any]:
        try:
            return results(job)
        except Exception as error:
            return [JobReturn(status=JobStatus.FAILED, _return_value=error)]

    Job.results = found  # ty: ignore[invalid-assignment]
    try:
        yield
    finally:
        Job.results = results


def hydra_main(words: list[str], many: bool) -> int:
    """Hands the words to Hydra, which runs what they ask for in this process."""
    task = Task(typed=sys.argv, many=many)
    try:
        handed(task, words)
    except OSError as error:
        if task.begun:
            raise
        raise StorageError(f"Hydra cannot start the run: {error}") from error
    return max(task.codes, default=DONE)


def handed(task: Task, words: list[str]) -> None:
    import hydra

    typed = sys.argv
    sys.argv = [typed[0], *words]
    try:
        hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")(task)()
    finally:
        sys.argv = typed


def option(words: Iterable[str], group: str) -> str:
    """Which of Hydra's sweepers or launchers is asked for."""
    return ([word.partition("=")[2] for word in words if word.startswith(f"hydra/{group}=")] or ["basic"])[-1]


def launcher_overrides(words: list[str]) -> list[str]:
    """The words about Hydra's launcher, with what it needs for trainings that go on where they were."""
    name, given = option(words, "launcher"), list(words)
    if name.startswith("ray"):  # its schema does not name the keys of ray.init
        given = [f"++{word}" if word.startswith("hydra.launcher.") else word for word in words]
        if any(".ray.init.address=" in word for word in words) and not any("object_store" in word for word in words):
            given.append("++hydra.launcher.ray.init.object_store_memory=null")  # set, it keeps Ray from joining others
    if name == "submitit_slurm" and not any("max_num_timeout" in word for word in words):
        given.append(f"hydra.launcher.max_num_timeout={TIMEOUTS}")
    return given


@file_errors(verb="written", remedy="give another folder, system.runs=PATH")
def timed(runs: Path) -> Path:
    """A new folder for what several runs have in common, hidden among them."""
    name, number = f"{datetime.now():%Y-%m-%d_%H-%M-%S}", 0
    while True:
        folder = (runs / ".multirun" / (f"{name}_{number}" if number else name)).absolute()
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not folder.is_dir():
                raise
            number += 1
        else:
            return folder
