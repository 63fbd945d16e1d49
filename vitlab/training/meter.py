"""Running means of the training metrics."""

import time
from typing import Any

import torch
from torch import Tensor

from vitlab.system.distributed import Distributed
from vitlab.system.hardware import sum_dtype

NEVER = 2**62
FIRST_NAMES = ("loss", "accuracy")  # the metrics of checkpoints of 0.1.0, which hold no names


class Meter:
    """Sums of the training metrics since the last reading, on the device; reading them is the only wait for it.

    Which metrics there are is for `add` to say: `loss`, and those that the objective names.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.names: tuple[str, ...] = ()
        self.totals = torch.zeros(0, dtype=sum_dtype(device), device=device)
        self.bad = torch.full((), NEVER, dtype=torch.int64, device=device)  # first step that was not finite
        self.images_before = 0  # images in the totals from before a resume, of all processes
        self.images = self.timed = self.timed_in_all = 0  # of this process: since the last reading, pause, start
        self.seconds = 0.0
        self.last = time.perf_counter()

    def add(self, step: int, sums: dict[str, Tensor], images: int, gradient_norm: Tensor | None) -> None:
        """Adds one step.

        Args:
            step: its number.
            sums: of each metric over the images; `loss` among them.
            images: images of this process.
            gradient_norm: if that must be finite as well.
        """
        if self.names != tuple(sums):  # the first since the last reading, or a checkpoint that knew other metrics
            self.names, self.totals, self.images_before = tuple(sums), self.totals.new_zeros(len(sums)), 0
        self.totals = self.totals + torch.stack(tuple(sums.values()))
        finite = sums["loss"].isfinite()
        finite = finite if gradient_norm is None else finite & gradient_norm.isfinite()
        self.bad = torch.where(finite, self.bad, self.bad.clamp(max=step))
        self.images += images
        self.timed += images

    def first_nonfinite(self, dist: Distributed) -> int | None:
        """The first step whose loss or gradient was NaN or infinite in any process; None if there was none."""
        first = -dist.all_reduce_max(-int(self.bad))[0]
        return None if first == NEVER else first

    def read(self, dist: Distributed) -> dict[str, float]:
        """Means since the last reading over all processes, as `train/NAME`, and `images_per_second`."""
        images, elapsed = self.images_before + self.images * dist.size, time.perf_counter() - self.last
        timed = self.timed * dist.size
        self.seconds += elapsed
        self.timed_in_all += timed
        means = {f"train/{name}": total / images for name, total in self.sums(dist).items()} if images else {}
        self.clear()
        self.last = time.perf_counter()
        return {**means, "images_per_second": timed / elapsed}

    def sums(self, dist: Distributed) -> dict[str, float]:
        """The sum of each metric over all processes."""
        totals = dist.all_reduce_sum(self.totals.clone())
        return dict(zip(self.names, totals.tolist(), strict=True))

    def clear(self) -> None:
        """Forgets what was added."""
        self.names, self.totals = (), self.totals.new_zeros(0)
        self.bad.fill_(NEVER)
        self.images_before = self.images = self.timed = 0

    def pause(self) -> None:
        """Leaves the time since the last reading out of the images per second: it was not spent on training."""
        self.last = time.perf_counter()
        self.timed = 0

    def images_per_second(self) -> float:
        """Training images a second, evaluation and saving left out."""
        return self.timed_in_all / self.seconds if self.seconds else 0.0

    def state_dict(self, dist: Distributed) -> dict[str, Any]:
        """What was added since the last reading, in all processes."""
        return {"sums": self.sums(dist), "images": self.images_before + self.images * dist.size}

    def load_state_dict(self, state: dict[str, Any], dist: Distributed) -> None:
        self.clear()
        sums = state.get("sums")
        if sums is None:
            sums = dict(zip(FIRST_NAMES, state["totals"].tolist(), strict=True))
        self.images_before = state["images"]
        if self.images_before:
            self.names = tuple(sums)
            values = [value if dist.is_rank0 else 0.0 for value in sums.values()]
            self.totals = torch.tensor(values, dtype=sum_dtype(self.device), device=self.device)
