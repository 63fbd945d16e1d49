"""The panels of a comparison's figures: arms by name, at their numbers, their learning curves, beside the source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vitlab.plotting import COLOURS, GRID, INK, LINES, LOG, MARKS, SOFT, dress, shorten
from vitlab.report.figure_data import Curve, is_cost, member, pareto_front, series
from vitlab.report.grouping import plain
from vitlab.report.statistics import Estimate
from vitlab.report.table import Agreement, Comparison, Row
from vitlab.report.words import settings, words_of
from vitlab.storage.metrics import COSTS, find, metric, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
LABELLED = 24  # the most arms that all have their names in a figure
NAME = 34  # letters of a name


class Style(NamedTuple):
    """Color, marker and line."""

    color: str
    mark: str
    line: str


class Point(NamedTuple):
    """An arm at its numbers, those of the data."""

    row: Row
    x: float
    y: Estimate


@dataclass
class Panel:
    """What the figure around a panel must say of it.

    Args:
        notes: of the caption.
        legend: what each color, marker and line means; there is room for it outside the axes.
        names: points that want a name beside them, each with it.
        arms: the legend that stands for those names where they find no room.
        lines: that are drawn, as points of the data: no name may cover them.
    """

    notes: list[str]
    legend: dict[str, Any] = field(default_factory=dict)
    names: list[tuple[str, float, float]] = field(default_factory=list)
    arms: dict[str, Any] = field(default_factory=dict)
    lines: list[Sequence[tuple[float, float]]] = field(default_factory=list)


def nth_style(n: int) -> Style:
    return Style(COLOURS[n % 6], MARKS[(n + n // 6) % 6], LINES[(n + n // 12) % 4])


def styles(comparison: Comparison) -> dict[str, Style]:
    """Of each row: its series' color and line, and the marker of what tells it apart there; black for a baseline."""
    found: dict[str, Style] = {}
    lines, others = series(comparison), []
    for n, (name, rows) in enumerate(lines.items()):
        for row in rows:
            rest = member(row, name, comparison.x)
            mark = others.index(rest) if rest in others else len(others)
            others += [rest] if mark == len(others) else []
            found[row.name] = nth_style(n)._replace(**{"mark": MARKS[mark % 6]} if rest or comparison.x is None else {})
    for row in comparison.rows:
        if row.name not in found:
            ink = row.baseline and not lines
            found[row.name] = Style(INK, "o", "-") if ink else nth_style(len(found) + len(lines))
    return found


def handle(style: Style, *, line: bool = True, mark: bool = True) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], color=style.color, ls=style.line if line else "", lw=1.3, marker=style.mark if mark else "", ms=5,
        mec=INK, mew=0.5,
    )  # fmt: skip


def ring(mark: str) -> dict[str, Any]:
    """The mark around a mean: a circle for the baseline, a square for what validation chose."""
    return {"marker": mark, "ms": 8 if mark == "o" else 10, "mfc": "none", "mec": INK, "mew": 0.8, "ls": ""}


def name_of(row: Row, most: int = NAME) -> str:
    return shorten(row.label, most + 11 * row.baseline)


def bar(axes: "Axes", of: Estimate, at: float, style: Style, scale: float, *, upright: bool) -> None:
    """A mean with its interval; hollow where there is one seed or fold and therefore none."""
    ends = None if of.low is None or of.high is None else [[scale * (of.mean - of.low)], [scale * (of.high - of.mean)]]
    x, y = (at, scale * of.mean) if upright else (scale * of.mean, at)
    mark: Any = {"mfc": "white", "mew": 1.2} if ends is None else {"mec": INK, "mew": 0.5}
    errors: Any = {"yerr" if upright else "xerr": ends}
    axes.errorbar(x, y, **errors, fmt=style.mark, color=style.color, ms=5, lw=1.1, capsize=2, zorder=3, **mark)


