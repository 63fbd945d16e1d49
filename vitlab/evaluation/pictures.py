"""Figures of an evaluation: confusion matrix, calibration, worst mistakes, a sheet of predictions."""

import math
from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from vitlab.plotting import BLUE, GREEN, PALE, RED, blank, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitlab.evaluation.classification import ClassificationReport, Mistake

INK, SOFT = "#1f2933", "#7b8794"
LABELLED, COUNTED = 150, 30  # classes up to which a confusion matrix has names, and counts
MOST = 100  # images on a sheet
SMALL = 400  # pixels of the longer side of an image there


class Bar(NamedTuple):
    """A line of text below an image, with a bar behind it whose length is a fraction of the width."""

    words: str
    fraction: float
    colour: str


def confusion(report: "ClassificationReport", title: str = "") -> "Figure":
    """The confusion matrix: each row shows the predicted classes of the images of one class.

    Up to 30 classes have their counts in the cells, up to 150 their names; with more, the axes count classes.
    """
    from matplotlib.colors import PowerNorm

    classes, table = len(report.classes), report.confusion
    fractions = table / np.maximum(report.examples, 1)[:, None]
    side = min(13.0, max(4.2, 2.6 + (0.42 if classes <= COUNTED else 0.12) * classes))
    figure = blank(side + 1.4, side + 0.4)
    axes = figure.subplots()
    scale = PowerNorm(0.5, 0, 1)
    image = axes.imshow(fractions, cmap="Blues", norm=scale, interpolation="nearest")
    if classes > LABELLED:  # cells are too small to see
        rows, columns = np.nonzero(table)
        order = np.argsort(fractions[rows, columns])
        rows, columns = rows[order], columns[order]
        axes.scatter(columns, rows, s=3, c=fractions[rows, columns], cmap="Blues", norm=scale, marker="s", lw=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02, label="fraction of the true class")
    bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1], labels=["0", "1 %", "5 %", "20 %", "50 %", "100 %"])
    bar.outline.set_visible(False)
    axes.spines[:].set_color(SOFT)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if classes <= LABELLED:
        size = 9 if classes <= COUNTED else min(8.0, 780 / (classes + 30))
        names = [shorten(name, 24) for name in report.classes]
        upright = max(map(len, names)) > 3 or classes > COUNTED
        axes.set_xticks(
            range(classes), names, fontsize=size, rotation=90 if upright else 0, parse_math=False, color=INK
        )
        axes.set_yticks(range(classes), names, fontsize=size, parse_math=False, color=INK)
        axes.tick_params(length=0 if classes <= COUNTED else 2)
        axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="#e4e9ef", linewidth=0.5)
        axes.tick_params(which="minor", length=0)
    if classes <= COUNTED:
        for row, column in np.argwhere(table):
            ink = "white" if fractions[row, column] > 0.4 else INK
            axes.text(column, row, f"{table[row, column]:,}", ha="center", va="center", fontsize=8, color=ink)
    entitle(figure, title, f"accuracy {report.accuracy:.2%} of {len(report.labels):,} images")
    return figure


def calibration(report: "ClassificationReport", title: str = "") -> "Figure":
    """Reliability diagram (Guo et al. 2017): accuracy against predicted probability, and a histogram of the latter."""
    bins = report.bins
    figure = blank(5.2, 6.2)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    count = len(bins.examples)
    middles, filled = (np.arange(count) + 0.5) / count, bins.examples > 0
    width = 0.92 / count
    above.bar(middles[filled], bins.accuracy[filled], width, color=BLUE, label="accuracy")
    above.plot((0, 1), (0, 1), color=SOFT, linestyle="--", linewidth=1, label="perfectly calibrated")
    for sure, colour, words in ((True, RED, "overconfident by"), (False, GREEN, "underconfident by")):
        bars = filled & ((bins.confidence > bins.accuracy) == sure)
        gap = (bins.confidence - bins.accuracy)[bars]
        above.bar(middles[bars], gap, width / 4, bottom=bins.accuracy[bars], color=colour, label=words)
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    above.legend(frameon=False, loc="upper left", fontsize=9)
    below.bar(middles, bins.examples, width, color=SOFT)
    below.set_yscale("symlog", linthresh=1)
    below.yaxis.set_major_formatter("{x:,.0f}")
    below.set(xlabel="highest probability", ylabel="images", ylim=(0, None))
    entitle(figure, title, f"ECE {report.ece:.2%}, {len(report.labels):,} images, {count} bins")
    return figure


