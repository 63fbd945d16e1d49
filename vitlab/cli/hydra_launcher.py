"""The runs of a sweep by any of Hydra's launchers that is installed: joblib, submitit (Slurm), Ray, ...

A run is identified by its configuration, and its folder holds its state. A job that was lost can therefore be started
again anywhere: it finds its run finished, or continues from its last checkpoint.
"""

import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitlab.cli.exit import DONE, FAILED
from vitlab.cli.hydra_task import (
    Task,
    launcher_overrides,
    multirun_folder,
    plugin_name,
    read_records,
    tolerate_lost_jobs,
)
from vitlab.config.compose import explained
from vitlab.config.errors import ConfigError, StorageError
from vitlab.config.groups import CONF
from vitlab.config.overrides import complete, quoted
from vitlab.config.own import CURRENT
from vitlab.sweep.job import Job

POLL = 1.0  # seconds between two looks at a run that another process trains


@dataclass(kw_only=True)
class Launch:
    """Starts jobs with a launcher of Hydra, and waits for them.

    Args:
        launcher: Hydra's.
        overrides: of each job.
        folder: of the jobs' records.
        started: the job of each start so far, by the number of its record.
    """

    launcher: Any
    overrides: Sequence[Sequence[str]]
    folder: Path
    started: list[int] = field(default_factory=list)

    def __call__(self, numbers: Sequence[int]) -> Sequence[Any]:
        first = len(self.started)
        self.started += numbers
        return self.launcher.launch([self.overrides[number] for number in numbers], initial_job_idx=first)

    def exit_statuses(self) -> dict[int, int | None]:
        """The exit status of each job that has begun; None where its last start has not ended."""
        return {self.started[start]: record["status"] for start, record in sorted(read_records(self.folder).items())}


def run(jobs: list[Job], words: list[str]) -> int:
    """Trains the jobs with a launcher of Hydra, and prints which did not finish.

    Args:
        jobs: of a sweep.
        words: about Hydra, such as `hydra/launcher=submitit_slurm hydra.launcher.partition=gpu`; without them the
            basic launcher trains one after the other in this process.

    Returns:
        0, 1 where some failed, or 128 + the signal that stopped it.

    Raises:
        ConfigError: the launcher is not installed, starts no job, or does not know one of the words.
    """
    if not jobs:
        return DONE
    with tolerate_lost_jobs(words):
        launch = make_launch(jobs, words)
        try:
            lost = launch_all(jobs, launch)
            for job in jobs:
                wait_while_running(job)
        except SystemExit as leave:
            return leave.code if isinstance(leave.code, int) else FAILED
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    return report_unfinished(jobs, lost, launch)


def make_launch(jobs: list[Job], words: list[str]) -> Launch:
    """The launcher that the words choose.

    Raises:
        ConfigError: it is not installed, or does not know one of the words.
    """
    from hydra import initialize_config_dir
    from hydra._internal.callbacks import Callbacks
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    plugins, name = Plugins.instance(), plugin_name(words, "launcher")  # imports them, and they register their options
    installed = sorted(file.removesuffix(".yaml") for file in ConfigStore.instance().list("hydra/launcher"))
    if name not in installed:
        raise ConfigError(
            f"hydra/launcher={name}: there is no such launcher here (there are {', '.join(installed)}): install"
            " vitlab[slurm], vitlab[ray] or vitlab[joblib] for more"
        )
    folder = multirun_folder(jobs[0].run.folder.parent)
    given = launcher_overrides(words)
    if not any(word.startswith("hydra.sweep.dir=") for word in words):
        given.append(f"hydra.sweep.dir={quoted(folder)}")
    task = Task(argv=list(sys.argv), multirun=True, folder=folder)
    GlobalHydra.instance().clear()
    try:
        with explained(), initialize_config_dir(str(CONF), version_base="1.3", job_name="vitlab"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            config = hydra.compose_config("train", [*CURRENT.get().searchpath(), *given], run_mode=RunMode.MULTIRUN)
            context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
            launcher = plugins.instantiate_launcher(hydra_context=context, task_function=task, config=config)
    except BaseException:
        folder.rmdir()
        raise
    return Launch(launcher=launcher, overrides=[complete(job.words) for job in jobs], folder=folder)


def launch_all(jobs: list[Job], launch: Launch) -> dict[int, BaseException]:
    """Launches until every job has ended, or was lost when it was launched alone.

    With joblib and Ray the death of one worker is an error of the whole launch. Then the jobs that had begun, one of
    which is to blame, are launched again one by one, and the others together.

    Returns:
        The errors of those that were lost, by number.

    Raises:
        ConfigError: the launcher starts no job.
    """
    lost: dict[int, BaseException] = {}
    groups = deque([list(range(len(jobs)))])
    while groups:
        group = [number for number in groups.popleft() if status_of(jobs[number]) != "finished"]
        if not group:
            continue
        try:
            returned = launch(group)
        except Exception as error:
            for number in group:
                wait_while_running(jobs[number])
            statuses = launch.exit_statuses()
            if not statuses:
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                raise ConfigError(f"the launcher has started no run: {reason}") from error
            if len(group) == 1:
                lost[group[0]] = error
                continue
            suspects = [number for number in group if number in statuses and statuses[number] is None]
            rest = [number for number in group if number not in statuses]
            if not suspects:
                suspects, rest = rest, []
            groups.extend([number] for number in suspects)
            groups.appendleft(rest)
        else:
            errors = [getattr(each, "_return_value", None) for each in returned]
            lost |= {n: error for n, error in zip(group, errors, strict=False) if isinstance(error, BaseException)}
    return lost


def status_of(job: Job) -> str:
    try:
        return job.run.result()["status"]
    except StorageError:
        return "damaged"


def wait_while_running(job: Job) -> None:
    while status_of(job) == "running":
        time.sleep(POLL)


def report_unfinished(jobs: list[Job], lost: dict[int, BaseException], launch: Launch) -> int:
    """Prints each run that is not finished, the reason, and its command."""
    statuses, code = launch.exit_statuses(), DONE
    for number, job in enumerate(jobs):
        if (status := status_of(job)) == "finished":
            continue
        code, reason = FAILED, lost.get(number, "")
        if status == "failed":
            reason = job.run.result().get("error", "")
        elif (exit_status := statuses.get(number) or 0) >= 128:
            reason = f"signal {exit_status - 128}; it is saved, and the same command continues it"
        reason = " ".join(str(reason).split())[:300]
        print(f"\n{job} {status}{': ' if reason else ''}{reason}\n  {job.command}", file=sys.stderr)
    if code and (logs := launch.folder / ".submitit").is_dir():
        print(f"their output is in {logs}", file=sys.stderr)
    return code
