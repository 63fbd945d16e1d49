"""Probes of frozen features: few-shot, linear, and nearest neighbours."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitlab.config.errors import ConfigError
from vitlab.data.loader import PADDING
from vitlab.system.distributed import Distributed
from vitlab.system.precision import autocast

BIAS = 100.0  # of the constant channel: so large that its weight is almost unregularized
EPSILON = 1e-5  # added to each channel's standard deviation
L2 = 2.0**10  # strength of the regularization, as the authors' code has it; the paper gives none
DRAWS = 5  # support sets that an accuracy is the mean of; the authors' code has 3
AT_ONCE = 64  # images of a forward pass: `ViT.inspect` keeps all intermediate results
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)  # logistic regression's C, from strongest to weakest regularization
NEIGHBOURS = (1, 3, 5, 10, 20, 50, 100)
Array = np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class Features:
    """The features of images before the last layer (`pre_logits`, fp32), and their labels."""

    values: Float[Array, "n d"]
    labels: Int[Array, " n"]


@torch.no_grad()
def features(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], dist: Distributed, precision: str) -> Features:
    """The features of images in the order of the examples, in every process; the model is in evaluation mode meanwhile.

    Args:
        model: a ViT with its objective.
        batches: normalized images and labels, on the device; each process has its part of `EvalSampler`.
        dist: the processes that evaluate together.
        precision: fp32, bf16 or fp16.
    """
    training, rows, labels = model.training, [], []
    model.eval()
    with torch.inference_mode(dist.size == 1):  # FSDP's gathered weights cannot be used after it
        for images, of_batch in batches:
            for part in images.split(AT_ONCE):
                with autocast(dist.device, precision):
                    _, seen = model(part, inspect=True)
                rows.append(seen["pre_logits"].float().cpu())
            labels.append(of_batch.cpu())
    model.train(training)
    parts = dist.all_gather((torch.cat(rows).numpy(), torch.cat(labels).numpy()))
    values, truth = (np.stack(part, axis=1).reshape(-1, *part[0].shape[1:]) for part in zip(*parts, strict=True))
    return Features(values=values[truth != PADDING], labels=truth[truth != PADDING])


def fewest(labels: Int[Array, " n"], classes: Sequence[str]) -> tuple[int, str]:
    """The number of examples of the smallest class, and its name."""
    counts = np.bincount(labels, minlength=len(classes))
    return int(counts.min()), classes[int(counts.argmin())]


def check(option: str, shots: Sequence[int], images: float = math.inf, name: str = "") -> None:
    """Refuses shots that cannot be drawn.

    Args:
        option: the option and its value, for the message.
        shots: images a class.
        images: training images of the smallest class.
        name: of that class, where it is known.

    Raises:
        ConfigError: a number below 1, given twice, or above the images of a class.
    """
    if odd := [k for k in shots if k < 1]:
        raise ConfigError(
            f"{option}: {odd[0]} images a class cannot be drawn: use 1 or more; 1, 5, 10 and 25 are usual"
        )
    if len(set(shots)) < len(shots):
        raise ConfigError(f"{option}: a number is given twice: give each once")
    if max(shots, default=0) > images:
        which = f"class {name}" if name else "one of the classes"
        way = f"use at most {images}" if images else "give a dataset with some of each"
        raise ConfigError(f"{option}: {which} has {images} training image{'s' * (images != 1)}: {way}")


def draw(labels: Int[Array, " n"], classes: int, most: int, draws: int) -> Int[Array, "draws classes most"]:
    """Support sets: `most` examples of each class, the draw a function of its number (0, 1, ...) alone.

    Fewer shots are the first ones of each class, as in big_vision's evaluators/fewshot_lsr.py, with the same draws.

    Args:
        labels: class of each example; every class has at least `most`.
        classes: how many there are.
        most: examples of each.
        draws: support sets.
    """
    ends = np.cumsum(np.bincount(labels, minlength=classes))[:-1]
    members = np.split(np.argsort(labels, kind="stable"), ends)
    sets = []
    for seed in range(draws):
        generator = np.random.default_rng(seed)
        sets.append([generator.permutation(each)[:most] for each in members])
    return np.array(sets, dtype=np.int64).reshape(draws, classes, most)


def few_shot(
    support: Float[Array, "draws classes most d"], test: Features, shots: Sequence[int], l2: float = L2
) -> dict[int, list[float]]:
    """The accuracy of each draw by the number of shots: the paper's protocol (Dosovitskiy et al. 2021, 4.1).

    Regularized least squares from features, whitened by the support set, to targets of -1 and 1; details as in
    big_vision's evaluators/fewshot_lsr.py.

    Args:
        support: features of the images of `draw`.
        test: the features that are classified.
        shots: images a class, at most as many as were drawn.
        l2: strength of the regularization.
    """
    classes, width = support.shape[1], support.shape[3]
    accuracies: dict[int, list[float]] = {}
    for k in shots:
        labels = np.repeat(np.arange(classes), k)
        targets = 2.0 * np.eye(classes)[labels] - 1.0
        accuracies[k] = []
        for drawn in support[:, :, :k].reshape(len(support), -1, width):
            weights = least_squares(whitened(drawn, drawn), targets, l2)
            predicted = (whitened(test.values, drawn) @ weights).argmax(axis=1)
            accuracies[k].append(float((predicted == test.labels).mean()))
    return accuracies


def whitened(values: Float[Array, "n d"], support: Float[Array, "s d"]) -> Float[Array, "n e"]:
    """Features less the support set's mean, over its standard deviation, and the constant channel, in 64 bits."""
    support = support.astype(np.float64)
    white = (values - support.mean(axis=0)) / (support.std(axis=0) + EPSILON)
    return np.pad(white, ((0, 0), (0, 1)), constant_values=BIAS)


