"""One training of a sweep: the job, its slot, its process and its failure."""

import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitlab.config.own import CURRENT
from vitlab.storage.run import Run


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training of a sweep.

    Args:
        name: of the cell.
        seed: of the run.
        fold: of its dataset; None where it is not one of several.
        words: what is typed after `vitlab train`.
        run: its folder.
        steps: of the whole training.
        after: the run whose weights it starts from.
        memory: bytes that it takes in a pack, about.
        pack: what the runs that can be trained together with it have in common; None where none can.
        alone: why none can.
    """

    name: str
    seed: int
    fold: int | None = None
    words: tuple[str, ...]
    run: Run
    steps: int
    after: Run | None = None
    memory: int = 0
    pack: str | None = None
    alone: str = ""

    @property
    def command(self) -> str:
        """The command line of it."""
        return shlex.join(("vitlab", *self.arguments))

    @property
    def arguments(self) -> list[str]:
        """The command line, with the user's own options."""
        return ["train", *CURRENT.get().flags(), *self.words]

    def __str__(self) -> str:
        return f"{self.name}, {self.repetition}"

    @property
    def repetition(self) -> str:
        return f"seed {self.seed}" if self.fold is None else f"fold {self.fold}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A training that failed: the reason, and the end of its output."""

    job: Job
    reason: str
    tail: str


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A part of the machine that one training has to itself: a GPU, or some cores."""

    name: str
    cores: tuple[int, ...]
    environment: dict[str, str]


@dataclass(kw_only=True)
class Child:
    """A running training."""

    job: Job
    slot: Slot
    process: Any  # a subprocess.Popen, or a `Seat` of one that trains several
    out: Path
    attempt: int
    began: float = field(default_factory=time.monotonic)
    row: dict[str, Any] = field(default_factory=dict)  # the last one with validation metrics
    read: int = 0  # bytes of its metrics
    step: int = 0
    first: int | None = None  # the step of its first row
    pruned: bool = False

    @property
    def share(self) -> float:
        return min(1.0, self.step / self.job.steps)

    def left(self) -> float | None:
        """Seconds until it ends, at the speed so far."""
        done = self.step - (self.first or 0)
        if self.first is None or done <= 0:
            return None
        return (time.monotonic() - self.began) / done * (self.job.steps - self.step)
