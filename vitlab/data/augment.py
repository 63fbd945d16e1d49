"""Augmentation, through timm: what happens to an image (or a batch) between the file and the model in training."""

import math
import re
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from vitlab.config.errors import ConfigError
from vitlab.data.dataset import Dataset
from vitlab.data.erasing import Erasing
from vitlab.data.geometry import Geometry
from vitlab.data.preprocess import Resize, to_pixels
from vitlab.data.seeding import seeded
from vitlab.system.lazy_imports import modules

LEAST = 1e-30  # of a strength: of less no draw can be made
NUMBERS = {"n": (0, 100), "w": (0, 100), "d": (0, 100), "a": (0.1, 1000)}  # of a policy's words; of others 0 to 1000

Transform = Callable[[Image.Image], UInt8[Tensor, "c y x"]]


class Augment:
    """What a run's training images go through; a value that is 0 or null leaves its step out.

    Args:
        crop: `none` (resize as in evaluation), `pad` (pad the border, cut at random) or `resized` (a random area and
            aspect, resized: Inception's crop).
        pad: border of `pad` as a share of the image's side; 0.125 is 4 pixels of 32.
        area: smallest and largest share of the area that `resized` keeps.
        flip: chance of a horizontal mirror; only where the dataset says that it keeps the class.
        color_jitter: strength of brightness, contrast and saturation changes.
        auto_augment: timm's name of a policy, such as `rand-m9-mstd0.5-inc1` (RandAugment, magnitude 9), `original`
            (AutoAugment), `augmix-m3-w3` or `3a` (one of grey, solarised and blurred; only this one goes together with
            color_jitter).
        erase: chance that a rectangle of an image becomes noise, on the device (random erasing, Zhong et al. 2020).
        repeats: copies of an image in a batch, each augmented anew (Hoffer et al. 2020); an epoch keeps its length and
            sees 1 / repeats of the images.
        mixup: alpha of mixup's Beta distribution (Zhang et al. 2018).
        cutmix: alpha of CutMix's (Yun et al. 2019).
        mix_probability: share of batches that are mixed.
        cutmix_share: share of mixed batches that CutMix takes where both are on.
        batched: whether crop and mirror are done to whole batches where they lie (true), or to one image after the
            other by timm (false): the same distribution, other draws; auto is whole batches where that can be.

    Raises:
        ConfigError: a chance outside 0 ... 1, a negative strength.
    """

    def __init__(
        self,
        *,
        crop: Literal["none", "pad", "resized"],
        pad: float,
        area: tuple[float, float],
        flip: float,
        color_jitter: float,
        auto_augment: str | None,
        erase: float,
        repeats: int,
        mixup: float,
        cutmix: float,
        mix_probability: float,
        cutmix_share: float,
        batched: bool | Literal["auto"],
    ):
        chances = {
            "flip": flip,
            "pad": pad,
            "erase": erase,
            "mix_probability": mix_probability,
            "cutmix_share": cutmix_share,
        }
        for name, value in chances.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"augment.{name}={value}: must be from 0 to 1")
        for name, value in {"mixup": mixup, "cutmix": cutmix, "color_jitter": color_jitter}.items():
            if not (value == 0 or value >= LEAST):
                raise ConfigError(f"augment.{name}={value}: must be 0 (off), or {LEAST} and more")
        if repeats < 1:
            raise ConfigError(f"augment.repeats={repeats}: must be at least 1 (off); DeiT takes 3")
        if color_jitter and auto_augment is not None and "3a" not in auto_augment:
            raise ConfigError(
                f"augment.color_jitter={color_jitter} and augment.auto_augment={auto_augment}: the policy changes"
                " colours itself: set one of them to 0 or null"
            )
        if not 0 < area[0] <= area[1] <= 1:
            raise ConfigError(f"augment.area={list(area)}: must be two shares, the smaller first, such as [0.08, 1.0]")
        self.crop = crop
        self.pad = pad
        self.area = area
        self.flip = flip
        self.color_jitter = color_jitter
        self.auto_augment = auto_augment
        self.erase = erase
        self.repeats = repeats
        self.mixup = mixup
        self.cutmix = cutmix
        self.mix_probability = mix_probability
        self.cutmix_share = cutmix_share
        self.batched = batched

    def transform(self, dataset: Dataset) -> Transform | None:
        """What one training image goes through, for `dataset`'s size; None where that is nothing."""
        flip = self.flip if dataset.flip else 0.0
        colours = self.color_jitter or self.auto_augment
        if dataset.channels > 4 or (colours and dataset.channels not in (1, 3)):
            what = "changes colours of" if colours else "reads"
            raise ConfigError(
                f"dataset.channels={dataset.channels}: vitlab {what} images of 1 channel (grey) or 3 (colour): use one"
            )
        if self.crop == "none" and not (flip or colours):
            return eval_transform(dataset)
        timm, transforms = modules("timm.data.transforms_factory", "torchvision.transforms")
        if self.auto_augment is not None:
            check_policy(self.auto_augment)
        first, second, last = timm.create_transform(
            (dataset.channels, *dataset.shape),
            is_training=True,
            scale=tuple(self.area),
            hflip=flip,
            color_jitter=self.color_jitter or None,
            auto_augment=self.auto_augment,
            interpolation="bicubic",
            mean=dataset.mean,
            std=dataset.std,
            normalize=False,
            separate=True,
        )
        steps = [*first.transforms]
        if self.crop != "resized":
            steps[0] = Resize(dataset.shape, dataset.evaluation_crop)
        if self.crop == "pad":
            border = [round(side * self.pad) for side in reversed(dataset.shape)]
            steps.insert(1, transforms.RandomCrop(dataset.shape, padding=border))
        if self.auto_augment is not None and dataset.channels == 1:  # the policies know colour images only
            second.transforms = [transforms.Grayscale(3), *second.transforms, transforms.Grayscale(1)]
        return transforms.Compose([*steps, *second.transforms, *last.transforms])

    def min_size(self, dataset: Dataset) -> int:
        """Pixels that an image's shorter side must have left for no crop to be magnified more than the whole's is."""
        least = Resize(dataset.shape, dataset.evaluation_crop).min_size
        if self.crop != "resized":
            return least
        share = math.sqrt(self.area[0] * 3 / 4)  # of a side, kept by the smallest crop at the most uneven aspect
        return max(least, math.ceil(max(dataset.shape) / share))

    def geometry(self, dataset: Dataset) -> Geometry | None:
        """The same for whole batches, where nothing but crop and mirror is asked for of images held at their size.

        Raises:
            ConfigError: more is asked for, and `batched`.
        """
        flip = self.flip if dataset.flip else 0.0
        alone = {
            "these images are decoded from files, one": dataset.size is None,
            f"augment.color_jitter={self.color_jitter} is for one image": self.color_jitter,
            f"augment.auto_augment={self.auto_augment} is for one image": self.auto_augment,
        }
        if found := [reason for reason, holds in alone.items() if holds]:
            if self.batched is True:
                raise ConfigError(f"augment.batched=true, but {found[0]} after the other: use augment.batched=auto")
            return None
        if self.batched is False or (self.crop == "none" and not flip):
            return None
        border = (round(dataset.shape[0] * self.pad), round(dataset.shape[1] * self.pad))
        return Geometry(size=dataset.shape, crop=self.crop, border=border, area=self.area, flip=flip)

    def batchwise(self, classes: int) -> "Batchwise | None":
        """What one training batch goes through on the device; None where that is nothing."""
        return Batchwise(self, classes) if self.mixes or self.erase else None

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with each other."""
        return bool((self.mixup or self.cutmix) and self.mix_probability)


class Batchwise:
    """Random erasing, then timm's mixup and CutMix, on normalised batches of any size where they lie.

    Drawn from `key` alone, and erased areas from an image's place in the global batch too, so that several processes do
    what one would. Smooths no label: the loss does.
    """

    def __init__(self, augment: Augment, classes: int):
        self.erase = Erasing(augment.erase) if augment.erase else None
        self.mixup = None
        if augment.mixes:
            (mixing,) = modules("timm.data.mixup")
            self.mixup = mixing.Mixup(
                mixup_alpha=augment.mixup,
                cutmix_alpha=augment.cutmix,
                prob=augment.mix_probability,
                switch_prob=augment.cutmix_share,
                label_smoothing=0.0,
                num_classes=classes,
            )

    def __call__(
        self, images: Float[Tensor, "b c y x"], labels: Int[Tensor, " b"], places: np.ndarray, *key: int
    ) -> tuple[Float[Tensor, "b c y x"], Int[Tensor, " b"] | Float[Tensor, "b classes"]]:
        """Mixes image i with the image as far from the batch's end; an odd batch is made even by its first image."""
        if self.erase is not None:
            images = self.erase(images, places, *key)
        if self.mixup is None:
            return images, labels
        with seeded(*key):
            odd = len(images) % 2
            if odd:
                images, labels = torch.cat((images, images[:1])), torch.cat((labels, labels[:1]))
            images, targets = self.mixup(images, labels)
            end = len(images) - odd
            return images[:end], targets[:end]


