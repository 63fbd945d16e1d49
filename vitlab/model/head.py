"""Head: from the pooled features to one logit a class."""

from jaxtyping import Float
from torch import Tensor, nn

from vitlab.model.part import Part


class Linear(Part):
    """One linear layer (Dosovitskiy et al. 2021, 3.1, fine-tuning).

    Args:
        width: channels of the features.
        classes: number of classes.
        zero_init: whether all weights start at zero, as the authors' code does.
        bias_init: what each bias starts at; -log(classes) suits sigmoid cross-entropy.
    """

    def __init__(self, *, width: int, classes: int, zero_init: bool = True, bias_init: float = 0.0):
        super().__init__()
        self.zero_init = zero_init
        self.bias_init = bias_init
        self.output = nn.Linear(width, classes)

    def reset(self) -> None:
        """Sets the weights that the head's own arguments determine; the others stay as they were drawn."""
        if self.zero_init:
            nn.init.zeros_(self.output.weight)
        nn.init.constant_(self.output.bias, self.bias_init)

    def represent(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """The input of the last layer: `pre_logits`, the features that few-shot probes use."""
        return features

    def forward(self, representation: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        return self.output(representation)


class TanhMlp(Linear):
    """One hidden layer with tanh before the linear one: the paper's pre-training head (D.3), as wide as a token."""

    def __init__(self, *, width: int, classes: int, zero_init: bool = True, bias_init: float = 0.0):
        super().__init__(width=width, classes=classes, zero_init=zero_init, bias_init=bias_init)
        self.hidden = nn.Linear(width, width)

    def represent(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return self.hidden(features).tanh()
