"""The figure of a run: loss and accuracy over its epochs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.plotting import blank, save
from vitlab.storage.metrics import METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Writes the figure as a PNG."""
    save(curves(rows, title), path, dpi=150)


def curves(rows: list[dict[str, Any]], title: str) -> "Figure":
    """Training and validation loss and accuracy against epochs."""
    figure = blank(9, 3.4, layout=None)  # by hand: a layout that finds its own margins draws all twice
    figure.subplots_adjust(left=0.08, right=0.99, bottom=0.14, top=0.88, wspace=0.2)
    left, right = figure.subplots(1, 2)
    for axes, name in ((left, "loss"), (right, "accuracy")):
        for split, width in (("train", 1), ("val", 2)):
            of = METRICS[f"{split}/{name}"]
            points = [(row["epoch"], row[of.name] * of.scale) for row in rows if of.name in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=of.words.removesuffix(f" {name}"), linewidth=width)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{name} (%)" if of.share else name)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure
