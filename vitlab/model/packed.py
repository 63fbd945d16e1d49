"""A pack: several models of one shape computed as one batched model (Wang et al. 2021, HFTA), by `torch.func.vmap`."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call, vmap
from torch.nn import functional

from vitlab.model.attention import Attention
from vitlab.model.block import Residual
from vitlab.model.dropout import Draw, Dropout, drawing_from

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
            if type(module) is nn.Linear:
                module.forward = BatchedLinear(module)
        self.computed = vmap(self.compute, randomness="error")
        self.draws: dict[torch.Size, list[Draw]] = {}  # of a forward pass, by the shape of the images

    def compute(
        self, weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor, numbers: list[Tensor]
    ) -> Any:
        drawn = iter(numbers)
        with drawing_from(lambda _: next(drawn)):
            return functional_call(self.template, (weights, buffers), (images,))

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


class BatchedLinear:
    """The forward pass of a linear layer in a template."""

    def __init__(self, layer: nn.Linear):
        self.layer = layer

    def __call__(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b e"]:
        bias = self.layer.bias
        return functional.linear(x, self.layer.weight) if bias is None else Product.apply(x, self.layer.weight, bias)


class Product(Function):
    """A linear layer of all models as one product with the biases, which vmap would add in a pass of their own."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Tensor) -> tuple[Tensor, int]:
        x, weight, bias = (
            each.expand(info.batch_size, *each.shape) if place is None else each.movedim(place, 0)
            for each, place in zip(args, in_dims, strict=True)
        )
        out = torch.baddbmm(bias[:, None], x.reshape(len(x), -1, x.shape[-1]), weight.mT)
        return out.view(*x.shape[:-1], -1), 0
