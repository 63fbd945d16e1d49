"""A comparison as data: one row an arm, with its scores, costs and difference from the baseline."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from vitlab.report.statistics import Estimate
from vitlab.storage.metrics import COSTS, Metric, number


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm of a comparison.

    Args:
        name: the arm's; where none was given, the keys in which it differs.
        differs: the values of the configuration keys that vary in this comparison.
        x: where it stands on the figure's axis; a word where the axis is one of names; None where it is not known.
        baseline: whether the others are compared with this one.
        best: whether validation would choose it.
        apart: whether its runs are tested on other images than the baseline's, so that nothing is compared.
        seeds: those that were asked for.
        folds: how many parts the images are cut into, each the test split of one run a seed; 0 for a single split.
        runs: one line of the store for each run of this arm, finished or not; indexed by seed, with its `fold`.
        state: which runs are missing: '1 failed', '2 missing, 1 pruned'; empty where all are there.
        score: the metric's mean over the seeds; over the folds, where there are any.
        validation: the same of the metric that chooses (`Metric.validation`).
        difference: to the baseline, over the seeds (or folds and seeds) that both have finished; its interval is that
            of `contrasts.Contrast`.
        images: half the width that the choice of test images alone gives the difference's interval, which no number of
            seeds narrows; None where the runs have not kept what they predicted.
        p: of no difference, corrected for all rows; None with fewer than two pairs, or without any spread.
        verdict: the difference in words.
        cost: medians over the finished runs of those of `COSTS` that are known.
    """

    name: str
    differs: Mapping[str, Any]
    x: float | str | None
    baseline: bool
    best: bool
    apart: bool = False
    seeds: tuple[int, ...]
    folds: int = 0
    runs: pd.DataFrame
    state: str
    score: Estimate | None
    validation: Estimate | None
    difference: Estimate | None
    p: float | None
    verdict: str
    cost: Mapping[str, float]
    images: float | None = None

    @property
    def with_images(self) -> float | None:
        """Half the width of the difference's interval with the choice of test images in it."""
        half = self.difference.half if self.difference else None
        return None if half is None or self.images is None else math.hypot(half, self.images)

    @property
    def label(self) -> str:
        return self.name + (" (baseline)" if self.baseline and self.name != "baseline" else "")

    @property
    def n(self) -> str:
        """What the mean is over: '3' seeds, '5 folds', '5 folds x 3 seeds'; '2/3' where some have not finished."""
        n, asked = self.score.n if self.score else 0, self.folds or len(self.seeds)
        count = str(n) if n == asked else f"{n}/{asked}"
        seeds = f" x {len(self.seeds)} seeds" if len(self.seeds) > 1 else ""
        return f"{count} folds{seeds}" if self.folds else count

    def values(self, metric: str) -> list[tuple[Any, float]]:
        """Seed and value of each finished run that has the metric."""
        if metric not in self.runs:
            return []
        runs = self.runs[self.runs["status"] == "finished"] if "status" in self.runs else self.runs
        values = pd.to_numeric(runs[metric], errors="coerce")
        return [(seed, float(value)) for seed, value in zip(values.index, values, strict=True) if number(value)]


