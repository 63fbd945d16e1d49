"""Dropout (Srivastava et al. 2014), drawn four at a time on a CPU."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


def dropout(x: Float[Tensor, "*b"], rate: float, training: bool = True) -> Float[Tensor, "*b"]:
    """Zeroes each number with a probability and scales the rest to keep the mean.

    On a CPU torch draws a number for each: a quarter of a small model's training step. Here one 64-bit draw serves
    four, each to 16 bits (a rate is then exact to 1 / 65536), which is 2.6 times as fast. Elsewhere it is torch's own.
    """
    if not training or rate == 0.0:
        return x
    if x.device.type != "cpu":
        return functional.dropout(x, rate)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    keep = draws[: x.numel()].view(x.shape) >= min(round(rate * 2**16), 2**16 - 1) - 2**15
    return x * keep.to(x.dtype).div_(1 - rate)


class Dropout(nn.Module):
    """`dropout` as a module: off in evaluation.

    Args:
        rate: dropout probability.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return dropout(x, self.rate, self.training)
