"""What a model costs: parameters, and floating-point operations of one image."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def parameters(model: nn.Module) -> int:
    """Learned numbers of the model."""
    return sum(p.numel() for p in model.parameters())


def flops(model: nn.Module, image: tuple[int, int, int]) -> int:
    """Floating-point operations of one forward pass over one image of (channels, height, width).

    Matrix products, convolutions and attention are counted, a multiply-add as two. One black image is computed where
    the model is: on the meta device torch imports a compiler (5 s).
    """
    return passes(model, image)[0]


def passes(model: nn.Module, image: tuple[int, int, int]) -> tuple[int, int]:
    """The same, and those of the backward pass.

    That takes each product of the forward pass once for each of its operands that learns or comes from what learns:
    about twice as much, less for the stem, which passes nothing on, and next to nothing behind frozen weights. What is
    computed again to save memory is not counted.
    """
    training = model.training
    with Counter() as counter, torch.enable_grad():
        model.eval()(torch.zeros(1, *image, device=next(model.parameters()).device))
    model.train(training)
    return counter.forward, counter.backward


class Counter(TorchFunctionMode):
    """Adds up what passes. torch's own FlopCounterMode, to which a test holds it, imports a compiler to do so (6 s)."""

    forward = 0
    backward = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is functional.linear:
            self.add(2 * out.numel() * args[1].shape[1], args[:2])
        elif func in (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm):
            self.add(2 * out.numel() * args[0].shape[-1], args[:2])
        elif func is torch.baddbmm:
            self.add(2 * out.numel() * args[1].shape[-1], args[1:3])
        elif func in (torch.conv2d, functional.conv2d):
            self.add(2 * out.numel() * args[1][0].numel(), args[:2])
        elif func is functional.scaled_dot_product_attention:
            q, k, v = args[:3]
            self.add(2 * q.numel() * k.shape[-2], (q, k))
            self.add(2 * out.numel() * k.shape[-2], (q, v))
        return out

    def add(self, flops: int, operands: Iterable[Tensor]) -> None:
        self.forward += flops
        hidden = not torch.is_grad_enabled()  # inside a function whose backward pass is written out
        self.backward += flops * sum(hidden or each.requires_grad for each in operands)