def draw_names(axes: "Axes", comparison: Comparison) -> Panel:
    """Arms below one another, by name."""
    scale, style = comparison.metric.scale, styles(comparison)
    rows, xs = comparison.rows, [row.x for row in comparison.rows]
    by_x = comparison.x is not None and all(isinstance(x, str) for x in xs) and len({*xs}) == len(xs)
    ends: list[float] = []
    for i, row in enumerate(rows):
        values = [scale * value for _, value in row.values(comparison.metric.name)]
        axes.plot(values, [i + 0.24] * len(values), "o", ms=3, mew=0, color=style[row.name].color, alpha=0.5)
        if row.score:
            bar(axes, row.score, i, style[row.name], scale, upright=False)
            ends += [*values, *reach(row.score, scale)]
        else:
            state = shorten(row.state or "no finished run", 40)
            axes.text(0.02, i, state, transform=axes.get_yaxis_transform(), va="center", color=SOFT)
        if row.baseline and row.score:
            axes.axvline(scale * row.score.mean, color=SOFT, lw=0.8, ls="--", zorder=0)
    names = [shorten(str(row.x), NAME) + row.label.removeprefix(row.name) if by_x else name_of(row) for row in rows]
    list_names(axes, names)
    if by_x:
        axes.set_ylabel(words_of(comparison.x or ""), parse_math=False)
    axes.set_xlabel(comparison.metric.heading)
    spread(axes, "x", ends, 2 if is_cost(comparison.metric) else None)
    legend = {shorten(name, NAME): handle(style[of[0].name], mark=False) for name, of in series(comparison).items()}
    return Panel([mean_words(comparison, rows)], legend)


def draw_points(axes: "Axes", comparison: Comparison, x: str, *, front: bool) -> Panel:
    """Arms at their numbers; a line a series, and where `front` asks for it the Pareto front of the means.

    Args:
        axes: an empty panel.
        comparison: of it those arms that have the number.
        x: metric or configuration key along the axis.
        front: whether less of `x` is better.
    """
    scale, style = comparison.metric.scale, styles(comparison)
    at = {row.name: row.x if x == comparison.x else row.cost.get(x) for row in comparison.rows}
    rows = [row for row in comparison.rows if row.score and number(at[row.name])]
    points = [Point(row, at[row.name], row.score) for row in rows if row.score]  # ty: ignore[invalid-argument-type]
    there = {point.row.name for point in points}
    missing = [f"{row.name} ({row.state or 'unknown'})" for row in comparison.rows if row.name not in there]
    lines, known = series(comparison), find(x)
    panel = Panel([mean_words(comparison, [point.row for point in points])])
    xs = [point.x for point in points]
    spread(axes, "x", xs, 2 if known else LOG)
    if lines and len({*xs}) < len(xs):
        points, panel.notes = dodged(axes, points, [*lines.values()]), [*panel.notes, "lines are set apart a little"]
    for name, of in lines.items():
        path = sorted((point.x, scale * point.y.mean) for point in points if point.row.name in named(of))
        if path:
            one = style[of[0].name]
            axes.plot(*zip(*path, strict=True), ls=one.line, color=one.color, lw=1.2, zorder=2)
            panel.lines.append(path)
            alike = len({style[row.name].mark for row in of}) == 1
            panel.legend[shorten(name, NAME)] = handle(one, mark=alike)
    if not lines and not known and len({*xs}) == len(xs):
        panel.lines.append(sorted((point.x, scale * point.y.mean) for point in points))
        axes.plot(*zip(*panel.lines[-1], strict=True), color=SOFT, lw=0.8, alpha=0.6, zorder=1)
    if front:
        best = pareto_front([(point.x, point.y.mean) for point in points], comparison.metric.higher_is_better)
        path = [(points[i].x, scale * points[i].y.mean) for i in best]
        axes.step(*zip(*path, strict=True), where="post", color=SOFT, lw=0.8, ls=(0, (1, 1.5)), zorder=1)
        panel.lines.append([corner for a, b in pairwise(path) for corner in (a, (b[0], a[1]), b)] or path)
        panel.notes.append("dotted grey: Pareto front of the means")
    ends = []
    few = len(points) <= LABELLED
    for point in points:
        row, one = point.row, style[point.row.name]
        values = [scale * value for _, value in row.values(comparison.metric.name)]
        axes.plot([point.x] * len(values), values, "o", ms=3, mew=0, color=one.color, alpha=0.45)
        bar(axes, point.y, point.x, one, scale, upright=True)
        high = reach(point.y, scale)
        ends += [*values, *high]
        panel.lines += [[(point.x, min(high)), (point.x, max(high))], *([(point.x, value)] for value in values)]
        name = next((member(row, name, comparison.x) for name, of in lines.items() if row.name in named(of)), row.name)
        if name and (few or row.baseline or row.best):
            name += " (baseline)" * (row.baseline and name == row.name != "baseline")
            panel.names.append((shorten(name, 26 + 11 * row.baseline), point.x, scale * point.y.mean))
        if few and (name or not lines):
            panel.arms[name_of(row)] = handle(one, line=False)
        for is_it, mark, words in ((row.baseline, "o", "baseline"), (row.best, "s", "chosen by validation")):
            if is_it and (lines or not few):
                (panel.legend[words],) = axes.plot(point.x, scale * point.y.mean, zorder=2.5, **ring(mark))
    spread(axes, "y", ends, 2 if is_cost(comparison.metric) else None)
    axes.margins(x=0.08)
    axes.set_xlabel(words_of(x), parse_math=False)
    axes.set_ylabel(comparison.metric.heading)
    dress(axes)
    ticks(axes, "x", () if known else xs)
    if not few and not lines:
        panel.notes.append(f"{len(points)} arms: their names are in the table")
    panel.notes += [f"not shown: {'; '.join(missing)}"] if missing else []
    return panel


