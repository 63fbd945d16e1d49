"""The figures of a comparison, fit for a paper: the metric by arm, learning curves, compute, the source.

Each is drawn at a column's width or a page's, with letters of 7 points or more at that size. Colors, markers and lines
are told apart in grey too. A figure depends only on its comparison, and so do the bytes of its files.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.plotting import FULL, HALF, STYLE, any_letters, blank, caption, save_one
from vitlab.report.figure_data import COMPUTE, learning_curves, series, shown, varied_compute
from vitlab.report.labels import place
from vitlab.report.panels import Panel, draw_beside, draw_curves, draw_names, draw_points
from vitlab.report.table import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def drawn(width: float, height: float, *draw: "Callable[[Axes], Panel]", listed: bool = False) -> "Figure":
    """A figure of panels side by side, with one caption, and one legend outside the axes.

    Args:
        width: inches, as `height`.
        draw: each draws one panel.
        listed: whether the first of several panels has the arms' names, so that no legend need say them again.
    """
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure = blank(width, height)
        axes = figure.subplots(1, len(draw), squeeze=False)[0]
        panels = [one(of) for one, of in zip(draw, axes, strict=True)]
        caption(figure, [note for panel in panels for note in panel.notes])
        legend = {} if listed else {name: of for panel in panels for name, of in panel.legend.items()}
        if len(panels) > 1:  # what tells the arms apart is said once
            legend = {} if listed else panels[0].arms | legend
        settle(figure, legend, height)
        if len(panels) == 1 and panels[0].names and not beside_marks(axes[0], panels[0]):
            settle(figure, panels[0].arms | legend, height)
        return figure


def beside_marks(axes: "Axes", panel: Panel) -> bool:
    names, points = [name for name, _, _ in panel.names], [(x, y) for _, x, y in panel.names]
    return place(axes, names, points, panel.lines)


def settle(figure: "Figure", legend: dict[str, Any], height: float) -> None:
    """Fixes the layout, with the legend outside the axes: beside a single wide panel, below others.

    Args:
        legend: what to show, by name.
        height: of the panels; the legend adds what it needs.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    for old in figure.legends:
        old.remove()
    if legend:
        width, longest, line = figure.get_figwidth(), max(map(len, legend)), 0.145  # inches
        columns = min(len(legend), max(1, int(width * 72 / (4.3 * longest + 32))))
        aside = len(figure.axes) == 1 and width > HALF and longest < 30
        where: dict[str, Any] = {"loc": "outside right upper"} if aside else {
            "loc": "outside lower center", "ncols": columns
        }  # fmt: skip
        below = line * -(-len(legend) // columns)
        figure.set_figheight(max(height, 0.3 + line * len(legend)) if aside else height + below)
        drawn = figure.legend(legend.values(), legend.keys(), handlelength=2.2, columnspacing=1.2, **where)
        for text in drawn.get_texts():
            text.set_parse_math(False)
    figure.set_layout_engine(ConstrainedLayoutEngine())
    with any_letters():
        figure.canvas.draw()
    figure.set_layout_engine("none")


def against(comparison: Comparison, width: float = FULL) -> "Figure":
    """The metric against the comparison's axis: means with 95 % intervals, every seed or run of a fold as a faint dot.

    On an axis of numbers also what was tried and not chosen; where that is a cost, with the Pareto front.
    """
    of = shown(comparison)
    height = (3.2 if width > HALF else 2.6) if of.numeric else listing(of)
    return drawn(width, height, lambda axes: draw_against(axes, of))


def draw_against(axes: "Axes", comparison: Comparison) -> Panel:
    if not comparison.numeric:
        return draw_names(axes, comparison)
    return draw_points(axes, comparison, comparison.x or "", front=comparison.x in COMPUTE)


def listing(comparison: Comparison) -> float:
    """Inches that the arms take below one another."""
    return min(14.0, 1.0 + 0.24 * max(len(comparison.rows), 3))


def curves(comparison: Comparison, width: float = FULL) -> "Figure | None":
    """Mean learning curve of each arm in a band from its lowest to its highest seed; None where no run has one."""
    key = comparison.metric.per_evaluation.name
    runs = [learning_curves(row, key) for row in comparison.rows]
    if not any(runs):
        return None
    return drawn(width, 3.2 if width > HALF else 2.6, lambda axes: draw_curves(axes, comparison, runs, key))


def compute(comparison: Comparison, width: float = FULL) -> "Figure | None":
    """The metric against training FLOPs (or those of an image), with its Pareto front.

    None where all cost the same, and where the figure against the axis shows it already.
    """
    key = varied_compute(comparison)
    if key is None:
        return None
    height = 3.2 if width > HALF else 2.6
    return drawn(width, height, lambda axes: draw_points(axes, comparison, key, front=True))


def beside(comparison: Comparison, width: float = FULL) -> "Figure | None":
    """Differences that the source reports, beside the measured ones; None where it reports fewer than two numbers."""
    agreement, base = comparison.agreement, comparison.reference
    if agreement is None or base is None or len(agreement.numbers) < 2:
        return None
    height = min(14.0, 1.1 + 0.24 * len(agreement.numbers))
    return drawn(width, height, lambda axes: draw_beside(axes, comparison, agreement, base))


def combined(comparison: Comparison) -> "Figure":
    """The metric against its axis; and a second panel where that shows something else: against compute, or else the
    learning curves, unless a line in the first is a whole series of them."""
    key, curve, of = varied_compute(comparison), comparison.metric.per_evaluation.name, shown(comparison)
    runs = [] if key or series(of) else [learning_curves(row, curve) for row in comparison.rows]
    if key is None and not any(runs):
        return against(comparison)

    def second(axes: "Axes") -> Panel:
        return draw_points(axes, comparison, key, front=True) if key else draw_curves(axes, comparison, runs, curve)

    height = 3.0 if of.numeric else max(3.0, listing(of))
    return drawn(FULL, height, lambda axes: draw_against(axes, of), second, listed=not of.numeric)


def save(figure: "Figure", folder: Path, name: str) -> list[Path]:
    """Writes NAME.png (200 dots an inch), NAME.svg and NAME.pdf, each whole or not at all, and gives their paths."""
    return [save_one(figure, folder / f"{name}.{kind}") for kind in ("png", "svg", "pdf")]
