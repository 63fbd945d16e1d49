"""The rows of a comparison: one arm each, with its scores, costs and difference from the baseline."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from vitlab.report.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm of a comparison.

    Args:
        name: the arm's; where none was given, the keys in which it differs.
        differs: the values of the configuration keys that vary in this comparison.
        x: where it stands on the figure's axis; a word where the axis is one of names; None where it is not known.
        baseline: whether the others are compared with this one.
        best: whether validation would choose it.
        seeds: those that were asked for.
        runs: one line of the store a run of this arm, finished or not; indexed by seed.
        state: what to say of runs that are missing: '1 failed', '2 missing, 1 pruned'; empty where all are there.
        score: of the metric.
        validation: of the metric's validation counterpart.
        difference: to the baseline, over the seeds that both have finished.
        p: of the paired t test of no difference, after Holm's correction for all rows; None where it cannot be told:
            fewer than two pairs, or the very same difference in each.
        verdict: the difference in plain words.
        cost: medians over the finished runs: parameters, flops_per_image, training_flops, images, images_per_second,
            seconds, peak_memory_bytes, largest_batch; those that are known.
    """

    name: str
    differs: Mapping[str, Any]
    x: float | str | None
    baseline: bool
    best: bool
    seeds: tuple[int, ...]
    runs: pd.DataFrame
    state: str
    score: Estimate | None
    validation: Estimate | None
    difference: Estimate | None
    p: float | None
    verdict: str
    cost: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two arms, what the source reports of their difference (second minus first), and what was found.

    Args:
        reported: in points of accuracy.
        found: of the metric, over the seeds that both have finished.
        verdict: agrees, disagrees (the 95 % interval of `found` lies on one side of zero), or cannot tell.
        seeds: where it cannot be told, about how many would tell, were the difference and the spread what they seem;
            None where the difference is about zero.
    """

    first: str
    second: str
    reported: float
    found: Estimate | None
    verdict: str
    seeds: int | None = None


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What was found beside what the source of the question reports.

    Args:
        says: what the source reports, in words.
        of: what its numbers are of: "ImageNet top-1 accuracy after pre-training on JFT".
        numbers: reported, by name of the arm; accuracies in percent, as papers print them.
        pairs: every two arms that both have, but for those that the source reports as equal.
        order: Kendall's tau of the two orders, from -1 to 1; None with fewer than two arms.
        words: the agreement in a sentence or two; empty where there are no numbers.
    """

    says: str
    of: str
    numbers: Mapping[str, float]
    pairs: tuple[Pair, ...]
    order: float | None
    words: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table of arms.

    Args:
        title: the question, or what was compared.
        source: where the question comes from; empty where it is one's own.
        metric: column of the store that is reported, such as test/accuracy.
        higher_is_better: of the metric.
        x: what the figure's axis is: a configuration key, parameters, flops_per_image, training_flops, images, seconds;
            None for the arms' names.
        rows: in the order of the question.
        agreement: with the source, where it says what to expect.
        notes: what the reader must know: mixed versions of the code, mixed hardware, few seeds.
        tried: every cell, where validation chose those of `rows` among several of their arm; there `best` is one that
            was chosen. None where each arm is one cell.
    """

    title: str
    source: str
    metric: str
    higher_is_better: bool
    x: str | None
    rows: tuple[Row, ...]
    agreement: Agreement | None
    notes: tuple[str, ...] = field(default=())
    tried: "Comparison | None" = None

    def frame(self) -> pd.DataFrame:
        """A line a row: the same bytes for the same runs. Numbers in the units of the store (accuracies in 0 ... 1)."""
        rows, costs = self.rows, ("parameters", "flops_per_image", "images_per_second", "seconds", "peak_memory_bytes")

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
        columns["p"] = pd.Series([r.p for r in rows], dtype="float64")
        columns["verdict"] = words([r.verdict for r in rows])
        columns |= {cost: pd.Series([r.cost.get(cost) for r in rows], dtype="float64") for cost in costs}
        columns["state"] = words([r.state for r in rows])
        columns |= {what: pd.Series([getattr(r, what) for r in rows], dtype=bool) for what in ("baseline", "best")}
        keys = dict.fromkeys(key for r in rows for key in r.differs)
        return pd.DataFrame(columns | {key: words([r.differs.get(key, math.nan) for r in rows]) for key in keys})
