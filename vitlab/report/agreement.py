"""Whether a measured table agrees with the one a paper reported."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from vitlab.report.statistics import Estimate, paired, side
from vitlab.report.table import Agreement, Pair
from vitlab.storage.metrics import higher_is_better, is_accuracy

MOST_SEEDS = 1000  # that anybody would train


def agree(expect: Any, scores: Mapping[str, pd.Series], metric: str, owners: Mapping[str, str]) -> Agreement:
    """What is found beside what is reported.

    Args:
        expect: has says, of, numbers.
        scores: one a seed, by arm.
        metric: that the scores are of; accuracies are reported, and a loss goes the other way.
        owners: the arm that is shown, of every arm.
    """
    reported = {str(name): float(number) for name, number in (part(expect, "numbers") or {}).items()}
    comparable = is_accuracy(metric) or "loss" in metric
    arms = [n for n in owners if comparable and n in reported and not scores[owners[n]].empty]
    sign = 1 if higher_is_better(metric) else -1
    pairs = []
    for first, second in combinations(arms, 2):
        gap = reported[second] - reported[first]
        if gap and owners[first] != owners[second]:
            found = paired(scores[owners[second]], scores[owners[first]])
            told = side(found) * sign * (1 if gap > 0 else -1)
            word = {1: "agrees", -1: "disagrees", 0: "cannot tell"}[told]
            seeds = None if told else needed(found)
            pair = Pair(first=first, second=second, reported=gap, found=found, verdict=word, seeds=seeds)
            pairs.append(pair)
    order = None
    if len(arms) > 1:
        from scipy.stats import kendalltau

        means = [sign * float(scores[owners[name]].mean()) for name in arms]
        tau = float(kendalltau([reported[name] for name in arms], means).statistic)
        order = None if math.isnan(tau) else tau
    return Agreement(
        says=str(part(expect, "says") or ""),
        of=str(part(expect, "of") or ""),
        numbers=reported,
        pairs=tuple(pairs),
        order=order,
        words=sentence(pairs, order) if reported else "",
    )


def part(expect: Any, key: str) -> Any:
    return expect.get(key) if isinstance(expect, Mapping) else getattr(expect, key, None)


def needed(found: Estimate | None) -> int | None:
    """Seeds after which the interval would about leave out zero; None where there would be no end of them."""
    if found is None or not found.sd or not found.mean:
        return None
    seeds = max(math.floor((1.96 * found.sd / found.mean) ** 2), found.n) + 1
    return seeds if seeds <= MOST_SEEDS else None


def sentence(pairs: Sequence[Pair], order: float | None) -> str:
    """The agreement in words."""
    if not pairs:
        return "There are no two arms yet of which a difference is reported."
    counts = {word: sum(pair.verdict == word for pair in pairs) for word in ("agrees", "disagrees", "cannot tell")}
    open_ = [pair for pair in pairs if pair.verdict == "cannot tell"]
    with_ = sorted({pair.found.n if pair.found else 0 for pair in open_})
    seeds = " to ".join(dict.fromkeys(str(n) for n in (with_[:1] + with_[-1:])))
    said = f"Of {len(pairs)} difference{'s' * (len(pairs) > 1)} that the source reports, {counts['agrees']}"
    said += f" {'is' if counts['agrees'] == 1 else 'are'} found here with the same sign, {counts['disagrees']} with the"
    said += f" other, and {len(open_)} cannot be told"
    said += f" with {seeds} seed{'s' * (seeds != '1')}." if open_ else "."
    said += " Each is judged by a 95 % interval of its own, without correction."
    enough = sorted(pair.seeds for pair in open_ if pair.seeds)
    if enough:
        about = " to ".join(dict.fromkeys(str(n) for n in (enough[0], enough[-1])))
        said += f" To tell {'it' if len(open_) == 1 else 'them'}, about {about} seeds would be needed"
        none = len(open_) - len(enough)
        said += f"; for {none} no number of seeds can be named." if none else "."
    if order is not None:
        how = {1: "the same", -1: "reversed"}.get(round(order, 9), "not the same")
        said += (
            f" The order is {how} (tau {order:.2g})." if abs(order) < 1 else f" The order is {how} (tau {order:.1f})."
        )
    return said
