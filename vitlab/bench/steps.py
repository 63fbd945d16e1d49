"""Training and inference steps of any library's ViT on random images, and the memory that they take."""

import gc
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vitlab.bench.libraries import LIBRARIES, Sizes
from vitlab.config.build import build
from vitlab.config.errors import Node
from vitlab.data.batch import Batch
from vitlab.system.distributed import single_process
from vitlab.system.graphs import WARMUP, Captured
from vitlab.system.hardware import COMPILED_FOR, empty_cache, held_memory, module_of, peak_memory
from vitlab.system.memory import out_of_memory
from vitlab.system.options import System
from vitlab.system.parallelize import parallelize
from vitlab.system.precision import autocast, resolve
from vitlab.training.loss import Loss
from vitlab.training.optimizer import build_optimizer

T = TypeVar("T")
MAX_BATCH = 2**20  # images
WAYS = {"eager": (False, False), "captured": (False, True), "compiled": (True, False), "both": (True, True)}
METHOD = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
FRESH = get_context(METHOD)  # its processes have imported everything, and computed nothing


def preload(libraries: Sequence[str]) -> None:
    """Chooses what fresh processes have imported; call it before the first of them starts."""
    if METHOD == "forkserver":
        FRESH.set_forkserver_preload(["vitlab.bench.steps", *(LIBRARIES[name].module for name in libraries)])


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model with its loss and optimizer, and the batch that it computes.

    Args:
        make: the ViT's class with its patch, width, depth and heads.
        image_size: height and width in pixels.
        precision: fp32, bf16 or fp16.
        library: whose ViT it is.
        captured: whether each step is one CUDA graph.
        threads: of torch on a CPU.
    """

    make: partial
    image_size: tuple[int, int]
    channels: int
    classes: int
    batch: int
    precision: str
    device: torch.device
    loss: Loss
    optimizer: Callable[..., Optimizer]
    system: System
    library: str = "vitlab"
    captured: bool = False
    threads: int = field(default_factory=torch.get_num_threads)

    @property
    def inputs(self) -> dict[str, Any]:
        """What the ViT's factory still needs."""
        return {"image_size": self.image_size, "channels": self.channels, "classes": self.classes}

    @property
    def sizes(self) -> Sizes:
        """What other libraries' factories take."""
        sizes = {name: self.make.keywords[name] for name in ("patch", "width", "depth", "heads")}
        return Sizes(side=self.image_size[0], channels=self.channels, classes=self.classes, **sizes)

    def model(self) -> nn.Module:
        """The model on its device.

        Raises:
            ImportError: its library is not installed.
        """
        if self.library == "vitlab":
            return parallelize(self.make(**self.inputs).to(self.device), single_process(self.device), self.system)
        library = LIBRARIES[self.library]
        model = library.make(library.load(), self.sizes).to(self.device)
        if self.system.compile:
            model.compile()
        return model


def workload(config: Node, shape: Mapping[str, Any], batch: int, device: torch.device) -> Workload:
    """The workload of a checked configuration.

    Args:
        config: with its model, loss, optimizer and system.
        shape: image_size, channels and classes.
        batch: images of a step.
        device: where it is computed.
    """
    loss = build(config["loss"])
    loss.set_classes([str(label) for label in range(shape["classes"])], np.ones(shape["classes"], dtype=int))
    return Workload(
        make=build(config["model"]),
        **shape,
        batch=batch,
        precision=resolve(config["fit"]["precision"], device),
        device=device,
        loss=loss.to(device),
        optimizer=build(config["optimizer"]),
        system=build(config["system"]),
        captured=config["system"]["capture"] is True,
    )


class StepRunner:
    """Runs training steps (forward, loss, backward, optimizer) and inference of a workload on random images."""

    def __init__(self, work: Workload):
        self.work, self.model = work, work.model().train()
        self.optimizer = build_optimizer(work.optimizer, self.model, capturable=work.captured)
        self.scaler = torch.amp.GradScaler(work.device.type, enabled=work.precision == "fp16")
        parts = (self.training, self.forward) if work.captured else ()
        self.graphs = {part.__name__: Captured(part, work.device) for part in parts}
        self.set_batch(work.batch)

    def set_batch(self, batch: int) -> None:
        """Draws another batch."""
        work = self.work
        self.images = torch.randn(batch, work.channels, *work.image_size, device=work.device)
        labels = torch.randint(0, work.classes, (batch,), device=work.device)
        self.batch = Batch("plain", {"images": self.images, "labels": labels})

    def train(self) -> None:
        """A training step."""
        self.graphs.get("training", self.training)(self.batch)

    @torch.inference_mode()
    def infer(self) -> None:
        """Inference of the batch."""
        self.graphs.get("forward", self.forward)(self.batch)

    def training(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        with autocast(self.work.device, self.work.precision):
            out = self.model(batch.tensors["images"])
            loss = self.work.loss(out if isinstance(out, Tensor) else out.logits, batch.tensors["labels"])
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def forward(self, batch: Batch) -> None:
        infer(self.model, batch.tensors["images"], self.work.precision)


@torch.inference_mode()
def infer(model: nn.Module, images: Tensor, precision: str) -> None:
    with autocast(images.device, precision):
        model(images)


def ways(work: Workload, captures: bool) -> dict[str, Workload]:
    """The workload by each of `WAYS` that there is here.

    Args:
        work: as it is configured; on a CPU it is compiled only with system.compile, since that takes minutes there.
        captures: whether steps can be captured as CUDA graphs.
    """
    asked, kind = work.system.compile, work.device.type
    compiles = bool(asked) or (kind in COMPILED_FOR and kind != "cpu")
    return {
        name: replace(work, captured=captured, system=replace(work.system, compile=compiled and (asked or True)))
        for name, (compiled, captured) in WAYS.items()
        if (compiles or not compiled) and (captures or not captured)
    }


def result_if_fits(function: Callable[[], T]) -> T | None:
    """The result of a function; None where it runs out of memory."""
    try:
        return function()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None


def peak_bytes(work: Workload) -> int | None:
    """Peak memory of a model, its optimizer and two training steps; None where it does not fit.

    On a CPU it is that of a fresh process, above what the process has after its imports.
    """
    if work.device.type != "cpu":
        return result_if_fits(partial(measure_peak, work))
    with ProcessPoolExecutor(1, mp_context=FRESH) as child:
        try:
            return child.submit(measure_peak, work).result()
        except BrokenProcessPool:
            return None


def measure_peak(work: Workload) -> int:
    """`peak_bytes`, in this process."""
    if work.library in LIBRARIES:
        LIBRARIES[work.library].load()
    if work.device.type == "cpu":
        torch.set_num_threads(work.threads)
    before = begin_peak(work.device)
    runner = StepRunner(work)
    for _ in range(2 + work.captured * WARMUP):
        runner.train()
    return max(0, peak_memory(work.device) - before)


def begin_peak(device: torch.device) -> int:
    """Bytes that are taken now: what `peak_memory` says above them is taken from here on."""
    if device.type == "cpu":
        return psutil.Process().memory_info().rss
    gc.collect()
    empty_cache(device)
    getattr(module_of(device), "reset_peak_memory_stats", lambda device: None)(device)
    return held_memory(device)


def largest_batch(work: Workload) -> int:
    """The most images that a training step fits with on a GPU, found by doubling; 0 where one image does not fit."""
    fits, batch = 0, 1
    while batch <= MAX_BATCH and peak_bytes(replace(work, batch=batch)) is not None:
        fits, batch = batch, 2 * batch
    return fits
