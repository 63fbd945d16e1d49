"""Pixel statistics: how often each of the 256 levels of a channel occurs as evaluation sees images, and their sizes."""

import numpy as np
import torch
from jaxtyping import Float, Int

from vitlab.data.augment import eval_transform
from vitlab.data.dataset import Dataset
from vitlab.data.examples import Examples
from vitlab.data.loader import EvalSampler, loader

LOOKED_AT = 32  # images that are enough for a warning
FEW = 16  # levels that hold nearly all pixels of images in which there is nothing to see


def count_levels(examples: Examples, dataset: Dataset) -> Int[np.ndarray, "c levels"]:
    """How many pixels of each channel have each of the values 0 to 255."""
    counts = np.zeros((dataset.channels, 256), dtype=np.int64)
    for batch, _ in loader(examples, eval_transform(dataset), EvalSampler(examples=len(examples), batch=100)):
        for channel, values in enumerate(batch.transpose(0, 1)):
            counts[channel] += torch.bincount(values.flatten(), minlength=256).cpu().numpy()
    return counts


def mean_and_std(counts: Int[np.ndarray, "c levels"]) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Mean and standard deviation of each channel, in 0 ... 1."""
    values, pixels = np.arange(256) / 255, counts.sum(axis=1)
    mean = counts @ values / pixels
    return mean, np.sqrt(np.maximum(counts @ values**2 / pixels - mean**2, 0))


def describe_flat(counts: Int[np.ndarray, "c levels"]) -> str:
    """That nearly all pixels are the same, in words; empty where they are not."""
    fractions = counts.cumsum(axis=1) / counts.sum(axis=1, keepdims=True)
    low, high = ((fractions < limit).sum(axis=1) for limit in (0.005, 0.995))
    if (high - low >= FEW).any():
        return ""
    spans = dict.fromkeys(f"{a} to {b}" if a < b else f"{a}" for a, b in zip(low, high, strict=True))
    return f"nearly all pixels are the same: 99 % have the values {' and '.join(spans)} of 255"


def describe_enlarged(examples: Examples, dataset: Dataset) -> str:
    """That most images are enlarged to twice their size or more, in words; empty where they are not."""
    own = int(np.median([min(examples.image(index).size) for index in range(len(examples))]))
    size = min(dataset.shape)
    if 2 * own > size:
        return ""
    return f"most are enlarged from {own} to {size} pixels (dataset.image_size={own} takes them as they are)"
