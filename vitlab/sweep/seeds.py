"""How many seeds a sweep takes: what the planned ones could show, and whether to add some."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitlab.report.contrasts import LEVEL, Family, Pool
from vitlab.report.max_t import dunnett
from vitlab.report.power import detectable
from vitlab.storage.metrics import metric

if TYPE_CHECKING:
    import pandas as pd

    from vitlab.sweep.plan import Plan


def planned_power(plan: "Plan", known: "pd.DataFrame | None") -> str:
    """What differences the planned sweep could show, in words; empty where it has one arm, one seed or folds.

    Args:
        plan: of the sweep.
        known: the store's finished runs; None where there is none.
    """
    seeds, arms = len(plan.question.seeds), dict.fromkeys(cell.arm for cell in plan.cells)
    if seeds < 2 or len(arms) < 2 or any(cell.folds for cell in plan.cells):
        return ""
    measured = metric(plan.question.metric)
    found = spread(plan, known, measured.name)
    if found is None:
        return "what differences it could show is not known: the store has no two seeds of such a run"
    sd, of = found
    tests = len(arms) - 1
    family = Family(pool=Pool(arms=(*arms,)), tests=tests, test=dunnett, arms=tests) if tests > 1 else None
    least, unit = detectable(math.sqrt(2) * sd, seeds, family=family), " points" if measured.share else measured.unit
    return (
        f"{seeds} seeds would show differences of {measured.scale * least:.2g}{unit} in 8 of 10 such sweeps, with the"
        f" standard deviation of {of} in the store, {measured.scale * sd:.2g}{unit}"
    )


def spread(plan: "Plan", known: "pd.DataFrame | None", name: str) -> tuple[float, str] | None:
    """The standard deviation over seeds, pooled over the sweep's own cells or else over those of its dataset."""
    if known is None or name not in known:
        return None
    dataset = plan.cells[0].config["dataset"]["_target_"].rpartition(".")[2]
    own = known["cell"].isin([cell.identity for cell in plan.cells])
    for chosen, what in ((own, "of this sweep"), (known.get("dataset") == dataset, f"of {dataset}")):
        values = known[chosen].dropna(subset=[name]).astype({name: float}).groupby("cell")[name]
        many, variance = values.count(), values.var()
        if (many > 1).any() and (pooled := float((variance * (many - 1)).sum() / (many - 1).sum())) > 0:
            return math.sqrt(pooled), f"{(cells := int((many > 1).sum()))} cell{'s' * (cells > 1)} {what}"
    return None


def looks(first: int, most: int) -> tuple[int, ...]:
    """The numbers of seeds at which intervals are looked at while seeds are added: doubled each time, at last `most`.

    Each look is another chance of a false claim, so the intervals and verdicts of each are at `level(looks)`, whatever
    makes the sweep stop (Bonferroni's correction over the looks that are planned; simulated in tests/sweep/test_seeds).
    """
    found = [first]
    while found[-1] < most:
        found.append(min(2 * found[-1], most))
    return tuple(found)


def level(planned: Sequence[int]) -> float:
    """The level of the tests at each of the planned looks, so that all together keep 5 %."""
    return LEVEL / len(planned)


def next_look(widths: Sequence[float | None], until: float, seeds: int, planned: Sequence[int]) -> int | None:
    """The number of seeds to train up to; None where every interval is narrow enough, or no look is left.

    Args:
        widths: half the width of the interval of each difference, at `level(planned)`; None where there is none yet.
        until: half the width that is narrow enough, in the same units.
        seeds: that have been trained.
        planned: `looks` of this sweep.
    """
    if widths and all(width is not None and width <= until for width in widths):
        return None
    return next((number for number in planned if number > seeds), None)
