"""Figures of inspected models, all of them on one scale."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from vitlab.evaluation.inspection import Inspection
from vitlab.plotting import COLOURS, FULL, INK, LINES, MARKS, SOFT, blank, dress, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Runs = Sequence[Inspection]
PAGE, ACROSS = 7.0, 3  # inches: the width of a page, and panels in it
TILES, LABELS = 12, 16  # tiles of a row of images; labels of an axis
COLORMAP, SIGNED = "viridis", "RdBu_r"
FILTERS = 7  # in a row
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def panels(runs: Sequence[Any], height: float, *, alone: float = FULL, **shared: Any) -> "tuple[Figure, list[Axes]]":
    """A figure of a panel for each run, or one panel of a column's width.

    Args:
        runs: or anything else that a panel is for.
        height: of a panel in inches.
        alone: width of the figure where there is one panel.
        shared: axes that panels share, as for `Figure.subplots`.
    """
    across = min(ACROSS, len(runs))
    down = math.ceil(len(runs) / across)
    figure = blank(alone if across == 1 else across * 2.3 + 0.6, down * height)
    axes = [*figure.subplots(down, across, squeeze=False, **shared).flat]
    for spare in axes[len(runs) :]:
        spare.axis("off")
    return figure, axes[: len(runs)]


def entitle(axes: "Axes", name: str, runs: Sequence[Any], most: int = 34) -> None:
    """The name above a panel, where there are several."""
    if len(runs) > 1:
        axes.set_title(shorten(name, most), fontsize=8, color=INK, parse_math=False)


def mosaic(values: np.ndarray) -> np.ndarray:
    """Pictures (rows columns h w ...) side by side, with gaps of NaN: (y x ...)."""
    rows, columns, h, w = values.shape[:4]
    gap = max(1, round(min(h, w) / 6))
    whole = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, *values.shape[4:]), np.nan)
    for row in range(rows):
        for column in range(columns):
            y, x = row * (h + gap), column * (w + gap)
            whole[y : y + h, x : x + w] = values[row, column]
    return whole


def label_tiles(axes: "Axes", values: np.ndarray, names: tuple[Sequence[int], Sequence[int]]) -> None:
    """Numbers the rows and columns of a mosaic; of many, some."""
    gap = max(1, round(min(values.shape[2:4]) / 6))
    for axis, side, numbers in ((axes.yaxis, values.shape[2], names[0]), (axes.xaxis, values.shape[3], names[1])):
        every = math.ceil(len(numbers) / LABELS)
        places = [place * (side + gap) + (side - 1) / 2 for place in range(len(numbers))]
        axis.set_ticks(places[::every], [str(number) for number in numbers[::every]])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def picture(image: Tensor) -> np.ndarray:
    """An image (c y x) of 1 or 3 channels as RGB (y x 3)."""
    return np.broadcast_to(image.permute(1, 2, 0).numpy(), (*image.shape[1:], 3))


def scale(several: Sequence[np.ndarray]) -> float:
    """The largest value but for outliers: the end of a common colour scale."""
    return max(1e-9, max(float(np.nanquantile(values, 0.995)) for values in several))


def relative(values: Tensor) -> np.ndarray:
    """Attention (... h w) by that of a token which attends to all patches alike."""
    return (values * (values.shape[-1] * values.shape[-2])).numpy()


def draw_rollout(runs: Runs) -> "Figure":
    """Each image, and the attention rollout of each run over it (Dosovitskiy et al. 2021, figures 6 and 14)."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    drawn = [(run, relative(run.rollout)) for run in runs if run.rollout is not None]
    count, each = len(runs[0].shown), 1 + len(drawn)
    across = min(count, max(1, TILES // each))
    high = max(run.shown.shape[2] / run.shown.shape[3] for run in runs)
    down, room, head = math.ceil(count / across), 0.22, 0.5 * (len(drawn) > 1)
    wide, line = across * (each + room) - room, high + 0.06
    unit = min(1.6, (PAGE - 0.8) / wide)
    norm = Normalize(0, scale([values for _, values in drawn]))
    figure = blank(unit * wide + 0.8, unit * (down * line + head) + 0.15)
    axes = figure.subplots()
    axes.axis("off")
    for image in range(count):
        left, top = image % across * (each + room), head + image // across * line
        for place, (run, values) in enumerate([(runs[0], None), *drawn]):
            seen = picture(run.shown[image])
            if values is not None:
                repeat = [side // cells for side, cells in zip(seen.shape[:2], values.shape[1:], strict=True)]
                heat = np.kron(values[image], np.ones(repeat))
                seen = 0.4 * seen + 0.6 * colormaps[COLORMAP](norm(heat))[: seen.shape[0], : seen.shape[1], :3]
            extent = (left + place, left + place + 0.97, top + 0.97 * seen.shape[0] / seen.shape[1], top)
            axes.imshow(seen, extent=extent, interpolation="nearest")
            if head and image < across and place:
                axes.text(left + place + 0.48, head / 2, LETTERS[place - 1], ha="center", va="center", fontsize=8)
    axes.set(xlim=(0, wide), ylim=(down * line + head, 0), aspect="equal")
    figure.colorbar(ScalarMappable(norm, COLORMAP), ax=axes, fraction=0.02, pad=0.01, label="times uniform")
    return figure


def draw_attention(runs: Runs, image: int) -> "Figure":
    """The attention of one image by layer (rows) and head (columns), a panel a run, after the image itself."""
    from matplotlib.colors import PowerNorm

    drawn = [(run, relative(run.attention[image])) for run in runs if run.attention is not None]
    norm = PowerNorm(0.5, 0, scale([values for _, values in drawn]))
    sizes = [values.shape[1] for _, values in drawn]
    tile = min(0.9, max(0.24, (PAGE - 1.5) / (sum(sizes) + 2)))
    layers, aspect = max(values.shape[0] for _, values in drawn), max(r.shown.shape[2] / r.shown.shape[3] for r in runs)
    figure = blank(tile * (sum(sizes) + 2) + 1.5, max(1.6, tile * layers * aspect + 0.75))
    first, *axes = figure.subplots(1, 1 + len(drawn), width_ratios=[2, *sizes])
    first.imshow(picture(runs[0].shown[image]), interpolation="nearest")
    first.axis("off")
    for place, (each, (run, values)) in enumerate(zip(axes, drawn, strict=True)):
        shown = each.imshow(mosaic(values), norm=norm, cmap=COLORMAP, interpolation="nearest")
        label_tiles(each, values, (range(values.shape[0]), range(values.shape[1])))
        each.set(xlabel="head", ylabel="" if place else "layer")
        entitle(each, run.name, drawn, max(8, round(16 * tile * values.shape[1])))
    figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.02, label="times uniform")
    return figure


def draw_heads(runs: Runs, key: str, label: str) -> "Figure":
    """A number of each head by layer, with the mean of each layer."""
    drawn = [run for run in runs if getattr(run, key) is not None]
    figure, axes = panels(drawn, 2.9 if len(drawn) == 1 else 2.3, sharey=True)
    for place, (each, run) in enumerate(zip(axes, drawn, strict=True)):
        values = getattr(run, key).numpy()
        layers = np.arange(len(values))
        each.plot(layers, values.mean(axis=1), color=SOFT, lw=1, label="mean of the heads")
        each.scatter(layers.repeat(values.shape[1]), values, s=16, color=COLOURS[0], alpha=0.75, lw=0, label="a head")
        uniform = run.uniform if key == "distance" else math.log(run.grid.tokens) if run.uniform else None
        if uniform is not None:
            each.axhline(uniform, color=COLOURS[1], lw=1, ls="--", label="uniform attention")
        start_at_zero(each)
        each.set(xlabel="layer", ylabel="" if place % ACROSS else label)
        number_layers(each, len(values))
        entitle(each, run.name, drawn)
    axes[0].legend(frameon=False, loc="lower right")
    return figure


def start_at_zero(axes: "Axes") -> None:
    dress(axes)
    axes.set_ylim(0, max(axes.get_ylim()[1], 1.06 * axes.dataLim.y1, 1e-9))


def number_layers(axes: "Axes", count: int) -> None:
    axes.set(xlim=(-0.5, count - 0.5), xticks=range(0, count, max(1, math.ceil(count / 13))))


def draw_positions(runs: Runs, *, bias: bool) -> "Figure":
    """For each patch (a tile) what its position has to do with those of all patches (the pixels of the tile)."""
    found = [(run, position) for run in runs for position in run.positions if position.bias == bias]
    aspect = max(len(p.rows) * p.values.shape[2] / (len(p.columns) * p.values.shape[3]) for _, p in found)
    figure, axes = panels(found, 0.7 + min(2.0, aspect) * (2.9 if len(found) == 1 else 1.8), alone=4.4)
    most = scale([np.abs(position.values.numpy()) for _, position in found]) if bias else 1.0
    for place, (each, (run, position)) in enumerate(zip(axes, found, strict=True)):
        values = position.values.numpy()
        shown = each.imshow(
            mosaic(values), vmin=-most, vmax=most, cmap=SIGNED if bias else COLORMAP, interpolation="nearest"
        )
        label_tiles(each, values, (position.rows, position.columns))
        each.set(xlabel="column of the patch", ylabel="" if place % ACROSS else "row of the patch")
        lines = [shorten(run.name, 34)] * (len(runs) > 1) + [position.name]
        each.set_title("\n".join(lines), fontsize=8, color=INK, parse_math=False)
    label = "added to the logit" if bias else "similarity"
    figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.02, label=label)
    return figure


def draw_filters(runs: Runs) -> "Figure":
    """The leading principal components of the patch projection (Dosovitskiy et al. 2021, figure 7 left)."""
    from matplotlib.patches import Rectangle

    drawn = [(run, run.filters, run.share) for run in runs if run.filters is not None and run.share is not None]
    across = min(FILTERS, max(len(filters) for _, filters, _ in drawn))
    down = max(math.ceil(len(filters) / across) for _, filters, _ in drawn)
    size = 0.62 if len(drawn) == 1 else 0.31
    figure, axes = panels(drawn, 0.45 + size * down, alone=max(2.6, size * across))
    for each, (run, filters, share) in zip(axes, drawn, strict=True):
        for place, component in enumerate(filters / filters.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)):
            left, top = place % across, place // across
            where = (left, left + 0.9, top + 0.9, top)
            each.imshow(picture(0.5 + 0.5 * component), extent=where, interpolation="nearest")
            each.add_patch(Rectangle((left, top), 0.9, 0.9, fill=False, edgecolor=SOFT, lw=0.5))
        each.set(xlim=(-0.05, across), ylim=(down, -0.05), aspect="equal")
        each.axis("off")
        words = f"{len(filters)} components, {float(share.sum()):.0%} of the variance"
        each.set_title(
            "\n".join([shorten(run.name, 34)] * (len(drawn) > 1) + [words]), fontsize=8, color=INK, parse_math=False
        )
    return figure