def eval_transform(dataset: Dataset) -> Transform | None:
    """What one image goes through in evaluation; None where the images are held at their size."""
    if dataset.size is not None:
        return None
    resize = Resize(dataset.shape, dataset.evaluation_crop)
    return lambda image: to_pixels(resize(image))


def check_policy(policy: str) -> None:
    """Raises ValueError where timm knows no such policy, or would leave out the words of it that it does not know."""
    (timm,) = modules("timm.data.auto_augment")
    kind, *words = policy.split("-")
    makers = {"rand": timm.rand_augment_transform, "augmix": timm.augment_and_mix_transform}
    make = makers.get(kind, timm.auto_augment_transform)
    odd = [
        word for word in words if not re.fullmatch(r"(m|n|p|w|inc|mstd|mmax|d|a|b)[0-9.]+|inc|t(weights|3aw?)", word)
    ]
    try:
        with seeded(0):
            make(policy, {"img_mean": (0,)})
    except (AssertionError, KeyError, ValueError, IndexError):
        odd = odd or [kind]
    if odd:
        raise ConfigError(
            f"augment.auto_augment={policy!r}: timm knows no {', '.join(map(repr, odd))} in it; rand-m9-mstd0.5-inc1 is"
            " usual"
        )
    for name, number in re.findall(r"-([a-z]+)([0-9.]+)(?=-|$)", policy):
        least, most = NUMBERS.get(name, (0, 1000))
        if not least <= float(number) <= most:
            raise ConfigError(
                f"augment.auto_augment={policy}: {name}{number} must be from {name}{least} to {name}{most}"
            )
