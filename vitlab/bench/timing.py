"""Timing a step: a stopwatch for a device, and the machine's peak of matrix products."""

import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.system.precision import DTYPES


class Stopwatch:
    """Milliseconds by stage. A GPU's are measured by events in its own queue, which `read` waits for."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: list[tuple[str, Any]] = []

    def now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def mark(self, stage: str) -> None:
        """From now on time counts to this stage."""
        self.marks.append((stage, self.now()))

    def read(self) -> dict[str, float]:
        """What was spent in each stage since the last reading."""
        marks, self.marks = [*self.marks, ("", self.now())], []
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        spent: dict[str, float] = defaultdict(float)
        for (stage, began), (_, ended) in pairwise(marks):
            cuda = self.device.type == "cuda"
            spent[stage] += began.elapsed_time(ended) if cuda else (ended - began) * 1e3
        return spent

    def time(self, act: Callable[[], object]) -> float:
        self.mark("all")
        act()
        return self.read()["all"]


class Marked(nn.Module):
    """A module that tells a stopwatch which stage begins before it, and which after it."""

    def __init__(self, inner: nn.Module, watch: Stopwatch, before: str | None = None, after: str | None = None):
        super().__init__()
        self.inner, self.watch, self.before, self.after = inner, watch, before, after

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.before:
            self.watch.mark(self.before)
        out = self.inner(*inputs)
        if self.after:
            self.watch.mark(self.after)
        return out


def machine_peak(device: torch.device, precision: str) -> tuple[float, int]:
    """FLOPs a second of the fastest square matrix product in this precision, and its side."""
    watch, found, side, took = Stopwatch(device), (0.0, 0), 256, 0.0
    while side <= 16384 and took < 100:
        a, b = (torch.randn(side, side, device=device).to(DTYPES[precision]) for _ in range(2))
        watch.time(lambda a=a, b=b: a @ b)
        took = min(watch.time(lambda a=a, b=b: a @ b) for _ in range(5))
        found = max(found, (2 * side**3 / took * 1e3, side))
        side *= 2
    return found
