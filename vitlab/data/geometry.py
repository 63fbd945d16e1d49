"""Crop and mirror of whole batches: what torchvision does to one PIL image, done to all images of a step at once.

One image at a time, Python takes most of a small image's time. Here a step's draws are made together, each still a
function of (seed, round, image) alone, and the pixels move in a few operations wherever the batch lies.
"""

import math
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from vitlab.data.seeding import uniforms

TRIES = 10  # at an area and an aspect that fit into the image; then its centre, as in torchvision
ASPECT = math.log(4 / 3)  # of the widest crop; of the narrowest its negative
SHARPNESS = -0.5  # of the bicubic kernel, as in PIL


class Geometry:
    """A random crop, then a mirror, of images that are held at the size that the model sees.

    Args:
        size: height and width in pixels.
        crop: `none`, `pad` (black border, cut at random) or `resized` (a random area and aspect, resized bicubically).
        border: rows above and below, columns left and right, that `pad` adds.
        area: smallest and largest share of the area that `resized` keeps.
        flip: chance of a horizontal mirror.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int],
        crop: Literal["none", "pad", "resized"],
        border: tuple[int, int],
        area: tuple[float, float],
        flip: float,
    ):
        self.size = size
        self.crop = crop
        self.border = border
        self.area = area
        self.flip = flip

    def __call__(self, pixels: UInt8[Tensor, "b c y x"], seed: int, rounds: Int[np.ndarray, " b"],
                 images: Int[np.ndarray, " b"]) -> UInt8[Tensor, "b c y x"]:  # fmt: skip
        """The batch as it is seen in these rounds.

        Args:
            pixels: of the images, where they lie.
            seed: of the training.
            rounds: of each; an image looks different in every round.
            images: number of each in its split.
        """
        draws = uniforms(seed, rounds, images, 3 + 2 * TRIES)
        mirrored = torch.from_numpy(draws[:, 0] < self.flip).to(pixels.device, non_blocking=True)
        if self.crop == "pad":
            return self.shifted(pixels, draws[:, 1:3], mirrored)
        if self.crop == "resized":
            return resized_crop(pixels, self.boxes(draws[:, 1:]), mirrored)
        return torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(3), pixels) if self.flip else pixels

    def shifted(self, pixels: UInt8[Tensor, "b c y x"], draws: Float[np.ndarray, "b two"],
                mirrored: Tensor) -> UInt8[Tensor, "b c y x"]:  # fmt: skip
        """A window of the padded images, mirrored where that is asked for: one lookup a pixel."""
        (height, width), (above, beside) = self.size, self.border
        at = torch.from_numpy((draws * (2 * above + 1, 2 * beside + 1)).astype(np.int64)).to(
            pixels.device, non_blocking=True
        )
        columns = torch.arange(width, device=pixels.device)
        columns = torch.where(mirrored[:, None], columns.flip(0), columns) + at[:, 1:]
        rows = torch.arange(height, device=pixels.device) + at[:, :1]
        padded = functional.pad(pixels, (beside, beside, above, above)).flatten(2)
        places = (rows[:, :, None] * (width + 2 * beside) + columns[:, None, :]).flatten(1)
        return padded.gather(2, places[:, None].expand(-1, pixels.shape[1], -1)).view_as(pixels)

    def boxes(self, draws: Float[np.ndarray, "b draws"]) -> Int[np.ndarray, "b four"]:
        """Top, left, height and width of each crop, as `RandomResizedCrop` draws them (Szegedy et al. 2015)."""
        height, width = self.size
        where, tries = draws[:, :2], draws[:, 2:].reshape(len(draws), 2, TRIES)
        areas = height * width * (self.area[0] + (self.area[1] - self.area[0]) * tries[:, 0])
        aspects = np.exp(ASPECT * (2 * tries[:, 1] - 1))
        wide, high = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))
        fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
        first, found = fits.argmax(axis=1), fits.any(axis=1)
        rows = np.arange(len(draws))
        whole = (min(height, round(width * math.exp(ASPECT))), min(width, round(height * math.exp(ASPECT))))
        high = np.where(found, high[rows, first], whole[0])
        wide = np.where(found, wide[rows, first], whole[1])
        top = np.where(found, np.floor(where[:, 0] * (height - high + 1)), (height - high) // 2)
        left = np.where(found, np.floor(where[:, 1] * (width - wide + 1)), (width - wide) // 2)
        return np.stack((top, left, high, wide), axis=1).astype(np.int64)


def resized_crop(pixels: UInt8[Tensor, "b c y x"], boxes: Int[np.ndarray, "b four"],
           mirrored: Tensor) -> UInt8[Tensor, "b c y x"]:  # fmt: skip
    """Each box at the size of the whole, bicubic as PIL does it: columns, then rows, to 8 bits after each."""
    top, left, high, wide = torch.from_numpy(boxes).to(pixels.device, non_blocking=True).unbind(1)
    across = bicubic(left, wide, pixels.shape[3])
    across = torch.where(mirrored[:, None, None], across.flip(1), across)
    down = bicubic(top, high, pixels.shape[2])
    lines = rearrange(pixels, "b c y x -> b (y c) x").float()
    half = rearrange(eight_bits(lines @ across.mT), "b (y c) x -> b y (c x)", y=pixels.shape[2])
    return rearrange(eight_bits(down @ half).to(torch.uint8), "b y (c x) -> b c y x", c=pixels.shape[1])


def bicubic(start: Int[Tensor, " b"], length: Int[Tensor, " b"], size: int) -> Float[Tensor, "b out source"]:
    """The weights of each source pixel in each of `size` new ones, for a part of a line that is stretched over it all.

    Args:
        start: first pixel of the part.
        length: of the part, at most `size`.
        size: of the line, before and after.
    """
    centre = (torch.arange(size, device=start.device) + 0.5) * (length / size)[:, None]  # in pixels of the part
    source = (centre - 1.5).floor()[:, :, None] + torch.arange(4, device=start.device)  # the four that count
    x = (source - centre[:, :, None] + 0.5).abs()
    inner = ((SHARPNESS + 2) * x - (SHARPNESS + 3)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * SHARPNESS
    weights = torch.where(x < 1, inner, torch.where(x < 2, outer, 0.0))
    weights = weights * ((source >= 0) & (source < length[:, None, None]))  # what lies outside does not
    weights = weights / weights.sum(dim=2, keepdim=True)
    places = (source.long() + start[:, None, None]).clamp(0, size - 1)
    return weights.new_zeros(len(start), size, size).scatter_add_(2, places, weights)


def eight_bits(values: Float[Tensor, "b y x"]) -> Float[Tensor, "b y x"]:
    return (values + 0.5).floor_().clamp_(0, 255)
