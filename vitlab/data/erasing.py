"""Random erasing (Zhong et al. 2020) of a whole batch where it lies: timm's rectangles of noise, drawn together."""

import math

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitlab.data.seeding import normals, seed_of, uniforms

TRIES = 10  # at a rectangle that fits into the image; then it stays as it is
AREA = (0.02, 1 / 3)  # shares of the image
ASPECT = math.log(1 / 0.3)  # of the tallest rectangle; of the widest its negative


class Erasing:
    """One rectangle of some images becomes noise of mean 0 and deviation 1, each pixel its own.

    Args:
        chance: that an image loses one.
    """

    def __init__(self, chance: float):
        self.chance = chance

    def __call__(
        self, images: Float[Tensor, "b c y x"], places: Int[np.ndarray, " b"], *key: int
    ) -> Float[Tensor, "b c y x"]:
        """The batch, erased; each image's draws depend on `key` and its place in the global batch alone."""
        seed, device = seed_of(*key), images.device
        draws = uniforms(seed, np.zeros_like(places), places, 3 + 2 * TRIES)
        boxes = rectangles(draws[:, 1:], *images.shape[2:])
        rows = np.flatnonzero((draws[:, 0] < self.chance) & (boxes[:, 2] > 0))  # known here: no GPU is waited for
        if not len(rows):
            return images
        erased = inside(torch.from_numpy(boxes[rows]).to(device, non_blocking=True), *images.shape[2:])
        noise = normals(seed, places[rows], math.prod(images.shape[1:]), device).view(len(rows), *images.shape[1:])
        which = torch.from_numpy(rows).to(device, non_blocking=True)
        return images.index_copy(0, which, torch.where(erased, noise.to(images.dtype), images[which]))


def rectangles(draws: Float[np.ndarray, "b draws"], height: int, width: int) -> Int[np.ndarray, "b four"]:
    """Top, left, height and width of each; all 0 where none was found to fit."""
    where, tries = draws[:, :2], rearrange(draws[:, 2:], "b (kind tries) -> kind b tries", kind=2)
    areas = height * width * (AREA[0] + (AREA[1] - AREA[0]) * tries[0])
    aspects = np.exp(ASPECT * (2 * tries[1] - 1))
    high, wide = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))
    fits = (high < height) & (wide < width)
    first, found = fits.argmax(axis=1), fits.any(axis=1)
    high, wide = (np.where(found, side[np.arange(len(draws)), first], 0) for side in (high, wide))
    top, left = np.floor(where[:, 0] * (height - high + 1)), np.floor(where[:, 1] * (width - wide + 1))
    return np.stack((top, left, high, wide), axis=1).astype(np.int64)


def inside(boxes: Int[Tensor, "b four"], height: int, width: int) -> Bool[Tensor, "b 1 y x"]:
    """Which pixels lie in a rectangle."""
    top, left, high, wide = boxes.view(-1, 4, 1).unbind(1)
    rows, columns = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    in_rows, in_columns = (rows >= top) & (rows < top + high), (columns >= left) & (columns < left + wide)
    return (in_rows[:, :, None] & in_columns[:, None])[:, None]
