"""Optimizers: torch's own, over parameter groups that decay or do not."""

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from vitlab.lean import spare_dynamo


def decays(model: nn.Module) -> dict[str, bool]:
    """Whether each parameter has weight decay, by name: the weights of linear layers and convolutions alone.

    Biases, norms, layer scales, position tables and tokens do not decay.
    """
    weights = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    return {name: id(p) in weights for name, p in model.named_parameters()}


def build(make: Callable[..., Optimizer], model: nn.Module) -> Optimizer:
    """The optimizer over the model's parameters, with torch's fused kernel where the device has it.

    Raises:
        ValueError: what torch refuses, such as a negative learning rate.
    """
    decay = decays(model)
    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if decay[name]]},
        {"params": [p for name, p in named if not decay[name]], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    try:
        return spare_dynamo(make([g for g in groups if g["params"]], fused=fused))
    except ValueError as error:
        raise ValueError(f"optimizer: {error}") from error


def clip(model: nn.Module, norm: float | None) -> torch.Tensor:
    """Scales the gradients down to a norm of at most `norm` over all; their norm before, without waiting for it."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    total = nn.utils.get_total_norm(gradients)
    if norm is not None:
        nn.utils.clip_grads_with_norm_(list(model.parameters()), norm, total)
    return total
