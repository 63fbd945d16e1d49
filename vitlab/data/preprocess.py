"""What one image goes through before a trained model sees it: mode, size, and normalised pixels."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageOps
from torch import Tensor, nn

from vitlab.config.errors import ConfigError

FAR = 8  # times what is kept: a scaled side that is longer is not made whole


class Resize:
    """Evaluation's resize: the shorter side to size / `crop`, bicubic, then the centre of `size`.

    Args:
        size: height and width in pixels that come out.
        crop: share of each side that the centre crop keeps; 1 keeps all of the shorter one.
    """

    def __init__(self, size: tuple[int, int], crop: float):
        self.size = size
        self.crop = crop

    @property
    def least(self) -> int:
        """Pixels that an image's shorter side must have left where a JPEG is decoded at reduced size.

        Twice what is kept: resized from that, it is close to one resized from all (as Pillow's `reducing_gap=2` is).
        """
        return math.ceil(2 * max(self.size) / self.crop)

    def __call__(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        if (image.width, image.height) == (width, height) and self.crop == 1:
            return image
        factor = max(height / image.height, width / image.width) / self.crop
        scaled = (max(width, round(image.width * factor)), max(height, round(image.height * factor)))
        left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
        if scaled[0] > FAR * width or scaled[1] > FAR * height:
            return self.middle(image, (left, top), (image.width / scaled[0], image.height / scaled[1]))
        image = image.resize(scaled, Image.Resampling.BICUBIC)
        return image.crop((left, top, left + width, top + height))

    def middle(self, image: Image.Image, start: tuple[int, int], step: tuple[float, float]) -> Image.Image:
        """The same of an image so long that its scaled whole would fill the memory: only what is kept is computed.

        Args:
            image: any.
            start: left and top of what is kept, in scaled pixels.
            step: width and height of a scaled pixel, in pixels of the image.
        """
        ends = (start[0] + self.size[1], start[1] + self.size[0])
        left, top, right, bottom = start[0] * step[0], start[1] * step[1], ends[0] * step[0], ends[1] * step[1]
        box = (left, top, min(right, image.width), min(bottom, image.height))
        return image.resize((self.size[1], self.size[0]), Image.Resampling.BICUBIC, box)


def upright(image: Image.Image, mode: str, least: int | None = None) -> Image.Image:
    """The image turned as its EXIF orientation says, in one of PIL's modes; what is transparent is as it is below.

    Args:
        image: any.
        mode: PIL's name of the mode.
        least: see `turned`.

    Raises:
        ConfigError: it has no pixels, or numbers of which nothing says how bright they are.
    """
    image = turned(image, least)
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(eight_bits(np.asarray(image)))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


def turned(image: Image.Image, least: int | None = None) -> Image.Image:
    """The image turned as its EXIF orientation says; one whose EXIF cannot be read is taken as it lies.

    Args:
        image: any.
        least: pixels that the shorter side of a JPEG must have left: it is decoded at the smallest of its scales (1/8,
            1/4, 1/2) that leaves so many, several times as fast. None decodes it whole.

    Raises:
        ConfigError: it has no pixels.
    """
    if not (image.width and image.height):
        raise ConfigError(f"it is {image.width}x{image.height} pixels large")
    if least is not None:
        image.draft(None, (least, least))  # no mode: a colour JPEG's own grey is another than PIL's
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # what a damaged EXIF makes its reader raise is anybody's guess
        return image


def eight_bits(values: Shaped[np.ndarray, "y x"]) -> UInt8[np.ndarray, "y x"]:
    """Grey of more than 8 bits as 8. Of 16 bits the upper half is kept; 32 bits and floats do not say what white is.

    Floats up to 1 are taken for shares of white, numbers up to 255 and 65535 for 8 and 16 bits.

    Raises:
        ConfigError: other numbers.
    """
    least, most = float(values.min()), float(values.max())
    if not 0 <= least <= most <= 65535:
        raise ConfigError(
            f"its pixels are {least:g} to {most:g}, of which none says what is white: save it with 8 bits"
        )
    if values.dtype.itemsize == 2 or most > 255:
        return (values // 256).astype(np.uint8)
    return np.rint(values * 255 if values.dtype.kind == "f" and most <= 1 else values).astype(np.uint8)


def to_pixels(image: Image.Image) -> UInt8[Tensor, "c y x"]:
    """The pixels of a grey or colour image, 0 to 255."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


class Normalize(nn.Module):
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
        self.normalize = Normalize(mean, std)

    def __call__(self, image: Image.Image | str | Path) -> Float[Tensor, "c y x"]:
        if not isinstance(image, Image.Image):
            with Image.open(image) as file:
                return self(turned(file, self.resize.least))
        return self.normalize(to_pixels(self.resize(upright(image, self.mode)))[None])[0]
