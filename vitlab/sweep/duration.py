"""How long a sweep will take, from the runs in the store."""

import math
from dataclasses import dataclass
from typing import Any

from vitlab.sweep.plan import Checked


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How long a training will take, and how that is known."""

    seconds: float | None
    source: str


def estimate(cell: Checked, known: Any) -> Estimate:
    """The time of a cell's training from what the store knows: of its own runs, or of those of the nearest cost.

    Args:
        cell: what is to be trained.
        known: table of the store's finished runs; None where there is none.
    """
    if known is None or not len(known):
        return Estimate(seconds=None, source="unknown: no run in the store")
    same = known[known["cell"] == cell.identity]
    if len(same):
        return Estimate(
            seconds=float(same["seconds"].median()), source=f"measured in {len(same)} run{'s' * (len(same) > 1)}"
        )
    rates = known["images"] * known["flops_per_image"] / known["seconds"]
    distance = (known["flops_per_image"].astype(float).apply(math.log) - math.log(cell.flops_per_image)).abs()
    nearest = rates[distance.sort_values(kind="stable").index[:5]]
    return Estimate(
        seconds=cell.images * cell.flops_per_image / float(nearest.median()),
        source=f"estimated from the {len(nearest)} of nearest cost",
    )
