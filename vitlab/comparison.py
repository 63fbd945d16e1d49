"""A comparison: runs grouped by everything but the seed, with honest intervals; offline, from the store of runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds, or of differences paired by seed.

    `low` and `high` hold the mean with 95 % confidence (Student's t over the seeds: small samples); they are None where
    there is one seed alone. Shares of right answers are in 0 ... 1.
    """

    n: int
    mean: float
    sd: float | None  # n - 1 in the denominator; None with one seed
    low: float | None
    high: float | None


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
        p: of the paired t test of no difference, after Holm's correction for all rows; None where it cannot be told.
        verdict: the difference in plain words.
        cost: medians over the finished runs: parameters, flops_per_image, training_flops, images_per_second, seconds,
            peak_memory_bytes; those that are known.
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
    """Two arms, what the source reports of their difference (second minus first), and what was found."""

    first: str
    second: str
    reported: float
    found: Estimate | None
    verdict: str  # agrees, disagrees, cannot tell


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What was found beside what the source of the question reports.

    Args:
        says: what the source reports, in words.
        of: what its numbers are of: "ImageNet top-1 accuracy after pre-training on JFT".
        numbers: reported, by name of the arm; accuracies in percent, as papers print them.
        pairs: every two arms that both have.
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
    """

    title: str
    source: str
    metric: str
    higher_is_better: bool
    x: str | None
    rows: tuple[Row, ...]
    agreement: Agreement | None
    notes: tuple[str, ...] = field(default=())
