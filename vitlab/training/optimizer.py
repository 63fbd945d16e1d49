"""Optimizers: parameter groups (what decays, how fast each layer learns), clipping, and Muon."""

import inspect
import math
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from vitlab.config.errors import ConfigError
from vitlab.model.part import Part
from vitlab.model.vit import ViT
from vitlab.system.distributed import full_tensor
from vitlab.system.lazy_imports import spare_dynamo
from vitlab.training.muon import Muon

RANGES = {  # of an optimizer's arguments, within which its steps are finite in 32 bits
    "lr": (0, 1e30),
    "weight_decay": (0, 1e6),
    "betas": (0, 1),
    "eps": (0, 1e30),
    "momentum": (0, 1),
    "iterations": (1, 100),
    "r": (0, 10),
    "weight_lr_power": (0, 10),
}


def decays(model: nn.Module) -> dict[str, bool]:
    """Whether each parameter has weight decay, by name: the weights of linear layers and convolutions alone.

    Biases, norms, layer scales, position tables and tokens do not decay.
    """
    weights = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    return {name: id(p) in weights for name, p in model.named_parameters()}


def layers(model: nn.Module) -> dict[str, int]:
    """The layer of each parameter, by name: 0 up to the first block, a number a block, then norm, pool and head."""
    depth = len(model.blocks) if isinstance(model, ViT) else 0
    ends = {"blocks": 1, "norm": depth + 1, "pool": depth + 1, "head": depth + 1, "objective": depth + 1}
    found = {}
    for name, _ in model.named_parameters():
        part, _, rest = name.partition(".")
        found[name] = ends.get(part, 0) + (int(rest.partition(".")[0]) if part == "blocks" else 0)
    return found


def matrices(model: nn.Module) -> dict[str, int]:
    """How many hidden matrices each parameter holds, by name: 3 in a joint qkv, 1 in other layers of the blocks."""
    held = {}
    for module in model.blocks.modules() if isinstance(model, ViT) else ():
        if isinstance(module, nn.Linear):
            held.setdefault(id(module.weight), 1)
        elif isinstance(module, Part):
            held |= {id(module.get_parameter(name)): count for name, count in module.stacked.items()}
    return {name: held.get(id(p), 0) for name, p in model.named_parameters()}


