"""ResNet stems, for hybrids and as models of their own; group normalisation as in BiT (Kolesnikov et al. 2020)."""

import math
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vitlab.config.errors import ConfigError
from vitlab.model.stem import Stem

EPSILON = 1e-5  # added to the deviation of a filter, as in the authors' code
GROUPS = 32
WIDER = 4  # channels that a bottleneck gives over those of its 3x3 convolution
NARROWEST = 8  # channels; of a single one, a 1x1 filter is one number and has no deviation
REDUCED = 4  # how much smaller a side of the image is after the root, of the kind `imagenet`
Padding = Literal["both", "far"]
STAGES, MOST = 4, 100  # stages, and bottlenecks of one; ResNet-200 has 36


class StandardisedConv(nn.Conv2d):
    """A convolution whose every filter has mean 0 and deviation 1 (weight standardisation, Qiao et al. 2019); no bias.

    Args:
        before: channels that come in.
        after: channels that go out.
        kernel: side of a filter, odd.
        stride: of the filter over the image.
        padding: see `ResNet`.
    """

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, padding: Padding = "both"):
        super().__init__(before, after, kernel, stride, bias=False)
        self.sides = sides(kernel, stride, padding)

    def standardised(self) -> Float[Tensor, "d c p q"]:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        return (self.weight - mean) / (variance.sqrt() + EPSILON)

    def forward(self, input: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d h w"]:
        near, far = self.sides
        if near != far:
            input = functional.pad(input, (near, far, near, far))
        return functional.conv2d(input, self.standardised(), None, self.stride, near if near == far else 0)


class Maximum(nn.MaxPool2d):
    """The maximum over 3x3 with stride 2, half of the map's size; `padding` as for `ResNet`."""

    def __init__(self, padding: Padding):
        near, far = sides(3, 2, padding)
        super().__init__(3, stride=2, padding=near if near == far else 0)
        self.sides = (near, far)

    def forward(self, input: Float[Tensor, "b d y x"]) -> Float[Tensor, "b d h w"]:
        near, far = self.sides
        if near != far:
            input = functional.pad(input, (near, far, near, far), value=-torch.inf)
        return super().forward(input)


def sides(kernel: int, stride: int, padding: Padding) -> tuple[int, int]:
    """Pixels of padding at the near and the far side of an image whose sides are multiples of the stride."""
    if padding == "both":
        return kernel // 2, kernel // 2
    total = max(0, kernel - stride)
    return total // 2, total - total // 2


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm (Wu and He 2018) of 32 groups as in the authors' code, or of fewer, two channels each at least."""
    groups = math.gcd(GROUPS, channels)
    return nn.GroupNorm(groups if groups < channels else max(1, channels // 2), channels, eps=1e-6)


class Bottleneck(nn.Module):
    """relu(shortcut(x) + branch(x)), He et al. 2016: the branch reduces, convolves by 3x3, and widens again.

    The stride is the 3x3's, and the branch's last norm has scale 0 at first, so that a block starts as its shortcut: as
    in the authors' code (models_resnet.py). BiT's own blocks have their norms before the convolutions.

    Args:
        before: channels that come in.
        inner: channels of the 3x3 convolution; four times as many go out.
        stride: of the 3x3 convolution.
        padding: see `ResNet`.
    """

    def __init__(self, before: int, inner: int, stride: int = 1, padding: Padding = "both"):
        super().__init__()
        after = WIDER * inner
        last = norm(after)
        nn.init.zeros_(last.weight)
        self.branch = nn.Sequential(
            StandardisedConv(before, inner, 1),
            norm(inner),
            nn.ReLU(),
            StandardisedConv(inner, inner, 3, stride, padding),
            norm(inner),
            nn.ReLU(),
            StandardisedConv(inner, after, 1),
            last,
        )
        same = before == after and stride == 1
        self.shortcut = nn.Sequential(*([] if same else [StandardisedConv(before, after, 1, stride), norm(after)]))

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d h w"]:
        return functional.relu(self.shortcut(x) + self.branch(x))


class ResNet(Stem):
    """The feature map of a ResNet, a token a place: the stem of the paper's hybrids (Dosovitskiy et al. 2021, 3.1).

    With `model.depth=0` and an average pool the model is a plain ResNet: `model=resnet50`.

    Args:
        image_size: height and width in pixels.
        channels: colour channels of an image.
        width: channels of a token.
        patch: side of a token in pixels: the stride of the ResNet, or a multiple of it,
            whose rest is cut from the feature map and projected.
        blocks: bottlenecks of each stage; every stage but the first halves the map and doubles the channels.
        widen: channels by those of the usual ResNet, whose first stage has 64 inside: the x2 of ResNet-50x2.
        root: the layers before the stages: `imagenet` is a 7x7 convolution and a maximum over 3x3, of stride 2 each;
            `small` is a 3x3 convolution, which leaves small images their size.
        project: whether a linear layer leads from the feature map's channels to the width.
        padding: where a convolution or a maximum of stride 2 pads: `both` sides of an image alike, as torchvision, or
            the `far` side more, as the authors' code ("SAME"), which their weights need.

    Raises:
        ConfigError: blocks or channels that cannot be, a patch that is not reduced to, a width that does not come out.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        channels: int,
        width: int,
        patch: int,
        blocks: tuple[int, ...] = (3, 4, 6, 3),
        widen: float = 1.0,
        root: Literal["imagenet", "small"] = "imagenet",
        project: bool = True,
        padding: Padding = "both",
    ):
        which = f"model.stem.blocks={list(blocks)}"
        if len(blocks) > STAGES or not all(1 <= count <= MOST for count in blocks):
            raise ConfigError(f"{which}: expected up to {STAGES} stages of 1 to {MOST} blocks, such as [3,4,6,3]")
        if not NARROWEST <= 64 * widen <= 2**20:
            raise ConfigError(
                f"model.stem.widen={widen}: 64 channels times that must be {NARROWEST} at least; 1.0 is usual"
            )
        reduced = (REDUCED if root == "imagenet" else 1) * 2 ** max(0, len(blocks) - 1)
        if patch % reduced:
            raise ConfigError(
                f"patch={patch}: a ResNet of {which} and model.stem.root={root} has a token for every {reduced} pixels"
                f" of a side: use patch=p{reduced} or a multiple of {reduced}, or fewer stages"
            )
        if patch > 0 and (image_size[0] % patch or image_size[1] % patch) and reduced > 1:
            raise ConfigError(
                f"patch={patch} does not divide image_size={image_size[0]}x{image_size[1]}, and a ResNet of {which} and"
                f" model.stem.root={root} reduces by {reduced}: use an image_size of multiples of it, or fewer stages"
            )
        super().__init__(image_size=image_size, channels=channels, width=width, patch=patch)
        inner, rest = round(64 * widen), patch // reduced
        given = WIDER * inner * 2 ** (len(blocks) - 1) if blocks else inner
        if not project and (width != given or rest > 1):
            raise ConfigError(
                f"model.width={width} with patch={patch}: model.stem.project=false keeps the ResNet's channels: use"
                f" model.width={given} with patch=p{reduced}, or model.stem.project=true"
            )
        self.padding = padding
        layers: list[nn.Module] = [
            StandardisedConv(channels, inner, *((7, 2) if root == "imagenet" else (3, 1)), padding),
            norm(inner),
            nn.ReLU(),
        ]
        if root == "imagenet":
            layers.append(Maximum(padding))
        before, places = inner, image_size[0] * image_size[1] // (16 if root == "imagenet" else 1)
        self.kept = inner * places * (4 if root == "imagenet" else 1)
        for stage, count in enumerate(blocks):
            own = inner * 2**stage
            for block in range(count):
                stride = 2 if stage and not block else 1
                layers.append(Bottleneck(before, own, stride, padding))
                after = places // stride**2
                self.kept += own * (places + after + WIDER * after)
                before, places = WIDER * own, after
        self.layers = nn.Sequential(*layers)
        self.projection = nn.Conv2d(given, width, rest, rest) if project else nn.Identity()

    def forward(self, images: Float[Tensor, "b c y x"]) -> Float[Tensor, "b n d"]:
        return rearrange(self.projection(self.layers(images)), "b d h w -> b (h w) d")
