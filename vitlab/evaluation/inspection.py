"""What `vitlab inspect` draws of a trained model, computed from a few images at a time."""

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from vitlab.config.errors import ConfigError, OutOfMemory
from vitlab.evaluation import attention_maps as maps
from vitlab.evaluation import representations as of
from vitlab.evaluation.load import Trained
from vitlab.model.attention import Attention
from vitlab.model.block import Block
from vitlab.model.grid import Grid
from vitlab.model.position import Position
from vitlab.model.vit import ViT
from vitlab.system.memory import out_of_memory

TOKENS = 1024  # patch tokens that CKA and rank are computed from
COMPONENTS = 28  # of the patch projection, as in the paper's figure 7
TILES = 16  # rows and columns of patches whose similarities are computed, at most
MOST, NUMBERS = 32, 2**24  # images of a forward pass; attention weights and pixels of one, roughly
Size = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class PositionMap:
    """What a position does between some patches and all.

    Args:
        name: the kind, and where it enters if there are several.
        bias: whether the values are added to the logits, and not cosines.
        rows: rows of the patches that are compared, evenly spaced on the grid.
        columns: their columns.
        values: (rows columns height width).
    """

    name: str
    bias: bool
    rows: list[int]
    columns: list[int]
    values: Float[Tensor, "rows columns h w"]


@dataclass(kw_only=True)
class Inspection:
    """What is found in a model; layers, heads, rows and columns are counted from 0.

    Args:
        name: of the run.
        grid: its tokens.
        pixels: height and width of a patch.
        images: how many were looked at.
        read: the tokens from which `attention` and `rollout` look.
        shown: the first images as the model sees them, 0 to 1.
        attention: of the first of these, by layer and head.
        rollout: of all of these.
        distance: mean attention distance in pixels.
        uniform: what it is where each token attends to all alike; None where it cannot.
        entropy: of the attention, in nats.
        norms: mean L2 norm of tokens before the first block and after each, by what they are.
        rank: effective rank of the patch tokens there.
        cka: of the patch tokens there.
        filters: principal components of the patch projection.
        share: the fraction of the variance of each.
        positions: one a kind and a table.
        missing: by figure, why there is none.
    """

    name: str
    grid: Grid
    pixels: Size
    images: int = 0
    read: str = ""
    shown: Float[Tensor, "g c y x"] = field(default_factory=lambda: torch.zeros(0))
    attention: Float[Tensor, "k layers heads h w"] | None = None
    rollout: Float[Tensor, "g h w"] | None = None
    distance: Float[Tensor, "layers heads"] | None = None
    uniform: float | None = None
    entropy: Float[Tensor, "layers heads"] | None = None
    norms: dict[str, list[float]] = field(default_factory=dict)
    rank: list[float] = field(default_factory=list)
    cka: Float[Tensor, "l l"] | None = None
    filters: Float[Tensor, "k c p q"] | None = None
    share: Float[Tensor, " k"] | None = None
    positions: list[PositionMap] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def reasons(self) -> dict[str, list[str]]:
        """Of each reason in `missing` the figures."""
        return {why: [key for key, of in self.missing.items() if of == why] for why in self.missing.values()}


class Reduced(list[Tensor]):
    """A list for `ViT.encode` that hands each layer's attention weights on at once and keeps none."""

    def __init__(self, use: Callable[[Tensor], None]):
        super().__init__()
        self.use = use

    def append(self, weights: Tensor) -> None:
        self.use(weights)

    def extend(self, several: Iterable[Tensor]) -> None:
        for weights in several:
            self.use(weights)


