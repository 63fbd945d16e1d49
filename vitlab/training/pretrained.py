"""Initial weights: random, or those of a trained model (`init=RUN`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vitlab.config.errors import ConfigError
from vitlab.model.part import Part, Resizing
from vitlab.model.vit import ViT
from vitlab.storage import checkpoint, foreign
from vitlab.storage.files import file_errors
from vitlab.storage.foreign import Foreign
from vitlab.storage.foreign_files import contents
from vitlab.storage.run import Run

SHARED = ("stem.", "blocks.", "norm.")  # parts that must fit those of the trained model


@dataclass(frozen=True)
class Source:
    """Trained weights, and the images that their model was trained on; `foreign` are those of another library."""

    file: Path
    weights: Mapping[str, Tensor]
    image_size: tuple[int, int]
    classes: tuple[str, ...]
    foreign: Foreign | None = None


@dataclass(kw_only=True)
class Start:
    """The initial weights of a training: the `init` group of the configuration.

    Args:
        weights: a run's folder, or its best.pt or best.safetensors; or a ViT of Google's (.npz), timm's, DeiT's,
            torchvision's, or Hugging Face's (a folder); None draws random weights. Other classes get a new
            head; for another image size position embeddings are interpolated (Dosovitskiy et al. 2021, 3.2).
        origin: the `cell` in the run's result.json, which is the same for all seeds. With it, trainings that each start
            from the run of their own seed are one cell; without it they differ by the path.
        positions: interpolation of position embeddings: bilinear, as the authors do, or bicubic, as DeiT does.
        patch: what happens for another patch size: refuse, or resize the projection by the pseudo-inverse of a bilinear
            resize, which keeps the tokens of resized patches (Beyer et al. 2023, FlexiViT).
        head: same keeps the trained head if the classes are the same; new never does, as in the paper's fine-tuning.
        freeze: whether only the head is trained.

    Raises:
        ConfigError: freeze or origin without weights.
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
        """The trained weights; None for random ones.

        Raises:
            ConfigError: no file of weights, one that cannot be read safely, or one of another origin.
        """
        if self.weights is None:
            return None
        path = Path(self.weights)
        if self.origin is None and path.is_dir() and foreign.is_foreign(path):
            return of_library(foreign.read(path))
        file = path / "best.pt" if path.is_dir() else path
        if not file.is_file():
            there = "that run has no weights yet: train it first" if path.is_dir() else "there is no such run or file"
            raise ConfigError(f"init={self.weights}: {there}")
        if self.origin is not None and (cell := Run(path).result().get("cell")) != self.origin:
            raise ConfigError(
                f"init.origin={self.origin}: {self.weights} is of the cell {cell or 'unknown'}: leave it out"
            )
        saved = contents(file)
        if "facts" not in saved:
            return of_library(foreign.of_state(path, saved))
        weights, facts = checkpoint.model_weights(saved), saved.get("facts")
        facts = facts if isinstance(facts, dict) else {}
        size = facts.get("image_size")
        finite = isinstance(weights, dict) and all(
            isinstance(v, Tensor) and v.isfinite().all() for v in weights.values()
        )
        if not (finite and isinstance(size, list) and len(size) == 2 and min(size) > 0):
            raise ConfigError(f"init={self.weights}: {file} holds no weights of vitlab's: give a run's folder")
        return Source(file, weights, (size[0], size[1]), tuple(facts.get("classes") or ()))

    def apply(self, source: Source, model: ViT, classes: tuple[str, ...]) -> str:
        """Loads the weights into a model; gives a sentence about what was loaded, resized, and left out.

        Args:
            source: from `read`.
            model: to be trained; tensors that only it has keep their random values.
            classes: names of its classes. Others than the source's get a new head.

        Raises:
            ConfigError: stem, blocks, norm or heads do not fit.
        """
        if source.foreign:
            source.foreign.check_heads(model)
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
        odd = [name for name in {**own, **kept} if name.startswith(SHARED) and name not in new]
        library = source.foreign
        if odd:
            theirs, ours = (shape(held[odd[0]]) if odd[0] in held else "none" for held in (kept, own))
            same = (
                f"they are of {library}: use {' '.join(library.options())}"
                if library
                else "take the same model and patch"
            )
            raise ConfigError(
                f"init={self.weights}: {len(odd)} tensors do not fit, the first of them {odd[0]}: {theirs} there,"
                f" {ours} in this model: {same}, or for another patch size init.patch=resize"
            )
        left, fresh = sorted(kept.keys() - new.keys()), sorted(own.keys() - new.keys())
        left += sorted(source.weights.keys() - kept.keys())
        with torch.no_grad():
            for name, value in new.items():
                if not own[name].is_meta:  # on the meta device it is only checked whether they fit
                    own[name].copy_(value)
        if self.freeze:
            freeze(model)
        lists = {"resized": resized, "left out": left, "drawn at random": fresh}
        if library:
            left += library.left_out
            lists["computed otherwise there, unless you add"] = library.differences(model)
        clauses = [f"{len(new)} tensors are loaded from {source.file}"]
        clauses += [f"{what}: {', '.join(names)}" for what, names in lists.items() if names]
        return "; ".join(clauses) + ("; all but the head is frozen" if self.freeze else "")

    def keeps(self, name: str, source: Source, classes: tuple[str, ...]) -> bool:
        """Whether a tensor of the source is used: the head's only with the same classes."""
        return not name.startswith("head.") or (self.head == "same" and source.classes == classes)

    def resized(self, name: str, value: Tensor, source: Source, model: ViT) -> Tensor | None:
        """A tensor of the source in its shape in this model, resized by its part; None if that cannot be."""
        how = Resizing(source.image_size, len(source.weights.get("prefix", ())), self.positions, self.patch)
        words = name.split(".")
        for length in range(len(words) - 1, 0, -1):
            if isinstance(part := model.get_submodule(".".join(words[:length])), Part):
                return part.resized(".".join(words[length:]), value, how)
        return None


def of_library(found: Foreign) -> Source:
    """The weights of another library."""
    return Source(found.path, found.weights, found.image_size, tuple(found.said.get("classes", ())), found)


def freeze(model: ViT) -> None:
    """Leaves only the head trainable."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head."))


def to_come(file: Path, model: ViT, image_size: tuple[int, int], classes: tuple[str, ...]) -> Source:
    """The weights of a training that has not run yet; its model may be on the meta device."""
    return Source(file, model.state_dict(), image_size, classes)


def shape(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) or "a number"
