"""Agreement of the measured differences with those that a paper reported."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from vitlab.report.contrasts import Family, pairwise
from vitlab.report.power import seeds_to_show
from vitlab.report.statistics import Estimate, estimate
from vitlab.report.table import Agreement, Pair
from vitlab.storage.metrics import Metric


def agree(
    expect: Any, scores: Mapping[str, pd.Series], metric: Metric, owners: Mapping[str, str], looks: int = 1
) -> Agreement:
    """Compares what was measured with what is reported.

    Args:
        expect: has finding, setting and numbers, as attributes or as keys.
        scores: one a seed, by arm.
        metric: of the scores; the reported numbers are accuracies, and where lower is better the signs are turned.
        owners: the arm that is shown, by name of every arm.
        looks: see `contrasts.Family`.
    """
    reported = {str(name): float(value) for name, value in (part(expect, "numbers") or {}).items()}
    comparable = metric.source in ("validation", "test")
    arms = [name for name in owners if comparable and name in reported and not scores[owners[name]].empty]
    pairs, names = [], list(dict.fromkeys(owners[name] for name in arms))
    contrasts, family = pairwise({name: scores[name] for name in names}, looks)
    for first, second in combinations(arms, 2):
        gap, pair = reported[second] - reported[first], (owners[first], owners[second])
        if gap and pair[0] != pair[1]:
            contrast = contrasts.get(pair) or contrasts[pair[::-1]]
            found = contrast.difference if pair in contrasts else contrast.difference and contrast.difference.negated()
            agrees = (found.sign if found else 0) * metric.sign * (1 if gap > 0 else -1)
            verdict = {1: "agrees", -1: "disagrees", 0: "cannot tell"}[agrees]
            seeds = None if agrees else seeds_needed(found, family, pair)
            pairs.append(Pair(first=first, second=second, reported=gap, found=found, verdict=verdict, seeds=seeds))
    order = None
    if len(arms) > 1:
        from scipy.stats import kendalltau

        means = [metric.sign * found.mean for name in arms if (found := estimate(scores[owners[name]]))]
        tau = float(kendalltau([reported[name] for name in arms], means).statistic)
        order = None if math.isnan(tau) else tau
    return Agreement(
        finding=str(part(expect, "finding") or ""),
        setting=str(part(expect, "setting") or ""),
        numbers=reported,
        pairs=tuple(pairs),
        order=order,
        words=in_words(pairs, order, family.pooled) if reported else "",
    )


def part(expect: Any, key: str) -> Any:
    """A field of what is expected, by the name that it has or that earlier records have."""
    for name in (key, {"finding": "says", "setting": "of"}.get(key, key)):
        if (value := expect.get(name) if isinstance(expect, Mapping) else getattr(expect, name, None)) is not None:
            return value
    return None


def seeds_needed(found: Estimate | None, family: Family, pair: tuple[str, str]) -> int | None:
    """Seeds that would tell a difference of this size; None over folds, or more than anybody would train."""
    if found is None or found.of == "fold" or not found.sd or not found.mean:
        return None
    if {*pair} <= {*family.pool.arms}:
        return seeds_to_show(found.mean, math.sqrt(family.pool.difference), found.n, family=family)
    tests = family.looks * (family.tests if family.pooled else 1)
    return seeds_to_show(found.mean, found.sd, found.n, tests=tests)


def in_words(pairs: Sequence[Pair], order: float | None, pooled: bool) -> str:
    """The agreement in a sentence or two; `pooled` says that the pairs were tested together."""
    if not pairs:
        return "There are no two arms yet of which a difference is reported."
    agree, disagree = (sum(pair.verdict == verdict for pair in pairs) for verdict in ("agrees", "disagrees"))
    unclear = [pair for pair in pairs if pair.verdict == "cannot tell"]
    text = (
        f"Of {len(pairs)} difference{'s' * (len(pairs) > 1)} that the source reports, {agree}"
        f" {'is' if agree == 1 else 'are'} found here with the same sign, {disagree} with the other, and {len(unclear)}"
        " cannot be told"
    )
    seeds = span([pair.found.n if pair.found else 0 for pair in unclear])
    of = " or ".join(
        dict.fromkeys(f"{pair.found.of if pair.found else 'seed'}{'s' * (seeds != '1')}" for pair in unclear)
    )
    text += f" with {seeds} {of}." if unclear else "."
    together = "They are tested together, with intervals that all hold at 95 % (Tukey's test, paired by seed)."
    text += f" {together if pooled else 'Each is judged by a 95 % interval of its own, without correction.'}"
    if enough := [pair.seeds for pair in unclear if pair.seeds]:
        which, without = "it" if len(unclear) == 1 else "them", len(unclear) - len(enough)
        text += f" To tell {which}, about {span(enough)} seeds would be needed"
        text += f"; for {without} no number of seeds can be named." if without else "."
    if order is not None:
        same = {1: "the same", -1: "reversed"}.get(round(order, 9), "not the same")
        text += f" The order is {same} (tau {order:{'.2g' if abs(order) < 1 else '.1f'}})."
    return text


def span(numbers: Sequence[int]) -> str:
    """'3', or '3 to 5'."""
    return " to ".join(dict.fromkeys(str(n) for n in (min(numbers), max(numbers)))) if numbers else ""
