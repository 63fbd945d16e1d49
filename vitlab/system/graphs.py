"""CUDA graphs: a function over a batch, captured once for each shape of batch and then launched as a whole.

Python launches a step's kernels one by one, which takes longer than a small model computes; a graph launches all of
them with one call. The file was written without a GPU: `pytest -m cuda` runs it on one.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

DEVICES = ("cuda",)  # that have them
AUTOMATIC: tuple[str, ...] = ()  # those of them that system.capture=auto uses; add "cuda" once `pytest -m cuda` passed
WARMUP = 3  # calls of each shape before its capture, as torch asks for
LIVE: "weakref.WeakSet[torch.cuda.CUDAGraph]" = weakref.WeakSet()  # the graphs of this process share their memory


@dataclass
class Shape:
    """The static batch of one kind and shape, the calls that were not captured, and the graph once there is one."""

    batch: Any
    calls: int = 0
    replay: Callable[[], Any] | None = None


class Captured:
    """A function of a batch, captured as one CUDA graph for each (kind, shapes, types) of the batch.

    The first `WARMUP` calls of each compute without a graph. Every call copies the batch into static tensors, on which
    the function is called, captured and replayed; it gives what the function gives, which the next call overwrites.

    The function reads nothing from the device, leaves no gradients that it reads again, and changes in place whatever
    stays. What it does in Python happens before and while it is captured, not in a replay. The generator of the GPU may
    be seeded before a call: a replay draws as the function would.

    Args:
        function: of a batch on the device.
        device: a CUDA device.
        generators: that the function draws from, beside the device's own.

    Raises:
        torch.OutOfMemoryError: there is no memory for a call or a capture; all graphs are dropped.
    """

    def __init__(self, function: Callable[[Any], Any], device: torch.device, *generators: torch.Generator):
        self.function, self.device, self.generators = function, device, generators
        self.shapes: dict[tuple, Shape] = {}

    def __call__(self, batch: Any) -> Any:
        """The function of a batch, which has a `kind` and `tensors` by name (see `vitlab.data.batch`)."""
        key = batch.kind, *((name, each.shape, each.dtype) for name, each in batch.tensors.items())
        try:
            if key not in self.shapes:
                static = {name: torch.empty_like(each, device=self.device) for name, each in batch.tensors.items()}
                self.shapes[key] = Shape(replace(batch, tensors=static))
            shape = self.shapes[key]
            for name, each in batch.tensors.items():
                shape.batch.tensors[name].copy_(each, non_blocking=True)
            if shape.calls < WARMUP:
                shape.calls += 1
                return call_aside(self.function, shape.batch)
            if shape.replay is None:
                shape.replay = capture(self.function, shape.batch, *self.generators)
        except BaseException:
            self.release()
            raise
        return shape.replay()

    def release(self) -> None:
        """Drops all graphs and their memory; the next calls compute without one again."""
        self.shapes.clear()


def capturing() -> bool:
    """Whether a capture is under way, in which nothing is computed."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of warm-ups and captures: gradients accumulate on the stream that the first backward pass was on."""
    return torch.cuda.Stream(device)


def uncached() -> torch.autocast:
    """Without autocast's cache of weights in 16 bits, which would outlive the capture that filled it."""
    return torch.autocast("cuda", enabled=False, cache_enabled=False)


def call_aside(function: Callable[[Any], Any], batch: Any) -> Any:
    """Calls the function on the side stream; the streams wait for each other, the host does not."""
    main = torch.cuda.current_stream()
    side = side_stream(main.device)
    side.wait_stream(main)
    with torch.cuda.stream(side), uncached():
        result = function(batch)
    main.wait_stream(side)
    return result


def capture(function: Callable[[Any], Any], batch: Any, *generators: torch.Generator) -> Callable[[], Any]:
    """Captures the function of a static batch, without computing it; the result replays it.

    Raises:
        torch.OutOfMemoryError: there is no memory for it.
    """
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    pool = next((other.pool() for other in LIVE), None)
    stream = side_stream(torch.cuda.current_stream().device)
    try:  # other threads, such as those that pin memory, may go on
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"), uncached():
            result = function(batch)
    except RuntimeError as error:
        cause = error.__context__  # the end of a capture that failed may raise an error of its own
        raise cause if isinstance(cause, torch.OutOfMemoryError) else error from None
    LIVE.add(graph)

    def replay() -> Any:
        graph.replay()
        return result

    return replay
