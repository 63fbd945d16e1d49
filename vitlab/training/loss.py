"""Losses for hard labels, and for the soft labels of mixup and CutMix."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from vitlab.config.errors import ConfigError

Targets = Int[Tensor, " b"] | Float[Tensor, "b classes"]
ClassWeights = Literal["balanced"] | tuple[float, ...] | None


class Loss(nn.Module, ABC):
    """The contract: the mean over a batch, from logits and labels; and what the model's head starts at for it."""

    def start(self, head: nn.Linear) -> None:
        """Sets the head's initial bias if the loss needs a special one."""

    def set_classes(self, classes: Sequence[str], images: Int[np.ndarray, " classes"]) -> None:
        """Takes what the loss needs to know of the classes.

        Args:
            classes: their names.
            images: training images of each, as often as they are drawn.

        Raises:
            ConfigError: the loss does not go with these classes.
        """

    @abstractmethod
    def forward(self, logits: Float[Tensor, "b classes"], targets: Targets) -> Float[Tensor, ""]: ...


class CrossEntropy(Loss):
    """Softmax cross-entropy.

    With class weights it is the mean over the images of weight * loss. This is not divided by the weights of the batch,
    as torch would, so that several processes or accumulation steps give the loss of the whole batch. The weights are
    scaled to a mean of 1 over the training images, so that the learning rate keeps its meaning. A mixed image has the
    loss of each of its labels with that label's weight; label smoothing leaves an image's weight as it is. The loss of
    an evaluation (val/loss, test/loss) is never weighted or smoothed, and can be compared between all runs.

    Args:
        label_smoothing: probability mass of each label spread over all classes (Szegedy et al. 2016); mixed labels are
            smoothed here too, and nowhere else.
        class_weights: one number a class, of which the ratios count; or `balanced`: images / (classes * images of the
            class), of the training images, as scikit-learn has it; None for no weights.

    Raises:
        ConfigError: label smoothing outside 0 ... 1, or class weights that are negative or all 0.
    """

    weights: Tensor | None

    def __init__(self, *, label_smoothing: float, class_weights: ClassWeights):
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"loss.label_smoothing={label_smoothing}: must be at least 0 and below 1; 0.1 is usual")
        self.label_smoothing = label_smoothing
        if isinstance(class_weights, list | tuple) and not (min(class_weights, default=0) >= 0 < sum(class_weights)):
            raise ConfigError(
                f"loss.class_weights={list(class_weights)}: no weight may be negative, and one must be above 0: give a"
                " number for each class, or loss.class_weights=balanced"
            )
        self.class_weights = class_weights
        self.register_buffer("weights", None, persistent=False)

    def set_classes(self, classes: Sequence[str], images: Int[np.ndarray, " classes"]) -> None:
        """Makes the weights of the classes, whose mean over the training images is 1.

        Raises:
            ConfigError: not one weight a class, `balanced` with a class without training images, or no training image
                of a class whose weight is above 0.
        """
        given = self.class_weights
        if given is None:
            return
        if given == "balanced":
            if not images.all():
                raise ConfigError(
                    f"loss.class_weights=balanced: the class {classes[int(images.argmin())]} has no training images,"
                    " and its weight would be infinite: give it some, take it out, or give loss.class_weights as a list"
                )
            given = 1 / images
        elif len(given) != len(classes):
            raise ConfigError(
                f"loss.class_weights={list(given)}: {len(given)} weights for {len(classes)} classes: give one for each,"
                " in the order of the classes (`vitlab data` lists them), or loss.class_weights=balanced"
            )
        weights = np.asarray(given, dtype=np.float64)
        if not (total := weights @ images):
            raise ConfigError(
                f"loss.class_weights={self.class_weights}: no class with training images has a weight above 0"
            )
        self.weights = torch.tensor(weights * (images.sum() / total), dtype=torch.float32)

    def forward(self, logits: Float[Tensor, "b classes"], targets: Targets) -> Float[Tensor, ""]:
        if self.weights is None:
            return self.losses(logits.float(), targets, "mean")
        if targets.ndim == 1:
            weight = self.weights[targets]
        else:
            targets = targets * self.weights
            weight = targets.sum(dim=1)
            targets = targets / weight.clamp(min=torch.finfo(weight.dtype).tiny)[:, None]
        return (weight * self.losses(logits.float(), targets, "none")).mean()

    def losses(self, logits: Tensor, targets: Targets, reduction: Literal["none", "mean"]) -> Tensor:
        """The loss of each image, or their mean."""
        return functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing, reduction=reduction)

    def smoothed(self, targets: Targets, classes: int) -> Float[Tensor, "b classes"]:
        """The targets as probabilities, smoothed."""
        if targets.ndim == 1:  # one_hot would read the labels on the host
            targets = (targets[:, None] == torch.arange(classes, device=targets.device)).float()
        return targets * (1 - self.label_smoothing) + self.label_smoothing / classes


class SigmoidCrossEntropy(CrossEntropy):
    """Binary cross-entropy of each class, summed over the classes (Beyer et al. 2020; the authors' pre-training loss).

    Args:
        label_smoothing: as for softmax cross-entropy.
        class_weights: as for softmax cross-entropy; the weight of an image is that of its label's class.
        head_bias: initial bias of each class; None is -log(classes), so that the first probabilities are
            1 / classes: -6.9 for ImageNet's 1000, as in the authors' code.
    """

    def __init__(self, *, label_smoothing: float, class_weights: ClassWeights, head_bias: float | None):
        super().__init__(label_smoothing=label_smoothing, class_weights=class_weights)
        self.head_bias = head_bias

    def start(self, head: nn.Linear) -> None:
        nn.init.constant_(head.bias, -math.log(head.out_features) if self.head_bias is None else self.head_bias)

    def losses(self, logits: Tensor, targets: Targets, reduction: Literal["none", "mean"]) -> Tensor:
        target = self.smoothed(targets, logits.shape[-1])
        each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(dim=-1)
        return each.mean() if reduction == "mean" else each


class Focal(CrossEntropy):
    """Softmax focal loss (Lin et al. 2017): the cross-entropy of each class times (1 - its probability) ** gamma.

    Images that are classified with confidence count less. In the paper the loss is binary; its alpha is
    `class_weights` here.

    Args:
        label_smoothing: as for softmax cross-entropy.
        class_weights: as for softmax cross-entropy.
        gamma: how much less a confident prediction counts; 0 is softmax cross-entropy, 2 the paper's.

    Raises:
        ConfigError: gamma below 0.
    """

    def __init__(self, *, label_smoothing: float, class_weights: ClassWeights, gamma: float):
        super().__init__(label_smoothing=label_smoothing, class_weights=class_weights)
        if gamma < 0:
            raise ConfigError(f"loss.gamma={gamma}: must be at least 0, which is cross-entropy; 2 is usual")
        self.gamma = gamma

    def losses(self, logits: Tensor, targets: Targets, reduction: Literal["none", "mean"]) -> Tensor:
        log_p = logits.log_softmax(dim=-1)
        rest = -torch.expm1(log_p)  # 1 - p; the slope of rest ** gamma is infinite at 0 where gamma is below 1
        focus = rest.clamp(min=torch.finfo(rest.dtype).eps) ** self.gamma
        each = -(self.smoothed(targets, logits.shape[-1]) * focus * log_p).sum(dim=-1)
        return each.mean() if reduction == "mean" else each
