"""The inputs of a training step: drawn on the host, and made on the device by tensor operations alone."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from vitlab.data.batch import Batch, Kind
from vitlab.data.erasing import Erasing
from vitlab.data.geometry import Geometry
from vitlab.data.mixing import Mixing
from vitlab.data.preprocess import Normalize


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """Images and targets of training batches: gathered, cropped, flipped, normalized, erased and mixed.

    `__call__` reads no value of a tensor on the host, so that a CUDA graph can capture it. What is None is left out.

    Args:
        size: height and width of the images.
        normalize: of pixels.
        pixels: all training images, on the device, which batches index; None where batches bring their pixels.
        geometry: crop and flip of `pixels`; those that a batch brings are transformed already.
        erasing: random erasing.
        mixing: mixup and CutMix; with it targets are probabilities.
    """

    size: tuple[int, int]
    normalize: Normalize
    pixels: Tensor | None = None
    geometry: Geometry | None = None
    erasing: Erasing | None = None
    mixing: Mixing | None = None

    def __call__(self, batch: Batch) -> tuple[Float[Tensor, "b c y x"], Int[Tensor, " b"] | Float[Tensor, "b classes"]]:
        """Normalized images, and the class of each or the probabilities of its classes; the batch is on the device."""
        given = batch.tensors
        pixels = given["pixels"] if self.pixels is None else self.pixels.index_select(0, given["images"])
        if self.geometry is not None:
            pixels = self.geometry.apply(pixels, given)
        images = self.normalize(pixels)
        if self.erasing is not None:
            images = self.erasing.apply(images, given)
        return (images, given["labels"]) if self.mixing is None else self.mixing.apply(images, given["labels"], batch)

    def draw(self, tensors: dict[str, Tensor], indices: Int[np.ndarray, " b"], *key: int) -> Batch:
        """The batch of a step, with the draws of what is done to whole batches.

        Args:
            tensors: its images or pixels, its labels, and the draws of its crops and flips.
            indices: index of each image in the global batch, on which erasing depends, so that several processes do
                the same as one.
            key: key of the random numbers.
        """
        kind: Kind = "plain"
        if self.erasing is not None:
            tensors = tensors | self.erasing.draws(self.size, indices, *key)
        if self.mixing is not None:
            kind, numbers = self.mixing.draws(self.size, *key)
            tensors = tensors | numbers
        return Batch(kind, tensors)
