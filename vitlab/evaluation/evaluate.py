"""The scores of a model on one split."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vitlab.config.errors import OutOfMemory
from vitlab.data.loader import PADDING
from vitlab.data.seeding import seeded
from vitlab.model.objective import Classify
from vitlab.system.distributed import Distributed
from vitlab.system.memory import out_of_memory
from vitlab.system.precision import autocast


def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], dist: Distributed, precision: str, objective: Classify
) -> dict[str, float]:
    """The mean over all images of the scores of `objective.scores` (`loss`, `accuracy`).

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
    images_seen = torch.zeros((), dtype=torch.float64, device=dist.device)
    size = 0
    model.eval()
    # The objective's random draws are the same each time. FSDP's gathered weights cannot be used after inference_mode.
    with torch.no_grad(), torch.inference_mode(dist.size == 1), seeded(0):
        if dist.device.type == "cuda":
            torch.cuda.manual_seed(0)
        try:
            for images, labels in batches:
                size = len(images)
                with autocast(dist.device, precision):
                    outputs = model(images)
                for name, values in objective.scores(outputs, labels).items():
                    totals[name] = totals.get(name, 0) + values.sum()
                images_seen += (labels != PADDING).sum()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise OutOfMemory(
                f"out of memory in evaluation with {size} images at once: use a smaller fit.evaluation_batch_size"
            ) from error
    model.train()
    *sums, images = dist.all_reduce_sum(torch.stack((*totals.values(), images_seen))).tolist()
    return {name: total / images for name, total in zip(totals, sums, strict=True)}
