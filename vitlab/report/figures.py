"""The figures of a comparison, fit for a paper: a metric against its axis, learning curves, compute, the source beside.

Colours are those of Okabe and Ito (2008), told apart by whoever sees fewer of them. A figure depends on nothing but
its comparison, and so do the bytes of its files.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from vitlab.plotting import (
    COLOURS,
    GRID,
    INK,
    LINES,
    LOG,
    MARKS,
    SOFT,
    STYLE,
    WIDTH,
    blank,
    caption,
    dress,
    save_one,
    shorten,
)
from vitlab.report.statistics import Estimate
from vitlab.report.table import Agreement, Comparison, Row
from vitlab.storage.metrics import is_share, number, si
from vitlab.storage.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
LABELLED = 24  # the most points that all have their names beside them
WORDS = {
    "parameters": "parameters",
    "flops_per_image": "FLOPs per image",
    "training_flops": "training FLOPs",
    "images_per_second": "images/s",
    "seconds": "training time",
    "peak_memory_bytes": "peak memory",
    "images": "training images",
    "largest_batch": "largest batch",
}


class Curve(NamedTuple):
    """What one run measured over its epochs."""

    seed: Any
    folder: Any
    finished: bool
    epochs: list[float]
    values: list[float]


class Spot(NamedTuple):
    """An arm in a figure of two axes of numbers."""

    row: Row
    place: int  # among all rows: its colour
    x: float
    y: Estimate


def named(metric: str, unit: bool = True) -> str:
    """The metric in words: `test/accuracy` is 'test accuracy (%)'."""
    words = metric.replace("/", " ").replace("_", " ").replace("val ", "validation ")
    return f"{words} (%)" if unit and is_share(metric) else words


def seeds(row: Row, metric: str) -> list[tuple[Any, float]]:
    """Seed and metric of each finished run."""
    if metric not in row.runs:
        return []
    runs = row.runs[row.runs["status"] == "finished"] if "status" in row.runs else row.runs
    numbers = pd.to_numeric(runs[metric], errors="coerce")
    return [(seed, float(value)) for seed, value in zip(numbers.index, numbers, strict=True) if math.isfinite(value)]


def learning(row: Row, key: str = "val/accuracy") -> list[Curve]:
    """The learning curves of an arm's runs, in their order; of runs that have none, none."""
    found = []
    finished = row.runs["status"] == "finished" if "status" in row.runs else pd.Series(True, index=row.runs.index)
    for seed, folder, done in zip(row.runs.index, row.runs.get("run", ()), finished, strict=False):
        if isinstance(folder, str | Path) and (told := points(Run(Path(folder)), key)):
            epochs, values = zip(*told, strict=True)
            found.append(Curve(seed, folder, bool(done), [*map(float, epochs)], [*map(float, values)]))
    return found


def points(run: Run, key: str) -> tuple[tuple[float, float], ...]:
    """(epoch, value) of a run's rows; read once as long as they stay the same."""
    try:
        seen = run.metrics.stat()
    except OSError:
        return ()
    return points_of(run, key, seen.st_mtime_ns, seen.st_size)


@lru_cache(maxsize=4096)
def points_of(run: Run, key: str, _written: int, _size: int) -> tuple[tuple[float, float], ...]:
    lines = [line for line in run.rows(having=key) if number(line.get("epoch")) and number(line.get(key))]
    return tuple((float(line["epoch"]), float(line[key])) for line in lines)


def costs(comparison: Comparison) -> str | None:
    """What the arms' compute is told by: training_flops, else flops_per_image; None where neither is known."""
    known = [row.cost for row in comparison.rows if row.score]
    most = {key: sum(number(cost.get(key)) for cost in known) for key in ("training_flops", "flops_per_image")}
    return max(most, key=lambda key: most[key]) if any(most.values()) else None


def telling(comparison: Comparison) -> str | None:
    """The same, where some arm costs more than another."""
    key = costs(comparison)
    known = [row.cost[key] for row in comparison.rows if row.score and number(row.cost.get(key))] if key else []
    return key if known and max(known) > 1.2 * min(known) else None


def front(points: Sequence[tuple[float, float]], higher_is_better: bool = True) -> list[int]:
    """The Pareto front of (cost, score): no other is as good for less, or better for as much; the cheapest first."""
    sign = 1 if higher_is_better else -1
    kept: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -sign * points[i][1])):
        if not kept or sign * points[i][1] > sign * points[kept[-1]][1]:
            kept.append(i)
    return kept