def mistakes(images: Sequence[Image.Image], wrong: "Sequence[Mistake]", title: str = "") -> "Figure":
    """Wrong predictions: each image with its predicted class (red) and true class (green), and their probabilities.

    Args:
        images: of `wrong`, in its order.
        wrong: from `ClassificationReport.mistakes`.
        title: above everything.
    """
    bars = [
        [
            Bar(f"predicted {mistake.predicted}", mistake.probability, RED),
            Bar(f"is {mistake.true}", mistake.true_probability, GREEN),
        ]
        for mistake in wrong
    ]
    return sheet(images, [""] * len(images), bars, title)


def predictions(
    images: Sequence[Image.Image],
    names: Sequence[str],
    top: Sequence[Sequence[tuple[str, float]]],
    title: str = "",
) -> "Figure":
    """A contact sheet: each image with its name and its most probable classes.

    Args:
        images: at most `MOST` are drawn.
        names: one an image.
        top: classes and probabilities of each image, the highest first.
        title: above everything.
    """
    bars = [
        [Bar(name, probability, PALE if place else BLUE) for place, (name, probability) in enumerate(classes)]
        for classes in top
    ]
    return sheet(images[:MOST], names[:MOST], bars[:MOST], title)


def small(image: Image.Image) -> Image.Image:
    """A copy in colour that is large enough for a sheet."""
    copy = image.convert("RGB")
    copy.thumbnail((SMALL, SMALL))
    return copy


def sheet(images: Sequence[Image.Image], names: Sequence[str], bars: Sequence[Sequence[Bar]], title: str) -> "Figure":
    """Images in a grid, as they are, each with its name above and its bars below."""
    from matplotlib.patches import Rectangle

    columns = max(1, min(10, len(images), math.ceil(math.sqrt(len(images) * 1.3))))
    rows = max(1, math.ceil(len(images) / columns))
    side = 3.4 if columns == 1 else 2.4 if columns <= 4 else 1.8 if columns <= 7 else 1.5  # inches
    line, space = 0.19, 0.16
    heading = wrap(title, int(columns * (side + space) / 0.095))
    top = 0.1 + 0.2 * len(heading) + (0.15 if heading else 0)
    name_line = 0.2 if any(names) else 0.0
    tall = side * min(1.0, max((image.height / image.width for image in images), default=1.0))
    height = name_line + tall + max(map(len, bars), default=0) * line + 2 * space
    size = (columns * (side + space) + space, top + rows * height)
    figure = blank(*size, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    letters = int(side / 0.07)  # of 8 points, on average
    for place, (image, name, below) in enumerate(zip(images, names, bars, strict=True)):
        left, up = space + place % columns * (side + space), top + place // columns * height
        axes.text(
            left, up + name_line / 2, shorten(name, letters, keep=0), size=8, color=SOFT, va="center", parse_math=False
        )
        scale = side / max(image.size)
        wide, high = image.width * scale, image.height * scale
        x, y = left + (side - wide) / 2, up + name_line + (tall - high) / 2
        axes.imshow(np.asarray(image.convert("RGB")), extent=(x, x + wide, y + high, y))
        for number, bar in enumerate(below):
            y = up + name_line + tall + 0.05 + number * line
            axes.add_patch(
                Rectangle((left, y), side * min(1.0, bar.fraction), line * 0.86, color=bar.colour, linewidth=0)
            )
            middle = y + line * 0.43
            fraction = f"{bar.fraction:.1%}"
            words = shorten(bar.words, letters - len(fraction) - 1)
            axes.text(left + 0.03, middle, words, size=8, color=INK, va="center", parse_math=False)
            axes.text(left + side - 0.03, middle, fraction, size=8, color=INK, va="center", ha="right")
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0), aspect="auto")
    if heading:
        axes.text(space, top / 2, "\n".join(heading), size=11, color=INK, va="center", parse_math=False)
    return figure


def entitle(figure: "Figure", title: str, facts: str) -> None:
    figure.suptitle(f"{title}\n{facts}" if title else facts, fontsize=10, parse_math=False)
