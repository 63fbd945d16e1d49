"""Preprocessing of one image for a trained model: mode, size, normalization."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageOps
from torch import Tensor, nn

from vitlab.config.errors import ConfigError

MAX_ASPECT = 8  # scaled side / output side; of longer images only the crop is resized


class Resize:
    """Resize and center crop for evaluation: the shorter side to size / `crop`, bicubic, then the center of `size`.

    Args:
        size: height and width of the output in pixels.
        crop: fraction of each side that the center crop keeps; 1 keeps all of the shorter one.
    """

    def __init__(self, size: tuple[int, int], crop: float):
        self.size = size
        self.crop = crop

    @property
    def min_size(self) -> int:
        """Smallest size of the shorter side at which a JPEG may be decoded, in pixels.

        Twice the output, as Pillow's `reducing_gap=2`: the result is close to that from the full size.
        """
        return math.ceil(2 * max(self.size) / self.crop)

    def __call__(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        if (image.width, image.height) == (width, height) and self.crop == 1:
            return image
        factor = max(height / image.height, width / image.width) / self.crop
        scaled = (max(width, round(image.width * factor)), max(height, round(image.height * factor)))
        left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
        if scaled[0] > MAX_ASPECT * width or scaled[1] > MAX_ASPECT * height:
            return self.resize_crop(image, (left, top), (image.width / scaled[0], image.height / scaled[1]))
        image = image.resize(scaled, Image.Resampling.BICUBIC)
        return image.crop((left, top, left + width, top + height))

    def resize_crop(self, image: Image.Image, start: tuple[int, int], step: tuple[float, float]) -> Image.Image:
        """The same for a very long image, of which the scaled copy would fill the memory: computes the crop alone.

        Args:
            image: any.
            start: left and top of the crop, in scaled pixels.
            step: width and height of a scaled pixel, in pixels of the image.
        """
        ends = (start[0] + self.size[1], start[1] + self.size[0])
        left, top, right, bottom = start[0] * step[0], start[1] * step[1], ends[0] * step[0], ends[1] * step[1]
        box = (left, top, min(right, image.width), min(bottom, image.height))
        return image.resize((self.size[1], self.size[0]), Image.Resampling.BICUBIC, box)


class Decoding(NamedTuple):
    """How an image of any kind becomes 8 bits of colour or grey.

    Args:
        mode: PIL's name: "RGB" or "L".
        background: colour that transparent pixels lie over, 0 to 255 each; None ignores the alpha channel.
        range: values that are black and white where pixels are deeper than 8 bits; None: see `to_uint8`.
    """

    mode: str
    background: tuple[int, int, int] | None = None
    range: tuple[float, float] | None = None


def is_deep(image: Image.Image) -> bool:
    """Whether pixels are grey of 16 or 32 bits, or floats."""
    return image.mode == "F" or image.mode.startswith("I")


def upright(image: Image.Image, decoding: Decoding, min_size: int | None = None) -> Image.Image:
    """The image rotated by its EXIF orientation and decoded to 8 bits; of several frames the first.

    Args:
        image: any.
        decoding: the mode, the background and the range.
        min_size: see `exif_transposed`.

    Raises:
        ConfigError: it has no pixels, or pixels whose value of white is unknown.
    """
    image = exif_transposed(image, min_size)
    if is_deep(image):
        image = Image.fromarray(to_uint8(np.asarray(image), decoding.range))
    elif image.has_transparency_data and (decoding.background is not None or image.mode == "P"):
        image = image.convert("RGBA")
        if decoding.background is not None:
            image = Image.alpha_composite(Image.new("RGBA", image.size, decoding.background), image)
    elif image.mode == "LAB":  # which Pillow converts to colour alone
        image = image.convert("RGB")
    return image.convert(decoding.mode)


def exif_transposed(image: Image.Image, min_size: int | None = None) -> Image.Image:
    """The image rotated by its EXIF orientation; left as it is where the EXIF data cannot be read.

    Args:
        image: any.
        min_size: decode a JPEG at its smallest scale (1/8, 1/4, 1/2) whose shorter side has at least so many pixels,
            which is several times as fast. None decodes at full size.

    Raises:
        ConfigError: it has no pixels.
    """
    if not (image.width and image.height):
        raise ConfigError(f"it is {image.width}x{image.height} pixels large")
    if min_size is not None:
        image.draft(None, (min_size, min_size))  # no mode: a colour JPEG's own grey is another than PIL's
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF raises anything
        return image


def to_uint8(values: Shaped[np.ndarray, "y x"], limits: tuple[float, float] | None = None) -> UInt8[np.ndarray, "y x"]:
    """Grey pixels of 16 or 32 bits or floats as 8 bits.

    Args:
        values: the pixels; NaN becomes black.
        limits: the values that are black and white. None goes by the image: black is 0, and white is 65535 for 16 bits
            and where any value is above 255; 1 for floats of at most 1; else 255.

    Raises:
        ConfigError: negative values, or values above 65535, without limits.
    """
    if limits is not None:
        low, high = limits
        fractions = (np.nan_to_num(values.astype(np.float64), nan=low) - low) / (high - low)
        return np.rint(fractions.clip(0, 1) * 255).astype(np.uint8)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 65535:
        raise ConfigError(
            f"its pixels are {low:g} to {high:g}, of which none says what is white: give dataset.range=[black, white]"
        )
    if values.dtype.itemsize == 2 or high > 255:
        return (values // 256).astype(np.uint8)
    return np.rint(values * 255 if values.dtype.kind == "f" and high <= 1 else values).astype(np.uint8)


def to_pixels(image: Image.Image) -> UInt8[Tensor, "c y x"]:
    """The pixels of a grey or colour image as a tensor, 0 to 255."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


class Normalize(nn.Module):
    """Normalization of pixels 0 ... 255 to mean 0 and standard deviation 1.

    Args:
        mean: mean of each channel of the training pixels, in 0 ... 1.
        std: standard deviation of each channel.
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
    """Preprocessing of a PIL image or an image file into the model's input.

    Args:
        size: height and width in pixels.
        channels: 3 for colour, 1 for grey.
        crop: see `Resize`.
        mean: see `Normalize`.
        std: see `Normalize`.
        background: see `Decoding`.
        range: see `Decoding`.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int],
        channels: int,
        crop: float,
        mean: Sequence[float],
        std: Sequence[float],
        background: tuple[int, int, int] | None = None,
        range: tuple[float, float] | None = None,
    ):
        self.resize = Resize(size, crop)
        self.decoding = Decoding("L" if channels == 1 else "RGB", background, range)
        self.mean, self.std = tuple(mean), tuple(std)
        self.normalize = Normalize(mean, std)

    def __call__(self, image: Image.Image | str | Path) -> Float[Tensor, "c y x"]:
        if not isinstance(image, Image.Image):
            with Image.open(image) as file:
                return self(exif_transposed(file, self.resize.min_size))
        return self.normalize(to_pixels(self.resize(upright(image, self.decoding)))[None])[0]
