"""Shared by all figures: colours, axes, captions."""

import io
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitlab.storage.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
BLUE, PALE, RED, GREEN = "#9cc3ee", "#dbe8f8", "#f0a093", "#a8d6a2"


@cache
def figure_class() -> "type[Figure]":
    """Matplotlib's figure, which a notebook shows without pyplot."""
    from matplotlib import figure

    class Figure(figure.Figure):
        def _repr_png_(self) -> bytes:
            self.savefig(file := io.BytesIO(), format="png", facecolor="white")
            return file.getvalue()

    return Figure


def blank(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> "Figure":
    """An empty figure of this many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = figure_class()(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


@contextmanager
def any_letters() -> Generator[None]:
    """Context in which letters that the font does not have become boxes, without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from|Matplotlib currently does not support")
        yield


def save(figure: "Figure", path: Path, dpi: int = 120) -> None:
    """Writes a PNG, whole or not at all."""
    with any_letters():
        write_whole(path, lambda part: figure.savefig(part, format="png", dpi=dpi, facecolor="white"))


def shorten(words: str, most: int, keep: float = 0.65) -> str:
    """At most so many letters, in one line; of what is too long, `keep` of it is the beginning and the rest the end."""
    words = " ".join(words.split())
    if len(words) <= most:
        return words
    start = round((most - 1) * keep)
    return f"{words[:start]}…{words[len(words) - (most - 1 - start) :]}"


# Told apart in grey print too: 8 or more apart in CIE lightness. Blue, red and yellow are Paul Tol's "high contrast".
COLOURS = ("#004488", "#BB5566", "#D9A520", "#0B6B4F", "#6699CC", "#F4B8CA")
LINES, MARKS = ("-", "--", "-.", ":"), "osD^vP"
INK, SOFT, GRID = "#1f2933", "#5b6773", "#e3e8ee"
HALF, FULL = 3.35, 6.9  # inches: a column, and both columns of a page
SMALL = 7  # points: the smallest letters
LOG = 4  # an axis is logarithmic where its largest number is at least this many times the smallest
STYLE: Any = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": SMALL, "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL, "axes.edgecolor": SOFT, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.linewidth": 0.7, "text.color": INK, "legend.frameon": False, "pdf.fonttype": 42, "ps.fonttype": 42,
    "svg.fonttype": "none", "svg.hashsalt": "vitlab",
}  # fmt: skip


def dress(axes: "Axes", grid: str = "both") -> None:
    axes.grid(axis=grid, color=GRID, lw=0.6)  # ty: ignore[invalid-argument-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def caption(figure: "Figure", lines: Sequence[str]) -> None:
    """What the marks mean, in small letters above the panels."""
    from textwrap import wrap

    letters = int(figure.get_figwidth() * 72 / (0.59 * SMALL))
    text = "\n".join(part for line in dict.fromkeys(lines) for part in wrap(line, letters))
    figure.suptitle(text, x=0.01, ha="left", fontsize=SMALL, color=SOFT, parse_math=False)


def save_one(figure: "Figure", path: Path) -> Path:
    """Writes the figure in the format that the path ends in; the bytes hold no date."""
    from matplotlib import rc_context

    kind = path.suffix[1:]
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    with rc_context(STYLE), any_letters():
        write_whole(path, lambda part: figure.savefig(part, format=kind, dpi=200, facecolor="white", metadata=metadata))
    return path
