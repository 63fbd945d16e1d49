"""Part: the base class of all slots of a ViT. Initialisation, loading and optimizers ask a part; none lists classes."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Resizing:
    """How weights that were trained at another image or patch size are fitted to a model.

    Args:
        image_size: height and width that they were trained at, in pixels.
        prefix: tokens in front of the patches there.
        positions: interpolation of position tables.
        patch: whether a projection of patches of another size may be resized.
    """

    image_size: tuple[int, int]
    prefix: int
    positions: Literal["bilinear", "bicubic"]
    patch: Literal["refuse", "resize"]

    def grid(self, patches: int) -> tuple[int, int]:
        """Rows and columns of so many patches of an image of `image_size`."""
        height, width = self.image_size
        rows = max(1, round(math.sqrt(patches * height / width)))
        return rows, patches // rows


class Part(nn.Module):
    """What initialisation, loading and optimizers ask of a part; each default suits a part made of layers.

    A part's linear layers and convolutions are drawn by `Init`, and their weights alone have weight decay.
    """

    stacked: ClassVar[dict[str, int]] = {}  # parameters that hold several matrices side by side, and how many

    def init_parameters(self, init: Any) -> None:
        """Draws the parameters that belong to no layer; called in the order of the modules."""

    def init_layers(self, init: Any) -> None:
        """Draws again what an `Init` of a layer does not suit; called after all layers have been drawn."""

    def resized(self, name: str, value: Tensor, how: Resizing) -> Tensor | None:
        """A trained tensor in the shape that it has in this part; None if that cannot be.

        Args:
            name: of the parameter, within this part.
            value: the tensor, of another shape; on the meta device only the shape counts.
            how: where it was trained, and how it is fitted.
        """
        return None


def interpolated(
    table: Float[Tensor, "n d"], before: tuple[int, int], after: tuple[int, int], mode: str
) -> Float[Tensor, "m d"]:
    """Vectors on a grid of rows and columns, interpolated to another grid over the same image."""
    if table.is_meta:
        return table.new_empty(after[0] * after[1], table.shape[1])
    image = rearrange(table.float(), "(h w) d -> 1 d h w", h=before[0])
    image = functional.interpolate(image, size=after, mode=mode, align_corners=False)
    return rearrange(image, "1 d h w -> (h w) d").to(table.dtype)
