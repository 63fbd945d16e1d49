"""The duration of a training, estimated from finished runs."""

import math
from dataclasses import dataclass
from typing import Any

from vitlab.sweep.plan import Checked


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimated duration, and what it is based on."""

    seconds: float | None
    source: str


def estimate(cell: Checked, known: Any) -> Estimate:
    """The duration of a cell's training: that of its own runs, or by the speed of the runs of nearest cost.

    Args:
        cell: what is to be trained.
        known: table of the store's finished runs; None where there is none.
    """
    from vitlab.report.grouping import own_seconds

    if known is None or not len(known):
        return Estimate(seconds=None, source="unknown: no run in the store")
    same = known[known["cell"] == cell.identity]
    if len(same):
        return Estimate(
            seconds=float(own_seconds(same).median()), source=f"measured in {len(same)} run{'s' * (len(same) > 1)}"
        )
    rates = known["images"] * known["flops_per_image"] / own_seconds(known)
    distance = (known["flops_per_image"].astype(float).apply(math.log) - math.log(cell.flops_per_image)).abs()
    nearest = rates[distance.sort_values(kind="stable").index[:5]]
    return Estimate(
        seconds=cell.images * cell.flops_per_image / float(nearest.median()),
        source=f"estimated from the {len(nearest)} of nearest cost",
    )
