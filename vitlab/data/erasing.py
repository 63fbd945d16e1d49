"""Random erasing (Zhong et al. 2020) of whole batches, with the distribution of timm's: draws on the host, the
rectangles filled on any device."""

import math

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitlab.data.seeding import normal_keys, normals, seed_of, uniforms

TRIES = 10  # draws of a rectangle until one fits; then the image stays as it is
AREA = (0.02, 1 / 3)  # smallest and largest fraction of the image
MAX_LOG_ASPECT = math.log(1 / 0.3)  # of height / width; the minimum is its negative


class Erasing:
    """Replaces one rectangle of some images by noise of mean 0 and standard deviation 1.

    Args:
        probability: probability that an image is erased.
        fixed_shapes: whether `apply` computes every image, so that no shape depends on how many are erased, as a CUDA
            graph needs it; else the erased ones alone, which is faster.
    """

    def __init__(self, probability: float, *, fixed_shapes: bool = False):
        self.probability = probability
        self.fixed_shapes = fixed_shapes

    def draws(self, size: tuple[int, int], indices: Int[np.ndarray, " b"], *key: int) -> dict[str, Tensor]:
        """The rows to compute, the rectangle of each, and the key of its noise.

        Args:
            size: height and width of the images.
            indices: index of each image in the global batch.
            key: with an image's index the key of its random numbers.
        """
        seed = seed_of(*key)
        numbers = uniforms(seed, np.zeros_like(indices), indices, 3 + 2 * TRIES)
        boxes = rectangles(numbers[:, 1:], *size)
        erased = (numbers[:, 0] < self.probability) & (boxes[:, 2] > 0)
        rows = np.argsort(~erased, kind="stable")[: None if self.fixed_shapes else np.count_nonzero(erased)]
        rectangle = torch.from_numpy((boxes * erased[:, None])[rows])  # an empty one leaves the image as it is
        keys = torch.from_numpy(normal_keys(seed, indices[rows]))
        return {"erase_rows": torch.from_numpy(rows), "erase_boxes": rectangle, "erase_keys": keys}

    def apply(self, images: Float[Tensor, "b c y x"], draws: dict[str, Tensor]) -> Float[Tensor, "b c y x"]:
        """The batch after erasing, with the draws of `draws` on its device."""
        rows, shape = draws["erase_rows"], images.shape[1:]
        noise = normals(draws["erase_keys"], math.prod(shape)).view(-1, *shape).to(images.dtype)
        mask = inside(draws["erase_boxes"], *shape[1:])
        return images.index_copy(0, rows, torch.where(mask, noise, images[rows]))


def rectangles(draws: Float[np.ndarray, "b draws"], height: int, width: int) -> Int[np.ndarray, "b four"]:
    """Top, left, height and width of each rectangle; height and width are 0 where none fits."""
    position, tries = draws[:, :2], rearrange(draws[:, 2:], "b (kind tries) -> kind b tries", kind=2)
    areas = height * width * (AREA[0] + (AREA[1] - AREA[0]) * tries[0])
    aspects = np.exp(MAX_LOG_ASPECT * (2 * tries[1] - 1))
    heights, widths = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))
    fits = (heights < height) & (widths < width)
    first, any_fits = (np.arange(len(draws)), fits.argmax(axis=1)), fits.any(axis=1)
    box_height, box_width = np.where(any_fits, heights[first], 0), np.where(any_fits, widths[first], 0)
    top = np.floor(position[:, 0] * (height - box_height + 1))
    left = np.floor(position[:, 1] * (width - box_width + 1))
    return np.stack((top, left, box_height, box_width), axis=1).astype(np.int64)


def inside(boxes: Int[Tensor, "b four"], height: int, width: int) -> Bool[Tensor, "b 1 y x"]:
    """Mask of the pixels in each rectangle."""
    top, left, box_height, box_width = boxes.view(-1, 4, 1).unbind(1)
    rows, columns = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    in_rows, in_columns = (rows >= top) & (rows < top + box_height), (columns >= left) & (columns < left + box_width)
    return (in_rows[:, :, None] & in_columns[:, None])[:, None]
