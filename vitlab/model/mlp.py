"""MLP: what a block does to each token alone."""

from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vitlab.config.errors import ConfigError
from vitlab.model.dropout import Dropout
from vitlab.model.part import Part


class TokenMlp(Part):
    """The contract: two linear layers, `expand` and `contract`, whose biases start near zero."""

    expand: nn.Linear
    contract: nn.Linear

    def init_layers(self, init: Any) -> None:
        for bias in (self.expand.bias, self.contract.bias):
            nn.init.normal_(bias, std=init.mlp_bias_std)


class Mlp(TokenMlp):
    """Two linear layers with a GELU between, dropout after each (Dosovitskiy et al. 2021, App. A).

    Args:
        width: channels of a token.
        dropout: dropout probability of the channels.
        ratio: hidden channels per channel of a token.
        gelu: x Phi(x) exactly, or its tanh form (Hendrycks and Gimpel 2016).
    """

    def __init__(
        self, *, width: int, dropout: float = 0.0, ratio: float = 4.0, gelu: Literal["exact", "tanh"] = "exact"
    ):
        super().__init__()
        hidden = hidden_width(width, ratio)
        self.expand = nn.Linear(width, hidden)
        self.activation = nn.GELU(approximate="none" if gelu == "exact" else "tanh")
        self.contract = nn.Linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return self.dropout(self.contract(self.dropout(self.activation(self.expand(x)))))


class SwiGlu(TokenMlp):
    """contract(silu(gate(x)) * expand(x)), Shazeer 2020, "GLU variants improve transformer".

    Args:
        width: channels of a token.
        dropout: dropout probability of the channels.
        ratio: hidden channels per channel of a token; 8/3 has as many parameters as an Mlp of ratio 4.
    """

    def __init__(self, *, width: int, dropout: float = 0.0, ratio: float = 8 / 3):
        super().__init__()
        hidden = hidden_width(width, ratio)
        self.expand = nn.Linear(width, 2 * hidden)  # gate and value in one product
        self.contract = nn.Linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        gate, value = self.expand(x).chunk(2, dim=-1)
        return self.dropout(self.contract(self.dropout(functional.silu(gate) * value)))


def hidden_width(width: int, ratio: float) -> int:
    hidden = round(width * ratio)
    if hidden < 1:
        raise ConfigError(f"mlp ratio={ratio:g} leaves no hidden channel at width={width}: use 4")
    return hidden
