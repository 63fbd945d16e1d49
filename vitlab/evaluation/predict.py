"""Predictions of a trained model for image files of any size and mode."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from glob import glob
from math import isfinite
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vitlab.data.datasets.listing import PassedOver, list_images
from vitlab.data.examples import decode_error, ignore_pillow_warnings
from vitlab.data.preprocess import upright
from vitlab.evaluation.load import Trained
from vitlab.evaluation.pictures import small

BATCH = 32  # images of a forward pass


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The predicted classes of one image, or why it could not be read."""

    path: Path
    top: tuple[tuple[str, float], ...] = ()  # class and probability, the highest first
    fault: str = ""
    picture: Image.Image | None = None  # a small copy of the image, upright and uncropped


def find(words: Iterable[str], passed: PassedOver | None = None) -> tuple[list[Path], list[str]]:
    """The images that files, folders (searched recursively) and globs name, each once; and the words that name none.

    A file given by name or by a glob may have any suffix.

    Args:
        words: paths and globs.
        passed: counts what is passed over in folders.
    """
    images: dict[Path, None] = {}
    missing = []
    for word in map(os.path.expanduser, words):  # the shell leaves ~ in a quoted glob
        places = [word] if os.path.lexists(word) else sorted(glob(word, recursive=True))  # noqa: PTH207 (absolute ones too)
        folders = map(Path, places)
        here = [file for path in folders for file in (list_images(path, passed) if path.is_dir() else [path])]
        images |= dict.fromkeys(here)
        if not here:
            missing.append(word)
    return list(images), missing


@torch.inference_mode()
def predict(
    model: Trained, paths: Sequence[Path], *, top: int = 5, batch: int = BATCH, pictures: int = 0
) -> Iterator[Prediction]:
    """The most probable classes of each image, in the order of the paths.

    Every image is turned upright (EXIF) and then preprocessed as in evaluation. The model computes
    in fp32, whatever the run was trained in, so that predictions do not depend on the precisions of the hardware.

    Args:
        model: from `load`.
        paths: image files; one that cannot be read gives a prediction with a `fault`.
        top: classes an image; at most all of them.
        batch: images of a forward pass.
        pictures: how many of the first images that could be read come with a small copy.
    """
    device = next(model.parameters()).device
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), batch):
            some = paths[start : start + batch]
            with ignore_pillow_warnings():
                read = list(pool.map(partial(load_image, model, copy=pictures > 0), some))
            tensors = [loaded[0] for loaded in read if not isinstance(loaded, str)]
            best: list[tuple[tuple[str, float], ...]] = []
            if tensors:
                probabilities = model(torch.stack(tensors).to(device)).float().softmax(dim=-1)
                values, indices = probabilities.topk(min(top, len(model.classes)))
                names = [[model.classes[i] for i in row] for row in indices.tolist()]
                best = [tuple(zip(n, v, strict=True)) for n, v in zip(names, values.tolist(), strict=True)]
            predictions = iter(best)
            for path, loaded in zip(some, read, strict=True):
                if isinstance(loaded, str):
                    yield Prediction(path=path, fault=loaded)
                    continue
                classes = next(predictions)
                if not all(isfinite(probability) for _, probability in classes):
                    yield Prediction(path=path, fault="the model's output for it is NaN or infinite")
                    continue
                yield Prediction(path=path, top=classes, picture=loaded[1] if pictures > 0 else None)
                pictures -= 1


def load_image(model: Trained, path: Path, *, copy: bool) -> tuple[Tensor, Image.Image | None] | str:
    """An image preprocessed for the model, and a small copy of it if wanted; or why it cannot be read."""
    if not path.is_file():
        return "it is not a regular file" if path.exists() else "there is no such file"
    try:
        pixels, picture = model.preprocess(path), None
        if copy:
            with Image.open(path) as file:
                picture = small(upright(file, model.preprocess.decoding._replace(mode="RGB")))
        return pixels, picture
    except Exception as error:  # decoders raise any exception for damaged files
        return decode_error(error)
