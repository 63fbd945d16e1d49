"""Initialisation of the weights of a ViT."""

import math
from typing import Any, Literal

from torch import Tensor, nn

from vitlab.config.errors import ConfigError
from vitlab.model.part import Part


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
                case Part():
                    module.init_parameters(self)
        if model.prefix is not None:
            nn.init.normal_(model.prefix, std=self.token_std)
        for module in model.modules():
            if isinstance(module, Part):
                module.init_layers(self)
        model.head.reset()


def authors() -> Init:
    """The authors' code (google-research/vision_transformer, models_vit.py), as conf/model/init/authors.yaml has it."""
    return Init(stem="lecun_normal", position_std=0.02, token_std=0.0, mlp_bias_std=1e-6, joint_qkv=False)
