"""Block: attention, then MLP, each on a residual path (pre-norm: Dosovitskiy et al. 2021, eq. 2 and 3)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitlab.model.dropout import Rate, drop_path
from vitlab.model.position import Position


class Residual(nn.Module):
    """x + drop_path(scale * branch(norm(x))): the one place for layer scale and stochastic depth.

    Args:
        branch: the module on the residual path.
        width: channels of a token.
        layer_scale: what each channel's learned scale starts at (Touvron et al. 2021, CaiT); None has no scale.
        drop_rate: probability that the branch of an image is dropped in training.
        epsilon: added to the variance in the layer normalisation.
    """

    def __init__(self, branch: nn.Module, *, width: int, layer_scale: float | None, drop_rate: float, epsilon: float):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.branch = branch
        self.scale = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
        self.drop_rate: Rate = drop_rate

    def forward(self, x: Float[Tensor, "b t d"], *args: object) -> Float[Tensor, "b t d"]:
        change = self.branch(self.norm(x), *args)
        if self.scale is not None:
            change = change * self.scale
        return x + drop_path(change, self.drop_rate, self.training)


class Block(nn.Module):
    """Two residual paths: attention over the tokens, and the MLP of each."""

    def __init__(self, attention: Residual, mlp: Residual):
        super().__init__()
        self.attention = attention
        self.mlp = mlp

    def forward(
        self, x: Float[Tensor, "b t d"], position: Position, weights: list[Tensor] | None = None
    ) -> Float[Tensor, "b t d"]:
        return self.mlp(self.attention(x, position, weights))
