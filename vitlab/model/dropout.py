"""Random draws inside a model: dropout (Srivastava et al. 2014) and stochastic depth (Huang et al. 2016).

A model draws from the global generators where it needs numbers. In a pack of models, which `torch.func.vmap` computes
as one, each has the draws that it has alone: they are made before the forward pass (`vitlab.model.packed`).
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Rate = float | tuple[float, ...]  # a probability; or that of each model of a pack
Fill = Callable[[Tensor, torch.Generator | None, float], object]


@dataclass(frozen=True)
class Draw:
    """Random numbers that a model needs for a batch.

    Args:
        fill: writes them into a tensor, from a generator (None is the global one), with a rate.
        shape: of the tensor.
        dtype: of the tensor.
        rate: of each model.
    """

    fill: Fill
    shape: tuple[int, ...]
    dtype: torch.dtype
    rate: Rate = 0.0


SOURCE: ContextVar[Callable[[Draw], Tensor] | None] = ContextVar("SOURCE", default=None)  # of a pack's draws


@contextmanager
def drawing_from(source: Callable[[Draw], Tensor]) -> Generator[None]:
    """Context of a forward pass of a pack, whose draws come from `source`."""
    token = SOURCE.set(source)
    try:
        yield
    finally:
        SOURCE.reset(token)


def in_pack() -> bool:
    """Whether several models are computed as one."""
    return SOURCE.get() is not None


def draw(what: Draw, device: torch.device) -> Tensor:
    """The random numbers; nothing is differentiated by them."""
    if (source := SOURCE.get()) is not None:
        return source(what)
    assert not isinstance(what.rate, tuple)
    out = torch.empty(what.shape, dtype=what.dtype, device=device)
    what.fill(out, None, what.rate)
    return out


def is_off(rate: Rate) -> bool:
    """Whether nothing is dropped, in no model."""
    return not (any(rate) if isinstance(rate, tuple) else rate)


def fill_kept(out: Tensor, generator: torch.Generator | None, rate: float) -> None:
    """1 / (1 - rate) for the numbers that are kept, 0 for the others.

    On a CPU torch draws a number for each: a quarter of a small model's training step. Here one 64-bit draw serves
    four, each to 16 bits (a rate is then exact to 1 / 65536), which is 2.6 times as fast.
    """
    if rate == 0.0:
        out.fill_(1.0)
    elif out.device.type != "cpu":
        out.bernoulli_(1 - rate, generator=generator).div_(1 - rate)
    else:
        draws = torch.empty(-(-out.numel() // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
        least = min(round(rate * 2**16), 2**16 - 1) - 2**15
        torch.ge(draws.view(torch.int16)[: out.numel()].view(out.shape), least, out=out).div_(1 - rate)


def fill_kept_torch(out: Tensor, generator: torch.Generator | None, rate: float) -> None:
    """The same as torch draws it, one draw a number: for few of them, and where torch's fused attention would."""
    if rate == 0.0:
        out.fill_(1.0)
    else:
        out.bernoulli_(1 - rate, generator=generator).div_(1 - rate)


def dropout(
    x: Float[Tensor, "*b"], rate: Rate, training: bool = True, *, fill: Fill = fill_kept
) -> Float[Tensor, "*b"]:
    """Zeroes each number with a probability and scales the rest to keep the mean."""
    if not training or is_off(rate):
        return x
    if x.device.type != "cpu" and not isinstance(rate, tuple):
        return functional.dropout(x, rate)
    return x * draw(Draw(fill, x.shape, x.dtype, rate), x.device)


def drop_path(x: Float[Tensor, "b t d"], rate: Rate, training: bool = True) -> Float[Tensor, "b t d"]:
    """Stochastic depth: drops the branch of some images; scales the others to keep the mean."""
    if not training or is_off(rate):
        return x
    return x * draw(Draw(fill_kept_torch, (x.shape[0], 1, 1), x.dtype, rate), x.device)


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
