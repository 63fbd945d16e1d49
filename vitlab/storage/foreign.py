"""Weights of other libraries' ViTs: their files and folders, read without running code, as tensors of vitlab's ViT.

What a file does not say (heads, class names, normalisation of pixels) comes from the config.json of its folder, or from
a JSON file that the user puts beside it; else it is what the library usually has.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from vitlab.config.errors import ConfigError, Node
from vitlab.config.groups import CONF
from vitlab.model.attention import Attention
from vitlab.model.position import Learned1d
from vitlab.model.resnet import REDUCED
from vitlab.model.vit import ViT
from vitlab.storage import checkpoint
from vitlab.storage.foreign_files import IN_FOLDERS, check_tensor, contents, known_facts, note_of
from vitlab.storage.layouts import LAYOUTS, Layout, from_flax

STATES = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")  # the first is used, as timm does
HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}  # width -> heads, of published ViTs whose heads are not 64 wide
BEFORE_UNITS = 4  # layers of a ResNet in front of its bottlenecks: convolution, norm, ReLU, maximum


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A ViT of another library: its weights by vitlab's names and in its shapes, and what is known of the model.

    Args:
        path: the file or the folder.
        layout: the library's.
        weights: 32-bit tensors on the CPU.
        said: what its folder and the user say of `SAID`.
        patch: side of a patch in pixels.
        image_size: height and width that its positions are for, in pixels.
        class_token: whether it has one; it is the first row of `prefix`.
        stages: bottlenecks of each stage of the ResNet in front; None without a ResNet.
        left_out: tensors that have no use here, by their names there.
    """

    path: Path
    layout: Layout
    weights: dict[str, Tensor]
    said: Mapping[str, Any]
    patch: int
    image_size: tuple[int, int]
    class_token: bool
    stages: tuple[int, ...] | None
    left_out: tuple[str, ...]

    @property
    def width(self) -> int:
        return self.weights["stem.projection.weight"].shape[0]

    @property
    def depth(self) -> int:
        return len({name.split(".")[1] for name in self.weights if name.startswith("blocks.")})

    @property
    def channels(self) -> int:
        first = self.weights.get("stem.layers.0.weight", self.weights["stem.projection.weight"])
        return first.shape[1] if first.ndim == 4 else first.shape[1] // self.patch**2

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes, or where it does not say them their numbers, from 0; empty without a head."""
        head = self.weights.get("head.output.weight", ())
        return tuple(self.said.get("classes") or map(str, range(len(head))))

    @property
    def heads(self) -> int | None:
        """Its attention heads; where it does not say them the usual number, if there is one."""
        usual = HEADS.get(self.width) or (None if self.width % 64 else self.width // 64)
        return self.said.get("heads", usual)

    @property
    def pool(self) -> str:
        return "map" if "pool.probe" in self.weights else "cls" if self.class_token else "gap"

    @property
    def registers(self) -> int:
        """Tokens in front of the patches besides the class token; a distillation token is one."""
        return len(self.weights.get("prefix", ())) - self.class_token

    @property
    def epsilon(self) -> float:
        return self.said.get("epsilon", self.layout.epsilon)

    @property
    def gelu(self) -> str:
        return self.said.get("gelu", self.layout.gelu)

    @property
    def note(self) -> Path:
        """The JSON file in which the user may say what these do not."""
        return note_of(self.path)

    def __str__(self) -> str:
        height, width = self.image_size
        heads = f"heads {self.said['heads']}, " if "heads" in self.said else ""
        return (
            f"a ViT of {self.layout.library}'s of width {self.width}, depth {self.depth}, {heads}patch {self.patch},"
            f" for {height}x{width} pixels of {self.channels} channel{'s' * (self.channels > 1)}"
        )

    def options(self) -> list[str]:
        """The model as overrides of `vitlab train`; a number of heads that nobody knows is left out."""
        shape = {"width": self.width, "depth": self.depth, "heads": self.heads}
        files = (CONF / "model").glob("*.yaml")
        sizes = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in files}
        plain = (name for name, node in sizes.items() if node["defaults"] == ["vit", "_self_"])
        named = next((name for name in plain if shape.items() <= sizes[name].items()), None)
        given = [f"model={named}"] if named else ["model=vit", *(f"model.{k}={v}" for k, v in shape.items() if v)]
        known = {file.stem for file in (CONF / "patch").glob("*.yaml")}
        given.append(f"patch=p{self.patch}" if f"p{self.patch}" in known else f"model.patch={self.patch}")
        of = self.weights
        ratio = len(of["blocks.0.mlp.branch.expand.weight"]) / self.width if self.depth else 4
        if self.stages is not None:
            given += ["model/stem=resnet50", f"model.stem.blocks=[{','.join(map(str, self.stages))}]"]
            given += [f"model.stem.widen={len(of['stem.layers.0.weight']) / 64:g}", "model.stem.padding=far"]
        unusual = {
            f"model/pool={self.pool}": self.pool != "cls",
            f"model.registers={self.registers}": self.registers > 0,
            "model/mlp=gelu_tanh": self.gelu == "tanh",
            f"model.mlp.ratio={ratio!r}": ratio != 4,
            "model.attention.qkv_bias=false": self.depth > 0 and "blocks.0.attention.branch.qkv.bias" not in of,
            "model.layer_scale=0.1": "blocks.0.attention.scale" in of,
            "model.final_norm=false": "norm.weight" not in of,
            f"model.epsilon={self.epsilon!r}": self.epsilon != 1e-6,
            "model/head=tanh_mlp": "head.hidden.weight" in of,
        }
        return given + [option for option, holds in unusual.items() if holds]

    def differences(self, model: ViT) -> list[str]:
        """Options without which a model that these weights fit computes something else than theirs."""
        found = {}
        for module in (model.blocks or model).modules():
            if isinstance(module, Attention) and type(module) is not Attention:
                found["model/attention=full"] = None
            if isinstance(module, nn.LayerNorm) and module.eps != self.epsilon:
                found[f"model.epsilon={self.epsilon!r}"] = None
            if isinstance(module, nn.GELU) and (module.approximate == "tanh") != (self.gelu == "tanh"):
                found[f"model/mlp={'gelu_tanh' if self.gelu == 'tanh' else 'gelu'}"] = None
        if self.stages is not None and getattr(model.stem, "padding", "far") != "far":
            found["model.stem.padding=far"] = None
        if model.grid.prefix != len(self.weights.get("prefix", ())):
            found |= dict.fromkeys((f"model/pool={self.pool}", f"model.registers={self.registers}"))
        if self.heads_of(model) not in (None, self.heads) and self.heads:
            found[f"model.heads={self.heads}"] = None
        if type(model.positions[0]) is Learned1d and model.positions[0].at != "stem":
            found["model.position.at=stem"] = None
        return list(found)

    def check_heads(self, model: ViT) -> None:
        """Raises ConfigError for a model of other heads than these weights are known to have; no shape shows them."""
        heads = self.heads_of(model)
        if heads and self.said.get("heads", heads) != heads:
            raise ConfigError(
                f"{self.path} holds {self}, and the model has {heads} heads: use {' '.join(self.options())}"
            )

    def heads_of(self, model: ViT) -> int | None:
        """The heads of a model of vitlab's; None if it has no block."""
        return next((each.heads for each in model.modules() if isinstance(each, Attention)), None)

    def unsaid(self) -> str:
        """What is taken to be as usual, and where the user may say otherwise; empty if the file says everything."""
        mean, deviation = self.layout.pixels
        taken = {
            f"{self.heads} heads": "heads" not in self.said,
            f"pixels normalised by mean {mean} and deviation {deviation}": "mean" not in self.said,
            "numbers for the names of its classes": bool(self.classes) and "classes" not in self.said,
        }
        said = [what for what, holds in taken.items() if holds]
        text = f"it does not say more, so {', '.join(said)} are taken: {self.note} may say otherwise" if said else ""
        distilled = any("dist" in name for name in self.left_out)
        return text + "; its logits are of the class token's head alone, without the distillation token's" * distilled


