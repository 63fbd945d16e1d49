"""The function that Hydra runs for each job, in this process or in one that a launcher started."""

import math
import os
import random
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
from vitlab.cli.run import find_run, run
from vitlab.config.check import check
from vitlab.config.compose import plain
from vitlab.config.errors import StorageError, VitlabError
from vitlab.config.groups import CONF
from vitlab.config.own import CURRENT, Own, using
from vitlab.storage.files import file_errors, make_folder, read_json, write_json
from vitlab.storage.metrics import SELECTED_BY

if TYPE_CHECKING:
    from vitlab.storage.run import Run

TIMEOUTS = 100  # how often Slurm may end a training at its time limit; each time it continues from its checkpoint


def process_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


@dataclass(kw_only=True)
class Task:
    """Trains a job of Hydra, in this process or in one that a launcher started on any machine.

    Args:
        argv: the command, which a run records, and prints where it can be continued.
        multirun: whether other jobs follow, which go on if this one fails.
        folder: where each job records its start and its exit status, as NUMBER.json; None is nowhere.
        process: that the command was started in.
        cwd: that the command was started in; the machines share its file system.
        own: what the command added.
        codes: exit statuses of the jobs of this process.
        begun: whether a job of this process has begun.
    """

    argv: list[str]
    multirun: bool = False
    folder: Path | None = None
    process: str = field(default_factory=process_name)
    cwd: str = field(default_factory=os.getcwd)
    own: Own = field(default_factory=CURRENT.get)
    codes: list[int] = field(default_factory=list)
    begun: bool = False

    def __call__(self, composed: Any) -> float:
        """Trains; returns the metric of `fit.best`, which Hydra's sweepers optimize, or NaN."""
        from hydra.core.hydra_config import HydraConfig

        self.begun, hydra, local = True, HydraConfig.get(), self.process == process_name()
        words = list(hydra.overrides.task)
        sys.argv = self.argv if local else ["vitlab", "train", *self.own.flags(), *words]
        if not local:
            os.chdir(self.cwd)
        self.record(hydra, status=None, words=words)
        with using(self.own), isolated():
            code, folder = self.train(composed, hydra.runtime.choices)
        self.codes.append(code)
        accuracy = math.nan
        if folder is not None and code == DONE:
            with suppress(StorageError, ValueError, TypeError):
                result = folder.result()
                accuracy = float(result.get(result.get("best_by", SELECTED_BY.name), math.nan))
        where = str(folder.folder.absolute()) if folder is not None else None
        self.record(hydra, status=code, words=words, run=where)
        if code >= 128 and self.multirun:
            if not local:
                reraise_signal(code - 128)
            if local or "SUBMITIT_EXECUTOR" in os.environ:  # ends the jobs that follow too; Slurm may start this again
                raise SystemExit(code)
        return accuracy

    def train(self, composed: Any, options: Any) -> "tuple[int, Run | None]":
        try:
            node, choices = plain(composed, options)
            folder = find_run(check(node), choices)
        except VitlabError as error:  # printed here: Hydra would print it in its own words as well
            return refuse(error), None
        try:
            return run(node, choices), folder
        except Exception as error:
            if not self.multirun:
                raise
            print(bug_report(error), file=sys.stderr)
            return FAILED, folder

    def record(self, hydra: Any, **facts: Any) -> None:
        if self.folder is not None:
            make_folder(self.folder)
            write_json(self.folder / f"{hydra.job.num}.json", facts)


def read_records(folder: Path) -> dict[int, dict[str, Any]]:
    """The record of each job that has begun, by number."""
    return {int(file.stem): read_json(file) for file in folder.glob("*.json") if file.stem.isdecimal()}


@contextmanager
def isolated() -> Generator[None]:
    """Restores the environment and the global random generators after a job, so that none affects the next."""
    import numpy as np
    import torch

    environment, python, numpy = dict(os.environ), random.getstate(), np.random.get_state()  # noqa: NPY002
    there = torch.accelerator.current_accelerator(check_available=True)
    used = there is not None and getattr(torch.get_device_module(there), "is_initialized", lambda: True)()
    gpus = range(torch.accelerator.device_count()) if used else ()
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def reraise_signal(number: int) -> None:
    """Passes a signal that the training has handled to the handler that was there before.

    submitit handles SIGUSR2, which comes before a time limit or a preemption: it queues the job again, which then
    continues from the checkpoint that the training has just saved.
    """
    if callable(handler := signal.getsignal(number)) and handler is not signal.default_int_handler:
        signal.raise_signal(number)


@contextmanager
def tolerate_lost_jobs(words: Iterable[str]) -> Generator[None]:
    """With a submitit launcher: a lost job is a failed one; else the launcher would not wait for the others."""
    try:
        from submitit.core.core import Job
    except ImportError:
        Job = None
    if Job is None or not plugin_name(words, "launcher").startswith("submitit"):
        yield
        return
    from hydra.core.utils import JobReturn, JobStatus

    results = Job.results

    def results_or_error(job: Any) -> list[Any]:
        try:
            return results(job)
        except Exception as error:
            return [JobReturn(status=JobStatus.FAILED, _return_value=error)]

    Job.results = results_or_error  # ty: ignore[invalid-assignment]
    try:
        yield
    finally:
        Job.results = results


def train_with_hydra(words: list[str]) -> int:
    """Has Hydra compose the words and train one run in this process."""
    task = Task(argv=sys.argv)
    try:
        run_hydra(task, words)
    except OSError as error:
        if task.begun:
            raise
        raise StorageError(f"Hydra cannot start the run: {error}") from error
    return max(task.codes, default=DONE)


def run_hydra(task: Task, words: list[str]) -> None:
    """Runs Hydra's application with these words as its command line."""
    import hydra
    from hydra._internal.hydra import Hydra

    argv, (first, *others) = sys.argv, CURRENT.get().folders or (None,)
    flag = ["--config-dir", str(first)] if first else []  # which Hydra completes words from, too
    sys.argv, get_mode = [argv[0], *flag, *words, *Own(tuple(others)).searchpath()], Hydra.get_mode
    Hydra.get_mode = lambda *_, **__: None  # composes all once more to find hydra.mode, which -m alone sets here
    try:
        hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")(task)()
    finally:
        sys.argv, Hydra.get_mode = argv, get_mode


def plugin_name(words: Iterable[str], group: str) -> str:
    """The sweeper or the launcher of Hydra that the words choose."""
    return ([word.partition("=")[2] for word in words if word.startswith(f"hydra/{group}=")] or ["basic"])[-1]


def launcher_overrides(words: list[str]) -> list[str]:
    """The words, with what a launcher needs for trainings that continue."""
    name, given = plugin_name(words, "launcher"), list(words)
    if name.startswith("ray"):  # its schema does not name the keys of ray.init
        given = [f"++{word}" if word.startswith("hydra.launcher.") else word for word in words]
        if any(".ray.init.address=" in word for word in words) and not any("object_store" in word for word in words):
            given.append("++hydra.launcher.ray.init.object_store_memory=null")  # set, it keeps Ray from joining others
    if name == "submitit_slurm" and not any("max_num_timeout" in word for word in words):
        given.append(f"hydra.launcher.max_num_timeout={TIMEOUTS}")
    return given


@file_errors(verb="written", remedy="give another folder, system.runs=PATH")
def multirun_folder(runs: Path) -> Path:
    """Makes a hidden folder among the runs for a multirun, named after the time."""
    folder = (runs / ".multirun" / f"{datetime.now():%Y-%m-%d_%H-%M-%S.%f}").absolute()
    folder.mkdir(parents=True)
    return folder
