"""The figures of a comparison, fit for a paper: the metric by arm, learning curves, compute, the source.

Colors are those of Okabe and Ito (2008), which can be distinguished with any color vision. A figure depends only on its
comparison, and so do the bytes of its files.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

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
    any_letters,
    blank,
    caption,
    dress,
    save_one,
    shorten,
)  # fmt: skip
from vitlab.report.figure_data import Curve, learning_curves, pareto_front, varied_compute
from vitlab.report.statistics import Estimate
from vitlab.report.table import Agreement, Comparison, Row
from vitlab.storage.metrics import find, metric, number, si

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
LABELLED = 24  # the most points that all have their names beside them


class Point(NamedTuple):
    """An arm in a figure with two numeric axes."""

    row: Row
    place: int  # among all rows: its color
    x: float
    y: Estimate


def style_of(row: Row, place: int) -> tuple[str, str, str]:
    """Color, marker and line of an arm; the baseline is black."""
    cycle = place // len(COLOURS)
    color = INK if row.baseline else COLOURS[place % len(COLOURS)]
    return color, MARKS[cycle % len(MARKS)], "-" if row.baseline else LINES[cycle % len(LINES)]


def name_of(row: Row, most: int) -> str:
    return shorten(row.label, most + 11 * row.baseline)


def drawn(width: float, height: float, draw: "Callable[[Axes], None]") -> "Figure":
    """A figure of one panel."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure = blank(width, height)
        draw(figure.subplots())
        return settled(figure)


def settled(figure: "Figure") -> "Figure":
    """The same with its layout fixed: the names beside the marks were placed in this layout."""
    with any_letters():
        figure.canvas.draw()
    figure.set_layout_engine("none")
    return figure


def against(comparison: Comparison) -> "Figure":
    """The metric against the comparison's axis: means with 95 % intervals, every seed or run of a fold as a faint dot.

    On an axis of numbers also what was tried and not chosen.
    """
    rows = len(comparison.rows)
    height = 3.6 if comparison.numeric else min(14.0, 1.15 + 0.3 * max(rows, 3))
    return drawn(WIDTH, height, lambda axes: draw_against(axes, comparison))


def curves(comparison: Comparison) -> "Figure | None":
    """Mean learning curve of each arm in a band from its lowest to its highest seed; None where no run has one."""
    key = comparison.metric.per_evaluation.name
    runs = [learning_curves(row, key) for row in comparison.rows]
    return drawn(WIDTH, 3.4, lambda axes: draw_curves(axes, comparison, runs, key)) if any(runs) else None


def compute(comparison: Comparison) -> "Figure | None":
    """The metric against training FLOPs (or those of an image), with its Pareto front; None where all cost the same."""
    key = varied_compute(comparison)
    return drawn(WIDTH, 3.4, lambda axes: draw_compute(axes, comparison, key)) if key else None


def beside(comparison: Comparison) -> "Figure | None":
    """Differences that the source reports, beside the measured ones; None where it reports fewer than two numbers."""
    agreement, base = comparison.agreement, comparison.reference
    if agreement is None or base is None or len(agreement.numbers) < 2:
        return None
    height = min(14.0, 1.35 + 0.34 * len(agreement.numbers))
    return drawn(WIDTH, height, lambda axes: draw_beside(axes, comparison, agreement, base))


def combined(comparison: Comparison) -> "Figure":
    """Two panels: the metric against its axis, and against compute or else the learning curves, where there are any."""
    from matplotlib import rc_context

    key = varied_compute(comparison)
    curve = comparison.metric.per_evaluation.name
    runs = [] if key else [learning_curves(row, curve) for row in comparison.rows]
    if key is None and not any(runs):
        return against(comparison)
    tall = 3.6 if comparison.numeric else min(12.0, max(3.6, 1.15 + 0.3 * len(comparison.rows)))
    with rc_context(STYLE):
        figure = blank(2 * WIDTH - 1, tall)
        left, right = figure.subplots(1, 2)
        draw_against(left, comparison)
        if key:
            draw_compute(right, comparison, key)
        else:
            draw_curves(right, comparison, runs, curve)
        return settled(figure)


