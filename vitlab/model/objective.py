"""Objectives: the outputs a ViT is trained for, their loss and their scores."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from vitlab.config.errors import ConfigError
from vitlab.model.dropout import Draw, draw
from vitlab.model.grid import Grid

Tokens = Float[Tensor, "b n d"]
PerImage = Float[Tensor, " b"]
LEVELS = 8  # of a colour: 3 bits a channel
SMALL = 4  # side that a patch is resized to by target=small


class TrainingModel(nn.Module):
    """A ViT with its objective: what is compiled, and wrapped by DDP or FSDP. The weights are all the ViT's.

    Args:
        vit: the ViT; its `objective` defines what is computed from images in training and evaluation.
    """

    def __init__(self, vit: Any):
        super().__init__()
        self.vit = vit
        self.training = vit.training

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks of the ViT."""
        return self.vit.blocks

    def forward(self, images: Float[Tensor, "b c y x"], *, inspect: bool = False) -> Any:
        """The outputs of the objective; with `inspect`, the ViT's logits and intermediate results."""
        return self.vit.inspect(images) if inspect else self.vit.objective(self.vit, images)


class Classify(nn.Module):
    """Image classification; and the contract of all objectives.

    Args:
        width: channels of a token.
        grid: the token grid.
        patch: side of a patch in pixels.
        channels: of an image.
    """

    classifies = True  # whether pool and head are trained

    def __init__(self, *, width: int, grid: Grid, patch: int, channels: int):
        super().__init__()

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Sets the mean and standard deviation that pixels in 0 ... 1 were normalized with."""

    def forward(self, vit: Any, images: Float[Tensor, "b c y x"]) -> Any:
        """The outputs that `losses` and `scores` are computed from; here the logits."""
        return vit(images)

    def losses(
        self, outputs: Any, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Float[Tensor, ""], dict[str, PerImage]]:
        """The loss of a training batch, a mean; and by name the training metrics of each image.

        Args:
            outputs: from `forward`.
            targets: class indices (b), or class probabilities (b classes).
            loss: of logits and targets.
        """
        labels = targets if targets.ndim == 1 else targets.argmax(dim=-1)
        return loss(outputs, targets), {"accuracy": (outputs.detach().argmax(dim=-1) == labels).float()}

    def scores(self, outputs: Any, labels: Int[Tensor, " b"]) -> dict[str, PerImage]:
        """By name the evaluation metrics of each image; 0 where its label is -1 (padding).

        `loss` is the cross-entropy without label smoothing.
        """
        loss = functional.cross_entropy(outputs.float(), labels, reduction="none", ignore_index=-1)
        return {"loss": loss, "accuracy": (outputs.argmax(dim=-1) == labels).float()}


class MaskedPatch(Classify):
    """Masked patch prediction (Dosovitskiy et al. 2021, B.1.2): some patches are corrupted, and predicted.

    Of the corrupted patches, some become a learned mask token, some another patch of the image, the rest stay as they
    are. The accuracy is the fraction of corrupted patches that are predicted correctly; for `pixels`, the explained
    variance.

    Args:
        width: channels of a token.
        grid: the token grid.
        patch: side of a patch in pixels.
        channels: of an image.
        corrupt: fraction of the patches; the paper's 0.5, or 0.15 as in BERT.
        mask: fraction of these that become the mask token.
        swap: fraction of these that become another patch.
        target: `mean`: the patch's mean colour, 3 bits a channel, as one class (512 for RGB); `small`: the same for
            each pixel of the patch resized to 4x4; `pixels`: all of the patch, by squared error.

    Raises:
        ConfigError: fractions outside 0 ... 1, or a patch too small for the target.
    """

    classifies = False
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        width: int,
        grid: Grid,
        patch: int,
        channels: int,
        corrupt: float = 0.5,
        mask: float = 0.8,
        swap: float = 0.1,
        target: Literal["mean", "small", "pixels"] = "mean",
    ):
        super().__init__(width=width, grid=grid, patch=patch, channels=channels)
        for name, value in (("corrupt", corrupt), ("mask", mask), ("swap", swap), ("mask + swap", mask + swap)):
            if not 0 <= value <= 1:
                raise ConfigError(f"model.objective.{name}={value:g}: must be from 0 to 1")
        self.count = round(corrupt * grid.patches)
        if not self.count > 0:
            raise ConfigError(f"model.objective.corrupt={corrupt}: of {grid.patches} patches that is none: use more")
        if target == "small" and patch % SMALL:
            raise ConfigError(f"model.objective.target=small: patch={patch} is no multiple of {SMALL}: use target=mean")
        if target != "pixels" and channels > 3:
            raise ConfigError(f"model.objective.target={target}: {channels} channels are {LEVELS}^{channels} classes")
        self.grid = grid
        self.patch = patch
        self.channels = channels
        self.mask = mask
        self.swap = swap
        self.target = target
        self.token = nn.Parameter(0.02 * torch.randn(width))
        outputs = {"mean": LEVELS**channels, "small": SMALL**2 * LEVELS**channels, "pixels": channels * patch**2}
        self.predict = nn.Linear(width, outputs[target])
        self.register_buffer("mean", torch.zeros(channels), persistent=False)
        self.register_buffer("std", torch.ones(channels), persistent=False)

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))

    def forward(self, vit: Any, images: Float[Tensor, "b c y x"]) -> tuple[Tensor, Tensor]:
        """Predictions for the corrupted patches (b m ...), and their targets."""
        b, n = len(images), self.grid.patches
        where = draw(Draw(fill_order, (b, n), torch.int64), images.device)[:, : self.count]
        encoded = vit.encode(self.corrupted(vit.stem(images), where))
        predicted = self.predict(select(encoded[:, self.grid.prefix :], where))
        return predicted, select(self.targets(images), where)

    def corrupted(self, patches: Tokens, where: Int[Tensor, "b m"]) -> Tokens:
        """The patches with those of `where` corrupted."""
        b, n, d = patches.shape
        chance = draw(Draw(fill_uniform, where.shape, torch.float32), patches.device)[:, :, None]
        others = (where + draw(Draw(partial(fill_integers, n=n), where.shape, torch.int64), patches.device)) % n
        new = torch.where(chance < self.mask + self.swap, select(patches, others), select(patches, where))
        new = torch.where(chance < self.mask, self.token.to(patches.dtype), new)
        return patches.scatter(1, where[:, :, None].expand(b, -1, d), new)

    def targets(self, images: Float[Tensor, "b c y x"]) -> Tensor:
        """The target of every patch: classes (b n) or (b n 16), or its normalised pixels (b n p)."""
        h, w = self.grid.height, self.grid.width
        if self.target == "pixels":
            return rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", h=h, w=w)
        side = 1 if self.target == "mean" else SMALL
        pixels = images.float() * self.std[:, None, None] + self.mean[:, None, None]
        colours = functional.avg_pool2d(pixels, self.patch // side)
        levels = (colours * LEVELS).floor().clamp(0, LEVELS - 1).long()
        digits = LEVELS ** torch.arange(self.channels - 1, -1, -1, device=images.device)
        classes = (levels * digits[:, None, None]).sum(dim=1)
        classes = rearrange(classes, "b (h p) (w q) -> b (h w) (p q)", h=h, w=w)
        return classes[:, :, 0] if self.target == "mean" else classes

    def losses(
        self, outputs: Any, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Float[Tensor, ""], dict[str, PerImage]]:
        each, accuracy = self.compare(*outputs)
        return each.mean(), {"accuracy": accuracy.detach()}

    def scores(self, outputs: Any, labels: Int[Tensor, " b"]) -> dict[str, PerImage]:
        each, accuracy = self.compare(*outputs)
        counts = labels >= 0
        return {"loss": each * counts, "accuracy": accuracy * counts}

    def compare(self, predicted: Tensor, true: Tensor) -> tuple[PerImage, PerImage]:
        """Mean loss and accuracy over the corrupted patches of each image."""
        if self.target == "pixels":
            error = (predicted.float() - true).square().flatten(1).mean(dim=1)
            return error, (1 - error / true.var().clamp(min=1e-12)).clamp(0, 1)
        logits = predicted.float().unflatten(-1, (-1, LEVELS**self.channels))
        true = true.view(logits.shape[:-1])
        loss = functional.cross_entropy(logits.flatten(0, -2), true.flatten(), reduction="none").view(true.shape)
        return loss.flatten(1).mean(dim=1), (logits.argmax(dim=-1) == true).float().flatten(1).mean(dim=1)


def fill_uniform(out: Tensor, generator: torch.Generator | None, _: object) -> None:
    """Numbers in 0 ... 1."""
    torch.rand(out.shape, device=out.device, generator=generator, out=out)


def fill_order(out: Tensor, generator: torch.Generator | None, _: object) -> None:
    """0, 1, ... in random order in each row."""
    out.copy_(torch.rand(out.shape, device=out.device, generator=generator).argsort(dim=1))


def fill_integers(out: Tensor, generator: torch.Generator | None, _: object, *, n: int) -> None:
    """Integers from 1 to below n, or 1."""
    torch.randint(1, max(2, n), out.shape, device=out.device, generator=generator, out=out)


def select(values: Tensor, where: Int[Tensor, "b m"]) -> Tensor:
    """The values of each image at these positions."""
    return values[torch.arange(len(values), device=values.device)[:, None], where]