def reach(of: Estimate, scale: float) -> list[float]:
    """The mean and the ends of its interval, as they are drawn."""
    return [scale * end for end in (of.mean, of.low, of.high) if end is not None]


def named(rows: Sequence[Row]) -> set[str]:
    return {row.name for row in rows}


def spread(axes: "Axes", which: str, values: Sequence[float], from_ratio: float | None) -> None:
    """A logarithmic axis where the largest of these numbers is at least so many times the smallest."""
    positive = [value for value in values if value > 0]
    least = min(positive, default=0)
    if not from_ratio or not values or min(values, key=abs) <= 0 or max(values) < from_ratio * least:
        return
    (axes.set_xscale if which == "x" else axes.set_yscale)("log", nonpositive="clip")
    if which == "y" or min(values) <= 0:
        (axes.set_xlim if which == "x" else axes.set_ylim)(least / 1.25, 1.25 * max(values))
    ticks(axes, which)


def ticks(axes: "Axes", which: str, at: Sequence[float] = ()) -> None:
    """Plain numbers at an axis, with prefixes from 1000 on; at these values if they have room, else as many as fit."""
    from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator

    axis, log = (axes.xaxis, axes.get_xscale() == "log") if which == "x" else (axes.yaxis, axes.get_yscale() == "log")
    large = EngFormatter(sep=" ")
    axis.set_major_formatter(lambda value, _: large(value) if abs(value) >= 10000 else f"{value:g}")
    low, high = sorted(np.log10(axis.get_view_interval()) if log else axis.get_view_interval())
    figure, across = axes.get_figure(root=True), axes.get_subplotspec()
    assert figure is not None
    assert across is not None
    wide, tall = 55 * figure.get_figwidth() / across.get_gridspec().ncols, 85 * figure.get_figheight()
    unit = (wide if which == "x" else tall) / (high - low)  # points of a decade, or of 1, for numbers as wide as high
    places = sorted({*(np.log10(at) if log and len(at) else at)})
    if places and all(unit * (b - a) > 32 for a, b in pairwise(places)):
        axis.set_major_locator(FixedLocator(sorted({*at})))
    elif log:
        fine = {240: (1, 1.5, 2, 3, 5, 7), 95: (1, 2, 5), 60: (1, 3), 0: (1,)}
        axis.set_major_locator(LogLocator(subs=next(subs for least, subs in fine.items() if unit > least), numticks=12))
    if log:
        axis.set_minor_formatter(lambda value, _: "")


def dodged(axes: "Axes", points: Sequence[Point], lines: Sequence[Sequence[Row]]) -> list[Point]:
    """The points moved a little sideways, line by line, so that the intervals of several do not overlap."""
    xs, log = [point.x for point in points], axes.get_xscale() == "log"
    moved = []
    for point in points:
        line = next((n for n, of in enumerate(lines) if point.row.name in named(of)), 0)
        by = 0.018 * (line - (len(lines) - 1) / 2)
        x = point.x * (max(xs) / min(xs)) ** by if log else point.x + (max(xs) - min(xs)) * by
        moved.append(point._replace(x=x))
    return moved


