"""Loss and accuracy of a model over one split."""

from collections.abc import Iterable

import torch
from torch import nn

from vitlab.config.errors import OutOfMemory
from vitlab.data.loader import PADDING, Batch
from vitlab.data.preprocess import Normalize
from vitlab.data.seeding import seeded
from vitlab.model.objective import Classify
from vitlab.system.distributed import Distributed
from vitlab.system.memory import out_of_memory
from vitlab.system.precision import autocast


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    normalize: Normalize,
    dist: Distributed,
    precision: str,
    objective: Classify,
) -> dict[str, float]:
    """Mean loss (`loss`: cross-entropy without smoothing) and share of right answers (`accuracy`), every image once."""
    model.eval()
    # What the objective draws is the same each time. FSDP's gathered weights cannot be used after inference_mode.
    with torch.no_grad(), torch.inference_mode(dist.size == 1), seeded(0):
        if dist.device.type == "cuda":
            torch.cuda.manual_seed(0)
        totals = torch.zeros(3, dtype=torch.float64, device=dist.device)
        for pixels, labels in batches:
            labels = labels.to(dist.device, non_blocking=True)
            try:
                with autocast(dist.device, precision):
                    out = model(normalize(pixels.to(dist.device, non_blocking=True)))
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                raise OutOfMemory(
                    f"out of memory in evaluation with {len(pixels)} images at once: use a smaller"
                    " fit.evaluation_batch_size"
                ) from error
            loss, right = objective.judge(out, labels)
            totals += torch.stack((loss.sum(), right.sum(), (labels != PADDING).sum().double()))
    model.train()
    loss, right, images = dist.all_reduce_sum(totals).tolist()
    return {"loss": loss / images, "accuracy": right / images}
