"""The verdict of a comparison in words, and the notes on what weakens it."""

import json
import math
from collections.abc import Sequence

import pandas as pd

from vitlab.report.contrasts import Contrast
from vitlab.report.grouping import absent, listed, numbers
from vitlab.report.statistics import folds_of, wilson
from vitlab.report.table import Row, units
from vitlab.storage.metrics import Metric

MIXED = {
    "commit": "The runs are of {n} commits of the code ({values}).",
    "vitlab": "The runs are of {n} versions of vitlab ({values}).",
    "torch": "The runs are of {n} versions of torch ({values}).",
    "dataset": "The runs are of {n} datasets ({values}): their scores are of different images.",
    "precision": "The runs computed in {n} precisions ({values}).",
    "device": "The runs ran on {n} devices ({values}): times, speeds and memory are not comparable.",
    "processes": "The runs ran on different numbers of processes ({values}): times and speeds are not comparable.",
}


def verdict(metric: Metric, scores: pd.Series, base: pd.Series, contrast: Contrast, margin: float | None = None) -> str:
    """A difference to the baseline in words; shares in percentage points.

    Args:
        contrast: the difference, with its tests.
        margin: within which it counts as equivalent, in these points.
    """
    if scores.empty or base.empty:
        return "nothing finished" if scores.empty else "the baseline has not finished"
    unit, gap = "fold" if folds_of(scores) or folds_of(base) else "seed", contrast.difference
    if gap is None:
        return f"no pair of {unit}s"
    mean = gap.mean * metric.scale
    if gap.sd is None or gap.high is None:
        return f"one {unit}: no interval ({mean:+.3g})"
    direction = "better" if (mean > 0) == metric.higher_is_better else "worse"
    if contrast.p is None:
        return (
            f"{direction} by {abs(mean):.3g} in every {unit}: no spread to test"
            if mean
            else f"the same in every {unit}"
        )
    half = (gap.high - gap.mean) * metric.scale
    # One digit of the uncertainty, two where it begins with 1 or 2, as the Particle Data Group rounds.
    digits = max(0, -math.floor(math.log10(half)) + (int(f"{half:e}"[0]) < 3))
    within = ""
    if margin is not None and contrast.margin_p:
        not_below, not_above = (p < 0.05 for p in contrast.margin_p)
        if not_below and not_above:
            within = f"equivalent within {margin:g}"
        elif contrast.p >= 0.05 and (not_below if metric.higher_is_better else not_above):
            within = f"not worse by {margin:g}"
    if contrast.p < 0.05:
        return f"{direction} by {abs(mean):.{digits}f} ± {half:.{digits}f}" + (f", {within}" if within else "")
    after = " after Holm's correction" if contrast.alone is not None and contrast.alone < 0.05 else ""
    mean = round(mean, digits) + 0.0  # no -0.0
    return f"{within or f'no difference shown{after}'} ({mean:+.{digits}f} ± {half:.{digits}f})"


