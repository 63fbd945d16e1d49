"""Differences of arms tested together: a randomised block design, whose blocks are the seeds.

Three seeds say little of one arm's spread, all arms together much. So the residual variance is pooled over the arms,
and the largest difference held against Dunnett's distribution (to one baseline) or Tukey's (all pairs). Both assume
equal variances, which three seeds cannot check: pooled without more ado, up to 28 % of sweeps without any effect make a
false claim. So three things hold here, and tests/report/test_false_claims.py simulates them:

- An arm whose residual variance differs (F test against the other arms', 5 % after Bonferroni) leaves the pool, and has
  a paired t test of its own. If more than a third of the arms leave, or the baseline, nothing is pooled: paired t tests
  with Holm's correction.
- The variance of a difference is not below the mean of the differences' own: where the baseline is noisier than the
  arms, all differences are.
- A pooled difference must also hold by its own paired t test, which assumes no equal variances, at 5 % divided by the
  square root of the number of arms: halfway, in the logarithm, to a correction for all of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TypeVar

import numpy as np
import pandas as pd
from scipy import special

from vitlab.report.grouping import listed
from vitlab.report.max_t import critical, dunnett, tukey
from vitlab.report.statistics import Estimate, folds_of, holm, p_value, paired

Name = TypeVar("Name")  # of an arm, or of a pair
LEVEL = 0.05
MOST_LEFT_OUT = 1 / 3  # of the arms


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A difference with what the test of all of them together makes of it.

    Args:
        difference: mean and 95 % interval; a simultaneous one where `pooled` or Bonferroni's correction holds.
        p: corrected for all differences; None where there is no spread.
        alone: of its paired t test alone, where Holm's correction follows; else None.
        margin_p: p values of "not more than the margin below" and "... above" zero, corrected; None without a margin.
    """

    difference: Estimate | None
    p: float | None = None
    alone: float | None = None
    margin_p: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The residual variance of several arms.

    Args:
        arms: that share it; none where nothing is pooled.
        left_out: arms whose variance differs.
        variance: of one run, with the effect of its arm and its seed taken away.
        difference: variance of the difference of two arms' runs of one seed.
        df: degrees of freedom.
        reason: why nothing is pooled; empty where something is.
    """

    arms: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    variance: float = 0.0
    difference: float = 0.0
    df: float = 0.0
    reason: str = ""


def pool(scores: Mapping[str, pd.Series], baseline: str | None = None) -> Pool:
    """The pooled residual variance of arms by seeds (two-way layout, least squares where seeds are missing).

    Args:
        scores: of each arm, one a seed, indexed as `grouping.repetitions` has it.
        baseline: that the others are compared with; None for all pairs.
    """
    if any(folds_of(one) for one in scores.values()):
        return Pool(reason="folds share training images")
    table = pd.DataFrame({name: one for name, one in scores.items() if len(one) > 1})
    names = [str(name) for name in table.columns]
    if len(names) < 3 or (baseline is not None and baseline not in names):
        return Pool(reason="there are fewer than three arms with two seeds")
    kept, left_out = names, []
    while True:
        square, df, apart, own_df = residuals(table[kept])
        rest = df - own_df
        if not square or rest.min() < 1:
            return Pool(reason="there is no spread")
        with np.errstate(divide="ignore"):
            below = special.fdtr(own_df, rest, apart / own_df / ((square - apart) / rest))
        p = 2 * np.minimum(below, 1 - below) * len(kept)
        least = int(p.argmin())
        if p[least] >= LEVEL:
            break
        left_out.append(kept[least])
        if kept[least] == baseline:
            return Pool(reason="the baseline's spread differs from the arms' (F test)")
        kept = [name for name in kept if name != kept[least]]
        if len(left_out) > MOST_LEFT_OUT * len(names) or len(kept) < 3:
            return Pool(reason="the spread differs from arm to arm (F test)")
    variance = square / df
    own = table[[name for name in kept if name != baseline]].sub(table[baseline], axis=0).var() if baseline else None
    difference = 2 * variance if own is None else max(2 * variance, float(own.mean()))
    return Pool(arms=(*kept,), left_out=(*left_out,), variance=variance, difference=difference, df=df)


def residuals(table: pd.DataFrame) -> tuple[float, float, np.ndarray, np.ndarray]:
    """The squared residuals of the additive model of arms and seeds, by least squares where runs are missing.

    Returns:
        their sum and its degrees of freedom; of each arm how much of the sum, and of these, goes when the arm does.
    """
    values = table.to_numpy(dtype="float64")
    seed, arm = np.nonzero(~np.isnan(values))
    design = np.concatenate((np.eye(values.shape[1])[arm], np.eye(values.shape[0])[seed]), axis=1)
    basis, sizes, _ = np.linalg.svd(design, full_matrices=False)
    basis = basis[:, sizes > 1e-9 * sizes[0]]
    y = values[seed, arm]
    left = y - basis @ (basis.T @ y)
    left[np.abs(left) < 1e-12 * np.abs(y).max()] = 0.0  # rounding
    apart, free = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    for each in range(values.shape[1]):
        of = arm == each
        block = np.eye(of.sum()) - basis[of] @ basis[of].T
        apart[each] = left[of] @ np.linalg.pinv(block, rcond=1e-9, hermitian=True) @ left[of]
        free[each] = np.linalg.matrix_rank(block, tol=1e-9, hermitian=True)
    return float(left @ left), float(len(y) - basis.shape[1]), apart, free


@dataclass(frozen=True, kw_only=True)
class Family:
    """Differences that are tested together.

    Args:
        pool: what they share.
        tests: how many differences there are.
        test: p value of the largest t of all of them: `dunnett` or `tukey`.
        arms: how many it is of.
        more: arguments of it.
        looks: how often they may be tested while seeds are added: p values and intervals are corrected for all of them
            (Bonferroni), so that together they keep 5 %.
    """

    pool: Pool
    tests: int
    test: Callable[..., float]
    arms: int
    more: Mapping[str, float] = field(default_factory=dict)
    looks: int = 1

    @property
    def pooled(self) -> bool:
        return bool(self.pool.arms)

    @property
    def name(self) -> str:
        """Of the test, in a few words."""
        paired = "a paired t test" if self.tests < 2 else "paired t tests after Holm's correction"
        return "Dunnett's test, and a paired t test each" if self.pooled else paired

    @property
    def root(self) -> float:
        """What a paired t test's p is multiplied with: the root of the number of arms, or of pairs."""
        return math.sqrt(self.tests + (self.test is dunnett))

    @property
    def level(self) -> float:
        """Of the tests at each look."""
        return LEVEL / self.looks

    def contrast(self, first: str, second: str, own: Estimate | None, margin: float | None = None) -> Contrast:
        """The difference of two arms, by the pooled variance where both share it."""
        if own is None or own.sd is None:
            return Contrast(difference=own)
        if not {first, second} <= {*self.pool.arms}:
            return alone(own, self.looks * (self.tests if self.pooled else 1), margin)
        error, own_error = math.sqrt(self.pool.difference / own.n), own.sd / math.sqrt(own.n)
        shared, root = self.pool.df, self.root

        def p(distance: float, sides: int = 2) -> float:
            """Of a distance from the hypothesis, in the direction of the claim."""
            one_sided = {"sides": 1} if sides == 1 else {}
            largest = self.test(distance / error, self.arms, shared, **self.more, **one_sided)
            return min(1.0, self.looks * max(largest, root * tail_of_t(distance, own_error, own.n - 1, sides)))

        half = max(
            critical(self.test, self.level, self.arms, shared, **self.more) * error,
            float(special.stdtrit(own.n - 1, 1 - self.level / 2 / root)) * own_error,
        )
        found = replace(own, low=own.mean - half, high=own.mean + half)
        beside = (p(margin + own.mean, 1), p(margin - own.mean, 1)) if margin is not None else None
        return Contrast(difference=found, p=p(abs(own.mean)), margin_p=beside)