def draw_curves(axes: "Axes", comparison: Comparison, curves: Sequence[Sequence[Curve]], key: str) -> Panel:
    """Mean learning curve of each arm in a band from its lowest to its highest seed; series share a color."""
    scale, style, rows = metric(key).scale, curve_styles(comparison), comparison.rows
    cut = any(not run.finished for runs in curves for run in runs)
    unit, names = comparison.point, {}
    if comparison.x is not None and comparison.numeric and comparison.x not in COSTS:
        for name, of in series(comparison).items():
            names |= {row.name: f"{name}, {settings({comparison.x: plain(row.x)})}" for row in of}
    panel = Panel([f"lines: means of the finished {unit}s; bands: from the lowest {unit} to the highest"])
    for place, (row, runs) in enumerate(zip(rows, curves, strict=True)):
        color, mark, line = style[row.name]
        ended = [run for run in runs if run.finished]
        for run in runs:
            if not run.finished:
                axes.plot(run.epochs, scale * np.array(run.values), ":", color=color, lw=0.8, alpha=0.7)
        if ended:
            epochs, mean, low, high = banded(ended)
            axes.fill_between(epochs, scale * low, scale * high, color=color, alpha=0.15, lw=0)
            every = max(1, len(epochs) // 5)
            axes.plot(
                epochs, scale * mean, line, marker=mark, markevery=(place * every // max(1, len(rows)), every), ms=3.5,
                mec=INK, mew=0.4, color=color, lw=1.8 if row.baseline else 1.1,
            )  # fmt: skip
        if runs:
            panel.legend[names.get(row.name, name_of(row))] = handle(
                style[row.name] if ended else style[row.name]._replace(line=":", mark="")
            )
    if len(panel.legend) > LABELLED:
        panel.notes.append(f"{len(panel.legend)} arms: their names are on the page, answer.html")
        panel.legend = {}
    axes.set_xlabel("epoch")
    axes.set_ylabel(metric(key).heading)
    dress(axes)
    without = [row.name for row, runs in zip(rows, curves, strict=True) if not runs]
    panel.notes += ["dotted thin lines: runs that did not finish"] if cut else []
    panel.notes += [f"without a curve: {'; '.join(without)}"] if without else []
    return panel


def curve_styles(comparison: Comparison) -> Mapping[str, Style]:
    """Of each row: the color of its series, and a line and marker of its own there."""
    style = styles(comparison)
    for rows in series(comparison).values():
        for n, row in enumerate(rows):
            style[row.name] = Style(style[row.name].color, MARKS[n % 6], LINES[n % 4])
    return style


def banded(runs: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Epochs that all these runs have reached, with the mean, lowest and highest of their values there."""
    start, end = max(run.epochs[0] for run in runs), min(run.epochs[-1] for run in runs)
    grid = np.unique([epoch for run in runs for epoch in run.epochs if start <= epoch <= end])
    values = np.array([np.interp(grid, run.epochs, run.values) for run in runs])
    return grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def draw_beside(axes: "Axes", comparison: Comparison, agreement: Agreement, base: str) -> Panel:
    """Differences that the source reports, and those measured."""
    scale, numbers, style = comparison.metric.scale, agreement.numbers, styles(comparison)
    arms = [name for name in numbers if name != base]
    for i, arm in enumerate(arms):
        reported, found = numbers[arm] - numbers[base], agreement.difference(base, arm)
        if found:
            axes.plot([reported, scale * found.mean], [i, i], color=GRID, lw=3, zorder=1)
            bar(axes, found, i, style.get(arm, nth_style(i))._replace(mark="o"), scale, upright=False)
        else:
            at: Any = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate("not found yet", (reported, i), **at, size="small", color=SOFT)
        axes.plot([reported], [i], "D", ms=5, mfc="white", mec=INK, mew=1.2, zorder=4)
    axes.axvline(0, color=SOFT, lw=0.8, ls="--", zorder=0)
    list_names(axes, [shorten(arm, NAME) for arm in arms])
    unit = "points" if comparison.metric.share else comparison.metric.heading
    axes.set_xlabel(f"difference to {shorten(base, 24)} ({unit})", parse_math=False)
    found = f"● found, with its 95 % interval (hollow: one {comparison.unit()}, no interval)"
    return Panel([f"◇ reported: {agreement.setting}", found])


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
