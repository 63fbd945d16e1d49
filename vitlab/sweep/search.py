"""Search: Optuna chooses which configuration is tried next and which is pruned, the sweep's launcher trains it.

The search optimizes the validation metric that belongs to the sweep's metric (val/macro_f1 to test/macro_f1), of the
first seed; the test set is not used until it is over. The best score of many trials is biased upwards, so the
configuration that was found is then trained with every seed of the question beside the baseline, and these runs are the
answer.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vitlab.config.errors import DatasetMissing, StorageError, SweepError, SweepFileError, VitlabError
from vitlab.config.overrides import merged, typed
from vitlab.report.search import ranked, report
from vitlab.storage.files import make_folder
from vitlab.storage.lock import Lock
from vitlab.storage.metrics import metric
from vitlab.sweep import plan as planning
from vitlab.sweep.job import Failure, Job, Slot
from vitlab.sweep.local import Listed, Local
from vitlab.sweep.packs import grouped
from vitlab.sweep.plan import Checked, Plan
from vitlab.sweep.progress import Progress
from vitlab.sweep.question import Cell
from vitlab.sweep.study import (
    REFUSED,
    derive_seed,
    design,
    distribution,
    importance,
    load,
    quiet,
    require_optuna,
    sampler,
    search_of,
    value_at,
)

if TYPE_CHECKING:
    import optuna

FOUND = "best found"  # the cell's name
WARM = 0.2  # of a training, in which nothing is pruned: the learning rate is still rising
ELSEWHERE = 40  # random points at which an end that does not go with the baseline is tried


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a search found.

    Args:
        status: 0, 1 where a training failed, or 128 + the signal that asked to leave.
        failures: trainings that failed.
        cells: what was found, where it is none of the plan's own cells.
        record: what is kept of the search: method, space, trials, best, importance.
    """

    status: int
    failures: Sequence[Failure]
    cells: tuple[Checked, ...]
    record: dict[str, Any]


def run(
    plan: Plan,
    parts: Sequence[Slot],
    progress: Progress,
    retries: int,
    launcher: str,
    serial: Callable[[list[Job]], int] | None = None,
    seats: int = 1,
) -> Outcome:
    """Runs or continues a search, and trains the configuration that was found with every seed.

    Args:
        plan: its cells are trained with every seed too.
        parts: of the machine.
        progress: shows progress.
        retries: how often a failed training is started again.
        launcher: local, packed or serial.
        serial: trains jobs one after the other in this process, and gives what a command would.
        seats: how many trainings a process computes together, at most.

    Raises:
        SweepError: the search is not possible.
        OSError: another process searches there.
    """
    search = search_of(plan)
    if launcher == "hydra":
        raise SweepError("launcher=hydra: a search decides as trials end, on this machine: take launcher=local")
    if launcher == "serial" and search.prune != "none":
        progress.say(
            f"prune: {search.prune} gives trainings up from outside: each in a process of its own, one at a time"
        )
        parts, serial = parts[:1], None
    elif launcher != "serial":
        serial = None
    require_optuna()
    make_folder(plan.folder)
    logs = plan.folder / "logs"
    with Lock(plan.folder / "search.lock"), quiet():
        trials = Trials(plan, progress)
        trials.check_ends()
        if serial is None:
            local = Local(parts, logs, progress, retries, seats)
            status, failures = local.run(trials), local.failures
        else:
            status, failures = one_by_one(trials, serial), []
        found = trials.best()
        record = trials.record(found)
        cells = () if found is None or found.identity in {cell.identity for cell in plan.cells} else (found,)
        outcome = Outcome(status=status, failures=failures, cells=cells, record=record)
        if status >= 128:
            return outcome
        report(record, plan.folder, progress.say)
        if found is not None and not cells:
            same = next(cell.name for cell in plan.cells if cell.identity == found.identity)
            progress.say(f"the best by validation is {same}")
        jobs = [cell.job(seed) for seed in plan.question.seeds for cell in (*plan.cells, *cells)]
        todo = [job for job in jobs if job.run.result()["status"] != "finished"]
        progress.say(f"\nwith every seed: {len(jobs)} runs; {len(jobs) - len(todo)} are finished already")
        if serial is None:
            last = Local(parts, logs, Progress(before=len(jobs) - len(todo), write=progress.write), retries, seats)
            code, more = last.run(Listed(grouped(todo))), last.failures
        else:
            code, more = serial(todo), []
        return replace(outcome, status=max(status, code), failures=[*failures, *more])


def one_by_one(trials: "Trials", serial: Callable[[list[Job]], int]) -> int:
    """Trains one trial after the other in this process."""
    status = 0
    while (job := trials.next()) is not None:
        if job.run.result()["status"] != "finished":
            code = serial([job])
            if code >= 128:
                return code
            status = max(status, code)
        finished = job.run.result()["status"] == "finished"
        trials.ended(job, "finished" if finished else "failed")
    return status


