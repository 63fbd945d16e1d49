"""The verdict of a comparison in words, and what weakens it."""

import math
from collections.abc import Sequence

import pandas as pd

from vitlab.report.grouping import absent, listed, numbers
from vitlab.report.statistics import Estimate
from vitlab.report.table import Row
from vitlab.storage.metrics import higher_is_better, is_accuracy


def verdict(
    metric: str, mine: pd.Series, base: pd.Series, found: Estimate | None, p: float | None, adjusted: float | None
) -> str:
    """A difference to the baseline in plain words; accuracies in percentage points."""
    if mine.empty or base.empty:
        return "nothing finished" if mine.empty else "the baseline has not finished"
    if found is None:
        return "no pair of seeds"
    unit = 100 if is_accuracy(metric) else 1
    mean = found.mean * unit
    if found.sd is None or found.high is None:
        return f"one seed: no interval ({mean:+.3g})"
    direction = "better" if (mean > 0) == higher_is_better(metric) else "worse"
    if p is None or adjusted is None:
        return f"{direction} by {abs(mean):.3g} in every seed: no spread to test" if mean else "the same in every seed"
    half = (found.high - found.mean) * unit
    # One digit of the uncertainty, two where it begins with 1 or 2, as the Particle Data Group rounds.
    digits = max(0, -math.floor(math.log10(half)) + (int(f"{half:e}"[0]) < 3))
    if adjusted < 0.05:
        return f"{direction} by {abs(mean):.{digits}f} ± {half:.{digits}f}"
    after = " after Holm's correction" if p < 0.05 else ""
    mean = round(mean, digits) + 0.0  # no -0.0
    return f"no difference shown{after} ({mean:+.{digits}f} ± {half:.{digits}f})"


def notes(
    metric: str, used: pd.DataFrame, rows: Sequence[Row], tests: int, lost: list[str], twice: int, stray: int
) -> list[str]:
    """What the reader must know.

    Args:
        used: the runs whose scores count.
        tests: how many differences were tested.
        lost: runs of which it cannot be told what they are.
        twice: runs left out for another of the same cell and seed.
        stray: runs left out for a seed that was not asked for.
    """
    said = []

    def several(column: str) -> list[str]:
        return sorted({str(v) for v in used[column] if v is not None and not absent(v)}) if column in used else []

    for column, words in {
        "commit": "The runs are of {n} commits of the code ({values}).",
        "vitlab": "The runs are of {n} versions of vitlab ({values}).",
        "torch": "The runs are of {n} versions of torch ({values}).",
        "dataset": "The runs are of {n} datasets ({values}): their scores are of different images.",
        "precision": "The runs computed in {n} precisions ({values}).",
        "device": "The runs ran on {n} devices ({values}): times, speeds and memory are not comparable.",
        "processes": "The runs ran on different numbers of processes ({values}): times and speeds are not comparable.",
    }.items():
        values = several(column)
        if len(values) > 1:
            short = [value[:7] if column == "commit" else value for value in values]
            said.append(words.format(n=len(values), values=listed(short)))
    dirty = sum(value is True for value in used["dirty"].tolist()) if "dirty" in used else 0
    if dirty:
        said.append(f"{dirty} of {len(used)} runs were of code with changes that were not committed.")
    few = [row.name for row in rows if row.score is not None and row.score.n < 3]
    if few:
        which = "all" if len(few) == len(rows) > 1 else listed(few, 5)
        said.append(f"Fewer than 3 seeds: {which}. With 2 an interval is very wide, with 1 there is none: train more.")
    if metric.startswith("inference/"):
        said.append("Intervals are 95 %, Student's t over rounds that measured every arm one after the other.")
    elif any(row.score is not None and row.score.low is not None for row in rows):
        images = numbers(used, "test_images").min()
        what = f" (one is {100 / images:.2g} points)" if images > 0 and metric == "test/accuracy" else ""
        said.append(
            "Intervals are 95 %, Student's t over the seeds: they hold the randomness of training, not that of the"
            f" choice of test images{what}."
        )
    if tests > 1:
        said.append(f"{tests} differences to the baseline are tested; p is corrected for all of them (Holm).")
    if metric.startswith("val/"):
        said.append("The weights were chosen by validation, so validation scores flatter.")
    if twice:
        said.append(f"{twice} more of a cell and seed that is there already: of each the newest finished run counts.")
    if stray:
        said.append(f"{stray} run{'s' * (stray > 1)} of other seeds than were asked for left out.")
    if lost:
        said.append(f"{len(lost)} cannot be read, and belong to no arm: {listed(lost)}.")
    return said
