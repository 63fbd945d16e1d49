"""Pool: from all tokens to one vector an image."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitlab.model.attention import explicit
from vitlab.model.mlp import Mlp
from vitlab.model.part import Part


class Pool(Part):
    """The contract: `prefix` learned tokens stand in front of the patches; `forward` makes one vector of them all.

    Args:
        width: channels of a token.
        heads: heads of the encoder, for a pool that attends.
    """

    prefix = 0

    def __init__(self, *, width: int, heads: int):
        super().__init__()

    def forward(self, prefix: Float[Tensor, "b p d"], patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def reads(self, prefix: Float[Tensor, "b p d"], patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b t"]:
        """How much of each token is in the vector, summing to 1, for pictures of attention.

        Of a pool with tokens of its own these alike, else all patches alike.
        """
        own = self.prefix or patches.shape[1]
        start = 0 if self.prefix else prefix.shape[1]
        weights = patches.new_zeros(len(patches), prefix.shape[1] + patches.shape[1])
        weights[:, start : start + own] = 1 / own
        return weights


class Cls(Pool):
    """The class token: a learned token in front, read at the end (Dosovitskiy et al. 2021, eq. 4)."""

    prefix = 1

    def forward(self, prefix: Float[Tensor, "b p d"], patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        return prefix[:, 0]


class Gap(Pool):
    """Global average of the patches, prefix tokens left out (Dosovitskiy et al. 2021, D.3)."""

    def forward(self, prefix: Float[Tensor, "b p d"], patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        return patches.mean(dim=1)


class Map(Pool):
    """Multi-head attention pooling: a learned probe attends to the patches, then an MLP (Zhai et al. 2022)."""

    def __init__(self, *, width: int, heads: int):
        super().__init__(width=width, heads=heads)
        self.heads = heads
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width=width, dropout=0.0)

    def init_layers(self, init: Any) -> None:
        nn.init.xavier_uniform_(self.probe)
        for part in self.key_value.weight.chunk(2):
            nn.init.xavier_uniform_(part)

    def attend(self, patches: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b heads 1 k"], Tensor]:
        """What the probe takes from the patches, and its weights (b heads 1 n)."""
        key, value = self.key_value(patches).chunk(2, dim=-1)
        query = self.query(self.probe).expand(patches.shape[0], -1, -1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        return explicit(q, k, v, None, 0.0)

    def forward(self, prefix: Float[Tensor, "b p d"], patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        x = self.output(self.attend(patches)[0].transpose(1, 2).flatten(2))[:, 0]
        return x + self.mlp(self.norm(x))

    def reads(self, prefix: Float[Tensor, "b p d"], patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b t"]:
        return torch.cat((prefix.new_zeros(prefix.shape[:2]), self.attend(patches)[1].mean(dim=(1, 2))), dim=1)
