"""The figures of a search, from what is kept of it: its history, what mattered, and the score along each dimension."""

from typing import TYPE_CHECKING, Any

import numpy as np

from vitlab.plotting import COLOURS, FULL, INK, SOFT, STYLE, blank, dress, shorten
from vitlab.report.figures import drawn
from vitlab.report.panels import Panel
from vitlab.report.words import words_of
from vitlab.storage.metrics import Metric, metric_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 3  # panels beside one another


def history(record: dict[str, Any]) -> "Figure":
    """The score by trial, and the best so far."""
    return drawn(FULL, 3.0, lambda axes: draw_history(axes, record["trials"], metric_of(record)))


def importance(record: dict[str, Any]) -> "Figure | None":
    """The share of the variance that each hyper-parameter explains; None where nothing is known of it."""
    shares = record["importance"]
    height, metric = 1.1 + 0.3 * len(shares), metric_of(record)
    return drawn(FULL, height, lambda axes: draw_importance(axes, shares, metric)) if shares else None


def slices(record: dict[str, Any]) -> "Figure | None":
    """The score against each hyper-parameter; None where no trial finished."""
    from matplotlib import rc_context

    finished = [trial for trial in record["trials"] if trial["state"] == "finished"]
    space = record["space"]
    if not finished:
        return None
    rows, columns = -(-len(space) // ACROSS), min(ACROSS, len(space))
    with rc_context(STYLE):
        figure = blank(FULL, 0.4 + 2.2 * rows)
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for dimension, axes in zip(space, grid.flat, strict=False):
            draw_slice(axes, dimension, finished, metric_of(record))
        for axes in grid.flat[len(space) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel(metric_of(record).heading)
    return figure


def draw_history(axes: "Axes", trials: list[dict[str, Any]], metric: Metric) -> Panel:
    from matplotlib.ticker import MaxNLocator

    scored = [trial for trial in trials if trial["value"] is not None]
    for state, mark, color in (("finished", "o", COLOURS[0]), ("pruned", "x", COLOURS[1])):
        points = [(each["number"], metric.scale * each["value"]) for each in scored if each["state"] == state]
        if points:
            axes.plot(*zip(*points, strict=True), mark, ms=4.5, color=color, alpha=0.8, label=state)
            if state == "finished":
                numbers, values = zip(*points, strict=True)
                best = (np.maximum if metric.higher_is_better else np.minimum).accumulate(values)
                axes.step(numbers, best, where="post", color=INK, lw=1.2, label="best so far")
    if lost := [trial["number"] for trial in trials if trial["state"] in ("failed", "refused")]:
        bottom = axes.get_xaxis_transform()
        axes.plot(lost, [0.02] * len(lost), "|", ms=7, color=SOFT, transform=bottom, label="failed or refused")
    axes.set_xlabel("trial")
    axes.set_ylabel(metric.heading)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    dress(axes)
    handles, labels = axes.get_legend_handles_labels()
    note = "one seed a trial; chosen by validation, so the best flatters"
    return Panel([note], dict(zip(labels, handles, strict=True)))


def draw_importance(axes: "Axes", shares: dict[str, float], metric: Metric) -> Panel:
    places = range(len(shares))
    axes.barh(places, [100 * value for value in shares.values()], height=0.6, color=COLOURS[0])
    axes.set_yticks(places, [shorten(words_of(key), 34) for key in shares], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(f"share of the variance of {metric.words} (%)")
    dress(axes, "x")
    return Panel([])


def draw_slice(axes: "Axes", dimension: dict[str, Any], finished: list[dict[str, Any]], metric: Metric) -> None:
    key, scores = dimension["key"], [metric.scale * trial["value"] for trial in finished]
    xs = [trial["params"][key] for trial in finished]
    if dimension["kind"] == "choice":
        names = list(dimension["values"])
        xs = [names.index(x) for x in xs]
        axes.set_xticks(range(len(names)), [shorten(name, 14) for name in names], parse_math=False)
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif dimension["kind"] == "log":
        axes.set_xscale("log")
        axes.set_xlim(float(dimension["values"][0]) / 1.2, float(dimension["values"][1]) * 1.2)
    axes.plot(xs, scores, "o", ms=4, mew=0, color=COLOURS[0], alpha=0.7)
    axes.set_xlabel(shorten(words_of(key), 34), parse_math=False)
    dress(axes)
