"""What `torch.func.vmap` does slowly, written out over the numbers of all models of a pack.

Under vmap a module sees its numbers as those of one model. `over_models` gives a function those of all of them, the
models in front. That takes names of torch that are not public, which are used in this file alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import Function
from torch.nn import functional


def over_models(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function(*tensors)` of the tensors of all models (m ...), as which it gives (m ...); without vmap of one."""
    batched = [each for each in tensors if _functorch.is_batchedtensor(each)]
    if not batched:
        return function(*(each[None] for each in tensors))[0]
    level, size = _functorch.maybe_get_level(batched[0]), len(of_all(batched[0]))
    whole = [of_all(each) if _functorch.is_batchedtensor(each) else each.expand(size, *each.shape) for each in tensors]
    with temporarily_pop_interpreter_stack():
        out = function(*whole)
    return _functorch._add_batch_dim(out, 0, level)


def of_all(tensor: Tensor) -> Tensor:
    """The numbers of all models, of a tensor under vmap."""
    return _functorch.get_unwrapped(tensor).movedim(_functorch.maybe_get_bdim(tensor), 0)


class Linear:
    """The forward pass of a linear layer: one batched product with the biases.

    Args:
        layer: of a pack's template.
    """

    def __init__(self, layer: nn.Linear):
        self.layer = layer

    def __call__(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b e"]:
        weight, bias = self.layer.weight, self.layer.bias
        return functional.linear(x, weight) if bias is None else over_models(product, x, weight, bias)


def product(x: Float[Tensor, "m *b d"], weight: Float[Tensor, "m e d"], bias: Float[Tensor, "m e"]) -> Tensor:
    out = torch.baddbmm(bias[:, None], x.reshape(len(x), -1, x.shape[-1]), weight.mT)
    return out.view(*x.shape[:-1], -1)


class Norm:
    """The forward pass of a layer normalisation: that of all models in one call, then their scales and shifts.

    Args:
        layer: of a pack's template, over the last dimension.
    """

    def __init__(self, layer: nn.LayerNorm):
        self.layer = layer
        self.one, self.zero = torch.ones_like(layer.weight), torch.zeros_like(layer.bias)

    def __call__(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return over_models(self.normalised, x, self.layer.weight, self.layer.bias)

    def normalised(self, x: Float[Tensor, "m *b d"], weight: Tensor, bias: Tensor) -> Tensor:
        return Normalised.apply(x.flatten(1, -2), weight, bias, self.one, self.zero, self.layer.eps).view(x.shape)


class Normalised(Function):
    """weight * normalised(x) + bias, for each model."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "m r d"], weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        one, zero, epsilon = rest  # torch's kernel is faster with a scale and a shift than without
        normal, mean, deviation = torch.native_layer_norm(x, one.shape, one, zero, epsilon)
        mixed = x.dtype != one.dtype  # half precision, in which the kernel asks for a scale to tell so
        ctx.save_for_backward(x, weight, normal, mean, deviation, *((one, zero) if mixed else (None, None)))
        return torch.addcmul(bias[:, None], normal, weight[:, None])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (change,) = grad_outputs
        x, weight, normal, mean, deviation, *ones = ctx.saved_tensors
        shape = x.shape[-1:]
        of_normal = (change * weight[:, None]).to(x.dtype)
        (of_x, _, _) = torch.ops.aten.native_layer_norm_backward(
            of_normal, x, shape, mean, deviation, *ones, (True, False, False)
        )
        return of_x, (change * normal).sum(dim=1), change.sum(dim=1), None, None, None
