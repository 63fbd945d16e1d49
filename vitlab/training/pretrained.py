"""Start: where a training's weights begin, at chance or at those of a model that is trained already."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vitlab.config.errors import ConfigError
from vitlab.model.part import Part, Resizing
from vitlab.model.vit import ViT
from vitlab.storage import checkpoint
from vitlab.storage.files import file_errors
from vitlab.storage.run import Run

SAME = ("stem.", "blocks.", "norm.")  # parts that a model must have in common with the one that it starts from


@dataclass(frozen=True)
class Source:
    """Trained weights, and what is known of the model that they are of."""

    file: Path
    weights: Mapping[str, Tensor]
    image_size: tuple[int, int]
    classes: tuple[str, ...]


@dataclass(kw_only=True)
class Start:
    """What the weights of a training begin as.

    Args:
        weights: a run's folder, or its best.pt or best.safetensors, to go on from; None draws them at random. Other
            classes get a new head, another image size gets its position embeddings interpolated (Dosovitskiy et al.
            2021, 3.2).
        origin: what that run has in common with others of its kind, whatever their seed: the cell of its result.json.
            With it, trainings that start each from the run of its own seed are one cell; without it the path tells them
            apart.
        positions: how those are interpolated: bilinear, as the authors do, or bicubic, as DeiT.
        patch: what another patch size does: refuse, or resize the projection by the pseudo-inverse of a bilinear
            resize, which leaves the tokens of resized patches as they are (Beyer et al. 2023, FlexiViT).
        head: the source's, where its classes are the same ones; or a new one, always, as in the paper's fine-tuning.
        freeze: whether everything but the head stays as it is loaded.

    Raises:
        ConfigError: nothing to freeze, or of an origin.
    """

    weights: str | None
    origin: str | None
    positions: Literal["bilinear", "bicubic"]
    patch: Literal["refuse", "resize"]
    head: Literal["same", "new"]
    freeze: bool

    def __post_init__(self) -> None:
        if self.freeze and self.weights is None:
            raise ConfigError("init.freeze=true, and the weights are drawn at random: give trained ones, init=RUN")
        if self.origin is not None and self.weights is None:
            raise ConfigError(
                f"init.origin={self.origin}, and the weights are drawn at random: give their run, init=RUN"
            )

    @file_errors()
    def read(self) -> Source | None:
        """The weights to start from; None for chance.

        Raises:
            ConfigError: no file of weights, one that cannot be read safely, or one of another origin.
        """
        if self.weights is None:
            return None
        path = Path(self.weights).expanduser()
        file = path / "best.pt" if path.is_dir() else path
        if not file.is_file():
            there = "that run has no weights yet: train it first" if path.is_dir() else "there is no such run or file"
            raise ConfigError(f"init={self.weights}: {there}")
        if self.origin is not None and (cell := Run(path).result().get("cell")) != self.origin:
            raise ConfigError(
                f"init.origin={self.origin}: {self.weights} is of the cell {cell or 'that nothing says'}: leave it out"
            )
        saved = exported(file) if file.suffix == ".safetensors" else checkpoint.load(file)
        weights, said = saved.get("model"), saved.get("facts")
        facts: dict[str, Any] = said if isinstance(said, dict) else {}
        size = facts.get("image_size")
        named = isinstance(weights, dict) and all(
            isinstance(v, Tensor) and v.isfinite().all() for v in weights.values()
        )
        if not (named and isinstance(size, list) and len(size) == 2 and min(size) > 0):
            raise ConfigError(f"init={self.weights}: {file} holds no weights of vitlab's: give a run's folder")
        return Source(file, weights, (size[0], size[1]), tuple(facts.get("classes") or ()))

    def apply(self, source: Source, model: ViT, classes: tuple[str, ...]) -> str:
        """Gives a model the weights of another, and says what was loaded, resized, and left out.

        Args:
            source: from `read`.
            model: to be trained; what it has alone stays as it was drawn.
            classes: names of its classes. Other ones than the source's are learned by a new head.

        Raises:
            ConfigError: the two differ in what cannot be carried over; both named.
        """
        own, new, resized = model.state_dict(), {}, []
        kept = {name: each for name, each in source.weights.items() if self.keeps(name, source, classes)}
        for name, value in kept.items():
            if name not in own:
                continue
            if value.shape == own[name].shape:
                new[name] = value
            elif (fitted := self.resized(name, value, source, model)) is not None:
                new[name] = fitted
                resized.append(f"{name} {shape(value)} to {shape(fitted)}")
        odd = [name for name in {**own, **kept} if name.startswith(SAME) and name not in new]
        if odd:
            theirs, ours = (shape(held[odd[0]]) if odd[0] in held else "none" for held in (kept, own))
            raise ConfigError(
                f"init={self.weights}: {len(odd)} tensors do not fit, the first of them {odd[0]}: {theirs} there,"
                f" {ours} in this model: take the same model and patch, or for another patch size init.patch=resize"
            )
        left, fresh = sorted(kept.keys() - new.keys()), sorted(own.keys() - new.keys())
        left += sorted(source.weights.keys() - kept.keys())
        with torch.no_grad():
            for name, value in new.items():
                if not own[name].is_meta:  # of a model without memory, that is only asked whether it would fit
                    own[name].copy_(value)
        if self.freeze:
            freeze(model)
        said = [f"{len(new)} tensors are loaded from {source.file}"]
        said += [f"resized: {', '.join(resized)}"] if resized else []
        said += [f"left out: {', '.join(left)}"] if left else []
        said += [f"drawn at random: {', '.join(fresh)}"] if fresh else []
        return "; ".join(said) + ("; all but the head is frozen" if self.freeze else "")

    def keeps(self, name: str, source: Source, classes: tuple[str, ...]) -> bool:
        return not name.startswith("head.") or (self.head == "same" and source.classes == classes)

    def resized(self, name: str, value: Tensor, source: Source, model: ViT) -> Tensor | None:
        """A tensor of the source in the shape that it has in this model, as its part says; None if that cannot be."""
        how = Resizing(source.image_size, len(source.weights.get("prefix", ())), self.positions, self.patch)
        words = name.split(".")
        for length in range(len(words) - 1, 0, -1):
            if isinstance(part := model.get_submodule(".".join(words[:length])), Part):
                return part.resized(".".join(words[length:]), value, how)
        return None


def freeze(model: ViT) -> None:
    """Leaves nothing but the head to be learned."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head."))


def to_come(file: Path, model: ViT, image_size: tuple[int, int], classes: tuple[str, ...]) -> Source:
    """What a training will leave whose model is there already, be it without memory."""
    return Source(file, model.state_dict(), image_size, classes)


def exported(file: Path) -> dict[str, Any]:
    """What best.safetensors holds, as best.pt has it.

    Raises:
        ConfigError: it is no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as held:
            facts = json.loads((held.metadata() or {}).get("vitlab", "{}"))
            weights = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 (it is no dictionary)
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error}): get it again") from error
    return {"model": weights, "facts": facts.get("facts") if isinstance(facts, dict) else None}


def shape(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) or "a number"