def notes(
    metric: Metric,
    used: pd.DataFrame,
    rows: Sequence[Row],
    tested: Sequence[str],
    unreadable: list[str],
    twice: int,
    stray: int,
) -> list[str]:
    """What the reader must know.

    Args:
        used: the runs whose scores count.
        tested: how the differences were tested, and what that can show; some may be empty.
        unreadable: runs whose configuration is not known.
        twice: runs left out for another of the same cell and seed.
        stray: runs left out for a seed that was not asked for.
    """
    lines = []
    for column, words in MIXED.items():
        values = sorted({str(v) for v in used.get(column, ()) if v is not None and not absent(v)})
        if len(values) > 1:
            short = [value[:7] if column == "commit" else value for value in values]
            lines.append(words.format(n=len(values), values=listed(short)))
    sizes = [str(size) for size in sorted(set(numbers(used, "packed").fillna(1).astype(int)))]
    if len(sizes) > 1:
        each = "times and speeds are each one's part, less in a larger pack, and memory is that of all of them"
        lines.append(f"The runs were trained in packs of different sizes ({listed(sizes)}): {each}.")
    elif max(sizes, default="1") != "1":
        each = "times and speeds are each one's part, memory is that of all of them"
        lines.append(f"Up to {sizes[0]} runs were trained together: {each}.")
    if mixed := different_images(used):
        lines.append(f"Runs of the same dataset were trained on different images ({listed(mixed)} in data.json).")
    if mixed := different_code(used):
        lines.append(f"The runs are of several versions of {listed(mixed)}: train those of earlier versions again.")
    if dirty := sum(value is True for value in used.get("dirty", ())):
        lines.append(f"{dirty} of {len(used)} runs were of code with changes that were not committed.")
    if few := [row.name for row in rows if row.score is not None and row.score.n < 3]:
        which = "all" if len(few) == len(rows) > 1 else listed(few, 5)
        short = units([row for row in rows if row.name in few], "s")
        lines.append(
            f"Fewer than 3 {short}: {which}. With 2 an interval is very wide, with 1 there is none: train more."
        )
    if metric.source == "bench":
        lines.append("Intervals are 95 %, Student's t over rounds that measured every arm one after the other.")
    elif any(row.score is not None and row.score.low is not None for row in rows):
        counts = numbers(used, "test_images")
        images = counts.min()
        what = f" (one is {100 / images:.2g} points)" if images > 0 and metric.name == "test/accuracy" else ""
        if not all(row.folds for row in rows):
            lines.append(
                "Intervals are 95 %, Student's t over the seeds: they hold the randomness of training, not that of the"
                f" choice of test images{what}."
            )
            if (
                what
                and counts.nunique() == 1
                and (means := [row.score.mean for row in rows if row.score and not row.apart])
            ):
                low, high = (100 * end for end in wilson(max(means), int(images)))
                lines.append(
                    f"As a measure of other images of the kind, {100 * max(means):.1f} % on {images:.0f} test images"
                    f" holds to {low:.1f} … {high:.1f} % (Wilson), which no number of seeds narrows; of a difference,"
                    " measured on the same images, less is open."
                )
        if any(row.folds for row in rows):
            lines.append(
                "Intervals over folds are 95 %, Student's t over the folds, seeds of a fold averaged first. They"
                " share training images, so the variance of a mean of n of k folds is taken as (1/n + 1/(k - 1)) times"
                " that of the folds (Nadeau and Bengio 2003); no unbiased estimate exists (Bengio and Grandvalet 2004)."
            )
    lines += filter(None, tested)
    if metric.source == "validation":
        lines.append("The weights were chosen by validation, so validation scores flatter.")
    if twice:
        lines.append(f"{twice} more of a cell and seed that is there already: of each the newest finished run counts.")
    if stray:
        lines.append(f"{stray} run{'s' * (stray > 1)} of other seeds than were asked for left out.")
    if unreadable:
        lines.append(f"{len(unreadable)} cannot be read, and belong to no arm: {listed(unreadable)}.")
    return lines


def different_code(used: pd.DataFrame) -> list[str]:
    """The files of the user's own of which the runs are of several versions."""
    known = (json.loads(text) for text in used.get("code", ()) if not absent(text))
    found = {(file, str(digest)) for code in known for file, digest in code.items()}
    files = [file for file, _ in sorted(found)]
    return sorted({file for file in files if files.count(file) > 1})


def different_images(used: pd.DataFrame) -> list[str]:
    """The fingerprints of the images of one cell, or of one dataset, where its runs have several."""
    for by in (["cell"], [key for key in used if key.partition(".")[0] == "dataset"]):
        for _, part in used.groupby(by, dropna=False) if by and "data" in used else ():
            if len(found := sorted({str(value) for value in part["data"].dropna()})) > 1:
                return found
    return []
