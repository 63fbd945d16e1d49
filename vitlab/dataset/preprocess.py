"""What one image goes through before a trained model sees it: mode, size, and normalised pixels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor, nn


class Resize:
    """Evaluation's resize: the shorter side to size / `crop`, bicubic, then the centre of `size`.

    Args:
        size: height and width in pixels that come out.
        crop: share of each side that the centre crop keeps; 1 keeps all of the shorter one.
    """

    def __init__(self, size: tuple[int, int], crop: float):
        self.size = size
        self.crop = crop

    def __call__(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        if (image.width, image.height) == (width, height) and self.crop == 1:
            return image
        factor = max(height / image.height, width / image.width) / self.crop
        scaled = (max(width, round(image.width * factor)), max(height, round(image.height * factor)))
        image = image.resize(scaled, Image.Resampling.BICUBIC)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))


def upright(image: Image.Image, mode: str) -> Image.Image:
    """The image turned as its EXIF orientation says, in one of PIL's modes; 16 bits of grey become 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert(mode)


def to_pixels(image: Image.Image) -> UInt8[Tensor, "c y x"]:
    """The pixels of a grey or colour image, 0 to 255."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


class Normalise(nn.Module):
    """Pixels 0 ... 255 to numbers of mean 0 and standard deviation 1, on the device that the model is on.

    Args:
        mean: of the training pixels, each channel in 0 ... 1.
        std: the same.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        deviation = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        self.register_buffer("scale", 1 / (255 * deviation), persistent=False)
        self.register_buffer("shift", -torch.tensor(mean).view(-1, 1, 1) / deviation, persistent=False)

    def forward(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        return torch.addcmul(self.shift, pixels.to(self.scale.dtype), self.scale)


class Preprocess:
    """Any image (a PIL image or a file) to what the model takes.

    Args:
        size: height and width in pixels.
        channels: 3 for colour, 1 for grey.
        crop: see `Resize`.
        mean: of the training pixels, each channel in 0 ... 1.
        std: the same.
    """

    def __init__(
        self, *, size: tuple[int, int], channels: int, crop: float, mean: Sequence[float], std: Sequence[float]
    ):
        self.resize = Resize(size, crop)
        self.mode = "L" if channels == 1 else "RGB"
        self.normalise = Normalise(mean, std)

    def __call__(self, image: Image.Image | str | Path) -> Float[Tensor, "c y x"]:
        if not isinstance(image, Image.Image):
            with Image.open(image) as file:
                return self(file)
        return self.normalise(to_pixels(self.resize(upright(image, self.mode)))[None])[0]
