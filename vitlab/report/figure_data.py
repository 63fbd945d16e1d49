"""What the figures and the page show of a comparison: learning curves, series, compute, and the Pareto front."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from vitlab.report.table import Comparison, Row
from vitlab.report.words import settings
from vitlab.storage.metrics import COSTS, Metric, number
from vitlab.storage.run import Run

COMPUTE = ("training_flops", "flops_per_image")


class Curve(NamedTuple):
    """One run's metric over its epochs."""

    seed: Any
    folder: Any
    finished: bool
    epochs: list[float]
    values: list[float]


def learning_curves(row: Row, key: str) -> list[Curve]:
    """The learning curves of an arm's runs, in their order, of those runs that have one."""
    curves = []
    finished = row.runs["status"] == "finished" if "status" in row.runs else pd.Series(True, index=row.runs.index)
    for seed, folder, done in zip(row.runs.index, row.runs.get("run", ()), finished, strict=False):
        if isinstance(folder, str | Path) and (pairs := points(Run(Path(folder)), key)):
            epochs, values = zip(*pairs, strict=True)
            curves.append(Curve(seed, folder, bool(done), [*epochs], [*values]))
    return curves


def points(run: Run, key: str) -> tuple[tuple[float, float], ...]:
    """(epoch, value) of a run's rows; cached until the file changes."""
    try:
        file = run.metrics.stat()
    except OSError:
        return ()
    return read_points(run, key, file.st_mtime_ns, file.st_size)


@lru_cache(maxsize=4096)
def read_points(run: Run, key: str, _written: int, _size: int) -> tuple[tuple[float, float], ...]:
    rows = [row for row in run.rows(having=key) if number(row.get("epoch")) and number(row.get(key))]
    return tuple((float(row["epoch"]), float(row[key])) for row in rows)


def compute_of(comparison: Comparison) -> str | None:
    """The metric of the arms' compute: training_flops, else flops_per_image; None where neither is known."""
    costs = [row.cost for row in comparison.rows if row.score]
    known = {key: sum(number(cost.get(key)) for cost in costs) for key in COMPUTE}
    return max(known, key=lambda key: known[key]) if any(known.values()) else None


def varied_compute(comparison: Comparison) -> str | None:
    """The same, where some arm costs more than another, and the axis does not order the arms by cost already."""
    key = compute_of(comparison)
    rows = [row for row in comparison.rows if row.score and number(row.cost.get(key or ""))]
    costs = [row.cost[key] for row in rows] if key else []
    if not costs or max(costs) <= 1.2 * min(costs):
        return None
    if comparison.x in COSTS and all(number(row.x) for row in rows):
        along = sorted(zip([row.x for row in rows], costs, strict=True))
        if all(a[1] <= b[1] for a, b in pairwise(along)):
            return None
    return key


def shown(comparison: Comparison) -> Comparison:
    """What the figure against the axis shows: all that was tried, where that is an axis of numbers."""
    return comparison.tried if comparison.tried and comparison.tried.numeric else comparison


def series(comparison: Comparison) -> dict[str, list[Row]]:
    """The rows that share a line: by the series that the question names, else in a grid those that differ along the
    axis alone, by what they share. None where no line would have two points."""
    lines: dict[str, list[Row]] = {}
    grid = not comparison.series and comparison.numeric and comparison.x not in COSTS
    for row in comparison.rows:
        name = settings(row.differs, comparison.x) if grid else comparison.series.get(row.name, "")
        if name:
            lines.setdefault(name, []).append(row)
    several = sum(len({row.x for row in line} if comparison.numeric else line) > 1 for line in lines.values())
    return lines if several > grid else {}


def member(row: Row, name: str, x: str | None) -> str:
    """What tells a row of a series from the others of it; empty where the axis does, or nothing."""
    if x is not None and x not in COSTS:
        return ""
    return row.name.removeprefix(name).strip(" ,:-") if row.name.startswith(name) else row.name


def is_cost(metric: Metric) -> bool:
    """Whether it is a cost or a speed, which differ by factors: its axis is logarithmic."""
    return metric.cost or metric.source == "bench"


def pareto_front(points: Sequence[tuple[float, float]], higher_is_better: bool = True) -> list[int]:
    """Indices of the points (cost, score) that no other beats at the same cost or less; the cheapest first."""
    sign = 1 if higher_is_better else -1
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -sign * points[i][1])):
        if not front or sign * points[i][1] > sign * points[front[-1]][1]:
            front.append(i)
    return front
