"""What the training did since somebody last looked."""

import time
from typing import Any

import torch
from torch import Tensor

from vitlab.system.distributed import Distributed

NEVER = 2**62


class Meter:
    """Loss and accuracy of the training so far, summed on the device; reading them is the only wait for it."""

    def __init__(self, device: torch.device):
        self.totals = torch.zeros(2, dtype=torch.float64, device=device)  # loss, right answers
        self.bad = torch.full((), NEVER, dtype=torch.int64, device=device)  # first step that was not finite
        self.before = 0  # images in the totals from before a resume, of all processes
        self.images = self.timed = self.clocked = 0  # of this process, since the last reading, the last look, ever
        self.seconds = 0.0
        self.last = time.perf_counter()

    def add(self, step: int, sums: Tensor, images: int, gradient: Tensor | None) -> None:
        """One step.

        Args:
            step: its number.
            sums: loss and right answers, summed over the images.
            images: how many of this process.
            gradient: its norm, if that must be finite as well.
        """
        self.totals += sums
        finite = sums[0].isfinite() if gradient is None else sums[0].isfinite() & gradient.isfinite()
        self.bad = torch.where(finite, self.bad, self.bad.clamp(max=step))
        self.images += images
        self.timed += images

    def fault(self, dist: Distributed) -> int | None:
        """The first step that was not finite in any process; None where all were."""
        first = -dist.all_reduce_max(-int(self.bad))[0]
        return None if first == NEVER else first

    def read(self, dist: Distributed) -> dict[str, float]:
        """Means since the last reading, over all processes; none where nothing was added."""
        images, elapsed = self.before + self.images * dist.size, time.perf_counter() - self.last
        seen = self.timed * dist.size
        self.seconds += elapsed
        self.clocked += seen
        loss, right = dist.all_reduce_sum(self.totals).tolist()
        self.clear()
        self.last = time.perf_counter()
        means = {"train/loss": loss / images, "train/accuracy": right / images} if images else {}
        return {**means, "images_per_second": seen / elapsed}

    def clear(self) -> None:
        """Forgets what was added."""
        self.totals.zero_()
        self.bad.fill_(NEVER)
        self.before = self.images = self.timed = 0

    def skip(self) -> None:
        """Leaves the time since the last reading out of the pace: it went into something else than training."""
        self.last = time.perf_counter()
        self.timed = 0

    def pace(self) -> float:
        """Training images a second, evaluation and saving left out."""
        return self.clocked / self.seconds if self.seconds else 0.0

    def state_dict(self, dist: Distributed) -> dict[str, Any]:
        """What was added since the last reading, in all processes."""
        return {
            "totals": dist.all_reduce_sum(self.totals.clone()).cpu(),
            "images": self.before + self.images * dist.size,
        }

    def load_state_dict(self, state: dict[str, Any], dist: Distributed) -> None:
        self.clear()
        self.before = state["images"]
        if dist.is_rank0:
            self.totals.copy_(state["totals"])
