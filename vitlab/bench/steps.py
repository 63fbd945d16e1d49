"""Bare steps: forward, loss, backward, optimizer, on images that are there already; any library's ViT can take them."""

import copy
import gc
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vitlab.bench.libraries import LIBRARIES, Shape
from vitlab.model.vit import ViT
from vitlab.system.distributed import single_process
from vitlab.system.hardware import peak_memory
from vitlab.system.memory import out_of_memory
from vitlab.system.options import System
from vitlab.system.parallelize import parallelize
from vitlab.system.precision import autocast
from vitlab.training.loss import Loss
from vitlab.training.optimizer import build_optimizer

LARGEST = 2**20  # images of a batch at most
FRESH = get_context("forkserver")  # its processes have imported everything, and computed nothing


def preload(libraries: Sequence[str]) -> None:
    """What fresh processes find imported, the first of them as all others; to be said before there is one."""
    FRESH.set_forkserver_preload(["vitlab.bench.steps", *(LIBRARIES[name].module for name in libraries)])


@dataclass(frozen=True, kw_only=True)
class Work:
    """A model and the batch that it is measured with.

    Args:
        make: `functools.partial` of the ViT, with its patch, width, depth and heads.
        image_size: height and width in pixels.
        library: whose ViT it is.
        threads: of torch on a CPU.
    """

    make: Callable[..., ViT]
    image_size: tuple[int, int]
    channels: int
    classes: int
    batch: int
    precision: str
    device: torch.device
    loss: Loss
    optimizer: Callable[..., Optimizer]
    system: System
    threads: int
    library: str = "vitlab"

    def of(self, library: str) -> "Work":
        """The same with another library's model."""
        return replace(self, library=library)

    @property
    def told(self) -> dict[str, Any]:
        """What the ViT is told by."""
        return getattr(self.make, "keywords", {})

    @property
    def shape(self) -> Shape:
        """The same for a library."""
        size = {name: self.told[name] for name in ("patch", "width", "depth", "heads")}
        return Shape(side=self.image_size[0], channels=self.channels, classes=self.classes, **size)

    def model(self) -> nn.Module:
        """The model, on its device; raises ImportError where its library is not installed."""
        if self.library == "vitlab":
            made = self.make(image_size=self.image_size, channels=self.channels, classes=self.classes)
            return parallelize(made.to(self.device), single_process(self.device), self.system)
        library = LIBRARIES[self.library]
        model = library.make(library.load(), self.shape).to(self.device)
        if self.system.compile:
            model.compile()
        return model


class Bare:
    """A step of training and one of inference on images that are there already."""

    def __init__(self, work: Work):
        self.work, self.model = work, work.model().train()
        self.optimizer = build_optimizer(work.optimizer, self.model)
        self.scaler = torch.amp.GradScaler(work.device.type, enabled=work.precision == "fp16")
        self.images = torch.randn(work.batch, work.channels, *work.image_size, device=work.device)
        self.labels = torch.randint(0, work.classes, (work.batch,), device=work.device)

    def resized(self, batch: int) -> "Bare":
        """The same model with a batch of another size."""
        other = copy.copy(self)
        other.work = replace(self.work, batch=batch)
        other.images = torch.randn(batch, *self.images.shape[1:], device=self.images.device)
        other.labels = torch.randint(0, self.work.classes, (batch,), device=self.images.device)
        return other

    def step(self) -> None:
        self.optimizer.zero_grad()
        with autocast(self.images.device, self.work.precision):
            out = self.model(self.images)
            loss = self.work.loss(out if isinstance(out, Tensor) else out.logits, self.labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def infer(self) -> None:
        infer(self.model, self.images, self.work.precision)


@torch.inference_mode()
def infer(model: nn.Module, images: Tensor, precision: str) -> None:
    with autocast(images.device, precision):
        model(images)


def peak_bytes(work: Work) -> int | None:
    """What a model, its optimizer and two training steps take at most; None where it is more than there is.

    Of a GPU's memory; on a CPU of a fresh process's, above what it has once everything is imported.
    """
    if work.device.type == "cuda":
        try:
            return taken(work)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return None
    with ProcessPoolExecutor(1, mp_context=FRESH) as child:
        try:
            return child.submit(taken, work).result()
        except BrokenProcessPool:
            return None


def taken(work: Work) -> int:
    """`peak_bytes`, in this process."""
    if work.library in LIBRARIES:
        LIBRARIES[work.library].load()
    cuda = work.device.type == "cuda"
    if cuda:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(work.device)
        before = torch.cuda.memory_allocated(work.device)
    else:
        torch.set_num_threads(work.threads)
        before = psutil.Process().memory_info().rss
    bare = Bare(work)
    for _ in range(2):
        bare.step()
    return max(0, peak_memory(work.device) - before)


def largest_batch(work: Work) -> int:
    """The most images, doubled from one, that a training step fits with; 0 where none does. For a GPU alone."""
    fitting, batch = 0, 1
    while batch <= LARGEST and peak_bytes(replace(work, batch=batch)) is not None:
        fitting, batch = batch, 2 * batch
    return fitting
