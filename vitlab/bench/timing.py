"""Timing on a CPU or a GPU: a stopwatch with stages, and the peak FLOPs a second of the machine."""

import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitlab.system.precision import DTYPES


class Stopwatch:
    """Milliseconds by stage; on CUDA from events, for which `read` waits; others are waited for each time."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: list[tuple[str, Any]] = []

    def now(self) -> Any:
        if self.device.type not in ("cpu", "cuda"):
            torch.accelerator.synchronize(self.device)
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self, stage: str) -> None:
        """Starts a stage, and ends the one before."""
        self.marks.append((stage, self.now()))

    def read(self) -> dict[str, float]:
        """Milliseconds of each stage since the last call."""
        marks, self.marks = [*self.marks, ("", self.now())], []
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize(self.device)
        spent: dict[str, float] = defaultdict(float)
        for (stage, start), (_, end) in pairwise(marks):
            spent[stage] += start.elapsed_time(end) if cuda else (end - start) * 1e3
        return spent

    def time(self, function: Callable[[], object]) -> float:
        """Milliseconds of a call."""
        self.start("call")
        function()
        return self.read()["call"]


class Timed(nn.Module):
    """A module that starts a stage of a stopwatch before it runs."""

    def __init__(self, module: nn.Module, watch: Stopwatch, stage: str):
        super().__init__()
        self.module, self.watch, self.stage = module, watch, stage

    def forward(self, *inputs: Tensor) -> Tensor:
        self.watch.start(self.stage)
        return self.module(*inputs)


def machine_peak(device: torch.device, precision: str) -> tuple[float, int]:
    """FLOPs a second of the fastest square matrix product in this precision, and its side."""
    watch, peak, side, ms = Stopwatch(device), (0.0, 0), 256, 0.0
    while side <= 16384 and ms < 100:
        a, b = (torch.randn(side, side, device=device).to(DTYPES[precision]) for _ in range(2))
        watch.time(lambda a=a, b=b: a @ b)
        ms = min(watch.time(lambda a=a, b=b: a @ b) for _ in range(5))
        peak = max(peak, (2 * side**3 / ms * 1e3, side))
        side *= 2
    return peak


def machine_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy of 256 MiB reads and writes."""
    watch, source = Stopwatch(device), torch.ones(2**26, device=device)
    copy = source.clone()
    ms = min(watch.time(lambda: copy.copy_(source)) for _ in range(5))
    return 2 * source.nbytes / ms * 1e3


def launch_ms(device: torch.device, count: int = 1000) -> float:
    """Milliseconds that Python takes to launch an operation: the mean of `count` additions of one number."""
    watch, one = Stopwatch(device), torch.ones(1, device=device)

    def launch() -> None:
        for _ in range(count):
            one.add_(1)

    return min(watch.time(launch) for _ in range(3)) / count


class Traffic(TorchDispatchMode):
    """Counts the operations that are launched while it is entered, and the bytes of their inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operations += 1
            tensors = {id(each): each for each in tree_leaves((args, kwargs, result)) if isinstance(each, Tensor)}
            self.bytes += sum(each.nbytes for each in tensors.values())
        return result
