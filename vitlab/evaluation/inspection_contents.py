"""The figures of inspected models in their order, each with a caption and the numbers behind it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vitlab.evaluation import inspection_figures as figures
from vitlab.evaluation.inspection import Inspection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Runs = Sequence[Inspection]
Rows = Iterator[Sequence[Any]]
COUNTED = "Layers, heads, rows and columns are counted from 0."


@dataclass(frozen=True, kw_only=True)
class Part:
    """A figure.

    Args:
        key: name of its files.
        title: a few words.
        caption: what is drawn, and how to read it.
        draw: makes the figure.
        header: columns of its table.
        rows: of its table.
    """

    key: str
    title: str
    caption: str
    draw: "Callable[[], Figure]"
    header: Sequence[str]
    rows: Callable[[], Rows]


def contents(runs: Runs) -> list[Part]:
    """Every figure that at least one of the runs has; what the others lack is in their `missing`.

    Args:
        runs: at least one, of the same images.
    """
    first, parts = runs[0], []
    images = f"{first.images:,} image{'s' if first.images > 1 else ''}"
    several = "; ".join(
        f"{letter}: {run.name}" for letter, run in zip(figures.LETTERS, with_(runs, "rollout"), strict=False)
    )
    read = "; ".join(dict.fromkeys(run.read for run in with_(runs, "rollout")))

    def part(
        key: str, title: str, caption: str, draw: Callable[..., Any], header: str, rows: Callable[[], Rows]
    ) -> None:
        columns = ["run", *header.split()]
        parts.append(Part(key=key, title=title, caption=caption, draw=draw, header=columns, rows=rows))

    if with_(runs, "rollout"):
        part("rollout", "Attention rollout",
             "What of the image reaches the output: the attention of all layers, averaged over the heads, half of it"
             " replaced by the identity, and multiplied (Abnar and Zuidema 2020), over each image; seen from"
             f" {read}. 1 is 1/n, n being the number of patches."
             + (f" After each image {several}." if len(runs) > 1 else ""),
             partial(figures.draw_rollout, runs), "image row column times_uniform",
             partial(cells, runs, "rollout"))  # fmt: skip
        for image in range(max(len(run.attention) for run in with_(runs, "attention"))):
            part(f"attention-{image}", f"Attention by layer and head, image {image}",
                 f"How much attention each patch is paid; seen from {read}. 1 is 1/n, n being the number of patches.",
                 partial(figures.draw_attention, runs, image), "layer head row column times_uniform",
                 partial(cells, runs, "attention", image))  # fmt: skip
        part("distance", "Mean attention distance",
             "How far, in pixels, a patch looks: the distance to the patches that it attends to, weighted by the"
             f" attention and averaged over all patches of {images}; a dot a head.",
             partial(figures.draw_heads, runs, "distance", "mean attention distance (pixels)"),
             "layer head distance_pixels", partial(cells, runs, "distance"))  # fmt: skip
        part("entropy", "Entropy of the attention",
             f"0 where a token attends to one token alone; the mean over all tokens of {images}; a dot a head.",
             partial(figures.draw_heads, runs, "entropy", "entropy (nats)"), "layer head entropy_nats",
             partial(cells, runs, "entropy"))  # fmt: skip
    for key, bias in (("positions", False), ("position_bias", True)):
        if any(position.bias == bias for run in runs for position in run.positions):
            caption = (
                f"What is added to the logits between a patch (a tile) and all patches (its pixels), averaged over the"
                f" heads and the queries of {images}."
                if bias
                else "Each tile is a patch, each pixel of it the similarity of that patch's position and another's: the"
                " cosine of what is added to them, or for rotations the mean cosine of the angles between them."
            )
            part(key, "Position biases" if bias else "Similarity of positions", caption,
                 partial(figures.draw_positions, runs, bias=bias),
                 "position query_row query_column row column value", partial(position_rows, runs, bias))  # fmt: skip
    if with_(runs, "filters"):
        part("filters", "Filters of the patch projection",
             "The leading principal components of the first layer's filters, each scaled to its largest weight: grey is"
             " 0. A patch of few pixels has few.",
             partial(figures.draw_filters, runs), "component channel row column weight",
             partial(cells, runs, "filters"))  # fmt: skip
    if deep := [run for run in runs if "rank" not in run.missing]:
        part("norms", "Norm of the tokens",
             f"The mean L2 norm of tokens over {images}, before the first block (0) and after each. Patches whose norm"
             " is far above the others' hold what is not about their place: registers are there to take it"
             " (Darcet et al. 2024).",
             partial(figures.draw_norms, runs), "tokens blocks_passed norm", partial(norm_rows, deep))  # fmt: skip
        part("rank", "Effective rank",
             "Over how many directions patch tokens spread: exp of the entropy of their singular values (Roy and"
             f" Vetterli 2007), of up to 1,024 tokens of {images}.",
             partial(figures.draw_rank, runs), "blocks_passed effective_rank", partial(rank_rows, deep))  # fmt: skip
    if with_(runs, "cka"):
        part("cka", "Similarity of representations",
             "Linear CKA (Kornblith et al. 2019) between the patch tokens before the first block (0) and after each: 1"
             " where they differ by a rotation and a scale.",
             partial(figures.draw_cka, runs), "blocks_passed other_blocks_passed cka",
             partial(cells, runs, "cka"))  # fmt: skip
    return parts


def with_(runs: Runs, key: str) -> list[Any]:
    return [run for run in runs if getattr(run, key) is not None]


def cells(runs: Runs, key: str, image: int | None = None) -> Rows:
    """A row for each number of an array: its run, its place, its value."""
    for run in with_(runs, key):
        values: Tensor = getattr(run, key) if image is None else getattr(run, key)[image]
        times = values.shape[-1] * values.shape[-2] if key in ("rollout", "attention") else 1
        places = product(*map(range, values.shape))
        for place, value in zip(places, (values.double() * times).flatten().tolist(), strict=True):
            yield run.name, *place, f"{value:.6g}"


def position_rows(runs: Runs, bias: bool) -> Rows:
    for run in runs:
        for position in run.positions:
            if position.bias == bias:
                places = product(position.rows, position.columns, *map(range, position.values.shape[2:]))
                for place, value in zip(places, position.values.flatten().tolist(), strict=True):
                    yield run.name, position.name, *place, f"{value:.6g}"


def norm_rows(runs: Runs) -> Rows:
    for run in runs:
        for name, values in run.norms.items():
            for depth, value in enumerate(values):
                yield run.name, name, depth, f"{value:.6g}"


def rank_rows(runs: Runs) -> Rows:
    for run in runs:
        for depth, value in enumerate(run.rank):
            yield run.name, depth, f"{value:.6g}"
