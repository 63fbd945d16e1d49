"""Stem: from an image to one token a patch."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vitlab.config.errors import ConfigError
from vitlab.model.grid import Grid
from vitlab.model.part import Part, Resizing


def divisors(number: int) -> list[int]:
    """The divisors of a number, up to 4096."""
    return [d for d in range(1, min(number, 4096) + 1) if number % d == 0]


class Stem(Part):
    """The contract: `grid` gives the number of patches, `forward` their tokens.

    Args:
        image_size: height and width in pixels.
        channels: colour channels of an image.
        width: channels of a token.
        patch: side of a patch in pixels.

    Raises:
        ConfigError: the patch does not divide the image.
    """

    kept = 0  # numbers of an image that the stem keeps for its backward pass: as many at least

    def __init__(self, *, image_size: tuple[int, int], channels: int, width: int, patch: int):
        super().__init__()
        height, breadth = image_size
        if patch < 1 or height % patch or breadth % patch:
            fitting = ", ".join(str(d) for d in divisors(math.gcd(height, breadth)))
            raise ConfigError(f"patch={patch} does not divide image_size={height}x{breadth}: use one of {fitting}")
        self.grid = Grid(height // patch, breadth // patch)

    def forward(self, images: Float[Tensor, "b c y x"]) -> Float[Tensor, "b n d"]:
        raise NotImplementedError(f"{type(self).__name__} has no forward")


class Patches(Stem):
    """Cuts the image into patches that do not overlap and projects each linearly (Dosovitskiy et al. 2021, eq. 1).

    The same as a convolution whose stride is its kernel, with the weights flattened to (d, c p q).
    """

    def __init__(self, *, image_size: tuple[int, int], channels: int, width: int, patch: int):
        super().__init__(image_size=image_size, channels=channels, width=width, patch=patch)
        self.patch = patch
        self.projection = nn.Linear(channels * patch * patch, width)

    def forward(self, images: Float[Tensor, "b c y x"]) -> Float[Tensor, "b n d"]:
        pixels = rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)
        return self.projection(pixels)

    def resized(self, name: str, value: Tensor, how: Resizing) -> Tensor | None:
        own = self.projection.weight
        if how.patch == "refuse" or name != "projection.weight" or len(value) != len(own):
            return None
        channels = own.shape[1] // self.patch**2
        side = math.isqrt(value.shape[1] // channels)
        if channels * side**2 != value.shape[1]:
            return None
        return own if value.is_meta else resize_projection(value, side, self.patch)


def resize_projection(weight: Float[Tensor, "d before"], before: int, after: int) -> Float[Tensor, "d after"]:
    """The projection of patches `before` pixels wide for patches of `after`: FlexiViT's PI-resize.

    With the matrix R that resizes a patch, pinv(R^T) w has with a resized patch the product that w had with the patch,
    exactly where the patch grows.
    """
    basis = torch.eye(before**2, dtype=torch.float64).view(before**2, 1, before, before)
    resize = functional.interpolate(basis, (after, after), mode="bilinear", antialias=after < before).flatten(1)
    kernel = rearrange(weight.double(), "d (c p) -> d c p", p=before**2) @ torch.linalg.pinv(resize).mT
    return kernel.flatten(1).to(weight.dtype)


class Convolutions(Stem):
    """A few 3x3 convolutions of stride 2, then a 1x1 (Xiao et al. 2021, "Early convolutions help transformers see").

    Channels double at each stride up to `width`. An odd factor of the patch (7 of 14) is one convolution whose stride
    is its kernel. Batch normalisation as in that paper: in training an image's tokens depend on its batch (on each
    process's own part of it), and group normalisation in its place started more slowly in one try.

    Raises:
        ConfigError: the width cannot be halved often enough.
    """

    def __init__(self, *, image_size: tuple[int, int], channels: int, width: int, patch: int):
        super().__init__(image_size=image_size, channels=channels, width=width, patch=patch)
        strides = []
        rest = patch
        while rest % 2 == 0:
            strides.append(2)
            rest //= 2
        if rest > 1 or not strides:
            strides.append(rest)
        narrowing = 2 ** (len(strides) - 1)
        if width % narrowing:
            raise ConfigError(
                f"width={width} cannot be halved {len(strides) - 1} times, as the convolutional stem of patch={patch}"
                f" needs: use a multiple of {narrowing}"
            )
        layers: list[nn.Module] = []
        before = channels
        for i, stride in enumerate(strides):
            after = width // 2 ** (len(strides) - 1 - i)
            kernel = stride if stride > 2 else 3
            layers += [
                nn.Conv2d(before, after, kernel, stride, padding=0 if stride > 2 else 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
            before = after
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, width, 1))

    def forward(self, images: Float[Tensor, "b c y x"]) -> Float[Tensor, "b n d"]:
        if self.training and len(images) * self.grid.patches == 1:
            raise ConfigError(
                "model/stem=convolution normalises over a batch, and this one is one image of one patch: use a larger"
                " fit.batch_size, a smaller fit.accumulate, or a smaller patch"
            )
        return rearrange(self.layers(images), "b d h w -> b (h w) d")
