"""The same ViT as four other libraries write it; each is imported when it is asked for."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError, Node

FREE = (
    "patch",
    "width",
    "depth",
    "heads",
    "dropout",
    "drop_path",
    "epsilon",
    "init",
)  # of the model: what peers have, or time
FREE_INSIDE = ("head.zero_init", "head.bias_init", "attention.dropout", "attention.kernel")  # does not depend on


@dataclass(frozen=True)
class Shape:
    """What a standard ViT is told by; `side` of a square image and `patch` are in pixels."""

    side: int
    channels: int
    classes: int
    patch: int
    width: int
    depth: int
    heads: int

    @property
    def mlp(self) -> int:
        return 4 * self.width


@dataclass(frozen=True)
class Library:
    """A library that has a ViT.

    Args:
        module: where it is imported from.
        make: the model of a shape, from that module.
        more: parameters that it has above vitlab's; negative where it has fewer.
        why: what those are.
    """

    module: str
    make: Callable[[Any, Shape], nn.Module]
    more: Callable[[Shape], int] = lambda shape: 0
    why: str = ""

    def load(self) -> ModuleType:
        """Its module; raises ImportError where it is not installed."""
        return importlib.import_module(self.module)


def timm(library: Any, shape: Shape) -> nn.Module:
    return library.VisionTransformer(
        img_size=shape.side,
        patch_size=shape.patch,
        in_chans=shape.channels,
        num_classes=shape.classes,
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.heads,
    )


def torchvision(library: Any, shape: Shape) -> nn.Module:
    model = library.VisionTransformer(
        image_size=shape.side,
        patch_size=shape.patch,
        num_layers=shape.depth,
        num_heads=shape.heads,
        hidden_dim=shape.width,
        mlp_dim=shape.mlp,
        num_classes=shape.classes,
    )
    if shape.channels != 3:  # which it takes for granted
        model.conv_proj = nn.Conv2d(shape.channels, shape.width, shape.patch, shape.patch)
    return model


def transformers(library: Any, shape: Shape) -> nn.Module:
    return library.ViTForImageClassification(
        library.ViTConfig(
            image_size=shape.side,
            patch_size=shape.patch,
            num_channels=shape.channels,
            hidden_size=shape.width,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            intermediate_size=shape.mlp,
            num_labels=shape.classes,
        )
    )


def vit_pytorch(library: Any, shape: Shape) -> nn.Module:
    return library.ViT(
        image_size=shape.side,
        patch_size=shape.patch,
        channels=shape.channels,
        num_classes=shape.classes,
        dim=shape.width,
        depth=shape.depth,
        heads=shape.heads,
        dim_head=shape.width // shape.heads,
        mlp_dim=shape.mlp,
    )


LIBRARIES = {
    "timm": Library("timm.models.vision_transformer", timm),
    "torchvision": Library("torchvision.models", torchvision),
    "transformers": Library("transformers.models.vit.modeling_vit", transformers),
    "vit-pytorch": Library(
        "vit_pytorch",
        vit_pytorch,
        lambda shape: 2 * shape.channels * shape.patch**2 + 2 * shape.width - 3 * shape.width * shape.depth,
        "no bias of queries, keys and values; two more norms, around the projection of patches",
    ),
}


def comparable(node: Node, choices: dict[str, str]) -> None:
    """Refuses a checked configuration that the libraries have no like of.

    Raises:
        ConfigError: naming what it has and they have not.
    """
    plain = check(compose(["dataset=synthetic"])[0])["model"]
    said = []
    for key, value in node["model"].items():
        if key in FREE or value == plain[key]:
            continue
        if not isinstance(value, dict):
            said.append(f"model.{key}={value}")
        elif value["_target_"] != plain[key]["_target_"]:
            said.append(f"model/{key}={choices.get(f'model/{key}', value['_target_'])}")
        else:
            inside = {f"{key}.{name}": of for name, of in value.items() if of != plain[key].get(name)}
            said += [f"model.{name}={of}" for name, of in inside.items() if name not in FREE_INSIDE]
    if said:
        raise ConfigError(
            f"--peers with {' '.join(said)}: the other libraries have the standard ViT alone (linear patches, learned"
            " positions, class token, exact GELU): leave that out, or --peers"
        )
    if node["optimizer"]["_target_"] == "vitlab.training.muon.Muon":
        raise ConfigError("--peers with optimizer=muon: it knows the matrices of vitlab's model alone: use adamw")
    if node["system"]["activation_checkpointing"]:
        raise ConfigError("--peers with system.activation_checkpointing=true: vitlab's model alone can: leave it out")
