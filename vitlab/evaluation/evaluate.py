"""The scores of a model on one split."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitlab.config.errors import OutOfMemory
from vitlab.data.loader import PADDING
from vitlab.data.seeding import seeded
from vitlab.evaluation.class_metrics import class_counts, class_scores, roc_auc
from vitlab.model.objective import Classify
from vitlab.system.distributed import Distributed
from vitlab.system.hardware import seed_device, sum_dtype
from vitlab.system.memory import out_of_memory
from vitlab.system.precision import autocast

MOST = 2**27  # probabilities that are kept for the ROC-AUC, 512 MiB; with more it is None


def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], dist: Distributed, precision: str, objective: Classify
) -> dict[str, Any]:
    """The mean over all images of the scores of `objective.scores` (`loss`, `accuracy`), and what classes add to them.

    Where classes are predicted, that is `balanced_accuracy`, `macro_f1`, `roc_auc` (macro, one class against the rest;
    None where it is not defined), and the lists `precision`, `recall` and `f1`, a number for each class: see
    `class_metrics`. The `loss` has no class weights and no label smoothing.

    Args:
        model: gives the outputs that the objective takes.
        batches: normalized images and labels, on the device; each process has its part of `EvalSampler`.
        dist: the processes that evaluate together.
        precision: fp32, bf16 or fp16.
        objective: what the model was trained for.

    Raises:
        OutOfMemory: a batch is too large.
    """
    totals: dict[str, Tensor] = {}
    exact = sum_dtype(dist.device)
    images_seen = torch.zeros((), dtype=exact, device=dist.device)
    counts: Tensor | None = None  # of classes
    kept: list[tuple[Tensor, Tensor]] = []
    size = probabilities = 0
    model.eval()
    # The objective's random draws are the same each time. FSDP's gathered weights cannot be used after inference_mode.
    with torch.no_grad(), torch.inference_mode(dist.size == 1), seeded(0):
        seed_device(dist.device, 0)
        try:
            for images, labels in batches:
                size = len(images)
                with autocast(dist.device, precision):
                    outputs = model(images)
                for name, values in objective.scores(outputs, labels).items():
                    totals[name] = totals.get(name, 0) + values.to(exact).sum()
                images_seen += (labels != PADDING).sum()
                if objective.classifies:
                    of_batch = class_counts(outputs, labels)
                    counts = of_batch if counts is None else counts + of_batch
                    probabilities += outputs.numel()
                    kept.append((outputs.float().softmax(dim=-1), labels))
                    if probabilities * dist.size > MOST:
                        kept.clear()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise OutOfMemory(
                f"out of memory in evaluation with {size} images at once: use a smaller fit.evaluation_batch_size"
            ) from error
    model.train()
    *sums, images = dist.all_reduce_sum(torch.stack((*totals.values(), images_seen))).tolist()
    scores: dict[str, Any] = {name: total / images for name, total in zip(totals, sums, strict=True)}
    if counts is None:
        return scores
    aucs = areas(kept, dist) if kept else None
    return scores | class_scores(dist.all_reduce_sum(counts).cpu().numpy(), aucs)


@torch.no_grad()
def areas(kept: list[tuple[Tensor, Tensor]], dist: Distributed) -> np.ndarray:
    """The ROC-AUC of each class, from the probabilities and labels of the batches of all processes."""
    probabilities, labels = (dist.all_gather_rows(torch.cat(parts)) for parts in zip(*kept, strict=True))
    return roc_auc(probabilities[labels != PADDING], labels[labels != PADDING])
