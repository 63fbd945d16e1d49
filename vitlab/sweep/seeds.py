"""How many seeds a sweep takes: what the planned ones could show, and whether to add some."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vitlab.config.errors import ConfigError
from vitlab.report.contrasts import LEVEL, Family, Pool
from vitlab.report.max_t import dunnett
from vitlab.report.power import detectable, half_width
from vitlab.storage.metrics import Metric, metric

if TYPE_CHECKING:
    import pandas as pd

    from vitlab.report.table import Comparison
    from vitlab.sweep.plan import Plan

MOST = 32  # seeds, where none is given


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
    least, unit = detectable(math.sqrt(2) * sd, seeds, family=family_of(len(arms))), unit_of(measured)
    return (
        f"{seeds} seeds would show differences of {measured.scale * least:.2g}{unit} in 8 of 10 such sweeps, with the"
        f" standard deviation of {of} in the store, {measured.scale * sd:.2g}{unit}"
    )


def family_of(arms: int, looks: int = 1) -> Family | None:
    """The tests of arms that all share one variance; None with one difference, a paired t test of its own."""
    tests, names = arms - 1, map(str, range(arms))
    return Family(pool=Pool(arms=(*names,)), tests=tests, test=dunnett, arms=tests, looks=looks) if tests > 1 else None


def unit_of(measured: Metric) -> str:
    return " points" if measured.share else f" {measured.unit}".rstrip()


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

    Each look is another chance of a false claim, so the intervals and verdicts of each are at 5 % by the number of
    looks that are planned (`contrasts.Family.looks`), whatever makes the sweep stop (Bonferroni's correction; simulated
    in tests/sweep/test_seeds.py).
    """
    found = [first]
    while found[-1] < most:
        found.append(min(2 * found[-1], most))
    return tuple(found)


def check_until(plan: "Plan", until: float, most: int) -> None:
    """Refuses `--until` where seeds narrow no interval.

    Raises:
        ConfigError: says why, and what to do instead.
    """
    asked, seeds = plan.question, len(plan.question.seeds)
    refusals = {
        f"{until:g} is no width: give points above 0, such as --until 0.5": not 0 < until < math.inf,
        f"{asked.name} trains nothing, its rounds are measured: give more, seeds=0,1,2,...": not asked.trains,
        f"{asked.name} searches, and what it finds is chosen by one seed: sweep what it has found": bool(asked.search),
        f"{asked.name} has folds, whose interval seeds do not narrow: give more folds": any(
            cell.folds for cell in plan.cells
        ),
        f"{asked.name} has one arm, and no difference to know": len({cell.arm for cell in plan.cells}) < 2,
        f"it has {seeds} seeds, and --most-seeds {most} adds none: give more": most <= seeds,
    }
    for reason, holds in refusals.items():
        if holds:
            raise ConfigError(f"--until: {reason}")


def with_seeds(plan: "Plan", number: int) -> "Plan":
    """The plan with a number of seeds: its own, and the smallest others."""
    own = plan.question.seeds
    others = (seed for seed in itertools.count() if seed not in own)
    seeds = (*own, *itertools.islice(others, max(0, number - len(own))))
    return replace(plan, question=replace(plan.question, seeds=seeds))


def widths(found: "Comparison") -> list[float | None]:
    """Half the width of the interval of each difference, in points or the metric's unit; None where there is none."""
    gaps = [row.difference for row in found.rows if not (row.baseline or row.apart)]
    halves = [None if gap is None else gap.half for gap in gaps]
    return [None if half is None else found.metric.scale * half for half in halves]


def next_look(widths: Sequence[float | None], until: float, seeds: int, planned: Sequence[int]) -> int | None:
    """The number of seeds to train up to; None where every interval is narrow enough, or no look is left.

    Args:
        widths: half the width of the interval of each difference, at the level of `looks`; None where there is none.
        until: half the width that is narrow enough, in the same units.
        seeds: that have been trained.
        planned: `looks` of this sweep.
    """
    if all(width is not None and width <= until for width in widths):
        return None
    return next((number for number in planned if number > seeds), None)


def progress(widths: Sequence[float | None], until: float, seeds: int, then: int | None, measured: Metric) -> str:
    """What a look has found, and what follows, in words."""
    if not widths:
        return "no difference is taken: no seeds are added"
    known = [width for width in widths if width is not None]
    found = f"{seeds} seed{'s' * (seeds > 1)}: "
    if lacking := len(widths) - len(known):
        found += f"{lacking} difference{'s have' if lacking > 1 else ' has'} no interval yet"
    else:
        found += f"the widest interval of a difference is ± {max(known):.2g}{unit_of(measured)}"
    if then is not None:
        return f"{found}; trains up to {then} seeds"
    if not lacking and max(known) <= until:
        return f"{found}, narrow enough"
    return f"{found}, and no more seeds are planned: give --most-seeds N"


def planned_looks(plan: "Plan", known: "pd.DataFrame | None", until: float, planned: Sequence[int]) -> str:
    """What adding seeds would do, in words.

    Args:
        plan: of the sweep with its own seeds.
        known: the store's finished runs; None where there is none.
        until: half the width of an interval that is narrow enough, in points or the metric's unit.
        planned: `looks` of this sweep.
    """
    measured, most = metric(plan.question.metric), len(with_seeds(plan, planned[-1]).jobs)
    unit = unit_of(measured)
    words = (
        f"seeds are added until every difference to the baseline is known to ± {until:g}{unit}, at most {planned[-1]}"
        f" ({most} runs): looks at {', '.join(map(str, planned))} seeds, intervals at"
        f" {100 * (1 - LEVEL / len(planned)):.4g} % each, so that together they keep 95 % (Bonferroni)"
    )
    found = spread(plan, known, measured.name)
    if found is None:
        return f"{words}; how many it will take is not known: the store has no two seeds of such a run"
    sd, of = math.sqrt(2) * found[0], found[1]
    arms = len({cell.arm for cell in plan.cells})
    family = family_of(arms, len(planned))

    def half(seeds: int) -> float:
        return measured.scale * half_width(sd, seeds, family=family, tests=len(planned))

    reach = [seeds for seeds in planned if seeds > 1 and half(seeds) <= until]
    expected = f"about {reach[0]}" if reach else f"more than that (± {half(planned[-1]):.2g}{unit} at {planned[-1]})"
    return (
        f"{words}; it will take {expected}, with the standard deviation of {of} in the store,"
        f" {measured.scale * found[0]:.2g}{unit}"
    )