class Inspector:
    """Sums over the images of a model; its methods take normalized images, of which it keeps none.

    Args:
        name: of the run.
        model: from `load`.
        at: row and column of the patch whose attention is drawn; None is what the pool reads.
        images: how many will come.

    Raises:
        ConfigError: there is no such patch.
    """

    def __init__(self, name: str, model: Trained, at: tuple[int, int] | None, images: int):
        self.vit: ViT = model.model
        vit, size, grid = self.vit, model.preprocess.resize.size, self.vit.grid
        if at is not None and not (0 <= at[0] < grid.height and 0 <= at[1] < grid.width):
            raise ConfigError(
                f"--at {at[0]},{at[1]}: {name} has {grid.height} rows and {grid.width} columns of patches: give a row"
                f" of 0 to {grid.height - 1} and a column of 0 to {grid.width - 1}"
            )
        self.model, self.at, self.images = model, at, images
        self.channels = 1 if model.preprocess.decoding.mode == "L" else 3
        pixels = (size[0] / grid.height, size[1] / grid.width)
        self.found = Inspection(name=name, grid=grid, pixels=pixels, images=images, read=self.describe_read())
        self.distances = maps.patch_distances(grid.height, grid.width, pixels)
        self.attentions = [attention_of(block) for block in vit.blocks]
        self.heads = self.attentions[0].heads if self.attentions else 0
        self.batch = max(1, min(MOST, NUMBERS // (self.heads * grid.tokens**2 + 16 * self.channels * math.prod(size))))
        self.rows, self.columns = evenly(grid.height), evenly(grid.width)
        self.queries = torch.tensor([row * grid.width + column for row in self.rows for column in self.columns])
        self.layers = len(vit.blocks)
        self.sums: dict[str, Tensor] = {}  # over the images
        self.tokens: list[list[Tensor]] = [[] for _ in range(self.layers + 1)]
        self.width = 0

    def describe_read(self) -> str:
        vit = self.vit
        if self.at is not None:
            return f"the patch at row {self.at[0]}, column {self.at[1]}"
        if not vit.objective.classifies:
            return "all patches alike (the pool is not trained)"
        return {"Cls": "the class token", "Gap": "all patches alike, as they are pooled"}.get(
            type(vit.pool).__name__, "the tokens as they are pooled"
        )

    def reads(self, images: Tensor) -> Float[Tensor, "b t"]:
        """How much of each token the pictures look from."""
        grid = self.vit.grid
        if self.at is None and self.vit.objective.classifies:
            return self.vit.pool.reads(*self.vit.encode(self.vit.stem(images)).split((grid.prefix, grid.patches), 1))
        reads = images.new_zeros(len(images), grid.tokens)
        if self.at is None:
            reads[:, grid.prefix :] = 1 / grid.patches
        else:
            reads[:, grid.prefix + self.at[0] * grid.width + self.at[1]] = 1
        return reads

    def show(self, images: Float[Tensor, "g c y x"], closely: int) -> None:
        """Keeps images, their rollout, and of the first `closely` the attention of each layer and head."""
        normalize, attention, rolled = self.model.preprocess.normalize, [], []
        grid = self.vit.grid
        self.found.shown = ((images - normalize.shift) / normalize.scale / 255).clamp(0, 1)
        for start in range(0, len(images), self.batch) if self.attends else ():
            some = images[start : start + self.batch].to(self.device)
            close, reads, layers, through = max(0, closely - start), self.reads(some), [], []

            def use(weights: Tensor, close=close, reads=reads, layers=layers, through=through) -> None:
                through[:] = [maps.rolled(through[0] if through else None, weights)]
                layers.append(maps.seen_from(reads[:close], weights[:close])[..., grid.prefix :].cpu())

            self.vit.encode(self.vit.stem(some), Reduced(use))
            attention.append(rearrange(torch.stack(layers, dim=1), "b l k (h w) -> b l k h w", h=grid.height))
            rolled.append(maps.seen_from(reads, through[0])[:, grid.prefix :].unflatten(1, (grid.height, -1)).cpu())
        if rolled:
            self.found.attention, self.found.rollout = torch.cat(attention), torch.cat(rolled)

    @property
    def device(self) -> torch.device:
        return next(self.vit.parameters()).device

    def add(self, name: str, values: Tensor) -> None:
        """Adds to the sum of this name."""
        values = values.detach().double().cpu()
        self.sums[name] = self.sums[name] + values if name in self.sums else values

    def look(self, images: Float[Tensor, "b c y x"], first: int) -> None:
        """Adds a batch to the sums; `first` is the number of its first image."""
        layer = iter(range(self.layers))

        def use(weights: Tensor) -> None:
            number = next(layer)
            self.add(f"distance {number}", maps.attention_distance(weights, self.distances.to(weights)).sum(0))
            self.add(f"entropy {number}", maps.attention_entropy(weights).sum(0))

        with self.hooks(first):
            tokens = self.vit.encode(self.vit.stem(images.to(self.device)), Reduced(use) if self.layers else None)
        if not (finite := tokens.isfinite().flatten(1).all(dim=1)).all():
            which = first + int(finite.int().argmin())
            raise ConfigError(
                f"{self.found.name}: the model's output for image {which} is NaN or infinite: leave it out"
            )

    @property
    def attends(self) -> bool:
        """Whether every block has given its attention weights."""
        return self.layers > 0 and f"distance {self.layers - 1}" in self.sums

    @contextmanager
    def hooks(self, first: int) -> Generator[None]:
        """Hooks for the tokens before and after each block, and for the queries where positions are biases of them."""
        vit, hooks = self.vit, []

        def hook(module: Any, use: Callable[[Tensor], None]) -> None:
            hooks.append(module.register_forward_hook(lambda _, __, output: use(output)))

        for number, module in enumerate((vit.dropout, *vit.blocks)):
            hook(module, lambda tokens, number=number: self.represent(number, tokens, first))
        for number, attention in enumerate(self.attentions):
            if overrides(vit.position(number), "bias"):
                hook(attention.qkv, lambda qkv, number=number: self.bias(number, qkv))
        try:
            yield
        finally:
            for each in hooks:
                each.remove()

    def represent(self, number: int, tokens: Float[Tensor, "b t d"], first: int) -> None:
        """Adds the norms of tokens at a depth, and keeps some patches."""
        grid, norms = self.vit.grid, tokens.norm(dim=-1)
        own, n = self.vit.pool.prefix, grid.patches
        self.width = tokens.shape[-1]
        parts = {"class token": norms[:, :own], "registers": norms[:, own : grid.prefix]}
        parts |= {"patches": norms[:, grid.prefix :], "largest patch": norms[:, grid.prefix :].amax(1, keepdim=True)}
        for name, part in parts.items():
            if part.shape[1]:
                self.add(f"{name} {number}", part.mean(dim=1).sum())
        each = min(n, math.ceil(TOKENS / self.images))
        for image, patches in enumerate(tokens[: max(0, TOKENS - first), grid.prefix :].float().cpu(), first):
            self.tokens[number].append(patches[(torch.arange(each) * n // each + image) % n])

    def bias(self, number: int, qkv: Float[Tensor, "b t three_d"]) -> None:
        """Adds what a block's position adds to the logits of the queries that it has for these images."""
        attention, position, grid = self.attentions[number], self.vit.position(number), self.vit.grid
        q = rearrange(qkv, "b t (three heads k) -> three b heads t k", three=3, heads=self.heads)[0]
        added = position.bias(position.rotate(attention.q_norm(q).to(qkv.dtype)))
        if added is not None:
            among = added[:, :, grid.prefix :, grid.prefix :][:, :, self.queries.to(added.device)]
            self.add(f"bias {number}", among.mean(dim=1).sum(0) * q.shape[-1] ** -0.5)

    def finish(self) -> Inspection:
        """The means over all images, and what needs no image."""
        found, mean = self.found, {name: total / self.images for name, total in self.sums.items()}
        depths = range(self.layers + 1)
        if self.attends:
            found.distance = torch.stack([mean[f"distance {i}"] for i in range(self.layers)])
            found.entropy = torch.stack([mean[f"entropy {i}"] for i in range(self.layers)])
            if self.attentions[0].looks_at(self.vit.grid) == self.vit.grid.tokens:
                found.uniform = float(self.distances.mean())
        else:
            why = "model.depth=0: there is no block, and so no attention"
            if self.layers:
                why = f"{type(self.attentions[0]).__name__} gives no attention weights"
            found.missing |= dict.fromkeys(("attention", "rollout", "distance", "entropy"), why)
        if not self.layers:
            why = "model.depth=0: there is one representation alone, that of the stem"
            found.missing |= dict.fromkeys(("norms", "rank", "cka"), why)
        names = ("class token", "registers", "patches", "largest patch")
        found.norms = {n: [float(mean[f"{n} {i}"]) for i in depths] for n in names if f"{n} 0" in mean}
        layers = [torch.cat(kept) for kept in self.tokens]
        found.rank = [of.effective_rank(x) for x in layers]
        if self.layers and len(layers[0]) >= 4:
            found.cka = of.linear_cka(layers)
        elif self.layers:
            found.missing["cka"] = f"{len(layers[0])} patches in all: CKA needs 4 at least"
        filters = of.stem_filters(self.vit.stem, self.channels)
        if filters is None:
            found.missing["filters"] = f"{type(self.vit.stem).__name__} starts with no linear layer or convolution"
        else:
            found.filters, found.share = of.principal_components(filters.cpu(), COMPONENTS)
        found.positions = list(self.positions(mean))
        if not found.positions:
            found.missing["positions"] = "model/position=none: tokens have no positions"
        return found

    def positions(self, mean: dict[str, Tensor]) -> Generator[PositionMap]:
        several = len(self.vit.positions) > 1
        for number, position in enumerate(self.vit.positions):
            assert isinstance(position, Position)
            name = f"{type(position).__name__}{f', layer {number}' if several else ''}"
            if overrides(position, "add"):
                yield self.map(name, of.cosine_similarity(of.added_vectors(position, self.width), self.queries))
            if overrides(position, "rotate"):
                head = self.width // self.heads
                yield self.map(name, of.rotation_similarity(position, head, self.queries))
        for number in range(self.layers):
            if (key := f"bias {number}") in mean:
                yield self.map(f"{type(self.vit.position(number)).__name__}, layer {number}", mean[key], bias=True)

    def map(self, name: str, values: Float[Tensor, "q n"], *, bias: bool = False) -> PositionMap:
        shape = (len(self.rows), len(self.columns), self.vit.grid.height, self.vit.grid.width)
        values = values.detach().float().cpu().view(shape)
        return PositionMap(name=name, bias=bias, rows=self.rows, columns=self.columns, values=values)


def attention_of(block: nn.Module) -> Attention:
    assert isinstance(block, Block)
    assert isinstance(block.attention.branch, Attention)
    return block.attention.branch


def overrides(position: Position, hook: str) -> bool:
    return getattr(type(position), hook) is not getattr(Position, hook)


def evenly(count: int, most: int = TILES) -> list[int]:
    """At most so many of the numbers below `count`, evenly spaced, the first and the last among them."""
    return sorted({round(i * (count - 1) / max(1, min(count, most) - 1)) for i in range(min(count, most))})


@torch.inference_mode()
def inspect(
    name: str,
    model: Trained,
    images: int,
    read: Callable[[int], Image.Image | Path],
    *,
    at: tuple[int, int] | None = None,
    shown: int = 24,
    closely: int = 3,
    progress: Callable[[int], object] = lambda count: None,
) -> Inspection:
    """Looks into a model with images, in fp32; they are read in small batches, and none is kept but those shown.

    Args:
        name: of the run.
        model: from `load`.
        images: how many; at least 1.
        read: gives each, as a picture or a file.
        at: row and column of a patch, from 0: attention and rollout are those of this patch instead of the pool.
        shown: of the first so many images the rollout is kept.
        closely: of the first so many also the attention of each layer and head.
        progress: called with the number of images of each batch.

    Raises:
        ConfigError: there is no such patch, or an output is NaN or infinite.
        OutOfMemory: a batch is too large.
    """
    inspector = Inspector(name, model, at, images)
    try:
        for first in range(0, images, inspector.batch):
            numbers = range(first, min(images, first + inspector.batch))
            inspector.look(torch.stack([model.preprocess(read(i)) for i in numbers]), first)
            progress(len(numbers))
        inspector.show(torch.stack([model.preprocess(read(i)) for i in range(min(shown, images))]), closely)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory with {inspector.batch} images of {model.model.grid.tokens} tokens at once: use a device"
            " with more, --device cpu"
        ) from error
    return inspector.finish()
