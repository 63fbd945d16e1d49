"""What the figures and the page show of a comparison: learning curves, compute, and the Pareto front."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from vitlab.report.table import Comparison, Row
from vitlab.storage.metrics import number
from vitlab.storage.run import Run


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
    known = {key: sum(number(cost.get(key)) for cost in costs) for key in ("training_flops", "flops_per_image")}
    return max(known, key=lambda key: known[key]) if any(known.values()) else None


def varied_compute(comparison: Comparison) -> str | None:
    """The same, where some arm costs more than another."""
    key = compute_of(comparison)
    values = [row.cost[key] for row in comparison.rows if row.score and number(row.cost.get(key))] if key else []
    return key if values and max(values) > 1.2 * min(values) else None


def pareto_front(points: Sequence[tuple[float, float]], higher_is_better: bool = True) -> list[int]:
    """Indices of the points (cost, score) that no other beats at the same cost or less; the cheapest first."""
    sign = 1 if higher_is_better else -1
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -sign * points[i][1])):
        if not front or sign * points[i][1] > sign * points[front[-1]][1]:
            front.append(i)
    return front