def least_squares(x: Float[Array, "n d"], targets: Float[Array, "n k"], l2: float) -> Float[Array, "d k"]:
    """The weights w that minimize |xw - targets|^2 + l2 |w|^2, in closed form from the smaller of x'x and xx'."""
    if len(x) >= x.shape[1]:
        values, vectors = np.linalg.eigh(x.T @ x)
        return (vectors / (values + l2)) @ (vectors.T @ (x.T @ targets))
    values, vectors = np.linalg.eigh(x @ x.T)
    return x.T @ ((vectors / (values + l2)) @ (vectors.T @ targets))


def standard_deviation(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample; None of a single number."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A classifier of features, its hyper-parameter chosen on the validation split.

    Args:
        value: the hyper-parameter.
        validation: the accuracy on the validation split.
        predict: gives the class of each row of features.
    """

    value: float
    validation: float
    predict: Callable[[Float[Array, "n d"]], Int[Array, " n"]]

    def accuracy(self, test: Features) -> float:
        return float((self.predict(test.values) == test.labels).mean())


def linear(train: Features, validation: Features, strengths: Sequence[float] = STRENGTHS) -> Chosen:
    """Logistic regression on standardized features, its C chosen by validation; of equals the most regularized."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def candidate(strength: float) -> Any:
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # stopped early: still a candidate
            model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
            return model.fit(train.values.astype(np.float64), train.labels)

    return choose(strengths, candidate, validation)


def neighbours(train: Features, validation: Features, counts: Sequence[int] = NEIGHBOURS) -> Chosen:
    """The vote of the k nearest training images by cosine distance, k chosen by validation; of equals the smaller."""
    from sklearn.neighbors import KNeighborsClassifier

    def candidate(count: float) -> Any:
        return KNeighborsClassifier(int(count), metric="cosine").fit(train.values, train.labels)

    possible = [count for count in counts if count <= len(train.labels)]
    return choose(possible, candidate, validation)


def choose(values: Sequence[float], candidate: Callable[[float], Any], validation: Features) -> Chosen:
    """The candidate of the highest validation accuracy; of equals the first. The test split is not used."""
    best: Chosen | None = None
    for value in values:
        predict = candidate(value).predict
        accuracy = float((predict(validation.values) == validation.labels).mean())
        if best is None or accuracy > best.validation:
            best = Chosen(value=value, validation=accuracy, predict=predict)
    assert best is not None
    return best