def draw_against(axes: "Axes", comparison: Comparison) -> None:
    if comparison.tried and comparison.tried.numeric:
        comparison = comparison.tried
    if not comparison.numeric:
        return draw_names(axes, comparison)
    rows = enumerate(comparison.rows)
    points = [Point(row, i, float(row.x), row.score) for i, row in rows if row.score and number(row.x)]  # ty: ignore
    draw_points(axes, comparison, points, comparison.x or "")
    return None


def draw_names(axes: "Axes", comparison: Comparison) -> None:
    """Arms below one another, by name."""
    scale = comparison.metric.scale
    rows, xs = comparison.rows, [row.x for row in comparison.rows]
    by_x = comparison.x is not None and all(isinstance(x, str) for x in xs) and len({*xs}) == len(xs)
    for i, row in enumerate(rows):
        color, mark, _ = style_of(row, i)
        values = [scale * value for _, value in row.values(comparison.metric.name)]
        axes.plot(values, [i + 0.22] * len(values), "o", ms=3.5, mew=0, color=color, alpha=0.4)
        if row.score:
            bar(axes, row.score, i, color, mark, scale, upright=False)
        else:
            state = shorten(row.state or "no finished run", 40)
            axes.text(0.02, i, state, transform=axes.get_yaxis_transform(), va="center", color=SOFT, size=8)
        if row.baseline and row.score:
            axes.axvline(scale * row.score.mean, color=SOFT, lw=0.8, ls="--", zorder=0)
    names = [shorten(str(row.x), 34) + row.label.removeprefix(row.name) if by_x else name_of(row, 34) for row in rows]
    list_names(axes, names)
    if by_x:
        axes.set_ylabel(comparison.x or "", parse_math=False)
    axes.set_xlabel(comparison.metric.heading)
    caption(axes, [mean_words(comparison, rows)])


def bar(axes: "Axes", of: Estimate, at: float, color: str, mark: str, scale: float, *, upright: bool) -> None:
    """A mean with its interval; hollow where there is one seed or fold and therefore none."""
    reach = None if of.low is None or of.high is None else [[scale * (of.mean - of.low)], [scale * (of.high - of.mean)]]
    face = "white" if reach is None else color
    x, y = (at, scale * of.mean) if upright else (scale * of.mean, at)
    errors: Any = {"yerr" if upright else "xerr": reach}
    axes.errorbar(x, y, **errors, fmt=mark, color=color, mfc=face, ms=5.5, mew=1.2, lw=1.3, capsize=2.5, zorder=3)


def draw_compute(axes: "Axes", comparison: Comparison, key: str) -> None:
    scale = comparison.metric.scale
    rows = [(i, row) for i, row in enumerate(comparison.rows) if row.score and number(row.cost.get(key))]
    points = [Point(row, i, float(row.cost[key]), row.score) for i, row in rows if row.score]
    front = pareto_front([(point.x, point.y.mean) for point in points], comparison.metric.higher_is_better)
    steps = [points[i].x for i in front], [scale * points[i].y.mean for i in front]
    axes.step(*steps, where="post", color=SOFT, lw=1, ls="--", zorder=1)
    draw_points(axes, comparison, points, key, ["dashed: Pareto front of the means"])


