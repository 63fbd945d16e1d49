"""Random draws inside a model: dropout (Srivastava et al. 2014) and stochastic depth (Huang et al. 2016).

A model draws from the global generators. A pack of models, which `torch.func.vmap` computes as one, draws for each
model from that one's own generator, so that each has the draws that it has alone.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

Rate = float | tuple[float, ...]  # a probability; or that of each model of a pack
Make = Callable[[torch.Size, Tensor, torch.Generator | None, float], Tensor]

GENERATORS: ContextVar[Sequence[torch.Generator] | None] = ContextVar("GENERATORS", default=None)


@contextmanager
def drawing_from(generators: Sequence[torch.Generator]) -> Generator[None]:
    """Context of a forward pass of a pack: each of its models draws from one of these."""
    token = GENERATORS.set(generators)
    try:
        yield
    finally:
        GENERATORS.reset(token)


def is_off(rate: Rate) -> bool:
    """Whether nothing is dropped, in no model."""
    return not (any(rate) if isinstance(rate, tuple) else rate)


def draw(make: Make, like: Tensor, rate: Rate = 0.0) -> Tensor:
    """Random numbers for the images of a batch, which nothing is differentiated by.

    Args:
        make: of a batch's shape, a tensor on its device, a generator (None is the global one) and a rate.
        like: of the batch; its numbers are not read.
        rate: of `make`.
    """
    if GENERATORS.get() is None:
        assert not isinstance(rate, tuple)
        return make(like.shape, like, None, rate)
    return PackedDraw.apply(like, make, rate)


class PackedDraw(Function):
    """`draw` for the models of a pack, under `vmap`."""

    @staticmethod
    def forward(like: Tensor, make: Make, rate: Rate) -> Tensor:
        raise RuntimeError("a pack draws under vmap alone")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        like, make, rate = args
        generators, one = GENERATORS.get(), like.detach().select(in_dims[0], 0)
        assert generators is not None
        rates = rate if isinstance(rate, tuple) else (rate,) * info.batch_size
        each = zip(generators, rates, strict=True)
        return torch.stack([make(one.shape, one, generator, rate) for generator, rate in each]), 0


def kept(shape: torch.Size, like: Tensor, generator: torch.Generator | None, rate: float) -> Tensor:
    """1 / (1 - rate) for the numbers that are kept, 0 for the others.

    On a CPU torch draws a number for each: a quarter of a small model's training step. Here one 64-bit draw serves
    four, each to 16 bits (a rate is then exact to 1 / 65536), which is 2.6 times as fast.
    """
    if rate == 0.0:
        return like.new_ones(shape)
    if like.device.type != "cpu":
        return like.new_empty(shape).bernoulli_(1 - rate, generator=generator).div_(1 - rate)
    numbers = shape.numel()
    draws = torch.empty(-(-numbers // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    keep = draws.view(torch.int16)[:numbers].view(shape) >= min(round(rate * 2**16), 2**16 - 1) - 2**15
    return keep.to(like.dtype).div_(1 - rate)


def kept_images(shape: torch.Size, like: Tensor, generator: torch.Generator | None, rate: float) -> Tensor:
    """The same for whole images (b 1 1)."""
    keep = like.new_empty(shape[0], 1, 1)
    return keep.fill_(1.0) if rate == 0.0 else keep.bernoulli_(1 - rate, generator=generator).div_(1 - rate)


def dropout(x: Float[Tensor, "*b"], rate: Rate, training: bool = True) -> Float[Tensor, "*b"]:
    """Zeroes each number with a probability and scales the rest to keep the mean."""
    if not training or is_off(rate):
        return x
    if x.device.type != "cpu" and not isinstance(rate, tuple):
        return functional.dropout(x, rate)
    return x * draw(kept, x, rate)


def drop_path(x: Float[Tensor, "b t d"], rate: Rate, training: bool = True) -> Float[Tensor, "b t d"]:
    """Stochastic depth: drops the branch of some images; scales the others to keep the mean."""
    return x if not training or is_off(rate) else x * draw(kept_images, x, rate)


class Dropout(nn.Module):
    """`dropout` as a module: off in evaluation.

    Args:
        rate: dropout probability.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate: Rate = rate

    def forward(self, x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return dropout(x, self.rate, self.training)
