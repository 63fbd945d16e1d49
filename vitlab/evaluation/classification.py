"""Classification report: accuracy and its interval, each class, calibration, confusion matrix, worst mistakes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitlab.config.errors import ConfigError
from vitlab.data.loader import PADDING
from vitlab.evaluation import class_metrics
from vitlab.system.distributed import Distributed
from vitlab.system.precision import autocast

BINS = 15  # of equal width, as in Guo et al. 2017
Array = np.ndarray


class Mistake(NamedTuple):
    """A wrong prediction: the example, its class, and the predicted class."""

    index: int
    true: str
    predicted: str
    probability: float  # of the predicted class
    true_probability: float


class Confusion(NamedTuple):
    """The number of examples of one class that were predicted as another."""

    true: str
    predicted: str
    examples: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Bins:
    """The examples by their highest probability, in `BINS` equal widths of 0 ... 1, each including its upper end."""

    examples: Int[Array, " bins"]
    confidence: Float[Array, " bins"]  # mean highest probability; 0 where a bin is empty
    accuracy: Float[Array, " bins"]  # fraction of correct predictions; 0 where a bin is empty

    @property
    def ece(self) -> float:
        """Expected calibration error: mean difference of accuracy and confidence, bins weighted by their examples."""
        return float(self.examples @ np.abs(self.accuracy - self.confidence) / self.examples.sum())


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassificationReport:
    """The predictions of a model on n examples against their labels.

    `interval` is the 95 % interval of the accuracy (Wilson 1927); `top5` is None with at most 5 classes; `confusion`
    counts examples by true class (rows) and predicted class (columns); `roc_auc` is of each class against the rest, NaN
    where it is not defined.
    """

    classes: tuple[str, ...]
    labels: Int[Array, " n"]
    predicted: Int[Array, " n"]
    confidence: Float[Array, " n"]  # the highest probability
    true_probability: Float[Array, " n"]
    accuracy: float
    interval: tuple[float, float]
    top5: float | None
    bins: Bins
    confusion: Int[Array, "classes classes"]
    roc_auc: Float[Array, " classes"]

    @classmethod
    def of(
        cls, probabilities: Float[Tensor | Array, "n k"], labels: Int[Tensor | Array, " n"], classes: Sequence[str]
    ) -> "ClassificationReport":
        """The report of these probabilities.

        Args:
            probabilities: of each example, a row that sums to 1.
            labels: the true class of each.
            classes: the name of each class.

        Raises:
            ConfigError: no examples, shapes that do not go together, or a probability that is NaN or infinite.
        """
        p, y = torch.as_tensor(probabilities).cpu().float().numpy(), torch.as_tensor(labels).cpu().long().numpy()
        k = len(classes)
        if not len(y) or p.shape != (len(y), k):
            raise ConfigError(
                f"probabilities {p.shape} for {len(y)} labels: give a row of {k} for each, and at least 1"
            )
        if not (np.isfinite(p).all() and y.min() >= 0 and y.max() < k):
            raise ConfigError(
                f"a probability is NaN or infinite, or a label is not in 0 ... {k - 1}: nothing to report"
            )
        predicted = p.argmax(axis=1)
        correct = predicted == y
        confidence, true = p.max(axis=1).astype(np.float64), p[np.arange(len(y)), y]
        before = (p > true[:, None]) | ((p == true[:, None]) & (np.arange(k) < y[:, None]))
        return cls(
            classes=tuple(classes),
            labels=y,
            predicted=predicted,
            confidence=confidence,
            true_probability=true.astype(np.float64),
            accuracy=float(correct.mean()),
            interval=wilson(int(correct.sum()), len(y)),
            top5=float((before.sum(axis=1) < 5).mean()) if k > 5 else None,
            bins=bins(confidence, correct),
            confusion=np.bincount(y * k + predicted, minlength=k * k).reshape(k, k),
            roc_auc=class_metrics.roc_auc(torch.from_numpy(p), torch.from_numpy(y)),
        )

    @property
    def ece(self) -> float:
        """Expected calibration error (Guo et al. 2017), from 0 (perfectly calibrated) to 1."""
        return self.bins.ece

    @property
    def examples(self) -> Int[Array, " classes"]:
        """The number of examples of each class."""
        return self.confusion.sum(axis=1)

    @property
    def counts(self) -> Int[Array, "three classes"]:
        """True positives, predictions and examples of each class."""
        return np.stack((self.confusion.diagonal(), self.confusion.sum(axis=0), self.examples))

    @property
    def averages(self) -> dict[str, float | None]:
        """Balanced accuracy, macro F1 and macro ROC-AUC; the last is None where it is not defined."""
        return {**class_metrics.averages(self.counts), "roc_auc": class_metrics.macro(self.roc_auc)}

    @property
    def per_class(self) -> Float[Array, " classes"]:
        """The accuracy on the examples of each class, which is its recall; NaN where there is none."""
        return np.where(self.examples == 0, np.nan, class_metrics.per_class(self.counts)["recall"])

    @property
    def class_rows(self) -> list[dict[str, Any]]:
        """Of each class its name, images and scores; None where one is not defined, all where there is no image."""
        scores = {"accuracy": self.per_class, **class_metrics.per_class(self.counts), "roc_auc": self.roc_auc}
        names = zip(self.classes, self.examples.tolist(), strict=True)
        return [
            {"class": name, "images": n}
            | {key: None if n == 0 or np.isnan(values[i]) else float(values[i]) for key, values in scores.items()}
            for i, (name, n) in enumerate(names)
        ]

    def hardest(self, count: int) -> list[int]:
        """The classes of lowest accuracy, the lowest first; those without examples are left out."""
        order, there = np.argsort(self.per_class, kind="stable"), self.examples > 0
        return order[there[order]][:count].tolist()

    def confusions(self, count: int) -> list[Confusion]:
        """The pairs of classes that are confused most often, the most frequent first."""
        wrong = self.confusion * ~np.eye(len(self.classes), dtype=bool)
        order = np.argsort(-wrong, axis=None, kind="stable")[:count]
        pairs = ((int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True))
        return [Confusion(self.classes[i], self.classes[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]

    def mistakes(self, count: int) -> list[Mistake]:
        """The wrong predictions with the highest probability, the highest first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        return [
            Mistake(
                index=int(i),
                true=self.classes[self.labels[i]],
                predicted=self.classes[self.predicted[i]],
                probability=float(self.confidence[i]),
                true_probability=float(self.true_probability[i]),
            )
            for i in wrong[np.argsort(-self.confidence[wrong], kind="stable")][:count]
        ]

    def as_dict(self) -> dict[str, Any]:
        """Everything but the single examples, for JSON."""
        edges = np.linspace(0, 1, BINS + 1).round(4).tolist()
        binned = zip(self.bins.examples, self.bins.confidence, self.bins.accuracy, strict=True)
        return {
            "images": len(self.labels),
            "accuracy": self.accuracy,
            **self.averages,
            "accuracy_interval_95": list(self.interval),
            "top5_accuracy": self.top5,
            "ece": self.ece,
            "calibration": [
                {"above": edges[i], "to": edges[i + 1], "images": int(n), "confidence": float(c), "accuracy": float(a)}
                for i, (n, c, a) in enumerate(binned)
            ],
            "classes": self.class_rows,
            "confusion": self.confusion.tolist(),
        }


