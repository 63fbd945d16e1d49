"""Random crop and horizontal flip of whole batches, equal to torchvision's of single images.

For small images Python's time for each image is most of the cost. Here the random numbers of a batch are drawn
together on the host, each a function of (seed, round, image) alone, and the pixels are moved in a few operations on any
device.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from vitlab.data.seeding import uniforms

TRIES = 10  # draws of area and aspect ratio until a crop fits; then the center crop, as in torchvision
MAX_LOG_ASPECT = math.log(4 / 3)  # of a crop's aspect ratio; the minimum is its negative
BICUBIC = -0.5  # coefficient of the bicubic kernel, as in PIL


@dataclass(kw_only=True, eq=False)
class Geometry:
    """A random crop and a random horizontal flip of images in memory, for images of the model's input size.

    Args:
        size: height and width in pixels.
        crop: `none`, `pad` (random crop of the image padded with black) or `resized` (random resized crop, bicubic).
        padding: rows above and below, columns left and right, that `pad` adds.
        area: smallest and largest fraction of the area that `resized` keeps.
        flip: probability of a horizontal flip.
    """

    size: tuple[int, int]
    crop: Literal["none", "pad", "resized"]
    padding: tuple[int, int]
    area: tuple[float, float]
    flip: float

    def draws(self, seed: int, rounds: Int[np.ndarray, " b"], images: Int[np.ndarray, " b"]) -> dict[str, Tensor]:
        """Which images are flipped, and the offset or box of each crop.

        Args:
            seed: seed of the training.
            rounds: round of each image; an image is transformed differently in every round.
            images: index of each image in its split.
        """
        numbers = uniforms(seed, rounds, images, 3 + 2 * TRIES if self.crop == "resized" else 3)
        draws = {"flipped": torch.from_numpy(numbers[:, 0] < self.flip)}
        if self.crop == "pad":
            (top, left) = self.padding
            draws["offsets"] = torch.from_numpy((numbers[:, 1:] * (2 * top + 1, 2 * left + 1)).astype(np.int64))
        if self.crop == "resized":
            draws["boxes"] = torch.from_numpy(self.crop_boxes(numbers[:, 1:]))
        return draws

    def apply(self, pixels: UInt8[Tensor, "b c y x"], draws: dict[str, Tensor]) -> UInt8[Tensor, "b c y x"]:
        """The transformed batch, with the draws of `draws` on its device."""
        flipped = draws["flipped"]
        if self.crop == "pad":
            return self.pad_crop(pixels, draws["offsets"], flipped)
        if self.crop == "resized":
            return resized_crop(pixels, draws["boxes"], flipped)
        return torch.where(flipped.view(-1, 1, 1, 1), pixels.flip(3), pixels) if self.flip else pixels

    def pad_crop(self, pixels: UInt8[Tensor, "b c y x"], offset: Int[Tensor, "b two"],
                 flipped: Tensor) -> UInt8[Tensor, "b c y x"]:  # fmt: skip
        """A crop of the padded images, flipped where asked: one gather."""
        (height, width), (top, left) = self.size, self.padding
        columns = torch.arange(width, device=pixels.device)
        columns = torch.where(flipped[:, None], columns.flip(0), columns) + offset[:, 1:]
        rows = torch.arange(height, device=pixels.device) + offset[:, :1]
        padded = functional.pad(pixels, (left, left, top, top)).flatten(2)
        indices = (rows[:, :, None] * (width + 2 * left) + columns[:, None, :]).flatten(1)
        return padded.gather(2, indices[:, None].expand(-1, pixels.shape[1], -1)).view_as(pixels)

    def crop_boxes(self, draws: Float[np.ndarray, "b draws"]) -> Int[np.ndarray, "b four"]:
        """Top, left, height and width of each crop, as `RandomResizedCrop` draws them (Szegedy et al. 2015)."""
        height, width = self.size
        position, tries = draws[:, :2], draws[:, 2:].reshape(len(draws), 2, TRIES)
        areas = height * width * (self.area[0] + (self.area[1] - self.area[0]) * tries[:, 0])
        aspects = np.exp(MAX_LOG_ASPECT * (2 * tries[:, 1] - 1))
        widths, heights = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        first, any_fits = (np.arange(len(draws)), fits.argmax(axis=1)), fits.any(axis=1)
        max_aspect = math.exp(MAX_LOG_ASPECT)
        crop_height = np.where(any_fits, heights[first], min(height, round(width * max_aspect)))
        crop_width = np.where(any_fits, widths[first], min(width, round(height * max_aspect)))
        top = np.where(any_fits, np.floor(position[:, 0] * (height - crop_height + 1)), (height - crop_height) // 2)
        left = np.where(any_fits, np.floor(position[:, 1] * (width - crop_width + 1)), (width - crop_width) // 2)
        return np.stack((top, left, crop_height, crop_width), axis=1).astype(np.int64)


def resized_crop(pixels: UInt8[Tensor, "b c y x"], boxes: Int[Tensor, "b four"],
                 flipped: Tensor) -> UInt8[Tensor, "b c y x"]:  # fmt: skip
    """Each box resized to the size of the image as PIL does: bicubic, rows and columns in turn, rounded after each."""
    top, left, height, width = boxes.unbind(1)
    horizontal = bicubic(left, width, pixels.shape[3])
    horizontal = torch.where(flipped[:, None, None], horizontal.flip(1), horizontal)
    vertical = bicubic(top, height, pixels.shape[2])
    rows = rearrange(pixels, "b c y x -> b (y c) x").float()
    columns = rearrange(round_to_8_bits(rows @ horizontal.mT), "b (y c) x -> b y (c x)", y=pixels.shape[2])
    resized = round_to_8_bits(vertical @ columns).to(torch.uint8)
    return rearrange(resized, "b y (c x) -> b c y x", c=pixels.shape[1])


def bicubic(start: Int[Tensor, " b"], length: Int[Tensor, " b"], size: int) -> Float[Tensor, "b out source"]:
    """Bicubic weights of each source pixel in each output pixel, for a segment resized to the length of its line.

    Args:
        start: first pixel of the segment.
        length: pixels of the segment, at most `size`.
        size: pixels of the line, before and after.
    """
    center = (torch.arange(size, device=start.device) + 0.5) * (length / size)[:, None]  # in pixels of the segment
    source = (center - 1.5).floor()[:, :, None] + torch.arange(4, device=start.device)  # the kernel's four pixels
    x = (source - center[:, :, None] + 0.5).abs()
    inner = ((BICUBIC + 2) * x - (BICUBIC + 3)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * BICUBIC
    weights = torch.where(x < 1, inner, torch.where(x < 2, outer, 0.0))
    weights = weights * ((source >= 0) & (source < length[:, None, None]))  # zero outside the segment
    weights = weights / weights.sum(dim=2, keepdim=True)
    indices = (source.long() + start[:, None, None]).clamp(0, size - 1)
    return weights.new_zeros(len(start), size, size).scatter_add_(2, indices, weights)


def round_to_8_bits(values: Float[Tensor, "b y x"]) -> Float[Tensor, "b y x"]:
    return (values + 0.5).floor_().clamp_(0, 255)
