"""The same ViT in four other libraries, each imported when it is used."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError, Node

# Of the model: what the other libraries have as well, and what does not change the time of a step.
FREE = ("patch", "width", "depth", "heads", "dropout", "drop_path", "epsilon", "init")
FREE_IN_PARTS = ("head.zero_init", "head.bias_init", "attention.dropout", "attention.kernel")


@dataclass(frozen=True)
class Sizes:
    """The sizes of a standard ViT; the `side` of its square images and its `patch` are in pixels."""

    side: int
    channels: int
    classes: int
    patch: int
    width: int
    depth: int
    heads: int


@dataclass(frozen=True)
class Library:
    """A library with a ViT.

    Args:
        module: where it is imported from.
        make: builds the model, given that module.
        more: parameters above those of vitlab's model; negative where it has fewer.
        why: what those are.
    """

    module: str
    make: Callable[[Any, Sizes], nn.Module]
    more: Callable[[Sizes], int] = lambda sizes: 0
    why: str = ""

    def load(self) -> ModuleType:
        """Its module.

        Raises:
            ImportError: it is not installed.
        """
        return importlib.import_module(self.module)


def timm(library: Any, s: Sizes) -> nn.Module:
    return library.VisionTransformer(
        img_size=s.side,
        patch_size=s.patch,
        in_chans=s.channels,
        num_classes=s.classes,
        embed_dim=s.width,
        depth=s.depth,
        num_heads=s.heads,
    )


def torchvision(library: Any, s: Sizes) -> nn.Module:
    model = library.VisionTransformer(
        image_size=s.side,
        patch_size=s.patch,
        num_layers=s.depth,
        num_heads=s.heads,
        hidden_dim=s.width,
        mlp_dim=4 * s.width,
        num_classes=s.classes,
    )
    if s.channels != 3:  # the only number that it knows
        model.conv_proj = nn.Conv2d(s.channels, s.width, s.patch, s.patch)
    return model


def transformers(library: Any, s: Sizes) -> nn.Module:
    return library.ViTForImageClassification(
        library.ViTConfig(
            image_size=s.side,
            patch_size=s.patch,
            num_channels=s.channels,
            hidden_size=s.width,
            num_hidden_layers=s.depth,
            num_attention_heads=s.heads,
            intermediate_size=4 * s.width,
            num_labels=s.classes,
        )
    )


def vit_pytorch(library: Any, s: Sizes) -> nn.Module:
    return library.ViT(
        image_size=s.side,
        patch_size=s.patch,
        channels=s.channels,
        num_classes=s.classes,
        dim=s.width,
        depth=s.depth,
        heads=s.heads,
        dim_head=s.width // s.heads,
        mlp_dim=4 * s.width,
    )


LIBRARIES = {
    "timm": Library("timm.models.vision_transformer", timm),
    "torchvision": Library("torchvision.models", torchvision),
    "transformers": Library("transformers.models.vit.modeling_vit", transformers),
    "vit-pytorch": Library(
        "vit_pytorch",
        vit_pytorch,
        lambda s: 2 * s.channels * s.patch**2 + 2 * s.width - 3 * s.width * s.depth,
        "no bias of queries, keys and values; two more norms, around the projection of patches",
    ),
}


def check_comparable(config: Node, choices: dict[str, str]) -> None:
    """Refuses a configuration whose model or step the other libraries do not have.

    Raises:
        ConfigError: names what they do not have.
    """
    standard = check(compose(["dataset=synthetic"])[0])["model"]
    different = []
    for key, value in config["model"].items():
        if key in FREE or value == standard[key]:
            continue
        if not isinstance(value, dict):
            different.append(f"model.{key}={value}")
        elif value["_target_"] != standard[key]["_target_"]:
            different.append(f"model/{key}={choices.get(f'model/{key}', value['_target_'])}")
        else:
            options = {f"{key}.{name}": option for name, option in value.items() if option != standard[key].get(name)}
            different += [f"model.{name}={option}" for name, option in options.items() if name not in FREE_IN_PARTS]
    if different:
        raise ConfigError(
            f"--peers with {' '.join(different)}: the other libraries only have the standard ViT (linear patches,"
            " learned positions, class token, exact GELU): leave that out, or --peers"
        )
    if config["optimizer"]["_target_"] == "vitlab.training.muon.Muon":
        raise ConfigError("--peers with optimizer=muon: it only knows the matrices of vitlab's model: use adamw")
    if config["system"]["activation_checkpointing"]:
        raise ConfigError("--peers with system.activation_checkpointing=true: only vitlab's model has it: leave it out")