def reference(comparison: Comparison, agreement: Agreement) -> str | None:
    """The arm that reported differences are taken to: the baseline, or the first that the source reports."""
    base = next((row.name for row in comparison.rows if row.baseline), None)
    return base if base in agreement.numbers else next(iter(agreement.numbers), None)


def found_difference(agreement: Agreement, base: str, arm: str) -> Estimate | None:
    """Arm minus base, as it was found."""
    for pair in agreement.pairs:
        if pair.found and (pair.first, pair.second) == (base, arm):
            return pair.found
        if pair.found and (pair.first, pair.second) == (arm, base):
            was = pair.found
            low, high = (None if was.high is None else -was.high), (None if was.low is None else -was.low)
            return Estimate(n=was.n, mean=-was.mean, sd=was.sd, low=low, high=high)
    return None


def looks(row: Row, place: int) -> tuple[str, str, str]:
    """Colour, marker and line of an arm; the baseline is black."""
    cycle = place // len(COLOURS)
    colour = INK if row.baseline else COLOURS[place % len(COLOURS)]
    return colour, MARKS[cycle % len(MARKS)], "-" if row.baseline else LINES[cycle % len(LINES)]


def beside_name(row: Row) -> str:
    return " (baseline)" if row.baseline and row.name != "baseline" else ""


