"""A mean over seeds, how far it can be believed, and whether two of them differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import special  # scipy.stats would take two seconds more

from vitlab.storage.metrics import is_accuracy


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


def estimate(values: pd.Series, scale: float | None = None) -> Estimate | None:
    """Mean and Student's interval; None of nothing.

    Args:
        values: one a seed.
        scale: of the numbers that they are differences of: a spread that is rounding beside it is none.
    """
    kept = values.to_numpy(dtype="float64")
    n = len(kept)
    if n < 2:
        return Estimate(n=1, mean=float(kept[0]), sd=None, low=None, high=None) if n else None
    mean, sd = float(kept.mean()), float(kept.std(ddof=1))
    if sd <= 1e-12 * (np.abs(kept).max() if scale is None else scale):
        mean, sd = float(kept[0]), 0.0
    half = float(special.stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return Estimate(n=n, mean=mean, sd=sd, low=mean - half, high=mean + half)


def bounded(found: Estimate | None, metric: str) -> Estimate | None:
    """An accuracy's interval cut at 0 and 1, of which Student's t knows nothing."""
    if found is None or found.low is None or found.high is None or not is_accuracy(metric):
        return found
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def paired(one: pd.Series, other: pd.Series) -> Estimate | None:
    """One minus the other, over the seeds that both have."""
    both = one.index.intersection(other.index).sort_values()
    if both.empty:
        return None
    scale = float(max(one[both].abs().max(), other[both].abs().max()))
    difference = one[both] - other[both]
    return estimate(difference.where(difference.abs() > 1e-12 * scale, 0.0), scale)


def probability(found: Estimate) -> float | None:
    """Of a difference at least as large were there none; None where there is no spread to hold it against."""
    if not found.sd:
        return None
    return 2 * float(special.stdtr(found.n - 1, -abs(found.mean) / (found.sd / math.sqrt(found.n))))


def holm(p: Sequence[float]) -> list[float]:
    """Holm 1979: with several tests at once, the chance of any false alarm stays below the level."""
    adjusted, most = [0.0] * len(p), 0.0
    for place, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        most = max(most, min(1.0, (len(p) - place) * p[index]))
        adjusted[index] = most
    return adjusted


def side(found: Estimate | None) -> int:
    """1 or -1 where the interval lies on one side of zero; 0 where it does not, or there is none."""
    if found is None or not found.sd or found.low is None or found.high is None:
        return 0
    return 1 if found.low > 0 else -1 if found.high < 0 else 0
