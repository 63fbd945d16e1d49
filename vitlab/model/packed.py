"""A pack: several models of one shape computed as one batched model (Wang et al. 2021, HFTA), by `torch.func.vmap`."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from vitlab.model import stacked
from vitlab.model.attention import Attention
from vitlab.model.block import Residual
from vitlab.model.dropout import Draw, Dropout, drawing_from

FASTER: dict[type, Any] = {nn.Linear: stacked.Linear, nn.LayerNorm: stacked.Norm}
RATES = {Dropout: "rate", Residual: "drop_rate", Attention: "dropout"}  # attributes in which the models may differ


class Packed:
    """The forward pass of models that differ in their weights and in `RATES` alone.

    Args:
        models: whose code is that of the first.
    """

    def __init__(self, models: Sequence[nn.Module]):
        self.template = copy.deepcopy(models[0]).requires_grad_(False)
        peers = [dict(model.named_modules()) for model in models]
        for name, module in self.template.named_modules():
            for kind, attribute in RATES.items():
                if isinstance(module, kind):
                    setattr(module, attribute, tuple(getattr(own[name], attribute) for own in peers))
            if type(module) in FASTER:
                module.forward = FASTER[type(module)](module)
        self.computed = vmap(self.compute, randomness="error")
        self.draws: dict[torch.Size, list[Draw]] = {}  # of a forward pass, by the shape of the images

    def compute(
        self, weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor, numbers: list[Tensor]
    ) -> Any:
        drawn = iter(numbers)
        now = weights | buffers
        with drawing_from(lambda _: next(drawn)):
            outputs = functional_call(self.template, now, (images,))
        for name, buffer in buffers.items():
            if now[name] is not buffer:  # a module has set another one
                buffer.copy_(now[name])
        return outputs

    def __call__(
        self,
        weights: dict[str, Tensor],
        buffers: dict[str, Tensor],
        images: Float[Tensor, "m b c y x"],
        generators: Sequence[torch.Generator],
    ) -> Any:
        """The outputs of all models, as those of one with a dimension in front.

        Args:
            weights: by name, those of all models stacked.
            buffers: likewise; they are changed in place.
            images: a batch for each model.
            generators: of the random draws of each.
        """
        if images.shape not in self.draws:
            self.draws[images.shape] = self.find_draws(weights, buffers, images)
        numbers = [drawn_by_each(draw, generators, images.device) for draw in self.draws[images.shape]]
        return self.computed(weights, buffers, images, numbers)

    @torch.no_grad()
    def find_draws(
        self, weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Float[Tensor, "m b c y x"]
    ) -> list[Draw]:
        """The random draws of a forward pass, in their order."""
        found: list[Draw] = []

        def record(draw: Draw) -> Tensor:
            found.append(draw)
            return torch.ones(draw.shape, dtype=draw.dtype, device=images.device)

        first = (
            {name: each[0] for name, each in weights.items()},
            {name: each[0].clone() for name, each in buffers.items()},
        )
        with drawing_from(record):
            functional_call(self.template, first, (images[0],))
        return found


def drawn_by_each(draw: Draw, generators: Sequence[torch.Generator], device: torch.device) -> Tensor:
    """The random numbers of all models (m ...), each from its own generator."""
    numbers = torch.empty(len(generators), *draw.shape, dtype=draw.dtype, device=device)
    rates = draw.rate if isinstance(draw.rate, tuple) else (draw.rate,) * len(generators)
    for own, generator, rate in zip(numbers, generators, rates, strict=True):
        draw.fill(own, generator, rate)
    return numbers
