"""Estimates of the memory that a model and its activations need, before any is allocated."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vitlab.model.meta import on_meta_device
from vitlab.system.memory import check_fits

NUMBER = 4  # bytes of a weight, and of what a layer gives in fp32
WIDEST = 10**6  # a width whose divisors can be tried
BLOCK = 30_000  # bytes of a block's Python objects, measured: 31,500


def check_memory(
    make: Callable[..., Any],
    *,
    image_size: tuple[int, int],
    channels: int,
    classes: int,
    device: torch.device | str = "cpu",
    copies: int = 1,
    batch: int = 0,
    half: bool = False,
    recomputed: bool = False,
) -> None:
    """Refuses a model that cannot fit on the device, before it is built; a lower bound, so borderline cases pass.

    The weights are counted, those of a model of any depth from one and two blocks without memory. What the layers give
    is counted from below: in training, what every block keeps for its backward pass (the inputs of its two
    normalisations, four matrix products and three parts of attention, and on a CPU the attention weights), and a stem.

    Args:
        make: `functools.partial` of the ViT, with its width, depth and heads; another callable is let through.
        image_size: height and width in pixels.
        channels: of an image.
        classes: number of classes.
        device: where the model goes.
        copies: numbers that are held for each weight: 1 to use it; to train it, its gradient and the optimizer's too.
        batch: images that a process computes together in training; 0 does not train.
        half: whether matrix products are in 16 bits.
        recomputed: whether the backward pass computes each block again (activation checkpointing).

    Raises:
        ValueError: it does not fit; with what it takes and what there is.
    """
    given: dict[str, Any] = getattr(make, "keywords", {})
    if not {"width", "depth", "heads"} <= given.keys():
        return
    (height, breadth), width, depth = image_size, given["width"], given["depth"]
    shape = {"image_size": image_size, "channels": channels, "classes": classes}
    of_images = f"dataset.image_size={height}x{breadth}: one image of {channels} channels takes"
    check_fits(NUMBER * channels * height * breadth, of_images, "use a smaller dataset.image_size", device)
    of_weights = f"model.width={width} model.depth={depth}: the weights take"
    if copies > 1:
        of_weights = f"model.width={width} model.depth={depth}: weights, gradients and optimizer state take"
    smaller = "use a smaller width or depth" if depth else "use a smaller model.stem"
    if width > WIDEST:
        check_fits(copies * NUMBER * width**2, of_weights, smaller, device)
    try:
        one, two = (on_meta_device(make, depth=min(depth, blocks), **shape) for blocks in (1, 2))
    except (RuntimeError, TypeError, OverflowError) as error:
        if "overflow" not in f"{type(error).__name__} {error}".lower():
            raise
        check_fits(float("inf"), of_weights, smaller, device)
        raise
    first, block = bytes_of(one, copies), bytes_of(two, copies) - bytes_of(one, copies)
    check_fits(first + (depth - 1) * block + BLOCK * depth, of_weights, smaller, device)

    tokens, product = one.grid.tokens, NUMBER // 2 if half else NUMBER
    weights = 0
    if depth:
        attention: Any = one.blocks[0].attention.branch
        weights = product * attention.weights_kept(one.grid, device=torch.device(device).type, full=not half)
    of_block = tokens * width * (2 * NUMBER + 6 * product) + weights
    if batch:
        kept = depth * NUMBER * tokens * width + min(depth, 1) * of_block if recomputed else depth * of_block
        kept += product * one.stem.kept
        what = f"{batch} images of {tokens:,} tokens at once: a training step keeps at least"
        patch = "a larger patch, such as patch=p16, " if depth else ""
        remedy = f"use {patch}a smaller dataset.image_size, or more parts, fit.accumulate=N"
        check_fits(batch * kept, what, remedy, device)
    else:
        what = f"an image of {height}x{breadth} is {tokens:,} tokens in this model, which take at least"
        check_fits(2 * product * tokens * width + weights, what, "use a larger patch or a smaller image", device)


def bytes_of(model: nn.Module, copies: int) -> int:
    """What so many copies of the parameters take, and the buffers once."""
    return copies * sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
