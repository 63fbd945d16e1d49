"""Precision, recall, F1 and ROC-AUC of each class, and their means, as scikit-learn defines them.

A class without predictions has a precision of 0, one without images a recall of 0. Balanced accuracy is the mean recall
of the classes with images; macro F1 is the mean of the classes with images or predictions; macro ROC-AUC is the mean,
one class against the rest, of the classes with images that are not all images.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Array = np.ndarray
AT_ONCE = 2**22  # probabilities that are sorted at a time


def class_counts(logits: Float[Tensor, "b k"], labels: Int[Tensor, " b"]) -> Int[Tensor, "three k"]:
    """True positives, predictions and images of each class, on the device and without waiting for it.

    Args:
        logits: of each image.
        labels: its class; -1 is padding, which is not counted.
    """
    k, predicted = logits.shape[1], logits.argmax(dim=1)
    true = labels.where(labels >= 0, k)  # padding is counted in a column that is dropped
    found = torch.stack((true.where(predicted == labels, k), predicted.where(labels >= 0, k), true))
    return found.new_zeros(3, k + 1).scatter_add_(1, found, torch.ones_like(found))[:, :k].contiguous()


def per_class(counts: Int[Array, "three k"]) -> dict[str, Float[Array, " k"]]:
    """Precision, recall and F1 of each class from `class_counts`."""
    positives, predicted, images = counts.astype(np.float64)
    return {
        "precision": positives / np.maximum(predicted, 1),
        "recall": positives / np.maximum(images, 1),
        "f1": 2 * positives / np.maximum(predicted + images, 1),
    }


def averages(counts: Int[Array, "three k"]) -> dict[str, float]:
    """Balanced accuracy and macro F1 from `class_counts` of at least one image."""
    each, (_, predicted, images) = per_class(counts), counts
    return {
        "balanced_accuracy": float(each["recall"][images > 0].mean()),
        "macro_f1": float(each["f1"][(images > 0) | (predicted > 0)].mean()),
    }


def roc_auc(scores: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> Float[Array, " k"]:
    """Area under the ROC curve of each class against the rest; NaN for a class without images, or with all of them.

    It is the probability that an image of the class has a higher score than another image, where equal ones count half
    (Mann and Whitney 1947); computed from integers, so that the order of the images does not change a bit.

    Args:
        scores: probabilities, or anything that grows with them.
        labels: the class of each image.
    """
    n, k = scores.shape
    wins = []
    for part in torch.arange(k, device=scores.device).split(max(1, AT_ONCE // max(1, n))):
        values = scores[:, part].T.contiguous()
        ordered = values.sort(dim=1).values
        twice_rank = torch.searchsorted(ordered, values) + torch.searchsorted(ordered, values, right=True) + 1
        wins.append((twice_rank * (labels == part[:, None])).sum(dim=1))
    images = torch.bincount(labels, minlength=k).cpu().numpy().astype(np.float64)
    pairs = images * (n - images)
    won = torch.cat(wins).cpu().numpy() / 2 - images * (images + 1) / 2
    return np.where(pairs > 0, won / np.maximum(pairs, 1), np.nan)


def macro(values: Float[Array, " k"]) -> float | None:
    """The mean of the values that are not NaN; None where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def class_scores(counts: Int[Array, "three k"], aucs: Float[Array, " k"] | None) -> dict[str, Any]:
    """What classes add to the scores of an evaluation: three means, and three lists in the order of the classes."""
    auc = None if aucs is None else macro(aucs)
    return averages(counts) | {"roc_auc": auc} | {name: each.tolist() for name, each in per_class(counts).items()}