def draw_points(
    axes: "Axes", comparison: Comparison, points: Sequence[Point], x: str, notes: Sequence[str] = ()
) -> None:
    """Arms at their numbers, each with its name beside it."""
    from matplotlib.ticker import LogLocator

    scale = comparison.metric.scale
    xs = [point.x for point in points]
    if min(xs) > 0 and max(xs) / min(xs) >= LOG:
        axes.set_xscale("log")
    shown, lines = {point.place for point in points}, {} if notes else series(points, x)
    if lines:
        dodged = [[dodge(point, n, len(lines), xs) for point in line] for n, line in enumerate(lines.values())]
        points = [point for line in dodged for point in line]
        for n, (name, line) in enumerate(zip(lines, dodged, strict=True)):
            path = sorted((point.x, scale * point.y.mean) for point in line)
            axes.plot(*zip(*path, strict=True), color=COLOURS[n % len(COLOURS)], lw=1, label=shorten(name, 34))
        axes.legend(frameon=False, fontsize=7.5)
    elif not notes and len({*xs}) == len(xs):
        path = sorted((point.x, scale * point.y.mean) for point in points)
        axes.plot(*zip(*path, strict=True), color=SOFT, lw=0.8, alpha=0.6, zorder=1)
    for point in points:
        color, mark, _ = style_of(point.row, point.place)
        values = [scale * value for _, value in point.row.values(comparison.metric.name)]
        axes.plot([point.x] * len(values), values, "o", ms=3.5, mew=0, color=color, alpha=0.35)
        bar(axes, point.y, point.x, color, mark, scale, upright=True)
    known = find(x)
    axes.set_xlabel(known.words if known else x, parse_math=False)
    axes.set_ylabel(comparison.metric.heading)
    axes.margins(x=0.12, y=0.12)
    dress(axes)
    if min(xs) > 0:
        axes.xaxis.set_major_formatter(lambda value, _: si(value) if value >= 1000 else f"{value:g}")
        if axes.get_xscale() == "log":
            at = sorted({*xs})
            if not notes and len(at) <= 8 and all(b > 1.3 * a for a, b in pairwise(at)):
                axes.set_xticks(at)
            else:
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_formatter(lambda value, _: "")
    missing = [f"{row.name} ({row.state or 'unknown'})" for i, row in enumerate(comparison.rows) if i not in shown]
    captions = [mean_words(comparison, [point.row for point in points]), *notes]
    caption(axes, captions + ([f"not shown: {'; '.join(missing)}"] if missing else []))
    few = len(points) <= LABELLED and not lines
    annotate(axes, [point for point in points if few or point.row.baseline or point.row.best], scale)


def series(points: Sequence[Point], x: str) -> dict[str, list[Point]]:
    """The lines of a grid: arms that differ along the axis alone, by what they share; none where there are not two."""
    lines: dict[str, list[Point]] = {}
    for point in points:
        rest = [f"{key.rpartition('.')[2]}={value}" for key, value in point.row.differs.items() if key != x]
        lines.setdefault(", ".join(rest), []).append(point)
    return lines if sum(len({point.x for point in line}) > 1 for line in lines.values()) > 1 else {}


def dodge(point: Point, line: int, lines: int, xs: Sequence[float]) -> Point:
    """The point moved a little sideways, so that the intervals of several lines do not overlap."""
    offset = 0.02 * (line - (lines - 1) / 2)
    if min(xs) > 0 and max(xs) / min(xs) >= LOG:
        return point._replace(place=line, x=point.x * (max(xs) / min(xs)) ** offset)
    return point._replace(place=line, x=point.x + (max(xs) - min(xs)) * offset)


def annotate(axes: "Axes", points: Sequence[Point], scale: float) -> None:
    """Writes each arm's name where it covers no other name and no mean, as far as there is room."""
    with any_letters():
        axes.figure.canvas.draw()  # the layout is settled here, and which the names do not change
    unit = axes.figure.dpi / 72  # pixels a point
    at = [axes.transData.transform((point.x, scale * point.y.mean)) for point in points]
    boxes = [(x - 4 * unit, y - 4 * unit, x + 4 * unit, y + 4 * unit) for x, y in at]
    frame = axes.get_window_extent()
    for point, (x, y) in zip(points, at, strict=True):
        name = name_of(point.row, 26)
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
            name, (point.x, scale * point.y.mean), xytext=(5 if right else -5, up * 7), textcoords="offset points",
            ha="left" if right else "right", va="center", size=7.5, color=style_of(point.row, point.place)[0],
            parse_math=False, in_layout=False,
        )  # fmt: skip