def draw_norms(runs: Runs) -> "Figure":
    """The mean norm of tokens by depth: class token, registers, patches, and the largest patch of an image."""
    drawn = [run for run in runs if run.cka is not None or "norms" not in run.missing]
    figure, axes = panels(drawn, 2.9 if len(drawn) == 1 else 2.3, sharey=True)
    for place, (each, run) in enumerate(zip(axes, drawn, strict=True)):
        for number, name in enumerate(("patches", "largest patch", "class token", "registers")):
            if name in run.norms:
                depths = range(len(run.norms[name]))
                each.plot(depths, run.norms[name], LINES[number] + MARKS[number], ms=3.5, lw=1.3,
                          color=COLOURS[number], label=name)  # fmt: skip
        start_at_zero(each)
        each.set(xlabel="blocks passed", ylabel="" if place % ACROSS else "norm of a token")
        number_layers(each, len(run.rank))
        entitle(each, run.name, drawn)
    lines = {str(line.get_label()): line for each in axes for line in each.lines}
    axes[0].legend(lines.values(), lines.keys(), frameon=False, loc="upper left")
    return figure


def draw_rank(runs: Runs) -> "Figure":
    """The effective rank of the patch tokens by depth, a line a run."""
    drawn = [run for run in runs if "rank" not in run.missing]
    figure, (axes,) = panels(drawn[:1], 2.9)
    for number, run in enumerate(drawn):
        place, cycle = number % len(COLOURS), number // len(COLOURS)
        axes.plot(range(len(run.rank)), run.rank, MARKS[cycle % len(MARKS)] + LINES[cycle % len(LINES)], ms=4,
                  lw=1.3, color=COLOURS[place], label=shorten(run.name, 40))  # fmt: skip
    start_at_zero(axes)
    axes.set(xlabel="blocks passed", ylabel="effective rank")
    number_layers(axes, max(len(run.rank) for run in drawn))
    if len(drawn) > 1:
        axes.legend(frameon=False, loc="best")
    return figure


def draw_cka(runs: Runs) -> "Figure":
    """Linear CKA of the patch tokens of every two depths."""
    drawn = [(run, run.cka) for run in runs if run.cka is not None]
    figure, axes = panels(drawn, 3.0 if len(drawn) == 1 else 2.4, alone=3.8)
    for place, (each, (run, cka)) in enumerate(zip(axes, drawn, strict=True)):
        shown = each.imshow(cka.numpy(), vmin=0, vmax=1, cmap="magma", interpolation="nearest", origin="lower")
        ticks = range(0, len(cka), max(1, math.ceil(len(cka) / 13)))
        each.set(xticks=ticks, yticks=ticks, xlabel="blocks passed", ylabel="" if place % ACROSS else "blocks passed")
        each.spines[:].set_visible(False)
        if len(cka) <= 6 and len(drawn) == 1:
            for y, x in np.ndindex(*cka.shape):
                ink = "#000000" if cka[y, x] > 0.6 else "#fefefe"  # the page changes pure white
                each.text(x, y, f"{float(cka[y, x]):.2f}", ha="center", va="center", fontsize=8, color=ink)
        entitle(each, run.name, drawn)
    figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.02, label="linear CKA")
    return figure
