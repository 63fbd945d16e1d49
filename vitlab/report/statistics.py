"""Means over seeds or folds with Student's intervals, paired differences, and Holm's correction.

Holm's correction is written here: scipy has none, and statsmodels would be a new dependency for six lines.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import special  # scipy.stats takes half a second to import

from vitlab.storage.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds or folds, or of differences paired by them.

    `low` and `high` are the 95 % confidence interval of the mean (Student's t over the seeds or folds); None with one.
    """

    n: int
    mean: float
    sd: float | None  # n - 1 in the denominator; None with one seed or fold
    low: float | None
    high: float | None
    of: str = "seed"  # what n counts: seed or fold

    @property
    def half(self) -> float | None:
        """Half the width of the interval; None where there is no spread to make one of."""
        return None if self.low is None or self.high is None or self.low == self.high else (self.high - self.low) / 2

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of zero; 0 where it does not, or there is none."""
        if self.half is None or self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def negated(self) -> "Estimate":
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return replace(self, mean=-self.mean, low=low, high=high)


def estimate(values: pd.Series, scale: float | None = None) -> Estimate | None:
    """Mean and Student's interval; None without values.

    Seeds of a fold are averaged first: they are no further draws of images. The scores of k folds depend on each other,
    for folds share training images, so the variance of their mean is taken as (1/n + 1/(k - 1)) sd², not as sd²/n
    (Nadeau and Bengio 2003; there are 1/(k - 1) test images to each other image). No unbiased estimate exists (Bengio
    and Grandvalet 2004).

    Args:
        values: one a seed; of folds one a fold and seed, indexed as `grouping.repetitions` has it.
        scale: size of the numbers whose differences they are: a spread that is rounding error beside it counts as none.
    """
    folds = folds_of(values)
    numbers = (values.groupby(level="fold").mean() if folds else values).to_numpy(dtype="float64")
    n, of = len(numbers), "fold" if folds else "seed"
    if n < 2:
        return Estimate(n=1, mean=float(numbers[0]), sd=None, low=None, high=None, of=of) if n else None
    mean, sd = float(numbers.mean()), float(numbers.std(ddof=1))
    if sd <= 1e-12 * (np.abs(numbers).max() if scale is None else scale):
        mean, sd = float(numbers[0]), 0.0
    shared = 1 / (folds - 1) if folds else 0.0
    half = float(special.stdtrit(n - 1, 0.975)) * sd * math.sqrt(1 / n + shared)
    return Estimate(n=n, mean=mean, sd=sd, low=mean - half, high=mean + half, of=of)


def wilson(share: float, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy over a number of test images (Wilson 1927).

    Over the mean of several seeds' accuracies it is at most so wide, however many seeds there are.
    """
    z = float(special.ndtri(0.975))
    shrink = 1 + z**2 / images
    half = z / shrink * math.sqrt(share * (1 - share) / images + (z / images / 2) ** 2)
    return (share + z**2 / images / 2) / shrink - half, (share + z**2 / images / 2) / shrink + half


def folds_of(values: pd.Series) -> int:
    """How many folds the images are cut into; 0 for none."""
    return int(values.index[0][0]) if values.index.nlevels > 1 and len(values) else 0


def clipped(mean: Estimate | None, metric: Metric) -> Estimate | None:
    """The interval of a share cut at 0 and 1, which Student's t does not know."""
    if mean is None or mean.low is None or mean.high is None or not metric.share:
        return mean
    return replace(mean, low=max(0.0, mean.low), high=min(1.0, mean.high))


def paired(one: pd.Series, other: pd.Series) -> Estimate | None:
    """One minus the other, over the seeds, or folds and seeds, that both have."""
    both = one.index.intersection(other.index).sort_values()
    if both.empty:
        return None
    scale = float(max(one[both].abs().max(), other[both].abs().max()))
    difference = one[both] - other[both]
    return estimate(difference.where(difference.abs() > 1e-12 * scale, 0.0), scale)


def p_value(difference: Estimate) -> float | None:
    """Of the two-sided t test of no difference; None where there is no spread."""
    if not difference.half:
        return None
    t = abs(difference.mean) / difference.half * special.stdtrit(difference.n - 1, 0.975)
    return 2 * float(special.stdtr(difference.n - 1, -t))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm 1979): the chance of any false positive among the tests stays below the level."""
    adjusted, largest = [0.0] * len(p), 0.0
    for place, index in enumerate(np.argsort(p, kind="stable")):
        largest = max(largest, min(1.0, (len(p) - place) * p[index]))
        adjusted[index] = largest
    return adjusted