def units(rows: Sequence[Row], end: str = "") -> str:
    """What the means of these arms are over: seeds, folds, or 'seeds or folds'; `end` is that of the word."""
    folds = {row.folds > 0 for row in rows} or {False}
    return " or ".join(f"{unit}{end}" for unit, cut in (("seed", False), ("fold", True)) if cut in folds)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The difference of two arms (second minus first) as the source reports it, and as measured.

    Args:
        reported: in percentage points.
        found: of the metric, over the seeds that both have finished.
        verdict: agrees or disagrees, where the 95 % interval of `found` lies on one side of zero; else cannot tell.
        seeds: if it is undecided, about how many would be needed if the difference and the spread stayed the same;
            None where the difference is about zero, or over folds.
    """

    first: str
    second: str
    reported: float
    found: Estimate | None
    verdict: str
    seeds: int | None = None


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What was measured beside what the source of the question reports.

    Args:
        finding: what the source reports, in words.
        setting: what its numbers were measured on: "ImageNet top-1 accuracy after pre-training on JFT".
        numbers: reported, by name of the arm; accuracies in percent, as papers print them.
        pairs: every two arms with both a reported and a measured number, unless the source reports them as equal.
        order: Kendall's tau of the two orders, from -1 to 1; None with fewer than two arms.
        words: the agreement in a sentence or two; empty where there are no numbers.
    """

    finding: str
    setting: str
    numbers: Mapping[str, float]
    pairs: tuple[Pair, ...]
    order: float | None
    words: str

    def difference(self, base: str, arm: str) -> Estimate | None:
        """Arm minus base, as measured."""
        for pair in self.pairs:
            if pair.found and (pair.first, pair.second) == (base, arm):
                return pair.found
            if pair.found and (pair.first, pair.second) == (arm, base):
                return pair.found.negated()
        return None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table of arms.

    Args:
        title: the question, or what was compared.
        source: where the question comes from; empty where it is one's own.
        metric: what is reported.
        x: the figure's axis: a configuration key, or one of `COSTS`; None for the arms' names.
        rows: in the order of the question.
        agreement: with the source, where it says what to expect.
        test: how the verdicts were reached, in a few words: "Dunnett's test".
        notes: what the reader must know: mixed versions of the code, mixed hardware, few seeds.
        tried: every cell, where validation chose those of `rows` among several of their arm; there `best` marks the
            chosen ones. None where each arm is one cell.
        series: of rows, by name: the family whose line and color they share in the figures.
    """

    title: str
    source: str
    metric: Metric
    x: str | None
    rows: tuple[Row, ...]
    agreement: Agreement | None
    test: str = "a paired t test"
    notes: tuple[str, ...] = field(default=())
    tried: "Comparison | None" = None
    series: Mapping[str, str] = field(default_factory=dict)

    @property
    def numeric(self) -> bool:
        """Whether the axis is one of numbers."""
        scored = [row.x for row in self.rows if row.score and row.x is not None]
        return self.x is not None and bool(scored) and all(map(number, scored))

    @property
    def warning(self) -> str:
        """What must be read before the table; empty where all arms are tested on the same images."""
        apart = sum(row.apart for row in self.rows)
        if not apart:
            return ""
        return (
            f"warning: {apart} of {len(self.rows)} arms {'are' if apart > 1 else 'is'} tested on other images than the"
            " baseline, so their scores are no measure of each other: no difference is taken, and none of them chosen;"
            " compare the runs of one dataset at a time"
        )

    def unit(self, end: str = "") -> str:
        """What the means are over, one or with `end`='s' several: seeds, folds, or the rounds of a benchmark."""
        return f"round{end}" if self.metric.source == "bench" else units(self.rows, end)

    @property
    def point(self) -> str:
        """What a faint point of a figure is: a seed, or a run of a fold and seed."""
        return "run" if any(row.folds for row in self.rows) else "seed"

    @property
    def reference(self) -> str | None:
        """The arm that reported differences are taken to: the baseline, or else the first that the source reports."""
        if self.agreement is None:
            return None
        base = next((row.name for row in self.rows if row.baseline), None)
        return base if base in self.agreement.numbers else next(iter(self.agreement.numbers), None)

    def frame(self) -> pd.DataFrame:
        """A line a row: the same bytes for the same runs. Numbers in the units of the store (accuracies in 0 ... 1)."""
        rows = self.rows

        def numbers(estimates: list[Estimate | None], what: str) -> pd.Series:
            return pd.Series([getattr(e, what, None) for e in estimates], dtype="float64")

        def words(values: list[Any]) -> pd.Series:
            return pd.Series(values, dtype=object)

        scores, differences = [r.score for r in rows], [r.difference for r in rows]
        columns = {"arm": words([r.name for r in rows]), "n": pd.Series([r.score.n if r.score else 0 for r in rows])}
        columns |= {what: numbers(scores, what) for what in ("mean", "sd", "low", "high")}
        columns["validation"] = numbers([r.validation for r in rows], "mean")
        columns["difference"] = numbers(differences, "mean")
        columns |= {f"difference_{what}": numbers(differences, what) for what in ("low", "high")}
        if any(r.with_images for r in rows):
            columns["difference_half_with_images"] = pd.Series([r.with_images for r in rows], dtype="float64")
        columns["p"] = pd.Series([r.p for r in rows], dtype="float64")
        columns["verdict"] = words([r.verdict for r in rows])
        columns |= {cost: pd.Series([r.cost.get(cost) for r in rows], dtype="float64") for cost in COSTS}
        columns["state"] = words([r.state for r in rows])
        columns |= {what: pd.Series([getattr(r, what) for r in rows], dtype=bool) for what in ("baseline", "best")}
        keys = dict.fromkeys(key for r in rows for key in r.differs)
        return pd.DataFrame(columns | {key: words([r.differs.get(key, math.nan) for r in rows]) for key in keys})