@dataclass(kw_only=True)
class Work:
    """A configuration in training, and the trials that have it."""

    trials: "list[optuna.Trial]"
    steps: list[int] = field(default_factory=list)  # of its evaluations so far


class Trials:
    """The launcher's source of jobs: an Optuna study, which is on disk after every step, so that it can be killed.

    A trial that a killed process left is recorded as failed, and its parameters are queued again. Places count the
    trials without these copies; a trial is called by its place.

    Args:
        plan: of the search.
        progress: shows what is refused.
    """

    def __init__(self, plan: Plan, progress: Progress):
        self.plan = plan
        self.progress = progress
        self.search = search_of(plan)
        self.metric = metric(plan.question.metric).per_evaluation
        self.seed = plan.question.seeds[0]
        self.baseline = next(cell for cell in plan.cells if cell.baseline)
        self.distributions = {each.key: distribution(each) for each in self.search.space}
        self.design = design(self.search, self.seed)
        self.images: dict[str, np.ndarray] = {}
        self.models: dict[str, planning.Measured] = {}
        self.working: dict[str, Work] = {}
        self.study = load(plan)
        self.recover()
        of = self.kept()
        self.budget = self.search.trials
        if self.search.method == "grid" and self.design is not None:
            self.budget = min(self.budget, len(self.design))
        ended = [trial for trial in of.values() if trial.state.is_finished() and "refused" not in trial.user_attrs]
        self.total = max(0, self.budget - len(ended))
        progress.before = len(ended)
        if ended:
            progress.say(f"{len(ended)} of {self.budget} trials are done already")

    # Trials of the study.

    def kept(self) -> "dict[int, optuna.trial.FrozenTrial]":
        """The trials by place; of one that was queued again, the copy."""
        found: dict[int, Any] = {}
        place = 0
        for trial in self.study.get_trials(deepcopy=False):
            again = trial.user_attrs.get("again")
            found[place if again is None else again] = trial
            place += again is None
        return dict(sorted(found.items()))

    def recover(self) -> None:
        """Queues again the trials that a killed process left running."""
        from optuna.trial import TrialState

        there = self.study.get_trials(deepcopy=False)
        copied = {trial.user_attrs.get("of") for trial in there}
        places = {trial.number: place for place, trial in self.kept().items()}
        for trial in there:
            if trial.state == TrialState.RUNNING:
                if trial.number not in copied:  # killed between the two, it is copied but still running
                    complete = set(trial.params) == set(self.distributions)
                    params = trial.params if complete else trial.system_attrs.get("fixed_params", {})
                    again = {"again": places[trial.number], "of": trial.number}
                    self.study.enqueue_trial(params, user_attrs=again)
                self.study.tell(trial.number, state=TrialState.FAIL)

    def check_ends(self) -> None:
        """Checks every choice and both ends of every range before the first trial: with the baseline, or else with
        random values of the other keys.

        Raises:
            SweepFileError: an end that is invalid with all of them.
        """
        for dimension in self.search.space:
            for value in dimension.values:
                if dimension.kind in ("uniform", "log"):
                    value = repr(float(value))
                try:
                    self.check(f"{dimension.key}={value}", {dimension.key: value})
                except VitlabError as error:
                    if isinstance(error, DatasetMissing | StorageError) or not self.elsewhere(dimension.key, value):
                        file, lines = self.plan.question.file, self.plan.question.lines
                        line = lines.get(f"search.space.{dimension.key}", lines.get("search", 1))
                        raise SweepFileError(f"{file}, line {line}, {dimension.key}={value}: {error}") from error

    def elsewhere(self, key: str, value: str) -> bool:
        """Whether a value is valid at a random point of the space."""
        others = [each for each in self.search.space if each.key != key]
        if not others:
            return False
        random = np.random.default_rng(0)
        for _ in range(ELSEWHERE):
            point = {each.key: value_at(each, float(random.random())) for each in others}
            with suppress(VitlabError):
                self.check(key, {**point, key: value})
                return True
        return False

    def check(self, name: str, params: dict[str, Any]) -> Checked:
        overrides = merged(self.baseline.overrides, typed(params))
        cell = Cell(name=name, overrides=overrides, line=self.plan.question.lines.get("search", 1), arm=name)
        return planning.check_cell(cell, self.seed, self.images, {}, self.models)

    # For the launcher.

    def next(self) -> Job | None:
        """The next trial's training.

        Raises:
            SweepError: all of the first trials are invalid.
        """
        while (asked := self.ask()) is not None:
            place, trial = asked
            name = f"trial {place}"
            try:
                checked = self.check(name, trial.params)
            except VitlabError as error:
                self.refuse(name, trial, error)
                continue
            job = checked.job(self.seed)
            planning.set_changed_aside(planning.outdated_runs([job.run], checked), checked.config)
            trial.set_user_attr("cell", checked.identity)
            trial.set_user_attr("run", job.run.folder.name)
            if checked.identity in self.working:
                self.working[checked.identity].trials.append(trial)
                continue
            self.working[checked.identity] = Work(trials=[trial])
            if self.search.prune != "none" and job.run.result()["status"] == "pruned":
                self.progress.done(job, "pruned")
                self.ended(job, "pruned")
                continue
            return job  # one that is finished, as an earlier trial or in another sweep, is not trained again
        return None

    def ask(self) -> "tuple[int, optuna.Trial] | None":
        """A trial and its place: one that is queued, or a new one within the budget; None when there are no more."""
        from optuna.trial import TrialState

        kept = self.kept()
        waiting = [(trial.number, place) for place, trial in kept.items() if trial.state == TrialState.WAITING]
        _, place = min(waiting, default=(0, len(kept)))  # Optuna takes the one of the lowest number
        if not waiting:
            refused = sum("refused" in trial.user_attrs for trial in kept.values())
            if place - refused >= self.budget or refused >= REFUSED * self.search.trials:
                return None
            if self.design is not None:
                if place >= len(self.design):
                    return None
                self.study.enqueue_trial(self.design[place])
        self.study.sampler = sampler(self.search, self.seed, place)
        return place, self.study.ask(self.distributions)

    def refuse(self, name: str, trial: "optuna.Trial", error: Exception) -> None:
        from optuna.trial import TrialState

        trial.set_user_attr("refused", str(error))
        self.study.tell(trial, state=TrialState.FAIL)
        self.progress.say(f"refused   {name} ({' '.join(typed(trial.params))}): {error}")
        kept = self.kept().values()
        all_ = self.design is not None and len(kept) >= len(self.design)
        if (len(kept) >= REFUSED or all_) and all("refused" in each.user_attrs for each in kept):
            raise SweepError(f"every one of the first {len(kept)} trials was refused, the last: {error}")

    def stops(self, job: Job, row: dict[str, Any]) -> bool:
        """Whether a trial is pruned after this evaluation."""
        work = next((work for work in self.working.values() if self.trained_for(work, job)), None)
        if work is None or self.search.prune == "none":
            return False
        self.note(work, row)
        return row.get("step", job.steps) >= WARM * job.steps and work.trials[0].should_prune()

    def note(self, work: Work, row: dict[str, Any]) -> None:
        """Reports an evaluation under its number, once: a resumed training repeats some of its rows."""
        if not isinstance(value := row.get(self.metric.name), int | float):
            return
        step = int(row.get("step", 0))
        if step not in work.steps:
            work.steps.append(step)
            work.trials[0].report(float(value), len(work.steps))

    def trained_for(self, work: Work, job: Job) -> bool:
        return work.trials[0].user_attrs.get("run") == job.run.folder.name

    def ended(self, job: Job, status: str) -> None:
        """Tells the study how a training ended, for every trial that has its configuration."""
        from optuna.trial import TrialState

        found = next((item for item in self.working.items() if self.trained_for(item[1], job)), None)
        if found is None:
            return
        identity, work = found
        del self.working[identity]
        for row in job.run.rows() if status in ("finished", "pruned") else ():
            self.note(work, row)
        result = job.run.result() if status in ("finished", "pruned") else {}
        value = result.get(self.metric.name)
        for number, trial in enumerate(work.trials):
            if status == "finished" and isinstance(value, int | float):
                self.study.tell(trial, float(value))
            elif status == "pruned":
                if isinstance(value, int | float) and (number or not work.steps):
                    trial.report(float(value), len(work.steps) or 1)
                self.study.tell(trial, state=TrialState.PRUNED)
            else:
                self.study.tell(trial, state=TrialState.FAIL)
            if number:
                self.total -= 1  # it is not counted

    # The outcome.

    def best(self) -> Checked | None:
        """The configuration of the best finished trial; the first of equal ones."""
        from optuna.trial import TrialState

        finished = [trial for trial in self.kept().values() if trial.state == TrialState.COMPLETE]
        if not finished:
            return None
        return self.check(FOUND, max(finished, key=lambda trial: self.metric.sign * (trial.value or 0.0)).params)

    def record(self, found: Checked | None) -> dict[str, Any]:
        """What is kept of the search beside its answer."""
        lines = []
        for place, trial in self.kept().items():
            state = {"COMPLETE": "finished", "FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())
            line = {
                "number": place,
                "params": dict(trial.params),
                "value": trial.value,
                "state": "refused" if "refused" in trial.user_attrs else state,
                "run": trial.user_attrs.get("run"),
            }
            lines.append(line | {"reason": trial.user_attrs["refused"]} if "refused" in trial.user_attrs else line)
        finished = ranked({"trials": lines, "metric": self.metric.name})
        return {
            "method": self.search.method,
            "prune": self.search.prune,
            "metric": self.metric.name,
            "asked": self.search.trials,
            "space": [asdict(each) for each in self.search.space],
            "trials": lines,
            "best": finished[0] | {"overrides": list(found.overrides)} if finished and found else None,
            "importance": importance(self.study, derive_seed(self.seed)),
        }