def is_foreign(path: Path) -> bool:
    """Whether it is a file, or a folder of the Hugging Face Hub, and neither a run nor in one."""
    folder = path if path.is_dir() else path.parent
    if (folder / "config.yaml").is_file():
        return False
    return path.is_file() or any((path / name).is_file() for name in IN_FOLDERS)


def results_folder(path: Path) -> Path:
    """Where commands write what they find out about a run or a model: its folder, or one beside its file."""
    return path.with_name(f"{path.stem}-vitlab") if path.is_file() and is_foreign(path) else path


def read(path: Path) -> Foreign:
    """The ViT in a file or a folder of another library.

    Raises:
        ConfigError: it holds none, or one with parts that vitlab's ViT does not have.
        StorageError: it cannot be read without running code in it.
    """
    file = next((path / name for name in IN_FOLDERS if (path / name).is_file()), path)
    return of_state(path, contents(file))


def of_state(path: Path, state: Node) -> Foreign:
    """The ViT that `contents` has read.

    Args:
        path: of its file or its folder.
        state: tensors by name, or a checkpoint that holds such a dictionary.

    Raises:
        ConfigError: it is none, or has parts that vitlab's ViT does not have.
    """
    if "facts" in state:
        raise ConfigError(f"{path} holds weights of vitlab's, and not the configuration of their run: give its folder")
    inner = next((key for key in STATES if isinstance(state.get(key), dict)), None)
    tensors = checkpoint.model_weights({"model": state[inner] if inner else state})
    tensors = {str(name).replace("/", ".").replace("in_proj_", "in_proj."): value for name, value in tensors.items()}
    known = (each for each in LAYOUTS if any(each.matches(each.sign, name) for name in tensors))
    if (layout := next(known, None)) is None:
        *few, last = (each.library for each in LAYOUTS)
        names = ", ".join(sorted(tensors)[:3])[:200]
        raise ConfigError(
            f"{path} holds no weights of vitlab's, nor of a ViT of {', '.join(few)} or {last}: its tensors are called"
            f" {names}: give such a file, or the folder of a run"
        )
    left_out = [key for key in STATES if key != inner and isinstance(state.get(key), dict)]
    said, parts = known_facts(path), {}
    for name, value in tensors.items():
        if layout.matches(layout.unused, name):
            left_out.append(name)
            continue
        target, part = placed(path, layout, name)
        check_tensor(path, name, value)
        if layout.flax:
            if target.endswith("qkv.weight") and value.ndim == 3:
                said["heads"] = value.shape[1]
            value = from_flax(target, value)
        parts.setdefault(target, {})[part] = value.float()
    try:
        return assembled(path, layout, parts, said, tuple(left_out))
    except (KeyError, IndexError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ConfigError(f"{path}: its tensors do not have the shapes of a ViT's ({error}): get it again") from error


def placed(path: Path, layout: Layout, name: str) -> tuple[str, int]:
    """Where a tensor goes, see `Layout.target`.

    Raises:
        ConfigError: nowhere.
    """
    if (place := layout.target(name)) is not None:
        return place
    what = next((what for pattern, what in layout.lacking.items() if layout.matches(pattern, name)), None)
    raise ConfigError(
        f"{path}: {name} is of a part that vitlab's ViT does not have"
        f"{f': it {what}' if what else ''}. Its outputs would be others: take weights of a plain ViT"
    )


def assembled(
    path: Path, layout: Layout, parts: dict[str, dict[int, Tensor]], said: Node, left_out: tuple[str, ...]
) -> Foreign:
    """The tensors joined and in vitlab's shapes, with the sizes that follow from them.

    Args:
        path: of the file or folder.
        layout: the library's.
        parts: name here -> number -> part of that tensor, still with the library's axes.
        said: of `SAID`.
        left_out: names of other tensors.
    """
    class_token = 0 in parts.get("prefix", {})
    for table in ("prefix", "positions.0.table"):
        parts |= {table: {k: x.flatten(0, -2) for k, x in parts[table].items()}} if table in parts else {}
    weights = {name: torch.cat([of[k] for k in sorted(of)]) for name, of in parts.items()}
    units = sorted({tuple(map(int, name.split(".")[2:4])) for name in weights if name.startswith("stem.unit.")})
    place = {f"stem.unit.{i}.{j}.": f"stem.layers.{number}." for number, (i, j) in enumerate(units, BEFORE_UNITS)}
    weights = {re.sub(r"stem\.unit\.\d+\.\d+\.", lambda of: place[of[0]], name): x for name, x in weights.items()}
    projection = weights["stem.projection.weight"]
    patch, stages = projection.shape[-1], None
    if "stem.layers.0.weight" in weights:
        counts = Counter(stage for stage, _ in units)
        stages = tuple(counts[stage] for stage in sorted(counts))
        patch *= REDUCED * 2 ** max(0, len(stages) - 1)
    else:
        weights["stem.projection.weight"] = projection.flatten(1)
    prefix, table = weights.get("prefix"), weights.get("positions.0.table")
    size = said.get("image_size")
    if table is None:
        size = size or (224, 224)
    else:
        most = 0 if prefix is None else len(prefix)
        covered = covered_tokens(len(table), most, size and size[0] // patch * (size[1] // patch))
        if prefix is not None and covered < most:  # the others have no position there
            table = torch.cat((table[:covered], torch.zeros(most - covered, table.shape[1]), table[covered:]))
        weights["positions.0.table"] = table
        side = math.isqrt(len(table) - most) * patch
        size = size or (side, side)
    return Foreign(
        path=path,
        layout=layout,
        weights={name: x.contiguous() for name, x in weights.items()},
        said=said,
        patch=patch,
        image_size=(size[0], size[1]),
        class_token=class_token,
        stages=stages,
        left_out=left_out,
    )


def covered_tokens(positions: int, prefix: int, patches: int | None) -> int:
    """How many tokens in front of the patches have a position: all, the class token alone, or none.

    Args:
        positions: in the table.
        prefix: tokens in front.
        patches: if that is known; else they are a square.

    Raises:
        ValueError: the positions are of no such grid.
    """
    for count in (0, 1, prefix) if prefix > 1 else (prefix, 0):  # with registers timm's models have none
        rest = positions - count
        if 0 <= count <= prefix and rest > 0 and (rest == patches if patches else math.isqrt(rest) ** 2 == rest):
            return count
    raise ValueError(f"{positions} positions are of no {'such' if patches else 'square'} grid of patches")
