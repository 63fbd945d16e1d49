"""The Muon optimizer (Jordan et al. 2024)."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import AdamW, Optimizer

from vitlab.config.errors import ConfigError
from vitlab.system.distributed import full_tensor, shard_like
from vitlab.system.lazy_imports import spare_dynamo


class Muon(Optimizer):
    """Muon for the matrices inside the blocks, AdamW for everything else (Jordan 2024; Liu et al. 2025).

    Each matrix moves along its momentum made orthogonal, scaled to the size of AdamW's steps (Liu et al.), so that one
    learning rate and weight decay serve both. torch.optim.Muon is the same for one matrix after the other, in bf16;
    here all matrices of one shape are made orthogonal together, in fp32 on a CPU; queries, keys and values are separate
    matrices.

    Args:
        params: groups; `matrices` of a group is the number of matrices in each of its parameters, 0 for AdamW.
        lr: learning rate.
        weight_decay: decoupled, as AdamW's.
        momentum: of Muon.
        iterations: of Newton-Schulz.
        betas: of AdamW.
        eps: of AdamW.
        fused: torch's fused kernel for AdamW.

    Raises:
        ConfigError: a negative rate or decay, a momentum outside 0 ... 1.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        iterations: int,
        betas: tuple[float, float],
        eps: float,
        fused: bool = False,
    ):
        if not (lr >= 0 and weight_decay >= 0 and 0 <= momentum < 1 and iterations >= 1):
            raise ConfigError(f"Invalid lr={lr}, weight_decay={weight_decay}, momentum={momentum} or {iterations=}")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.iterations = iterations
        rest = [group for group in self.param_groups if not group["matrices"]]
        self.rest = spare_dynamo(AdamW(rest, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused))
        self.share_state()

    def share_state(self) -> None:
        """AdamW works on this optimizer's own groups and state, so that both are set, saved and loaded as one."""
        self.rest.param_groups = [group for group in self.param_groups if not group["matrices"]]
        self.rest.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.share_state()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        stacks: dict[torch.Size, list[tuple[dict[str, Any], Tensor, Tensor]]] = defaultdict(list)
        for group in self.param_groups:
            for parameter in group["params"] if group["matrices"] else ():
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])  # Nesterov's
                pieces = full_tensor(update).unflatten(0, (group["matrices"], -1))
                stacks[pieces.shape[1:]].append((group, parameter, pieces))
        for shape, members in stacks.items():
            turned = orthogonal(torch.cat([pieces for _, _, pieces in members]), self.iterations)
            sizes = [len(pieces) for _, _, pieces in members]
            for (group, parameter, _), direction in zip(members, turned.split(sizes), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                length = 0.2 * math.sqrt(max(shape))
                direction = shard_like(direction.reshape(parameter.shape).to(parameter.dtype), parameter)
                rate = group["lr"] * length
                if isinstance(rate, Tensor):  # alpha would be read by the host
                    parameter.sub_(direction * rate)
                else:
                    parameter.add_(direction, alpha=-rate)
        self.rest.step()


def orthogonal(stack: Float[Tensor, "n r c"], iterations: int) -> Float[Tensor, "n r c"]:
    """Each matrix with its singular values brought near 1, by Newton-Schulz iterations (Jordan 2024's coefficients)."""
    x = stack.bfloat16() if stack.device.type == "cuda" else stack.float()
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x if wide else x.mT