def wilson(correct: int, examples: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy (Wilson 1927)."""
    from scipy.stats import binomtest  # takes half a second

    interval = binomtest(correct, examples).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def bins(confidence: Float[Array, " n"], correct: Array) -> Bins:
    """Counts examples by confidence, with the mean confidence and the accuracy of each bin."""
    which = np.digitize(confidence, np.linspace(0, 1, BINS + 1)[1:-1], right=True)
    count = np.bincount(which, minlength=BINS)
    filled = np.maximum(count, 1)
    return Bins(
        examples=count,
        confidence=np.bincount(which, weights=confidence, minlength=BINS) / filled,
        accuracy=np.bincount(which, weights=correct, minlength=BINS) / filled,
    )


class PredictionRecorder(nn.Module):
    """A wrapper that records the probabilities of a model's predictions, in order.

    Args:
        model: gives logits (b classes).
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.recorded: list[Tensor] = []

    def forward(self, images: Float[Tensor, "b c y x"]) -> Float[Tensor, "b k"]:
        logits = self.model(images)
        self.recorded.append(logits.detach().float().softmax(dim=-1).cpu())
        return logits

    def probabilities(self) -> Float[Tensor, "n k"]:
        """The probabilities recorded so far."""
        return torch.cat(self.recorded)


@torch.no_grad()
def predictions(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], dist: Distributed, precision: str
) -> tuple[Float[Tensor, "n k"], Int[Tensor, " n"]]:
    """Probabilities and labels in the order of the examples, on the CPU, in every process.

    The model is in evaluation mode meanwhile.

    Args:
        model: gives logits (b classes).
        batches: normalized images and labels, on the device; each process has its part of `EvalSampler`.
        dist: the processes that evaluate together.
        precision: fp32, bf16 or fp16.
    """
    recorder, labels, training = PredictionRecorder(model), [], model.training
    model.eval()
    for images, of_batch in batches:
        with autocast(dist.device, precision):
            recorder(images)
        labels.append(of_batch.cpu())
    model.train(training)
    parts = dist.all_gather((recorder.probabilities(), torch.cat(labels)))
    probabilities, truth = (torch.stack(part, dim=1).flatten(0, 1) for part in zip(*parts, strict=True))
    return probabilities[truth != PADDING], truth[truth != PADDING]
