"""The scores of a model on one split."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitlab.config.errors import OutOfMemory
from vitlab.data.batch import Batch
from vitlab.data.loader import PADDING
from vitlab.data.seeding import seeded
from vitlab.evaluation.class_metrics import class_counts, class_scores, roc_auc
from vitlab.model.objective import Classify
from vitlab.system.distributed import Distributed
from vitlab.system.graphs import Captured
from vitlab.system.hardware import seed_device, sum_dtype
from vitlab.system.memory import out_of_memory
from vitlab.system.precision import autocast

IMAGES, COUNTS = "images", "class counts"  # sums beside those of the scores
MOST = 2**27  # probabilities that are kept for the ROC-AUC, 512 MiB; with more it is None


def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], dist: Distributed, precision: str, objective: Classify
) -> dict[str, Any]:
    """The scores of a model on one split, once: see `Evaluator`."""
    return Evaluator(model, dist, precision, objective)(batches)


class Evaluator:
    """The mean over all images of the scores of `objective.scores` (`loss`, `accuracy`), and what classes add to them.

    Where classes are predicted, that is `balanced_accuracy`, `macro_f1`, `roc_auc` (macro, one class against the rest;
    None where it is not defined), and the lists `precision`, `recall` and `f1`, a number for each class: see
    `class_metrics`. The `loss` has no class weights and no label smoothing.

    Args:
        model: gives the outputs that the objective takes.
        dist: the processes that evaluate together.
        precision: fp32, bf16 or fp16.
        objective: what the model was trained for.
        captured: whether a batch is computed as a CUDA graph, which later evaluations use as well.
    """

    def __init__(
        self, model: nn.Module, dist: Distributed, precision: str, objective: Classify, *, captured: bool = False
    ):
        self.model, self.dist, self.precision, self.objective = model, dist, precision, objective
        self.sums: dict[str, Tensor] = {}  # over the images so far, on the device
        self.hits: list[Tensor] = []  # of each batch: 1 where an image is predicted correctly, 0 where not, -1 padding
        self.graphs = Captured(self.batch, dist.device) if captured else None

    def __call__(self, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        """The scores on a split.

        Args:
            batches: normalized images and labels, on the device; each process has its part of `EvalSampler`.

        Raises:
            OutOfMemory: a batch is too large.
        """
        dist, classifies, add = self.dist, self.objective.classifies, self.graphs or self.batch
        kept: list[tuple[Tensor, Tensor]] = []
        self.hits = []
        size = probabilities = 0
        self.model.eval()
        # The objective's random draws are the same each time. FSDP's gathered weights cannot be used after
        # inference_mode.
        with torch.no_grad(), torch.inference_mode(dist.size == 1), seeded(0):
            seed_device(dist.device, 0)
            for total in self.sums.values():
                total.zero_()
            try:
                for images, labels in batches:
                    size = len(images)
                    predicted, hits = add(Batch("plain", {"images": images, "labels": labels}))
                    if classifies:
                        self.hits.append(hits.clone() if self.graphs else hits)
                        probabilities += predicted.numel()
                        kept.append((predicted.clone() if self.graphs else predicted, labels))
                        if probabilities * dist.size > MOST:
                            kept.clear()
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                raise OutOfMemory(
                    f"out of memory in evaluation with {size} images at once: use a smaller fit.evaluation_batch_size"
                ) from error
        self.model.train()
        sums = {name: total for name, total in self.sums.items() if name != COUNTS}
        totals = dict(zip(sums, dist.all_reduce_sum(torch.stack(tuple(sums.values()))).tolist(), strict=True))
        images = totals.pop(IMAGES)
        scores: dict[str, Any] = {name: total / images for name, total in totals.items()}
        if not classifies:
            return scores
        aucs = areas(kept, dist) if kept else None
        return scores | class_scores(dist.all_reduce_sum(self.sums[COUNTS].clone()).cpu().numpy(), aucs)

    def correct(self) -> np.ndarray | None:
        """Which images of the last evaluation were predicted correctly, in the split's order; every process calls it.

        None where no classes are predicted.
        """
        if not self.hits:
            return None
        hits = self.dist.all_gather_rows(torch.cat(self.hits)).reshape(self.dist.size, -1).T.flatten()
        return (hits[hits >= 0] > 0).cpu().numpy()

    def batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Adds a batch to the sums, in place and without a wait for the device.

        Returns:
            Where classes are predicted the probability of each, and `hits`; else the labels.
        """
        labels = batch.tensors["labels"]
        with autocast(self.dist.device, self.precision):
            outputs = self.model(batch.tensors["images"])
        exact = sum_dtype(self.dist.device)
        scores = self.objective.scores(outputs, labels)
        added = {name: values.to(exact).sum() for name, values in scores.items()}
        added[IMAGES] = (labels != PADDING).sum().to(exact)
        if self.objective.classifies:
            added[COUNTS] = class_counts(outputs, labels)
        for name, value in added.items():
            if name in self.sums:
                self.sums[name] += value
            else:
                self.sums[name] = value
        if not self.objective.classifies:
            return labels, labels
        return outputs.float().softmax(dim=-1), scores["accuracy"].to(torch.int8).masked_fill(labels == PADDING, -1)


@torch.no_grad()
def areas(kept: list[tuple[Tensor, Tensor]], dist: Distributed) -> np.ndarray:
    """The ROC-AUC of each class, from the probabilities and labels of the batches of all processes."""
    probabilities, labels = (dist.all_gather_rows(torch.cat(parts)) for parts in zip(*kept, strict=True))
    return roc_auc(probabilities[labels != PADDING], labels[labels != PADDING])
