"""The figure of a run: loss and accuracy over its epochs."""

from pathlib import Path
from typing import Any

from vitlab.storage.files import write_whole


def draw(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draws training and validation loss and accuracy against epochs, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for axes, name, factor, unit in ((left, "loss", 1, "cross-entropy"), (right, "accuracy", 100, "%")):
        for part, label in (("train", "training"), ("val", "validation")):
            points = [(row["epoch"], row[f"{part}/{name}"] * factor) for row in rows if f"{part}/{name}" in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, linewidth=1 if part == "train" else 2)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{name} ({unit})")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    write_whole(path, lambda part: figure.savefig(part, format="png", dpi=150))
