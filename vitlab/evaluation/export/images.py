"""The images that an export is checked on."""

from pathlib import Path

import torch
from torch import Tensor

from vitlab.config.errors import VitlabError
from vitlab.evaluation.load import Trained
from vitlab.evaluation.reevaluate import external_pixels, training_dataset

COUNT = 100


def pixels_of(run: Path, trained: Trained, *, root: str | None, changed_data: bool) -> tuple[Tensor, str]:
    """Pixels of at most `COUNT` test images of a run, evenly spaced, 0 ... 255 (b c y x).

    Args:
        run: the run's folder.
        trained: its model.
        root: folder of the dataset's files; None is the recorded one, and random pixels where that cannot be read.
        changed_data: whether the images may have changed since the training.

    Returns:
        The pixels, and why they are random; empty where they are those of images.

    Raises:
        VitlabError: no images in the `root` that is given.
    """
    ready = trained.preprocess
    try:
        test = training_dataset(run, root=root, changed_data=changed_data).splits(ready.decoding)["test"]
        images = [external_pixels(ready, test.image(int(index))) for index in test.sample(COUNT)]
        return torch.stack(images), ""
    except VitlabError as error:
        if root is not None:
            raise
        size = (COUNT, len(ready.mean), *ready.resize.size)
        pixels = torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return pixels, str(error)
