"""The choice of test images: the second source of noise of a difference, beside the seeds.

Seeds and images are crossed: each seed's runs are tested on the same images. So what an arm is right on and the
baseline wrong is a table of seeds by images, with a random effect of each and of both together. With more seeds only
the image's own effect stays, which is estimated by the mean squares (Clark 1973); it is added to the interval over the
seeds by its width (MOVER, Zou and Donner 2008). A bootstrap over three seeds would be too narrow: it has 10 samples.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import special

from vitlab.report.contrasts import Family
from vitlab.report.grouping import finished, listed, numbers
from vitlab.report.table import Row
from vitlab.storage import predictions
from vitlab.storage.run import Run


def correct(runs: pd.DataFrame) -> dict[int, np.ndarray]:
    """Which test images each finished run predicted correctly, by seed; without those that have not kept it.

    Args:
        runs: of an arm, indexed by seed.
    """
    if not {"run", "test_images", "test/accuracy"} <= {*runs.columns}:
        return {}
    if "data" in runs and runs["data"].nunique() > 1:  # their test images are not the same
        return {}
    images, accuracies = numbers(runs, "test_images"), finished(runs, "test/accuracy")
    found: dict[int, np.ndarray] = {}
    for seed, folder, many, accuracy in zip(runs.index, runs["run"], images, accuracies, strict=True):
        if many > 0 and math.isfinite(accuracy):
            bits = predictions.read(Run(Path(str(folder))), int(many), accuracy)
            found |= {} if bits is None else {seed: bits}
    return found


def image_error(arm: Mapping[int, np.ndarray], base: Mapping[int, np.ndarray]) -> float | None:
    """The standard error of a difference of accuracies that the choice of images gives, whatever the number of seeds.

    Args:
        arm: which images were predicted correctly, by seed.
        base: the same of the baseline, on the same images.
    """
    seeds = [seed for seed in arm if seed in base and len(arm[seed]) == len(base[seed])]
    if len(seeds) < 2 or len({len(arm[seed]) for seed in seeds}) > 1:
        return None
    gaps = np.array([arm[seed].astype("float64") - base[seed] for seed in seeds])
    many, images = gaps.shape
    if images < 2:
        return None
    of_image, of_seed, mean = gaps.mean(0), gaps.mean(1, keepdims=True), gaps.mean()
    between = many * ((of_image - mean) ** 2).sum() / (images - 1)
    residual = ((gaps - of_image - of_seed + mean) ** 2).sum() / (many - 1) / (images - 1)
    return math.sqrt(max(0.0, between - residual) / many / images)


def widths(groups: Mapping[str, pd.DataFrame], baseline: str, family: Family) -> dict[str, float]:
    """Half the width that the choice of images alone gives the interval of each difference, at the level of its test.

    Args:
        groups: the runs of each arm that may be compared, indexed by seed.
        baseline: name of an arm.
        family: how the differences were tested.
    """
    base, found = correct(groups[baseline]), {}
    z = float(special.ndtri(1 - family.level / 2 / (family.tests if family.pooled else 1)))
    for name, runs in groups.items():
        error = image_error(correct(runs), base) if base and name != baseline and not runs["folds"].any() else None
        found |= {} if error is None else {name: z * error}
    return found


def in_words(rows: Sequence[Row], images: int) -> str:
    """What the choice of test images adds to the differences, and where more seeds cannot help; empty if not known."""
    both = {row.name: (100 * row.images, 100 * row.with_images) for row in rows if row.with_images and row.images}
    if not both:
        return ""

    def span(values: list[float]) -> str:
        return " to ".join(dict.fromkeys(f"{value:.2g}" for value in (min(values), max(values))))

    alone, together = ([each[side] for each in both.values()] for side in (0, 1))
    words = (
        f"As a measure of other test images of the kind, the differences are known to ± {span(together)} points: seeds"
        f" and images crossed, paired by both. The {images} test images alone leave ± {span(alone)} points open, which"
        " no number of seeds narrows."
    )
    stuck = [row.name for row in rows if row.name in both and row.difference and row.images and row.difference.half
             and row.images > row.difference.half]  # fmt: skip
    if stuck:
        words += f" Of {listed(stuck)} that is more than the seeds do: more test images would help, not more seeds."
    return words