def build_optimizer(
    make: Callable[..., Optimizer],
    model: nn.Module,
    *,
    layer_decay: float = 1.0,
    scale: float = 1.0,
    capturable: bool = False,
) -> Optimizer:
    """The optimizer over the model's parameters, with torch's fused kernel where optimizer and device have it.

    Args:
        make: an optimizer without its parameters.
        model: whose parameters are grouped.
        layer_decay: the learning rate of each layer as a fraction of that of the next one (Clark et al. 2020, ELECTRA).
        scale: factor of the learning rate.
        capturable: whether its step can be captured in a CUDA graph, with learning rates in tensors.

    Raises:
        ConfigError: what the optimizer refuses, such as a negative learning rate.
    """
    decay, layer = decays(model), layers(model)
    held = matrices(model) if getattr(make, "func", make) is Muon else dict.fromkeys(layer, 0)
    if isinstance(model, ViT) and not model.blocks and getattr(make, "func", make) is Muon:
        raise ConfigError("optimizer=muon is for the blocks' matrices, and model.depth=0 has none: use adamw or sgd")
    last = max(layer.values(), default=0)
    groups: dict[tuple[bool, int, int], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # frozen
            continue
        key = decay[name], held[name], layer[name] if layer_decay != 1 else last
        group = {"params": [], "matrices": key[1], "lr_scale": layer_decay ** (last - key[2])}
        groups.setdefault(key, group if key[0] else group | {"weight_decay": 0.0})["params"].append(parameter)
    able = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    if any(hasattr(p, "device_mesh") for p in model.parameters()):  # FSDP's parts, which not all fused kernels take
        able = getattr(make, "func", make) in (Adam, AdamW)
    fused = {"fused": True} if able and "fused" in inspect.signature(make).parameters else {}
    values = getattr(make, "keywords", {})
    for name, value in values.items():
        least, most = RANGES.get(name, (-math.inf, math.inf))
        if not all(least <= v <= most for v in (value if isinstance(value, tuple) else (value,))):
            raise ConfigError(
                f"optimizer.{name}={value}: must be from {least:g} to {most:g}: leave it out, or give such a value"
            )
    try:
        optimizer = make([groups[key] for key in sorted(groups, reverse=True)], **fused)
    except (ValueError, AssertionError) as error:
        given = ", ".join(f"{name}={value}" for name, value in values.items())
        raise ConfigError(f"optimizer: {str(error) or 'it cannot work with one of these values'} ({given})") from error
    if hasattr(optimizer, "eval") and not values.get("betas", (0.9,))[0] >= 1e-6:
        raise ConfigError(f"optimizer.betas={values['betas']}: a schedule-free one divides by the first; 0.9 is usual")
    if not optimizer.defaults["lr"] * scale <= RANGES["lr"][1]:
        raise ConfigError(
            f"optimizer.lr={optimizer.defaults['lr']}: too large after fit.lr_scaling multiplies it by {scale:g}"
        )
    for group in optimizer.param_groups:
        group["lr"] *= scale
    if isinstance(optimizer, SGD) and values.get("momentum"):
        # torch's fused kernel leaves them as the memory was where fp16 skips the first update
        for parameter in (p for group in optimizer.param_groups for p in group["params"] if fused):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    set_capturable(optimizer, capturable)
    getattr(optimizer, "train", lambda: None)()  # schedule-free ones start in evaluation
    return spare_dynamo(optimizer)


def in_tensors(optimizer: type[Optimizer]) -> bool:
    """Whether all that an optimizer's step changes are tensors that start at 0, so that the host need read nothing."""
    return optimizer in (Adam, AdamW, SGD, Muon) or optimizer.__module__.startswith("lion_pytorch.")


def set_capturable(optimizer: Optimizer, capturable: bool) -> None:
    """Readies an optimizer of those that compute `in_tensors` for learning rates in tensors, or for numbers."""
    for group in optimizer.param_groups:
        if "capturable" in group:  # torch's
            group["capturable"] = capturable
    inner: Any = getattr(optimizer, "rest", optimizer)  # Muon's AdamW
    inner._warned_capturable_if_run_uncaptured = capturable  # torch would warn of the steps before a capture
    if capturable and hasattr(inner, "update_fn"):
        inner.update_fn = update_lion


def update_lion(
    parameter: Tensor, gradient: Tensor, average: Tensor, lr: Tensor, decay: float, beta1: float, beta2: float
) -> None:
    """The update of lion_pytorch.Lion with a learning rate in a tensor, which its own function reads on the host."""
    parameter.mul_(1 - lr * decay)
    parameter.sub_(average.mul(beta1).add(gradient, alpha=1 - beta1).sgn_() * lr)
    average.mul_(beta2).add_(gradient, alpha=1 - beta2)


@contextmanager
def evaluating(optimizer: Optimizer) -> Generator[None]:
    """While entered, the weights are those to evaluate and keep; schedule-free optimizers train with others."""
    getattr(optimizer, "eval", lambda: None)()
    try:
        yield
    finally:
        getattr(optimizer, "train", lambda: None)()


def clip(parameters: Iterable[Tensor], norm: float | None) -> Tensor:
    """Clips the gradients to a total norm of at most `norm`; gives the norm before, without waiting for the GPU."""
    parameters = list(parameters)
    total = full_tensor(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, norm, total)
    return total


def learning_rate(optimizer: Optimizer) -> float:
    return max(float(group["lr"]) for group in optimizer.param_groups)