def drawn(width: float, height: float, draw: "Callable[[Axes], None]") -> "Figure":
    """A figure of one panel."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure = blank(width, height)
        draw(figure.subplots())
        return settled(figure)


def settled(figure: "Figure") -> "Figure":
    """The same, laid out once for all: the names beside the marks were placed in this layout."""
    figure.canvas.draw()
    figure.set_layout_engine("none")
    return figure


def against(comparison: Comparison) -> "Figure":
    """The metric against the comparison's axis: means with 95 % intervals, and every seed as a faint point.

    On an axis of numbers also what was tried and not chosen.
    """
    rows = len(comparison.rows)
    height = 3.6 if numeric(comparison) else min(14.0, 1.15 + 0.3 * max(rows, 3))
    return drawn(WIDTH, height, lambda axes: draw_against(axes, comparison))


def curves(comparison: Comparison, key: str = "val/accuracy") -> "Figure | None":
    """Mean learning curve of each arm in a band from its lowest to its highest seed; None where no run has one."""
    found = [learning(row, key) for row in comparison.rows]
    return drawn(WIDTH, 3.4, lambda axes: draw_curves(axes, comparison, found, key)) if any(found) else None


def compute(comparison: Comparison) -> "Figure | None":
    """The metric against training FLOPs (or those of an image), with its Pareto front; None where they tell nothing."""
    key = telling(comparison)
    return drawn(WIDTH, 3.4, lambda axes: draw_compute(axes, comparison, key)) if key else None


def beside(comparison: Comparison) -> "Figure | None":
    """Differences as the source reports them, beside those found; None where it reports no numbers of two arms."""
    told = comparison.agreement
    if told is None or len(told.numbers) < 2:
        return None
    return drawn(WIDTH, min(14.0, 1.35 + 0.34 * len(told.numbers)), lambda axes: draw_beside(axes, comparison, told))


def combined(comparison: Comparison) -> "Figure":
    """One figure that says most: left the metric against its axis, right against compute, or learning curves."""
    from matplotlib import rc_context

    key = telling(comparison)
    found = [] if key else [learning(row) for row in comparison.rows]
    tall = 3.6 if numeric(comparison) else min(12.0, max(3.6, 1.15 + 0.3 * len(comparison.rows)))
    with rc_context(STYLE):
        if key is None and not any(found):
            return against(comparison)
        figure = blank(2 * WIDTH - 1, tall)
        left, right = figure.subplots(1, 2)
        draw_against(left, comparison)
        if key:
            draw_compute(right, comparison, key)
        else:
            draw_curves(right, comparison, found, "val/accuracy")
        return settled(figure)


def numeric(comparison: Comparison) -> bool:
    """Whether the axis is one of numbers."""
    scored = [row.x for row in comparison.rows if row.score and row.x is not None]
    return comparison.x is not None and bool(scored) and all(map(number, scored))


def draw_against(axes: "Axes", comparison: Comparison) -> None:
    if comparison.tried and numeric(comparison.tried):
        comparison = comparison.tried
    if not numeric(comparison):
        return draw_names(axes, comparison)
    rows = enumerate(comparison.rows)
    spots = [Spot(row, i, float(row.x), row.score) for i, row in rows if row.score and number(row.x)]  # ty: ignore
    draw_spots(axes, comparison, spots, comparison.x or "")
    return None


def draw_names(axes: "Axes", comparison: Comparison) -> None:
    """Arms below one another, by name."""
    scale = 100 if is_share(comparison.metric) else 1
    rows, words = comparison.rows, [row.x for row in comparison.rows]
    by_word = comparison.x is not None and all(isinstance(x, str) for x in words) and len({*words}) == len(words)
    for i, row in enumerate(rows):
        colour, mark, _ = looks(row, i)
        points = [scale * value for _, value in seeds(row, comparison.metric)]
        axes.plot(points, [i + 0.22] * len(points), "o", ms=3.5, mew=0, color=colour, alpha=0.4)
        if row.score:
            bar(axes, row.score, i, colour, mark, scale, upright=False)
        else:
            words_of = shorten(row.state or "no finished run", 40)
            axes.text(0.02, i, words_of, transform=axes.get_yaxis_transform(), va="center", color=SOFT, size=8)
        if row.baseline and row.score:
            axes.axvline(scale * row.score.mean, color=SOFT, lw=0.8, ls="--", zorder=0)
    names = [shorten(str(row.x if by_word else row.name), 34) + beside_name(row) for row in rows]
    axes.set_yticks(range(len(rows)), names, parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    if by_word:
        axes.set_ylabel(comparison.x or "", parse_math=False)
    axes.set_xlabel(named(comparison.metric))
    dress(axes, "x")
    caption(axes, [mean_words(rows)])


def bar(axes: "Axes", of: Estimate, at: float, colour: str, mark: str, scale: float, *, upright: bool) -> None:
    """A mean with its interval; hollow where there is one seed and therefore none."""
    reach = None if of.low is None or of.high is None else [[scale * (of.mean - of.low)], [scale * (of.high - of.mean)]]
    face = "white" if reach is None else colour
    x, y = (at, scale * of.mean) if upright else (scale * of.mean, at)
    errors: Any = {"yerr" if upright else "xerr": reach}
    axes.errorbar(x, y, **errors, fmt=mark, color=colour, mfc=face, ms=5.5, mew=1.2, lw=1.3, capsize=2.5, zorder=3)


def draw_compute(axes: "Axes", comparison: Comparison, key: str) -> None:
    scale = 100 if is_share(comparison.metric) else 1
    rows = [(i, row) for i, row in enumerate(comparison.rows) if row.score and number(row.cost.get(key))]
    spots = [Spot(row, i, float(row.cost[key]), row.score) for i, row in rows if row.score]
    best = [spots[i] for i in front([(spot.x, spot.y.mean) for spot in spots], comparison.higher_is_better)]
    steps = [spot.x for spot in best], [scale * spot.y.mean for spot in best]
    axes.step(*steps, where="post", color=SOFT, lw=1, ls="--", zorder=1)
    draw_spots(axes, comparison, spots, key, ["dashed: Pareto front of the means"])


def draw_spots(axes: "Axes", comparison: Comparison, spots: Sequence[Spot], x: str, say: Sequence[str] = ()) -> None:
    """Arms at their numbers, each with its name beside it."""
    from matplotlib.ticker import LogLocator

    scale = 100 if is_share(comparison.metric) else 1
    xs = [spot.x for spot in spots]
    if min(xs) > 0 and max(xs) / min(xs) >= LOG:
        axes.set_xscale("log")
    shown, lines = {spot.place for spot in spots}, {} if say else series(spots, x)
    if lines:
        beside = [[aside(spot, n, len(lines), xs) for spot in line] for n, line in enumerate(lines.values())]
        spots = [spot for line in beside for spot in line]
        for n, (name, line) in enumerate(zip(lines, beside, strict=True)):
            path = sorted((spot.x, scale * spot.y.mean) for spot in line)
            axes.plot(*zip(*path, strict=True), color=COLOURS[n % len(COLOURS)], lw=1, label=shorten(name, 34))
        axes.legend(frameon=False, fontsize=7.5)
    elif not say and len({*xs}) == len(xs):
        path = sorted((spot.x, scale * spot.y.mean) for spot in spots)
        axes.plot(*zip(*path, strict=True), color=SOFT, lw=0.8, alpha=0.6, zorder=1)
    for spot in spots:
        colour, mark, _ = looks(spot.row, spot.place)
        points = [scale * value for _, value in seeds(spot.row, comparison.metric)]
        axes.plot([spot.x] * len(points), points, "o", ms=3.5, mew=0, color=colour, alpha=0.35)
        bar(axes, spot.y, spot.x, colour, mark, scale, upright=True)
    axes.set_xlabel(WORDS.get(x, x), parse_math=False)
    axes.set_ylabel(named(comparison.metric))
    axes.margins(x=0.12, y=0.12)
    dress(axes)
    if min(xs) > 0:
        axes.xaxis.set_major_formatter(lambda value, _: si(value) if value >= 1000 else f"{value:g}")
        if axes.get_xscale() == "log":
            at = sorted({*xs})
            if not say and len(at) <= 8 and all(b > 1.3 * a for a, b in pairwise(at)):
                axes.set_xticks(at)
            else:
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_formatter(lambda value, _: "")
    missing = [f"{row.name} ({row.state or 'unknown'})" for i, row in enumerate(comparison.rows) if i not in shown]
    words = [mean_words([spot.row for spot in spots]), *say]
    caption(axes, words + ([f"not shown: {'; '.join(missing)}"] if missing else []))
    few = len(spots) <= LABELLED and not lines
    label(axes, [(s, scale) for s in spots if few or s.row.baseline or s.row.best])


def series(spots: Sequence[Spot], x: str) -> dict[str, list[Spot]]:
    """The lines of a grid: arms that differ along the axis alone, by what they share; none where none results."""
    found: dict[str, list[Spot]] = {}
    for spot in spots:
        rest = [f"{key.rpartition('.')[2]}={value}" for key, value in spot.row.differs.items() if key != x]
        found.setdefault(", ".join(rest), []).append(spot)
    return found if sum(len({s.x for s in line}) > 1 for line in found.values()) > 1 else {}


def aside(spot: Spot, line: int, lines: int, xs: Sequence[float]) -> Spot:
    """A little beside its place, so that the intervals of several lines can be seen."""
    share = 0.02 * (line - (lines - 1) / 2)
    if min(xs) > 0 and max(xs) / min(xs) >= LOG:
        return spot._replace(place=line, x=spot.x * (max(xs) / min(xs)) ** share)
    return spot._replace(place=line, x=spot.x + (max(xs) - min(xs)) * share)


def label(axes: "Axes", spots: Sequence[tuple[Spot, float]]) -> None:
    """Writes each arm's name where it covers no other name and no mean, as far as there is room."""
    axes.figure.canvas.draw()  # the layout is settled here, and the names stay out of it
    unit = axes.figure.dpi / 72  # pixels a point
    at = [axes.transData.transform((spot.x, scale * spot.y.mean)) for spot, scale in spots]
    boxes = [(x - 4 * unit, y - 4 * unit, x + 4 * unit, y + 4 * unit) for x, y in at]
    frame = axes.get_window_extent()
    for (spot, scale), (x, y) in zip(spots, at, strict=True):
        name = shorten(spot.row.name, 26) + beside_name(spot.row)
        wide, high = 4.3 * unit * len(name), 9.5 * unit
        tried = []
        for right, up in ((1, 1), (1, -1), (0, 1), (0, -1), (1, 2), (1, -2), (0, 2), (0, -2), (1, 3), (1, -3)):
            left, low = x + (5 * unit if right else -wide - 5 * unit), y + up * 7 * unit - high / 2
            box = (left, low, left + wide, low + high)
            out = max(0, frame.x0 - box[0]) + max(0, box[2] - frame.x1) + max(0, frame.y0 - low)
            hits = sum(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes)
            tried.append((hits + out / high, len(tried), right, up, box))
        _, _, right, up, box = min(tried)
        boxes.append(box)
        axes.annotate(
            name, (spot.x, scale * spot.y.mean), xytext=(5 if right else -5, up * 7), textcoords="offset points",
            ha="left" if right else "right", va="center", size=7.5, color=looks(spot.row, spot.place)[0],
            parse_math=False, in_layout=False,
        )  # fmt: skip


