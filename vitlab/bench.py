"""How fast, and how large: a training step and its stages, inference, memory, and how they grow.

Two kinds of step are timed. `composition` times the one that a training is made of, from the next batch to the
optimizer. `measure` times bare ones (forward, loss, backward, optimizer, on images that are there already), which other
libraries' models can take as well: all in one process, one after the other in every round, under the same autocast,
loss and optimizer. What is reported is the median over the rounds, after rounds that warm up.
"""

import gc
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vitlab import optim
from vitlab.dataset.loader import places
from vitlab.dataset.preprocess import Normalise
from vitlab.loss import Loss
from vitlab.model import count
from vitlab.model.vit import ViT
from vitlab.parallel import DTYPES, System, alone, autocast, spread
from vitlab.peers import LIBRARIES, Shape
from vitlab.recipe import Ready, training_batches
from vitlab.state import State
from vitlab.train import out_of_memory, update

STAGES = ("data", "forward", "backward", "optimizer")
SWEEPS = ("batch", "tokens", "width", "depth")
LARGEST = 2**20  # images of a batch at most


# --- time ---------------------------------------------------------------------------------------------------------


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


# --- the composition ----------------------------------------------------------------------------------------------


def composition(ready: Ready, *, rounds: int, warmup: int) -> dict[str, Any]:
    """A whole training step by stages, and inference; `train.update` itself is what runs.

    `optimizer` is all of an update that is neither forward nor backward: the gradient's norm and its clipping, the
    running means, the averaged weights.
    """
    here, device, watch = ready.world, ready.world.device, Stopwatch(ready.world.device)
    net, loss = Marked(ready.net, watch, before="forward"), Marked(ready.loss, watch, after="backward")
    last = ready.steps - 1
    ready = replace(ready, net=net, loss=loss, steps=max(ready.steps, rounds + warmup))  # ty: ignore[invalid-argument-type]
    state = State(ready, {"run": "bench"})
    unscale = state.scaler.unscale_

    def optimizer_begins(optimizer: Optimizer) -> None:
        watch.mark("optimizer")
        unscale(optimizer)

    state.scaler.unscale_ = optimizer_begins  # ty: ignore[invalid-assignment]
    normalise = Normalise(ready.dataset.mean, ready.dataset.std).to(device)
    batchwise = ready.augment.batchwise(len(ready.dataset.classes), device)
    batches = iter(training_batches(ready, 0))
    which = places(ready.fit.batch_size, here.rank, here.size)
    stages: list[dict[str, float]] = []
    inference: list[float] = []
    startup = 0.0
    for step in range(warmup + rounds):
        watch.mark("data")
        ready.schedule.set(min(step, last))
        pixels, labels = next(batches)
        images = normalise(pixels.to(device, non_blocking=True))
        targets = labels = labels.to(device, non_blocking=True)
        if batchwise is not None:
            images, targets = batchwise(images, labels, which, ready.seed, step)
        startup = startup or time.time() - psutil.Process().create_time()
        watch.mark("optimizer")
        update(state, images, targets)
        stages.append(watch.read())
        part = images[: max(1, len(images) // ready.fit.accumulate)]
        inference.append(watch.time(partial(infer, ready.model, part, ready.precision)))
    steps = [{stage: spent[stage] for stage in STAGES} for spent in stages[warmup:]]
    peak, side = machine_peak(device, ready.precision)

    def told(times: list[float], images: int, flops: int) -> dict[str, Any]:
        seconds = statistics.median(times) / 1e3
        pace = flops * images / seconds
        return {
            "ms": seconds * 1e3,
            "images_per_second": images / seconds,
            "flops_per_second": pace,
            "share_of_peak": pace / peak,
            "images": images,
            "ms_of_rounds": times,
        }

    training = told([sum(each.values()) for each in steps], ready.fit.batch_size, 3 * ready.flops)
    training["stages_ms"] = {stage: statistics.median(each[stage] for each in steps) for stage in STAGES}
    training["stages_ms_of_rounds"] = steps
    return {
        "startup_seconds": startup,
        "training": training,
        "inference": told(inference[warmup:], len(part), ready.flops),
        "peak": {"flops_per_second": peak, "side": side},
    }


@torch.inference_mode()
def infer(model: nn.Module, images: Tensor, precision: str) -> None:
    model.eval()
    with autocast(images.device, precision):
        model(images)
    model.train()


# --- bare steps -------------------------------------------------------------------------------------------------------


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

    @property
    def told(self) -> dict[str, Any]:
        """What the ViT is told by."""
        return getattr(self.make, "keywords", {})

    def model(self) -> nn.Module:
        """The model, on its device; raises ImportError where its library is not installed."""
        if self.library == "vitlab":
            made = self.make(image_size=self.image_size, channels=self.channels, classes=self.classes)
            return spread(made.to(self.device), alone(self.device), self.system)
        size = {name: self.told[name] for name in ("patch", "width", "depth", "heads")}
        shape = Shape(side=self.image_size[0], channels=self.channels, classes=self.classes, **size)
        library = LIBRARIES[self.library]
        model = library.make(library.load(), shape).to(self.device)
        if self.system.compile:
            model.compile()
        return model

    def explain(self, ours: int, theirs: int) -> str:
        """Why this library's model has another number of parameters than vitlab's; nothing where it has not."""
        if ours == theirs:
            return ""
        library, size = LIBRARIES[self.library], {n: self.told[n] for n in ("patch", "width", "depth", "heads")}
        shape = Shape(side=self.image_size[0], channels=self.channels, classes=self.classes, **size)
        known = theirs - ours == library.more(shape)
        return f"{theirs - ours:+,} parameters: {library.why if known else 'unexplained, so not the same model'}"


class Bare:
    """A step of training and one of inference on images that are there already."""

    def __init__(self, work: Work):
        self.work, self.model = work, work.model().train()
        self.optimizer = optim.build(work.optimizer, self.model)
        self.scaler = torch.amp.GradScaler(work.device.type, enabled=work.precision == "fp16")
        self.images = torch.randn(work.batch, work.channels, *work.image_size, device=work.device)
        self.labels = torch.randint(0, work.classes, (work.batch,), device=work.device)

    def train(self) -> None:
        self.optimizer.zero_grad()
        with autocast(self.images.device, self.work.precision):
            out = self.model(self.images)
            loss = self.work.loss(out if isinstance(out, Tensor) else out.logits, self.labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def infer(self) -> None:
        infer(self.model, self.images, self.work.precision)


def missing(libraries: list[str]) -> dict[str, str]:
    """Why each library that cannot be imported cannot."""
    found = {}
    for name in libraries:
        try:
            LIBRARIES[name].load()
        except ImportError as error:
            found[name] = str(error)
    return found


def measure(works: list[Work], *, rounds: int, warmup: int) -> dict[str, dict[str, Any]]:
    """Milliseconds of training and inference, bytes and parameters of each library's model, vitlab's first."""
    memory = {work.library: peak_bytes(work) for work in works}
    watch, models = Stopwatch(works[0].device), {work.library: Bare(work) for work in works}
    times: dict[str, dict[str, list[float]]] = {name: {"training": [], "inference": []} for name in models}
    order = list(models)
    for turn in range(warmup + rounds):
        order = order[1:] + order[:1]  # whoever is first has colder caches
        for name in order:
            for kind, act in (("training", models[name].train), ("inference", models[name].infer)):
                took = watch.time(act)
                if turn >= warmup:
                    times[name][kind].append(took)
    found = {}
    for work in works:
        found[work.library] = {
            "training_ms": statistics.median(times[work.library]["training"]),
            "inference_ms": statistics.median(times[work.library]["inference"]),
            "memory_bytes": memory[work.library],
            "parameters": count.parameters(models[work.library].model),
            "ms_of_rounds": times[work.library],
        }
    for work in works:
        one, ours = found[work.library], found[works[0].library]
        one["ratio"] = {
            key: one[key] / ours[key] if one[key] and ours[key] else None
            for key in ("training_ms", "inference_ms", "memory_bytes")
        }
        one["differs"] = work.explain(ours["parameters"], one["parameters"])
    return found


# --- memory -----------------------------------------------------------------------------------------------------------


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
        finally:
            gc.collect()
            torch.cuda.empty_cache()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        try:
            return child.submit(taken, work).result()
        except BrokenProcessPool:
            return None


def taken(work: Work) -> int:
    """`peak_bytes`, in this process."""
    if work.library in LIBRARIES:
        LIBRARIES[work.library].load()
    cuda, status = work.device.type == "cuda", Path("/proc/self/status")
    if cuda:
        torch.cuda.reset_peak_memory_stats(work.device)
        before = torch.cuda.memory_allocated(work.device)
    else:
        torch.set_num_threads(work.threads)
        before = psutil.Process().memory_info().rss
    bare = Bare(work)
    for _ in range(2):
        bare.train()
    if cuda:
        return torch.cuda.max_memory_allocated(work.device) - before
    lines = status.read_text().splitlines() if status.is_file() else []
    most = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
    return max(0, (most or psutil.Process().memory_info().rss) - before)


def largest_batch(work: Work) -> int:
    """The most images, doubled from one, that a training step fits with; 0 where none does. For a GPU alone."""
    fitting, batch = 0, 1
    while batch <= LARGEST and peak_bytes(replace(work, batch=batch)) is not None:
        fitting, batch = batch, 2 * batch
    return fitting


# --- growth -----------------------------------------------------------------------------------------------------------


def points(work: Work, kind: str) -> list[Work]:
    """The work at five or six sizes around its own: of the batch, the image, the width or the depth."""
    told = work.told
    if kind == "batch":
        return [replace(work, batch=max(1, work.batch // 8) * 2**i) for i in range(6)]
    if kind == "depth":
        return [replace(work, make=partial(work.make, depth=max(1, told["depth"] // 4) * 2**i)) for i in range(5)]
    factors = (0.5, 0.75, 1, 1.5, 2, 3)
    if kind == "width":  # as many heads, wider; a multiple of 4, which some positions want
        widths = sorted({max(4, round(told["width"] / told["heads"] * by / 4) * 4) for by in factors[:5]})
        return [replace(work, make=partial(work.make, width=width * told["heads"])) for width in widths]
    rows, columns = (side // told["patch"] for side in work.image_size)
    grids = sorted({(max(1, round(rows * by)), max(1, round(columns * by))) for by in factors})
    return [replace(work, image_size=(y * told["patch"], x * told["patch"])) for y, x in grids]


def size(work: Work, kind: str) -> int:
    """Where a work stands on the axis of its sweep."""
    if kind == "tokens":
        with torch.device("meta"):
            return work.make(image_size=work.image_size, channels=work.channels, classes=work.classes).grid.tokens
    return work.batch if kind == "batch" else work.told[kind]


def exponents(sizes: list[int], values: list[float | None]) -> list[float | None]:
    """Between neighbours: 1 where a value grows as its size does, 2 as its square; None where one is not known."""
    return [
        math.log(b / a) / math.log(y / x) if a and b else None
        for (x, a), (y, b) in zip(pairwise(sizes), pairwise(values), strict=True)
    ]


def grow(
    work: Work, kind: str, libraries: list[str], *, rounds: int, warmup: int, say: Callable[[int, dict], None]
) -> dict[str, Any]:
    """Each library at every point of a sweep, up to the first that does not fit; `say` is told of each."""
    sizes: list[int] = []
    found: list[dict[str, dict[str, Any]]] = []
    stopped = None
    for at in points(work, kind):
        place = size(at, kind)
        try:
            measured = measure([replace(at, library=name) for name in libraries], rounds=rounds, warmup=warmup)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            stopped = place
            break
        sizes.append(place)
        found.append(measured)
        say(place, measured)
    values = {
        name: {key: [each[name][key] for each in found] for key in ("training_ms", "inference_ms", "memory_bytes")}
        for name in libraries
    }
    cuda = kind == "batch" and work.device.type == "cuda"
    return {
        "kind": kind,
        "sizes": sizes,
        "libraries": values,
        "exponents": {name: {key: exponents(sizes, each) for key, each in of.items()} for name, of in values.items()},
        "out_of_memory_at": stopped,
        "largest_batch": {n: largest_batch(replace(work, library=n)) for n in libraries} if cuda else None,
    }
