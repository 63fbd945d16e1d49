"""Losses, for hard labels and for the soft ones that mixup and CutMix make."""

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional


class CrossEntropy(nn.Module):
    """Softmax cross-entropy, the mean over a batch.

    Args:
        label_smoothing: share of each label that is spread over all classes (Szegedy et al. 2016); mixed labels are
            smoothed here too, and nowhere else.

    Raises:
        ValueError: a share outside 0 ... 1.
    """

    def __init__(self, *, label_smoothing: float):
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"loss.label_smoothing={label_smoothing}: must be at least 0 and below 1; 0.1 is usual")
        self.label_smoothing = label_smoothing

    def forward(
        self, logits: Float[Tensor, "b classes"], targets: Int[Tensor, " b"] | Float[Tensor, "b classes"]
    ) -> Float[Tensor, ""]:
        return functional.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)
