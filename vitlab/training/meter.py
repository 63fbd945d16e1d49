"""Running means of the training metrics."""

import time
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from vitlab.system.distributed import Distributed
from vitlab.system.hardware import sum_dtype

Item = TypeVar("Item")

NEVER = 2**62
FIRST_NAMES = ("loss", "accuracy")  # the metrics of checkpoints of 0.1.0, which hold no names


class Meter:
    """Sums of the training metrics since the last reading, on the device; `fetch` is the only wait for it.

    Which metrics there are is for `add` to say: `loss`, and those that the objective names.

    Attributes:
        sums: of each metric over all processes since the last reading, as of the last `fetch`.
        counted: the images in them.
        first_nonfinite: the first step whose loss or gradient was NaN or infinite in any process; None if there was
            none.
    """

    sums: dict[str, float]
    counted: int
    first_nonfinite: int | None

    def __init__(self, device: torch.device):
        self.device = device
        self.names: tuple[str, ...] = ()
        self.totals = torch.zeros(0, dtype=sum_dtype(device), device=device)
        self.images = torch.zeros((), dtype=torch.int64, device=device)  # in the totals, of this process
        self.step = torch.zeros((), dtype=torch.int64, device=device)  # the number of the step that is added
        self.bad = torch.full((), NEVER, dtype=torch.int64, device=device)  # first step that was not finite
        self.images_before = 0  # images in the totals from before a resume, of all processes
        self.timed = self.timed_in_all = 0  # images of this process: since the last reading or pause, and start
        self.seconds = self.waited = self.waited_in_all = 0.0  # in the same time as `timed`: see `waiting`
        self.last = time.perf_counter()
        self.clear()

    def begin(self, step: int, images: int) -> None:
        """Takes the number of the next step, and how many images this process computes in it."""
        self.step.fill_(step)
        self.timed += images

    def check(self, finite: Tensor) -> None:
        """Keeps the number of the first step whose loss or gradient is not finite."""
        torch.minimum(self.bad, self.step.masked_fill(finite, NEVER), out=self.bad)

    def add(self, sums: dict[str, Tensor], images: int) -> None:
        """Adds one step: the sum of each metric over this process's images."""
        if self.names != tuple(sums):  # the first step, or the first after a checkpoint that knew other metrics
            self.names, self.totals, self.images_before = tuple(sums), self.totals.new_zeros(len(sums)), 0
        self.totals += torch.stack(tuple(sums.values()))
        self.images += images

    def waiting(self, batches: Iterator[Item]) -> Iterator[Item]:
        """The batches; counts the time that the training's own process spends in getting each of them.

        It waits for its workers then; without workers it reads and augments images itself. Not counted is what the
        device does with a batch (`Inputs`). No device is waited for; the first batch includes the workers' start.
        """
        start = time.perf_counter()
        for batch in batches:
            self.waited += time.perf_counter() - start
            yield batch
            start = time.perf_counter()

    def fetch(self, dist: Distributed, *more: Tensor) -> list[float]:
        """Reads what was added, and the numbers in `more`, which it returns: all in one copy from the device."""
        read = (dist.all_reduce_sum(self.totals.clone()), self.images, self.bad, *more)
        values = torch.cat([tensor.reshape(-1) for tensor in read]).tolist()  # of the type of the sums
        sums, (images, bad, *found) = values[: len(self.names)], values[len(self.names) :]
        self.counted = self.images_before + int(images) * dist.size
        self.sums = dict(zip(self.names, sums, strict=True)) if self.counted else {}
        first = -dist.all_reduce_max(-int(bad))[0]
        self.first_nonfinite = None if first == NEVER else first
        return found

    def read(self, dist: Distributed) -> dict[str, float]:
        """Means since the last reading over all processes, as `train/NAME`, `images_per_second`, and `data_wait`."""
        elapsed, timed = time.perf_counter() - self.last, self.timed * dist.size
        self.seconds += elapsed
        self.timed_in_all += timed
        self.waited_in_all += self.waited
        wait = self.waited / elapsed
        means = {f"train/{name}": total / self.counted for name, total in self.sums.items()}
        self.clear()
        self.last = time.perf_counter()
        return {**means, "images_per_second": timed / elapsed, "data_wait": wait}

    def clear(self) -> None:
        """Forgets what was added."""
        self.totals.zero_()
        self.images.zero_()
        self.bad.fill_(NEVER)
        self.images_before = self.timed = self.counted = 0
        self.waited = 0.0
        self.sums, self.first_nonfinite = {}, None

    def pause(self) -> None:
        """Leaves the time since the last reading out of the images per second: it was not spent on training."""
        self.last = time.perf_counter()
        self.timed, self.waited = 0, 0.0

    def images_per_second(self) -> float:
        """Training images a second, evaluation and saving left out."""
        return self.timed_in_all / self.seconds if self.seconds else 0.0

    def data_wait(self) -> float:
        """Share of the same time that was spent on getting batches (`waiting`)."""
        return self.waited_in_all / self.seconds if self.seconds else 0.0

    def state_dict(self) -> dict[str, Any]:
        """What was added since the last reading, in all processes, as of the last `fetch`."""
        return {"sums": self.sums, "images": self.counted}

    def load_state_dict(self, state: dict[str, Any], dist: Distributed) -> None:
        self.clear()
        sums = state.get("sums")
        if sums is None:
            sums = dict(zip(FIRST_NAMES, state["totals"].tolist(), strict=True))
        self.sums, self.images_before = sums, state["images"]
        self.counted = self.images_before
        if self.images_before:
            self.names = tuple(sums)
            values = [value if dist.is_rank0 else 0.0 for value in sums.values()]
            self.totals = torch.tensor(values, dtype=sum_dtype(self.device), device=self.device)
