"""The range of grey pixels deeper than 8 bits, found in a sample: one range for all images of a dataset."""

import numpy as np
from PIL import Image

from vitlab.config.errors import DataError
from vitlab.data.examples import Encoded, Examples
from vitlab.data.preprocess import is_deep

SAMPLE = 256  # images whose kind is looked up
MEASURED = 64  # of the deep ones among them, images whose pixels are read


def find_range(examples: Examples) -> tuple[float, float] | None:
    """The values that are black and white in images deeper than 8 bits; None where the sample has none.

    Black is the lowest value of the sample and white its highest. Where whole numbers begin near 0, black is 0 and
    white the highest number of as many bits as are used, such as 4095, which images outside the sample may reach.

    Raises:
        DataError: images of whole numbers and of floats, which no one range fits; or one that cannot be decoded.
    """
    if not isinstance(examples, Encoded):
        return None
    kinds = {int(index): examples.open(int(index), kind) for index in examples.sample(SAMPLE)}
    deep = [index for index, found in kinds.items() if found]
    if not deep:
        return None
    if len({kinds[index] for index in deep}) > 1:
        raise DataError(
            "dataset.range=auto: some images have pixels of whole numbers and others of floats, and no one range fits"
            " both: save them alike, or give dataset.range=[black, white]"
        )
    lows, highs = zip(*(examples.open(index, extremes) for index in deep[:: -(-len(deep) // MEASURED)]), strict=True)
    low, high = min(lows), max(highs)
    if kinds[deep[0]] == "whole numbers" and 0 <= low <= high / 4:
        low, high = 0.0, float(2 ** int(high).bit_length() - 1)
    return (low, high) if low < high else (low, low + 1)


def kind(image: Image.Image) -> str:
    """What the pixels are where they are deeper than 8 bits; else nothing."""
    return ("floats" if image.mode == "F" else "whole numbers") if is_deep(image) else ""


def extremes(image: Image.Image) -> tuple[float, float]:
    """The lowest and the highest pixel; NaN and infinite ones do not count."""
    values = np.asarray(image)
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
