"""Initialisation: what every weight of a ViT starts as, in one place."""

import math
from typing import Any, Literal

from torch import Tensor, nn

from vitlab.config.errors import ConfigError
from vitlab.model.attention import Attention
from vitlab.model.mlp import Mlp, SwiGlu
from vitlab.model.pool import Map
from vitlab.model.position import Learned1d, Learned2d, Relative


def lecun_normal_(weight: Tensor) -> None:
    """Truncated normal of variance 1 / fan_in: flax's default for convolutions."""
    fan_in = weight[0].numel()
    std = math.sqrt(1 / fan_in) / 0.87962566103423978  # the variance that truncation at 2 deviations takes away
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


class Init:
    """Draws the weights of a ViT; the head then sets what its own values say.

    Args:
        stem: how the stem's projections start: `lecun_normal` (flax's convolutions) or `torch` (its own default).
        position_std: standard deviation of learned position tables.
        token_std: standard deviation of the class token and registers.
        mlp_bias_std: standard deviation of the biases inside the MLPs; every other bias starts at zero.
        joint_qkv: xavier's fan of the joint (width, 3 width) projection, instead of each of the three alone.

    Raises:
        ConfigError: a negative deviation.
    """

    def __init__(
        self,
        *,
        stem: Literal["lecun_normal", "torch"],
        position_std: float,
        token_std: float,
        mlp_bias_std: float,
        joint_qkv: bool,
    ):
        deviations = {"position_std": position_std, "token_std": token_std, "mlp_bias_std": mlp_bias_std}
        for name, value in deviations.items():
            if not 0 <= value < math.inf:
                raise ConfigError(f"model.init.{name}={value}: a standard deviation must be 0 or more; 0.02 is usual")
        self.stem = stem
        self.position_std = position_std
        self.token_std = token_std
        self.mlp_bias_std = mlp_bias_std
        self.joint_qkv = joint_qkv

    def __call__(self, model: Any) -> None:
        stem = set(model.stem.modules())
        for module in model.modules():
            match module:
                case nn.Linear() | nn.Conv2d() if module in stem:
                    if self.stem == "lecun_normal":
                        lecun_normal_(module.weight)
                        if module.bias is not None:
                            nn.init.zeros_(module.bias)
                case nn.Linear():
                    nn.init.xavier_uniform_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
                case Learned1d() | Relative():
                    nn.init.normal_(module.table, std=self.position_std)
                case Learned2d():
                    for table in (module.prefix, module.rows, module.columns):
                        nn.init.normal_(table, std=self.position_std)
        if model.prefix is not None:
            nn.init.normal_(model.prefix, std=self.token_std)
        for module in model.modules():  # a second pass: parents say more than the layers they hold
            match module:
                case Attention() if not self.joint_qkv:
                    for part in module.qkv.weight.chunk(3):
                        nn.init.xavier_uniform_(part)
                case Mlp() | SwiGlu():
                    for bias in (module.expand.bias, module.contract.bias):
                        nn.init.normal_(bias, std=self.mlp_bias_std)
                case Map():
                    nn.init.xavier_uniform_(module.probe)
                    for part in module.key_value.weight.chunk(2):
                        nn.init.xavier_uniform_(part)
        model.head.reset()


def authors() -> Init:
    """The authors' code (google-research/vision_transformer, models_vit.py), as conf/model/init/authors.yaml has it."""
    return Init(stem="lecun_normal", position_std=0.02, token_std=0.0, mlp_bias_std=1e-6, joint_qkv=False)
