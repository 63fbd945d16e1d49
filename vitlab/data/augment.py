"""Data augmentation of training images and batches, through timm."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from vitlab.config.errors import ConfigError
from vitlab.data.dataset import Dataset
from vitlab.data.geometry import Geometry
from vitlab.data.mixing import Mixing
from vitlab.data.preprocess import Resize, to_pixels
from vitlab.data.seeding import seeded
from vitlab.system.lazy_imports import modules

MIN_STRENGTH = 1e-30  # smaller parameters of a Beta distribution cannot be drawn from
POLICY_RANGES = {"n": (0, 100), "w": (0, 100), "d": (0, 100), "a": (0.1, 1000)}  # by letter; the others 0 to 1000

Transform = Callable[[Image.Image], UInt8[Tensor, "c y x"]]


@dataclass(kw_only=True, eq=False)
class Augment:
    """The augmentation of a run; a value that is 0 or null turns its step off.

    Args:
        crop: `none` (resize as in evaluation), `pad` (random crop of the padded image) or `resized` (random resized
            crop: Inception's).
        pad: padding as a fraction of the image's side; 0.125 is 4 pixels of 32.
        area: smallest and largest fraction of the area that `resized` keeps.
        flip: probability of a horizontal flip; only where the dataset says that it keeps the class.
        color_jitter: strength of the changes of brightness, contrast and saturation.
        auto_augment: timm's name of a policy, such as `rand-m9-mstd0.5-inc1` (RandAugment, magnitude 9), `original`
            (AutoAugment), `augmix-m3-w3` or `3a` (one of grey, solarize and blur; the only one that goes together with
            color_jitter).
        erase: probability of random erasing, on the device (Zhong et al. 2020).
        repeats: copies of an image in a batch, each augmented differently (Hoffer et al. 2020); an epoch keeps its
            length and has 1 / repeats of the images.
        mixup: alpha of mixup's Beta distribution (Zhang et al. 2018).
        cutmix: alpha of CutMix's (Yun et al. 2019).
        mix_probability: fraction of the batches that are mixed.
        cutmix_share: fraction of the mixed batches that use CutMix where both are on.
        batched: crop and flip whole batches on their device (true), or single images by timm (false): the same
            distribution, other random numbers. auto is whole batches of images in memory, where possible; true does it
            with those of files too, which system.cache then keeps and which must all have the model's input size.

    Raises:
        ConfigError: a probability outside 0 ... 1, a negative strength.
    """

    crop: Literal["none", "pad", "resized"]
    pad: float
    area: tuple[float, float]
    flip: float
    color_jitter: float
    auto_augment: str | None
    erase: float
    repeats: int
    mixup: float
    cutmix: float
    mix_probability: float
    cutmix_share: float
    batched: bool | Literal["auto"]

    def __post_init__(self) -> None:
        for name in ("flip", "pad", "erase", "mix_probability", "cutmix_share"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ConfigError(f"augment.{name}={value}: must be from 0 to 1")
        for name in ("mixup", "cutmix", "color_jitter"):
            if not ((value := getattr(self, name)) == 0 or value >= MIN_STRENGTH):
                raise ConfigError(f"augment.{name}={value}: must be 0 (off), or {MIN_STRENGTH} and more")
        if self.repeats < 1:
            raise ConfigError(f"augment.repeats={self.repeats}: must be at least 1 (off); DeiT takes 3")
        if self.color_jitter and self.auto_augment is not None and "3a" not in self.auto_augment:
            raise ConfigError(
                f"augment.color_jitter={self.color_jitter} and augment.auto_augment={self.auto_augment}: the policy"
                " changes colours itself: set one of them to 0 or null"
            )
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ConfigError(
                f"augment.area={list(self.area)}: must be two fractions, the smaller first, such as [0.08, 1.0]"
            )

    def transform(self, dataset: Dataset) -> Transform | None:
        """The transform of one training image; None where images stay as they are."""
        flip = self.flip if dataset.flip else 0.0
        colours = self.color_jitter or self.auto_augment
        if dataset.channels > 4 or (colours and dataset.channels not in (1, 3)):
            verb = "changes colours of" if colours else "reads"
            raise ConfigError(
                f"dataset.channels={dataset.channels}: vitlab {verb} images of 1 channel (grey) or 3 (colour): use one"
            )
        if self.crop == "none" and not (flip or colours):
            return None if self.batched is True else eval_transform(dataset)
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
            padding = [round(side * self.pad) for side in reversed(dataset.shape)]
            steps.insert(1, transforms.RandomCrop(dataset.shape, padding=padding))
        if self.auto_augment is not None and dataset.channels == 1:  # the policies need colour images
            second.transforms = [transforms.Grayscale(3), *second.transforms, transforms.Grayscale(1)]
        return transforms.Compose([*steps, *second.transforms, *last.transforms])

    def min_size(self, dataset: Dataset) -> int:
        """Smallest size of the shorter side at which a JPEG may be decoded, so that no crop is enlarged more for it."""
        min_size = Resize(dataset.shape, dataset.evaluation_crop).min_size
        if self.crop != "resized":
            return min_size
        side = math.sqrt(self.area[0] * 3 / 4)  # fraction kept by the smallest crop of the most extreme aspect ratio
        return max(min_size, math.ceil(max(dataset.shape) / side))

    def geometry(self, dataset: Dataset) -> Geometry | None:
        """The transform of whole batches, for images of the model's input size that are cropped and flipped only.

        Raises:
            ConfigError: `batched`, where that is impossible.
        """
        flip = self.flip if dataset.flip else 0.0
        obstacles = {
            f"augment.color_jitter={self.color_jitter} is for one image": self.color_jitter,
            f"augment.auto_augment={self.auto_augment} is for one image": self.auto_augment,
        }
        if reason := next((reason for reason, holds in obstacles.items() if holds), None):
            if self.batched is True:
                raise ConfigError(f"augment.batched=true, but {reason} after the other: use augment.batched=auto")
            return None
        in_files = dataset.size is None
        if in_files and self.batched is True and self.crop != "resized" and dataset.evaluation_crop != 1:
            raise ConfigError(
                f"augment.batched=true, but dataset.evaluation_crop={dataset.evaluation_crop} enlarges each image"
                " before it is cropped: use dataset.evaluation_crop=1, or augment.batched=auto"
            )
        if self.batched is False or (in_files and self.batched == "auto") or (self.crop == "none" and not flip):
            return None
        padding = (round(dataset.shape[0] * self.pad), round(dataset.shape[1] * self.pad))
        return Geometry(size=dataset.shape, crop=self.crop, padding=padding, area=self.area, flip=flip)

    def mixing(self, classes: int) -> Mixing | None:
        """Mixup and CutMix of a training batch; None where both are off."""
        options = {"mixup_alpha": self.mixup, "cutmix_alpha": self.cutmix, "prob": self.mix_probability}
        return Mixing(classes, **options, switch_prob=self.cutmix_share) if self.mixes else None

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with each other."""
        return bool((self.mixup or self.cutmix) and self.mix_probability)


def eval_transform(dataset: Dataset) -> Transform | None:
    """The transform of one image in evaluation; None where images in memory stay as they are."""
    if dataset.size is not None:
        return None
    resize = Resize(dataset.shape, dataset.evaluation_crop)
    return partial(resized_pixels, resize)


def resized_pixels(resize: Resize, image: Image.Image) -> UInt8[Tensor, "c y x"]:
    return to_pixels(resize(image))


def check_policy(policy: str) -> None:
    """Raises ConfigError for a policy with a word that timm does not know or ignores, or a number out of range."""
    (timm,) = modules("timm.data.auto_augment")
    kind, *words = policy.split("-")
    factories = {"rand": timm.rand_augment_transform, "augmix": timm.augment_and_mix_transform}
    factory = factories.get(kind, timm.auto_augment_transform)
    pattern = r"(m|n|p|w|inc|mstd|mmax|d|a|b)[0-9.]+|inc|t(weights|3aw?)"
    unknown = [word for word in words if not re.fullmatch(pattern, word)]
    try:
        with seeded(0):
            factory(policy, {"img_mean": (0,)})
    except (AssertionError, KeyError, ValueError, IndexError):
        unknown = unknown or [kind]
    if unknown:
        raise ConfigError(
            f"augment.auto_augment={policy!r}: timm knows no {', '.join(map(repr, unknown))} in it;"
            " rand-m9-mstd0.5-inc1 is usual"
        )
    for name, number in re.findall(r"-([a-z]+)([0-9.]+)(?=-|$)", policy):
        low, high = POLICY_RANGES.get(name, (0, 1000))
        if not low <= float(number) <= high:
            raise ConfigError(f"augment.auto_augment={policy}: {name}{number} must be from {name}{low} to {name}{high}")
