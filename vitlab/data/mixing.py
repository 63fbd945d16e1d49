"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): timm's draws on the host, the images mixed on any device."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitlab.data.batch import Batch, Kind
from vitlab.data.erasing import inside
from vitlab.data.seeding import numpy_seeded
from vitlab.system.lazy_imports import modules


class Mixing:
    """Mixes image i of a batch with image n - 1 - i, as timm's Mixup does; an odd batch is extended by its first image.

    Labels are not smoothed here: the loss does that.

    Args:
        classes: number of classes.
        options: of timm's Mixup: alphas and probabilities.
    """

    def __init__(self, classes: int, **options: Any):
        (self.timm,) = modules("timm.data.mixup")
        self.mixup = self.timm.Mixup(num_classes=classes, label_smoothing=0.0, **options)

    def draws(self, size: tuple[int, int], *key: int) -> tuple[Kind, dict[str, Tensor]]:
        """How a batch is mixed, and the numbers for it: the weight of each image and of its partner, CutMix's box.

        Args:
            size: height and width of the images.
            key: key of the random numbers.
        """
        with numpy_seeded(*key):
            weight, cutmix = self.mixup._params_per_batch()
            if weight == 1:
                return "plain", {}
            box = {}
            if cutmix:
                (top, bottom, left, right), weight = self.timm.cutmix_bbox_and_lam(size, weight)
                box = {"mix_box": torch.tensor([[top, left, bottom - top, right - left]])}
        weights = torch.tensor([weight, 1.0 - weight], dtype=torch.float32)
        return "cutmix" if cutmix else "mixup", {"mix_weights": weights} | box

    def apply(
        self, images: Float[Tensor, "b c y x"], labels: Int[Tensor, " b"], batch: Batch
    ) -> tuple[Float[Tensor, "b c y x"], Float[Tensor, "b classes"]]:
        """The mixed images, which take the place of the given ones in memory, and the probability of each class.

        Equal to timm's to the last bit.
        """
        given = batch.tensors
        targets = images.new_zeros(len(labels), self.mixup.num_classes).scatter_(1, labels[:, None], 1.0)
        if batch.kind == "plain":
            return images, targets
        weight, rest = given["mix_weights"].unbind()
        others = partners(images)
        if batch.kind == "mixup":
            images.mul_(weight).add_(others.mul_(rest))
        else:
            images = torch.where(inside(given["mix_box"], *images.shape[2:]), others, images)
        return images, targets * weight + partners(targets) * rest


def partners(values: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """What each row is mixed with: the rows in reverse; in an odd batch the first one is its own partner."""
    return values.flip(0).roll(1, 0) if len(values) % 2 else values.flip(0)
