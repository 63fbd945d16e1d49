"""Exponential moving average of a model's parameters (Polyak and Juditsky 1992).

`torch.optim.swa_utils.AveragedModel` is not used: it copies the whole module, starts from the parameters after the
first update, and has no warm-up of the decay and no swap in place, so results and checkpoints would change.
"""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitlab.system.distributed import local_tensor, shard_like


class Ema:
    """The moving average of a model's parameters; buffers are the model's own.

    Args:
        model: whose parameters are averaged.
        decay: weight of the old average in each update, 0 for no average; at most (1 + update) / (10 + update), a
            warm-up that soon forgets the initial weights.
        captured: whether the weight of the parameters, which the warm-up changes, lies in a tensor.

    Attributes:
        pieces: the averages and the parameters, as an update works on them: in a pack, the same numbers in larger
            pieces.
    """

    def __init__(self, model: nn.Module, decay: float, captured: bool = False):
        self.decay = decay
        self.weight: float | Tensor = 1.0
        self.parameters: list[Tensor] = list(model.parameters())
        self.average = [p.detach().clone() for p in self.parameters] if decay else []
        self.pieces = (self.average, self.parameters if decay else [])
        if captured and decay:
            self.weight = torch.ones((), device=self.parameters[0].device)

    def set(self, update: int) -> None:
        """Sets the weight of the parameters in this update, counted from 0."""
        weight = 1 - min(self.decay, (1 + update) / (10 + update))
        self.weight = self.weight.fill_(weight) if isinstance(self.weight, Tensor) else weight

    @torch.no_grad()
    def update(self) -> None:
        """Updates the average after an optimizer update."""
        if self.average:
            average, parameters = ([local_tensor(each) for each in pieces] for pieces in self.pieces)
            if isinstance(self.weight, Tensor):
                change = torch._foreach_sub(parameters, average)
                torch._foreach_mul_(change, self.weight)
                torch._foreach_add_(average, change)
            else:
                torch._foreach_lerp_(average, parameters, self.weight)

    @contextmanager
    def in_place(self) -> Generator[None]:
        """The model with the averaged weights, for evaluation and export; without an average, as it is."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        for average, parameter in zip(self.average, self.parameters, strict=False):  # no average, no swap
            before = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(before)

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {"average": self.average}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        for average, saved in zip(self.average, state["average"], strict=True):
            average.copy_(shard_like(saved, average))