def tail_of_t(distance: float, error: float, df: int, sides: int = 2) -> float:
    """The p value of Student's t; of a distance without spread 0, or 1 where there is none or it is negative."""
    if not error:
        return 0.0 if distance > 0 else 1.0
    return sides * float(special.stdtr(df, -distance / error))


def alone(own: Estimate, tests: int, margin: float | None) -> Contrast:
    """A difference by its paired t test alone, its interval and p corrected for a number of tests (Bonferroni)."""
    if not own.half or own.sd is None:
        return Contrast(difference=own)
    error = own.half / float(special.stdtrit(own.n - 1, 0.975))
    half = float(special.stdtrit(own.n - 1, 1 - LEVEL / 2 / tests)) * error
    p = p_value(own)
    beside = None
    if margin is not None:
        ends = (margin + own.mean, margin - own.mean)
        below, above = (min(1.0, tests * tail_of_t(end, error, own.n - 1, 1)) for end in ends)
        beside = (below, above)
    return Contrast(
        difference=replace(own, low=own.mean - half, high=own.mean + half),
        p=None if p is None else min(1.0, tests * p),
        margin_p=beside,
    )


def against(
    baseline: str, scores: Mapping[str, pd.Series], margin: float | None = None, looks: int = 1
) -> tuple[dict[str, Contrast], Family]:
    """The difference of every arm to the baseline.

    Args:
        baseline: name of an arm.
        scores: of each arm that may be compared, the baseline's among them.
        margin: within which arms count as equivalent, in the units of the scores; None for none.
        looks: see `Family`.
    """
    own = {name: paired(one, scores[baseline]) for name, one in scores.items() if name != baseline}
    tested = [name for name, one in own.items() if one is not None and one.sd is not None and (one.sd or one.mean)]
    together = pool({name: scores[name] for name in (baseline, *tested)}, baseline)
    more = {"correlation": correlation([scores[name] for name in tested], scores[baseline])}
    family = Family(pool=together, tests=len(tested), test=dunnett, arms=len(tested), more=more, looks=looks)
    found = {name: family.contrast(baseline, name, one, margin) for name, one in own.items()}
    return found if family.pooled else after_holm(found), family


