"""Losses for hard labels, and for the soft labels of mixup and CutMix."""

import math
from abc import ABC, abstractmethod

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from vitlab.config.errors import ConfigError

Targets = Int[Tensor, " b"] | Float[Tensor, "b classes"]


class Loss(nn.Module, ABC):
    """The contract: the mean over a batch, from logits and labels; and what the model's head starts at for it."""

    def start(self, head: nn.Linear) -> None:
        """Sets the head's initial bias if the loss needs a special one."""

    @abstractmethod
    def forward(self, logits: Float[Tensor, "b classes"], targets: Targets) -> Float[Tensor, ""]: ...


class CrossEntropy(Loss):
    """Softmax cross-entropy.

    Args:
        label_smoothing: probability mass of each label spread over all classes (Szegedy et al. 2016); mixed labels are
            smoothed here too, and nowhere else.

    Raises:
        ConfigError: label smoothing outside 0 ... 1.
    """

    def __init__(self, *, label_smoothing: float):
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"loss.label_smoothing={label_smoothing}: must be at least 0 and below 1; 0.1 is usual")
        self.label_smoothing = label_smoothing

    def forward(self, logits: Float[Tensor, "b classes"], targets: Targets) -> Float[Tensor, ""]:
        return functional.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)


class SigmoidCrossEntropy(CrossEntropy):
    """Binary cross-entropy of each class, summed over the classes (Beyer et al. 2020; the authors' pre-training loss).

    Args:
        label_smoothing: as for softmax cross-entropy.
        head_bias: initial bias of each class; None is -log(classes), so that the first probabilities are
            1 / classes: -6.9 for ImageNet's 1000, as in the authors' code.
    """

    def __init__(self, *, label_smoothing: float, head_bias: float | None):
        super().__init__(label_smoothing=label_smoothing)
        self.head_bias = head_bias

    def start(self, head: nn.Linear) -> None:
        nn.init.constant_(head.bias, -math.log(head.out_features) if self.head_bias is None else self.head_bias)

    def forward(self, logits: Float[Tensor, "b classes"], targets: Targets) -> Float[Tensor, ""]:
        classes = logits.shape[-1]
        target = functional.one_hot(targets, classes).float() if targets.ndim == 1 else targets
        target = target * (1 - self.label_smoothing) + self.label_smoothing / classes
        each = functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
        return each.sum(dim=-1).mean()
