"""What a model costs: parameters, and floating-point operations of one image."""

from copy import deepcopy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(model: nn.Module) -> int:
    """Learned numbers of the model."""
    return sum(p.numel() for p in model.parameters())


def flops(model: nn.Module, image: tuple[int, int, int]) -> int:
    """Floating-point operations of one forward pass over one image of (channels, height, width).

    Matrix products, convolutions and attention are counted, a multiply-add as two; the backward pass costs about twice
    as much again. Runs on the meta device: nothing is computed.
    """
    shadow = deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.empty(1, *image, device="meta"))
    return counter.get_total_flops()
