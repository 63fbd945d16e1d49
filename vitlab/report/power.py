"""What a sweep can show: the least difference that its seeds would tell, and the seeds that a difference would take."""

import math
from collections.abc import Mapping

from scipy import special

from vitlab.report.contrasts import LEVEL, Contrast, Family
from vitlab.report.grouping import listed
from vitlab.report.max_t import critical
from vitlab.storage.metrics import Metric

POWER = 0.8  # of a hundred sweeps with such a difference, how many would show it
MOST_SEEDS = 1000  # that anybody would train


def detectable(sd: float, seeds: int, *, family: Family | None = None, tests: int = 1) -> float:
    """The least difference that would be shown with a power of 80 %, in the units of `sd`.

    Args:
        sd: standard deviation of the difference of two arms' runs of one seed.
        seeds: 2 or more.
        family: whose pool both arms share; None for a paired t test of its own.
        tests: for how many, times looks, that is corrected.
    """
    limits = limits_of_t(seeds, family, tests)
    return max(float(special.nctdtrinc(df, 1 - POWER, limit)) for df, limit in limits) * sd / math.sqrt(seeds)


def half_width(sd: float, seeds: int, *, family: Family | None = None, tests: int = 1) -> float:
    """Half the width of the interval of a difference, in the units of `sd`; arguments as of `detectable`."""
    return max(limit for _, limit in limits_of_t(seeds, family, tests)) * sd / math.sqrt(seeds)


def limits_of_t(seeds: int, family: Family | None, tests: int) -> list[tuple[int, float]]:
    """The degrees of freedom of each test that a difference must pass, and the t that it must exceed."""
    correction = tests if family is None else family.root * family.looks
    limits = [(seeds - 1, float(special.stdtrit(seeds - 1, 1 - LEVEL / 2 / correction)))]
    if family is not None:
        df = (len(family.pool.arms) - 1) * (seeds - 1)
        limits.append((df, critical(family.test, family.level, family.arms, df)))
    return limits


def seeds_to_show(gap: float, sd: float, seeds: int, *, family: Family | None = None, tests: int = 1) -> int | None:
    """The least number of seeds, above `seeds`, that would show a difference of `gap`; None above `MOST_SEEDS`."""

    def enough(number: int) -> bool:
        return detectable(sd, number, family=family, tests=tests) <= abs(gap)

    low, high = max(1, seeds), max(2, seeds + 1)
    while not enough(high):
        if high >= MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def in_words(family: Family, contrasts: Mapping[str, Contrast], metric: Metric, margin: float | None) -> str:
    """What differences could have been shown, and how many seeds would settle each that was not; empty over folds.

    Args:
        family: how they were tested.
        contrasts: by arm.
        metric: of the differences.
        margin: within which arms count as equivalent, in the metric's units.
    """
    least, needed, never, tests = [], {}, [], family.tests * family.looks
    for name, one in contrasts.items():
        own = one.difference
        if own is None or one.p is None or not own.sd or own.of != "seed":
            continue
        shares = family if name in family.pool.arms else None
        sd = math.sqrt(family.pool.difference) if shares else own.sd
        least.append(detectable(sd, own.n, family=shares, tests=tests))
        equivalent = one.margin_p is not None and max(one.margin_p) < LEVEL
        if one.p >= LEVEL and not equivalent:
            gap = max(abs(own.mean), (margin or 0.0) - abs(own.mean))
            seeds = seeds_to_show(gap, sd, own.n, family=shares, tests=tests)
            never += [name] if seeds is None else []
            needed |= {} if seeds is None else {name: seeds}
    if not least:
        return ""
    spread = [f"{metric.scale * value:.2g}" for value in (min(least), max(least))]
    unit = " points" if metric.share else f" {metric.unit}".rstrip()
    words = f"Differences of {' to '.join(dict.fromkeys(spread))}{unit} would have been shown in 8 of 10 such sweeps."
    if needed:
        about = [f"{name} {seeds}" for name, seeds in sorted(needed.items(), key=lambda each: each[1])]
        words += f" Seeds that would settle what is undecided, if the differences are as found: {listed(about, 12)}."
    return words + (f" More than {MOST_SEEDS:,} would not settle: {listed(never, 12)}." if never else "")
