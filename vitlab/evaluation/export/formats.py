"""The formats, what each can hold, and the check that what was written computes what the model does."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitlab.config.errors import ConfigError, StorageError
from vitlab.evaluation.load import Trained
from vitlab.model.attention import Attention
from vitlab.model.head import Linear
from vitlab.model.mlp import Mlp, SwiGlu
from vitlab.model.pool import Cls, Gap, Map
from vitlab.model.position import Learned1d, Learned2d, Position, SinCos2d
from vitlab.model.stem import Patches
from vitlab.model.vit import ViT

FORMATS = {  # what each is, in the words of the help
    "onnx": "ONNX, for ONNX Runtime and others",
    "torch": "a program of torch.export, which needs no vitlab",
    "hf": "a folder for Hugging Face's transformers",
    "timm": "a folder for timm",
    "safetensors": "the weights and their facts, for vitlab",
}
GRAPHS = ("onnx", "torch")  # the operations themselves: any model
TOLERANCE = 1e-4  # of logits, relative to the largest where that is above 1

Reader = Callable[[Tensor], Tensor]  # what was written, run: from its input to its output


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What goes in and out of a graph.

    Args:
        preprocess: whether pixels of 0 ... 255 go in (uint8), and normalization is inside; else normalized images.
        probabilities: whether they come out; else logits.
    """

    preprocess: bool = False
    probabilities: bool = False

    @property
    def output(self) -> str:
        return "probabilities" if self.probabilities else "logits"

    def facts(self, trained: Trained) -> dict[str, Any]:
        """What a reader must know: the preprocessing and the class names; plain values."""
        ready = trained.preprocess
        return {
            "input": "uint8 pixels, 0 to 255" if self.preprocess else "float32, (pixels / 255 - mean) / std",
            "output": self.output,
            "classes": list(trained.classes),
            "image_size": list(ready.resize.size),
            "channels": len(ready.mean),
            "mean": list(ready.mean),
            "std": list(ready.std),
            "crop": ready.resize.crop,
            "background": ready.decoding.background and list(ready.decoding.background),
            "range": ready.decoding.range and list(ready.decoding.range),
        }


def part(slot: str, module: nn.Module) -> str:
    return f"{type(module).__name__} as model/{slot}"


def special(trained: Trained) -> dict[str, tuple[str, ...]]:
    """What a model has that not every format can hold, in the words of its options: and which of hf and timm can.

    What is not known, such as a class of the user's own, none of them can.
    """
    vit, size = trained.model, trained.preprocess.resize.size
    position, pool = vit.position(0), vit.pool
    additive = type(position) in (Learned1d, Learned2d, SinCos2d)
    found: list[tuple[bool, str, tuple[str, ...]]] = [
        (type(vit) is not ViT, type(vit).__name__, ()),
        (type(vit.stem) is not Patches, part("stem", vit.stem), ()),
        (not (additive or type(position) is Position), part("position", position), ()),
        (additive and position.at != "stem", f"model.position.at={position.at}", ()),
        (type(pool) not in (Cls, Gap, Map), part("pool", pool), ()),
        (type(vit.head) is not Linear, part("head", vit.head), ()),
        (not vit.blocks, "model.depth=0", ()),
        (vit.grid.prefix > pool.prefix, f"model.registers={vit.grid.prefix - pool.prefix}", ("timm",)),
        (isinstance(vit.norm, nn.Identity), "model.final_norm=false", ("timm",)),
        (size[0] != size[1], f"image_size={size[0]}x{size[1]}, which is no square", ("timm",)),
    ]
    for block in cast(list[Any], [*vit.blocks][:1]):  # which are all alike
        attention, mlp, epsilon = block.attention.branch, block.mlp.branch, block.attention.norm.eps
        found += [
            (type(attention) is not Attention, part("attention", attention), ()),
            (not isinstance(getattr(attention, "q_norm", None), nn.Identity), "model.attention.qk_norm=true", ()),
            (type(mlp) not in (Mlp, SwiGlu), part("mlp", mlp), ()),
            (type(mlp) is SwiGlu, part("mlp", mlp), ("timm",)),
            (epsilon != 1e-6, f"model.epsilon={epsilon:g}", ("hf",)),
            (type(pool) is Map, part("pool", pool), ("timm",)),
            (type(pool) is Map and not like_map(mlp), "another MLP than that of model/pool=map", ()),
        ]
    return {words: holders for present, words, holders in found if present}


def like_map(mlp: nn.Module) -> bool:
    """Whether a block's MLP is as that of `Map`: timm has one choice for both."""
    return (
        type(mlp) is Mlp
        and mlp.activation.approximate == "none"
        and mlp.expand.out_features == 4 * mlp.expand.in_features
    )


def check(trained: Trained, to: str, interface: Interface) -> None:
    """Refuses a format that cannot hold the model, or its interface.

    Raises:
        ConfigError: what of the model, and which formats can hold it; or packages that are missing.
    """
    if to not in GRAPHS and interface != Interface():
        flag = "--preprocess" if interface.preprocess else "--probabilities"
        raise ConfigError(f"{flag} is for --to {' and '.join(GRAPHS)}: of {to} the reader computes that")
    if to not in ("hf", "timm"):
        return
    found = special(trained)
    if lost := [words for words, holders in found.items() if to not in holders]:
        others = [name for name in FORMATS if name not in ("hf", "timm") or all(name in of for of in found.values())]
        raise ConfigError(
            f"--to {to}: {'timm' if to == 'timm' else 'transformers'} has no {', '.join(lost)}: use --to"
            f" {', '.join(others[:-1])} or {others[-1]}"
        )


@torch.no_grad()
def compare(reader: Reader, trained: Trained, interface: Interface, pixels: Tensor, file: Path) -> float:
    """The largest difference between what was written and the model; images go in alone and together.

    Args:
        reader: of what was written.
        trained: the model.
        interface: of what was written.
        pixels: 0 ... 255 (b c y x), uint8.
        file: for the error.

    Raises:
        StorageError: they differ by more than `TOLERANCE`.
    """
    images = trained.preprocess.normalize(pixels)
    inputs = pixels if interface.preprocess else images
    expected = trained(images)
    expected = expected.softmax(-1) if interface.probabilities else expected
    found = torch.cat([reader(inputs[:1]), reader(inputs[1:])]) if len(inputs) > 1 else reader(inputs)
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise StorageError(
            f"{file} is not kept: its outputs differ from the model's by up to {difference:.2g}, and {TOLERANCE:g} is"
            " allowed: please report it, and use another format"
        )
    return difference