def draw_curves(axes: "Axes", comparison: Comparison, found: Sequence[Sequence[Curve]], key: str) -> None:
    scale = 100 if is_share(key) else 1
    names = []
    for place, (row, runs) in enumerate(zip(comparison.rows, found, strict=True)):
        colour, _, line = looks(row, place)
        ended = [run for run in runs if run.finished]
        for run in runs:
            if not run.finished:
                axes.plot(run.epochs, scale * np.array(run.values), ":", color=colour, lw=0.8, alpha=0.7)
        if ended:
            epochs, mean, low, high = banded(ended)
            axes.fill_between(epochs, scale * low, scale * high, color=colour, alpha=0.15, lw=0)
            mark = "o" if len(epochs) == 1 else ""
            axes.plot(epochs, scale * mean, line, marker=mark, ms=4, color=colour, lw=1.8 if row.baseline else 1.2)
        if runs:
            name = shorten(row.name, 30) + beside_name(row)
            names.append((axes.plot([], [], line if ended else ":", color=colour)[0], name))
    axes.set_xlabel("epoch")
    axes.set_ylabel(named(key))
    dress(axes)
    if len(names) <= LABELLED:
        legend = axes.legend(*zip(*names, strict=True), frameon=False, ncols=1 + len(names) // 9, handlelength=1.4)
        for text in legend.get_texts():
            text.set_parse_math(False)
    cut = any(not run.finished for runs in found for run in runs)
    without = [row.name for row, runs in zip(comparison.rows, found, strict=True) if not runs]
    lines = ["lines: means of the finished seeds; bands: from the lowest seed to the highest"]
    lines += ["dotted thin lines: runs that did not finish"] if cut else []
    caption(axes, lines + ([f"without a curve: {'; '.join(without)}"] if without else []))


def banded(runs: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Epochs that all these runs have reached, with the mean, lowest and highest of their values there."""
    start, end = max(run.epochs[0] for run in runs), min(run.epochs[-1] for run in runs)
    grid = np.unique([epoch for run in runs for epoch in run.epochs if start <= epoch <= end])
    values = np.array([np.interp(grid, run.epochs, run.values) for run in runs])
    return grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def draw_beside(axes: "Axes", comparison: Comparison, told: Agreement) -> None:
    base = reference(comparison, told) or ""
    scale = 100 if is_share(comparison.metric) else 1
    arms = [name for name in told.numbers if name != base]
    places = {row.name: place for place, row in enumerate(comparison.rows)}
    for i, arm in enumerate(arms):
        reported, found = told.numbers[arm] - told.numbers[base], found_difference(told, base, arm)
        if found:
            axes.plot([reported, scale * found.mean], [i, i], color=GRID, lw=3, zorder=1)
            bar(axes, found, i, COLOURS[places.get(arm, i) % len(COLOURS)], "o", scale, upright=False)
        else:
            axes.annotate(
                "not found yet", (reported, i), (7, 0), textcoords="offset points", va="center", size=8, color=SOFT
            )
        axes.plot([reported], [i], "D", ms=5.5, mfc="white", mec=INK, mew=1.2, zorder=4)
    axes.axvline(0, color=SOFT, lw=0.8, ls="--", zorder=0)
    axes.set_yticks(range(len(arms)), [shorten(arm, 34) for arm in arms], parse_math=False)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    unit = "percentage points" if scale == 100 else named(comparison.metric)
    axes.set_xlabel(f"difference to {shorten(base, 40)} ({unit})", parse_math=False)
    dress(axes, "x")
    caption(axes, [f"◇ reported: {told.of}", "● found, with its 95 % interval (hollow: one seed, no interval)"])


def mean_words(rows: Sequence[Row]) -> str:
    least = min((row.score.n for row in rows if row.score), default=0)
    alone = "; hollow: one seed, no interval" if least == 1 else ""
    return f"means with 95 % intervals (Student's t){alone}; faint: every seed"


def save(figure: "Figure", folder: Path, name: str) -> list[Path]:
    """Writes NAME.png (200 dots an inch), NAME.svg and NAME.pdf, each whole or not at all, and gives their paths."""
    return [save_one(figure, folder / f"{name}.{kind}") for kind in ("png", "svg", "pdf")]
