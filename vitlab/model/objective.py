"""Objective: what a ViT is trained to say, and how well it says it."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from vitlab.config.errors import ConfigError
from vitlab.model.grid import Grid

Tokens = Float[Tensor, "b n d"]
Encode = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]  # images, and what befalls their patches -> tokens
LEVELS = 8  # of a colour: 3 bits a channel
SMALL = 4  # side that a patch is made small to


class Classify(nn.Module):
    """The class of an image; and the contract of all objectives.

    Args:
        width: channels of a token.
        grid: the lattice of tokens.
        patch: side of a patch in pixels.
        channels: of an image.
    """

    classifies = True  # whether pool and head are trained

    def __init__(self, *, width: int, grid: Grid, patch: int, channels: int):
        super().__init__()

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Is told what pixels of 0 ... 1 were normalised with."""

    def forward(self, images: Float[Tensor, "b c y x"], encode: Encode, classify: Callable[[Tensor], Tensor]) -> Any:
        """What `losses` and `judge` look at, as `out`."""
        return classify(encode(images, lambda patches: patches))

    def losses(
        self, out: Any, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " b"]]:
        """The mean loss of a training batch, and of each image whether (or to what share) it is right."""
        labels = targets if targets.ndim == 1 else targets.argmax(dim=-1)
        return loss(out, targets), (out.detach().argmax(dim=-1) == labels).double()

    def judge(self, out: Any, labels: Int[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Of each image in evaluation: cross-entropy, unsmoothed, and whether it is right; 0 where a label is -1."""
        loss = functional.cross_entropy(out.float(), labels, reduction="none", ignore_index=-1)
        return loss.double(), (out.argmax(dim=-1) == labels).double()


class MaskedPatch(Classify):
    """Masked patch prediction (Dosovitskiy et al. 2021, B.1.2): some patches are corrupted, and to be told anyway.

    Of the corrupted ones a share becomes a learned token, a share another patch of the image, the rest stay as they
    are. The accuracy is the share of corrupted patches that are told rightly; of `pixels`, the variance explained.

    Args:
        width: channels of a token.
        grid: the lattice of tokens.
        patch: side of a patch in pixels.
        channels: of an image.
        corrupt: share of the patches; the paper's 0.5, or 0.15 as in BERT.
        mask: share of these that become the mask token.
        swap: share of these that become another patch.
        target: `mean`: the patch's mean colour, 3 bits a channel, as one class (512 for RGB); `small`: the same of each
            of the 4x4 pixels that the patch is made small to; `pixels`: all of the patch, by squared error.

    Raises:
        ConfigError: shares that cannot be, or a patch too small for the target.
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

    def forward(
        self, images: Float[Tensor, "b c y x"], encode: Encode, classify: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """What is said of the corrupted patches (b m ...), and what is true of them."""
        where = torch.rand(len(images), self.grid.patches, device=images.device).argsort(dim=1)[:, : self.count]
        encoded = encode(images, lambda patches: self.corrupted(patches, where))
        told = self.predict(taken(encoded[:, self.grid.prefix :], where))
        return told, taken(self.targets(images), where)

    def corrupted(self, patches: Tokens, where: Int[Tensor, "b m"]) -> Tokens:
        """The patches with those of `where` corrupted."""
        b, n, d = patches.shape
        fate = torch.rand(where.shape, device=patches.device)[:, :, None]
        others = (where + torch.randint(1, max(2, n), where.shape, device=patches.device)) % n
        new = torch.where(fate < self.mask + self.swap, taken(patches, others), taken(patches, where))
        new = torch.where(fate < self.mask, self.token.to(patches.dtype), new)
        return patches.scatter(1, where[:, :, None].expand(b, -1, d), new)

    def targets(self, images: Float[Tensor, "b c y x"]) -> Tensor:
        """What is true of every patch: classes (b n) or (b n 16), or its normalised pixels (b n p)."""
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
        self, out: Any, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " b"]]:
        each, right = self.measured(*out)
        return each.mean(), right.detach().double()

    def judge(self, out: Any, labels: Int[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        each, right = self.measured(*out)
        counts = labels >= 0
        return each.double() * counts, right.double() * counts

    def measured(self, told: Tensor, true: Tensor) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Mean loss, and share of right answers, of each image."""
        if self.target == "pixels":
            error = (told.float() - true).square().flatten(1).mean(dim=1)
            return error, (1 - error / true.var().clamp(min=1e-12)).clamp(0, 1)
        told = told.float().unflatten(-1, (-1, LEVELS**self.channels))
        true = true.view(told.shape[:-1])
        loss = functional.cross_entropy(told.flatten(0, -2), true.flatten(), reduction="none").view(true.shape)
        return loss.flatten(1).mean(dim=1), (told.argmax(dim=-1) == true).float().flatten(1).mean(dim=1)


def taken(values: Tensor, where: Int[Tensor, "b m"]) -> Tensor:
    """Of each image the values at these places."""
    return values[torch.arange(len(values), device=values.device)[:, None], where]