def pairwise(scores: Mapping[str, pd.Series], looks: int = 1) -> tuple[dict[tuple[str, str], Contrast], Family]:
    """The difference of every two arms, second minus first; without a pool each for itself, uncorrected."""
    own = {(a, b): paired(scores[b], scores[a]) for a, b in combinations(scores, 2)}
    together = pool({name: one for name, one in scores.items() if len(one)})
    family = Family(pool=together, tests=len(own), test=tukey, arms=len(scores), looks=looks)
    return {pair: family.contrast(*pair, one) for pair, one in own.items()}, family


def after_holm(found: Mapping[Name, Contrast]) -> dict[Name, Contrast]:
    """Contrasts that were tested alone, after Holm's correction; their intervals are each its own."""

    def corrected(p: Mapping[Name, float]) -> dict[Name, float]:
        return dict(zip(p, holm([*p.values()]), strict=True))

    p = corrected({name: one.p for name, one in found.items() if one.p is not None})
    beside = {name: one.margin_p for name, one in found.items() if one.margin_p}
    below, above = (corrected({name: both[side] for name, both in beside.items()}) for side in (0, 1))
    return {
        name: replace(one, p=p.get(name), alone=one.p, margin_p=(below[name], above[name]) if name in beside else None)
        for name, one in found.items()
    }


def correlation(scores: list[pd.Series], baseline: pd.Series) -> float:
    """The least correlation of two differences to the baseline: 1/2 where all arms have the same seeds."""
    pairs = [set(one.index) & set(baseline.index) for one in scores]
    found = [len(a & b) / 2 / math.sqrt(len(a) * len(b)) for a, b in combinations(pairs, 2) if a and b]
    return min(found, default=0.5)


def in_words(family: Family) -> str:
    """How several differences to the baseline were tested, and why so; empty with fewer than two."""
    pool, tests = family.pool, family.tests
    if tests < 2:
        return ""
    if not family.pooled:
        return (
            f"{tests} differences to the baseline are tested by paired t tests, corrected for all of them (Holm), for"
            f" {pool.reason}."
        )
    left = (
        f" Of {listed([*pool.left_out])} the spread differs (F test): a paired t test of its own, corrected for all"
        " (Bonferroni)."
    )
    return (
        f"{tests} differences to the baseline are tested together: Dunnett's test, paired by seed, with the residual"
        f" variance of {len(pool.arms)} arms ({pool.df:.0f} degrees of freedom); each must hold by its own paired t"
        f" test, which assumes no equal variances, at {100 * family.level / family.root:.2g} % as well. Intervals are"
        f" simultaneous."
        f"{left if pool.left_out else ''}"
    )


def looks_in_words(looks: Sequence[int], seeds: int) -> str:
    """At which numbers of seeds the differences were looked at, and the correction for that; empty with one look.

    Args:
        looks: numbers of seeds at which it was planned.
        seeds: that there are now.
    """
    if len(looks) < 2:
        return ""
    made = sum(look <= seeds for look in looks)
    return (
        f"Seeds were added: of {len(looks)} planned looks, at {', '.join(map(str, looks))} seeds, {made}"
        f" {'was' if made == 1 else 'were'} made. Intervals and verdicts of differences are at"
        f" {100 * (1 - LEVEL / len(looks)):.4g} % each (Bonferroni over the planned looks), so that together they keep"
        " 95 %, whatever made the sweep stop."
    )