def draw_curves(axes: "Axes", comparison: Comparison, curves: Sequence[Sequence[Curve]], key: str) -> None:
    scale = metric(key).scale
    names = []
    for place, (row, runs) in enumerate(zip(comparison.rows, curves, strict=True)):
        color, _, line = style_of(row, place)
        ended = [run for run in runs if run.finished]
        for run in runs:
            if not run.finished:
                axes.plot(run.epochs, scale * np.array(run.values), ":", color=color, lw=0.8, alpha=0.7)
        if ended:
            epochs, mean, low, high = banded(ended)
            axes.fill_between(epochs, scale * low, scale * high, color=color, alpha=0.15, lw=0)
            mark = "o" if len(epochs) == 1 else ""
            axes.plot(epochs, scale * mean, line, marker=mark, ms=4, color=color, lw=1.8 if row.baseline else 1.2)
        if runs:
            names.append((axes.plot([], [], line if ended else ":", color=color)[0], name_of(row, 30)))
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric(key).heading)
    dress(axes)
    if len(names) <= LABELLED:
        legend = axes.legend(*zip(*names, strict=True), frameon=False, ncols=1 + len(names) // 9, handlelength=1.4)
        for text in legend.get_texts():
            text.set_parse_math(False)
    cut = any(not run.finished for runs in curves for run in runs)
    without = [row.name for row, runs in zip(comparison.rows, curves, strict=True) if not runs]
    lines = [
        f"lines: means of the finished {comparison.point}s; bands: from the lowest {comparison.point} to the highest"
    ]
    lines += ["dotted thin lines: runs that did not finish"] if cut else []
    caption(axes, lines + ([f"without a curve: {'; '.join(without)}"] if without else []))


def banded(runs: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Epochs that all these runs have reached, with the mean, lowest and highest of their values there."""
    start, end = max(run.epochs[0] for run in runs), min(run.epochs[-1] for run in runs)
    grid = np.unique([epoch for run in runs for epoch in run.epochs if start <= epoch <= end])
    values = np.array([np.interp(grid, run.epochs, run.values) for run in runs])
    return grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def draw_beside(axes: "Axes", comparison: Comparison, agreement: Agreement, base: str) -> None:
    scale, numbers = comparison.metric.scale, agreement.numbers
    arms = [name for name in numbers if name != base]
    places = {row.name: place for place, row in enumerate(comparison.rows)}
    for i, arm in enumerate(arms):
        reported, found = numbers[arm] - numbers[base], agreement.difference(base, arm)
        if found:
            axes.plot([reported, scale * found.mean], [i, i], color=GRID, lw=3, zorder=1)
            bar(axes, found, i, COLOURS[places.get(arm, i) % len(COLOURS)], "o", scale, upright=False)
        else:
            at: Any = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate("not found yet", (reported, i), **at, size=8, color=SOFT)
        axes.plot([reported], [i], "D", ms=5.5, mfc="white", mec=INK, mew=1.2, zorder=4)
    axes.axvline(0, color=SOFT, lw=0.8, ls="--", zorder=0)
    list_names(axes, [shorten(arm, 34) for arm in arms])
    unit = "percentage points" if comparison.metric.share else comparison.metric.heading
    axes.set_xlabel(f"difference to {shorten(base, 40)} ({unit})", parse_math=False)
    found = f"● found, with its 95 % interval (hollow: one {comparison.unit()}, no interval)"
    caption(axes, [f"◇ reported: {agreement.setting}", found])


def list_names(axes: "Axes", names: Sequence[str]) -> None:
    """Names as the vertical axis, the first at the top."""
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    dress(axes, "x")


def mean_words(comparison: Comparison, rows: Sequence[Row]) -> str:
    least = min((row.score.n for row in rows if row.score), default=0)
    alone = f"; hollow: one {comparison.unit()}, no interval" if least == 1 else ""
    return f"means with 95 % intervals (Student's t){alone}; faint: every {comparison.point}"


def save(figure: "Figure", folder: Path, name: str) -> list[Path]:
    """Writes NAME.png (200 dots an inch), NAME.svg and NAME.pdf, each whole or not at all, and gives their paths."""
    return [save_one(figure, folder / f"{name}.{kind}") for kind in ("png", "svg", "pdf")]
