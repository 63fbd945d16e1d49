"""What a model costs: parameters, and floating-point operations of one image."""

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

    Matrix products, convolutions and attention are counted, a multiply-add as two; the backward pass costs about twice
    as much again. One black image is computed where the model is: on the meta device torch imports a compiler (5 s).
    """
    training = model.training
    with Counter() as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *image, device=next(model.parameters()).device))
    model.train(training)
    return counter.total


class Counter(TorchFunctionMode):
    """Adds up what passes. torch's own FlopCounterMode, to which a test holds it, imports a compiler to do so (6 s)."""

    total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is functional.linear:
            self.total += 2 * out.numel() * args[1].shape[1]
        elif func in (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm):
            self.total += 2 * out.numel() * args[0].shape[-1]
        elif func is torch.baddbmm:
            self.total += 2 * out.numel() * args[1].shape[-1]
        elif func in (torch.conv2d, functional.conv2d):
            self.total += 2 * out.numel() * args[1][0].numel()
        elif func is functional.scaled_dot_product_attention:
            q, k = args[:2]
            self.total += 2 * (q.numel() + out.numel()) * k.shape[-2]
        return out
