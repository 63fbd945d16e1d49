"""A question: what a sweep file asks, and the cells that it is made of."""

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vitlab.config.errors import SweepFileError
from vitlab.config.moved import current_key
from vitlab.config.overrides import key_of, merged, several
from vitlab.storage.metrics import metric

PRETRAIN = "pretrain/"  # before the name of a pre-training: init=pretrain/NAME
FOLD = "dataset.fold"  # of one run: repetitions, as seeds are
BASELINE = "baseline"  # the cell's name where no arm is the same


@dataclass(frozen=True, kw_only=True)
class Expect:
    """What the source of a question reports.

    Args:
        finding: in words.
        setting: what the numbers were measured on.
        numbers: by name of the arm; accuracies in percent.
    """

    finding: str = ""
    setting: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One key of a search: a range of numbers, even or even in the logarithm, or a list of values."""

    key: str
    kind: Literal["uniform", "log", "int", "choice"]
    values: tuple[str, ...]  # two ends, or the choices, as they would be typed


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search for the best configuration by validation.

    Args:
        method: how the next trial is chosen.
        trials: how many.
        space: what is searched.
        prune: which rule ends a trial early: median of the others at the same epoch, or asynchronous successive halving
            (Li et al. 2020).
    """

    method: Literal["tpe", "random", "grid", "sobol"]
    trials: int
    space: tuple[Dimension, ...]
    prune: Literal["median", "asha", "none"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One configuration of a sweep without its seed and fold: what is typed after `vitlab train` to get it."""

    name: str
    overrides: tuple[str, ...]
    line: int  # of the arm in the file
    arm: str  # that it stands for, if validation chooses it of the arm's cells
    series: str = ""  # that it belongs to in the figures


@dataclass(frozen=True, kw_only=True)
class Question:
    """A sweep at one of its scales.

    Args:
        file: where it was read.
        question: in words.
        source: paper and table; empty for a question of one's own.
        baseline: overrides of every cell, which the arms are compared with.
        arms: name -> overrides, in which an arm differs from the baseline. An override of several values, `a=1,2`,
            is one whose value validation chooses for that arm alone.
        pretrain: name -> overrides of what is trained before the arms, seed by seed: the baseline's, but for its
            `init`. An arm starts from one with `init=pretrain/NAME`.
        axes: key -> values: every combination, of every arm.
        seeds: of each cell.
        folds: of each cell whose dataset has `folds`; None is all of them.
        metric: that is reported; configurations are chosen by the validation metric that belongs to it, and checkpoints
            by `fit.best`.
        x: axis of the figure: a configuration key or a cost; None is the arms' names.
        series: name -> arms that share a line and a color in the figures, such as all ViTs; `*` in an arm's name stands
            for any letters.
        expect: what the source reports.
        margin: within which an arm counts as equivalent to the baseline, in percentage points of a share, else in the
            metric's unit; None asks for no equivalence.
        search: instead of, or besides, arms and axes.
        scale: name of the scale; empty where the file has none.
        duration: how long it takes, and on what hardware, in words.
        lines: line of each key, such as `arms.p1`.
    """

    file: Path
    question: str
    source: str
    baseline: tuple[str, ...]
    arms: Mapping[str, tuple[str, ...]]
    pretrain: Mapping[str, tuple[str, ...]]
    axes: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    folds: tuple[int, ...] | None = None
    metric: str
    x: str | None
    series: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    expect: Expect
    margin: float | None = None
    search: Search | None
    scale: str
    duration: str
    lines: Mapping[str, int]

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def trains(self) -> bool:
        """Whether its cells are trained; else a benchmark measures them."""
        return metric(self.metric).source != "bench"

    def cells(self, words: Iterable[str] = ()) -> list[Cell]:
        """The baseline; and every arm, the baseline's own values among them, at every point of the axes.

        Args:
            words: overrides of every cell.

        Raises:
            SweepFileError: an override of a key that the sweep varies.
        """
        words = tuple(words)
        varied = {key_of(word) for arm in self.arms.values() for word in arm} | set(map(current_key, self.axes))
        varied |= {current_key(each.key) for each in self.search.space} if self.search else set()
        for word in words:
            if key_of(word) in varied:
                raise SweepFileError(
                    f"{word}: that is what {self.name} varies: leave it out, or write a sweep of your own"
                )
            if key_of(word) == "seed":
                raise SweepFileError(f"{word}: a sweep has several: seeds=0,1,2")
        fixed = merged(self.baseline, words)
        cells = chosen_of(BASELINE, fixed, self.lines.get("baseline", 1), x=self.x)
        arms: dict[str, tuple[str, ...]] = {BASELINE if self.arms else "": ()} if self.axes else {}
        for arm, overrides in (arms | dict(self.arms)).items():
            for point in itertools.product(*self.axes.values()):
                values = [f"{key}={value}" for key, value in zip(self.axes, point, strict=True)]
                short = [f"{key.rpartition('.')[2]}={value}" for key, value in zip(self.axes, point, strict=True)]
                name = ", ".join([arm, *short] if arm else short)
                line = self.lines.get(f"arms.{arm}", self.lines.get("axes", 1))
                rest = [word for key, word in zip(self.axes, short, strict=True) if current_key(key) != self.x]
                of = ", ".join([arm, *rest]) if arm and len(rest) < len(short) else self.series_of(arm)
                cells += chosen_of(name, merged(fixed, overrides, values), line, of, self.x)
        return cells

    def series_of(self, arm: str) -> str:
        """The series that names this arm; empty where none does."""
        return next((name for name, arms in self.series.items() if any(fits(each, arm) for each in arms)), "")


def fits(pattern: str, name: str) -> bool:
    """Whether this is the name, where `*` stands for any letters."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None


def chosen_of(arm: str, overrides: tuple[str, ...], line: int, series: str = "", x: str | None = None) -> list[Cell]:
    """The cells of an arm: every combination of overrides with several values, of which validation chooses one.

    Along an axis `x` of such values an arm is a series of its own.
    """
    ways = [[f"{word.partition('=')[0]}={value}" for value in several(word)] for word in overrides]
    cells = []
    for point in itertools.product(*ways):
        chosen = [word.partition("=") for word, way in zip(point, ways, strict=True) if len(way) > 1]
        short = [f"{key.rpartition('.')[2]}={value}" for key, _, value in chosen]
        of = arm if any(current_key(key) == x for key, _, _ in chosen) else series
        cells.append(Cell(name=", ".join([arm, *short]), overrides=point, line=line, arm=arm, series=of))
    return cells


def slugs(names: Iterable[str]) -> dict[str, str]:
    """Names of cells by a slug of each, which needs no quotes in a shell, Hydra or W&B."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^\w.]+", "-", name).strip("-") or "arm"
        word, number = plain, 1
        while word in found:
            word, number = f"{plain}-{number + 1}", number + 1
        found[word] = name
    return found


def source_of(words: Iterable[str]) -> str | None:
    """Which pre-training these overrides start from."""
    starts = [word for word in words if key_of(word) in ("init", "init.weights")]
    found = re.fullmatch(r"(?:pretrain|first)/(.*)", starts[-1].partition("=")[2]) if starts else None
    return found[1] if found else None
