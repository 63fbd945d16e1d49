"""The launchers of a sweep: a process a slot, packed or not, one after the other in this process, or Hydra's."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vitlab.cli.exit import DONE, FAILED
from vitlab.config.compose import compose
from vitlab.storage.files import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitlab.sweep.job import Failure, Slot
    from vitlab.sweep.plan import Plan


@dataclass(kw_only=True)
class Launcher:
    """Trains what is not finished of a plan.

    Args:
        kind: packed, local, serial or hydra.
        parts: of the machine.
        seats: how many runs a process trains together, at most.
        retries: how often a failed run is trained again.
        overrides: of the command, with those of Hydra's launcher.
        record: of the sweep, to which a search adds what it has found.
        failures: of the runs so far.
    """

    kind: str
    parts: "Sequence[Slot]"
    seats: int
    retries: int
    overrides: tuple[str, ...]
    record: dict[str, Any]
    failures: "list[Failure]" = field(default_factory=list)

    def train(self, plan: "Plan") -> int:
        """The exit status: 0, 1 if some failed, or 128 + the signal that was received."""
        from vitlab.sweep import packs
        from vitlab.sweep.local import Listed, Local
        from vitlab.sweep.progress import Progress

        jobs = plan.jobs
        todo = [job for job in jobs if job.run.result()["status"] != "finished"]
        before = len(jobs) - len(todo)
        print(f"{count(len(jobs), 'run')} of {count(len(plan.cells), 'cell')}; {before} finished already", flush=True)
        progress = Progress(before=before)
        if plan.question.search is not None:
            from vitlab.sweep import search

            found = search.run(plan, self.parts, progress, self.retries, self.kind, train_in_turn, self.seats)
            self.failures += found.failures
            for cell in found.cells:
                self.record["cells"][cell.name] = {"cell": cell.identity, "overrides": list(cell.overrides)}
            self.record["search"] = found.record
            write_json(plan.folder / "sweep.json", self.record)
            return found.status
        if self.kind in ("local", "packed"):
            local = Local(self.parts, plan.folder / "logs", progress, self.retries, self.seats)
            status = local.run(Listed(packs.grouped(todo) if self.seats > 1 else todo))
            self.failures += local.failures
            return status
        return train_by_hydra(todo, self.overrides) if self.kind == "hydra" else train_in_turn(todo)


def train_in_turn(jobs: list[Any]) -> int:
    """Trains one after the other in this process, which imports and reads the data once."""
    from vitlab.cli.run import run
    from vitlab.data.dataset import read_once

    status = DONE
    with read_once():
        for number, job in enumerate(jobs):
            print(f"\n--- {number + 1} of {len(jobs)}: {job}")
            code = run(*compose(job.words))
            if code >= 128:
                return code
            status = max(status, FAILED if code else DONE)
    return status


def waves(jobs: list[Any]) -> list[list[Any]]:
    """The jobs in groups that may run together: a job comes after the one that it starts from."""
    found: list[list[Any]] = []
    placed: dict[Any, int] = {}
    for job in jobs:
        place = placed.get(job.after and job.after.folder, -1) + 1
        placed[job.run.folder] = place
        found += [[]] if place == len(found) else []
        found[place].append(job)
    return found


def train_by_hydra(jobs: list[Any], overrides: "Sequence[str]") -> int:
    """Trains by a launcher of Hydra's, one wave after the other."""
    from vitlab.cli import hydra_launcher

    about_hydra, status = [word for word in overrides if word.startswith("hydra")], DONE
    for wave in waves(jobs):
        status = max(status, hydra_launcher.run(wave, about_hydra)) if status < 128 else status
    return status


def count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
