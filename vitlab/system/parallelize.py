"""A model wrapped for several processes (DDP, FSDP2), compilation and activation checkpointing."""

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from vitlab.config.errors import ConfigError
from vitlab.model.objective import TrainingModel
from vitlab.model.vit import ViT
from vitlab.system.distributed import Distributed
from vitlab.system.options import System

SHAPES = 256  # of models that a process may train compiled; torch would run a ninth one uncompiled


def parallelize(model: ViT | TrainingModel, dist: Distributed, system: System) -> nn.Module:
    """The model wrapped for training by all processes; unchanged if there is only one."""
    if system.activation_checkpointing:
        if not model.blocks:
            raise ConfigError(
                "system.activation_checkpointing=true: model.depth=0 has no block to compute again: use false"
            )
        for block in model.blocks:
            block.forward = partial(recomputed, block.forward)  # type: ignore[method-assign]
    sharded = dist.size > 1 and system.parallel == "fsdp"
    if system.compile:
        import torch._dynamo.config

        torch._dynamo.config.recompile_limit = SHAPES  # ty: ignore[invalid-assignment]
        for part in model.blocks if sharded else [model]:
            part.compile(mode="reduce-overhead" if system.compile == "graphs" else None)
    if sharded:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(dist.device.type, (dist.size,))
        for part in (*model.blocks, model):
            fully_shard(
                part, mesh=mesh, reshard_after_forward=True
            )  # the root too: see `evaluate`, which swaps weights
        return model
    if dist.size == 1:
        return model
    from torch.nn.parallel import DistributedDataParallel

    devices = [dist.device] if dist.device.type != "cpu" else None
    return DistributedDataParallel(model, device_ids=devices)


@contextmanager
def eagerly(compiled: bool) -> Generator[None]:
    """While entered, a compiled model runs uncompiled: for computations that happen once."""
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield


def recomputed(forward: Callable[..., Tensor], *args: Any) -> Tensor:
    """Calls a block whose activations are recomputed in the backward pass."""
    return checkpoint.checkpoint(forward, *args, use_reentrant=False) if torch.is_grad_enabled() else forward(*args)


@contextmanager
def gradient_sync(net: Any, *, on: bool) -> Generator[None]:
    """Whether the gradients of this backward pass are averaged over the processes."""
    if hasattr(net, "set_requires_gradient_sync"):  # FSDP's
        net.set_requires_gradient_sync(on)
        yield
    elif on or not hasattr(net, "no_sync"):  # DDP's
        yield
    else:
        with net.no_sync():
            yield
