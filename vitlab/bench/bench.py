"""How fast, and how large: a training step and its stages, inference, memory, and how they grow.

Two kinds of step are timed. `composition` times the one that a training is made of, from the next batch to the
optimizer. `measure` times bare ones (forward, loss, backward, optimizer, on images that are there already), which other
libraries' models can take as well: all in one process, one after the other in every round, under the same autocast,
loss and optimizer. What is reported is the median over the rounds, after rounds that warm up.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import psutil
import torch
from torch.optim import Optimizer

from vitlab.bench.libraries import LIBRARIES
from vitlab.bench.steps import Bare, Work, infer, largest_batch, peak_bytes
from vitlab.bench.timing import Marked, Stopwatch, machine_peak
from vitlab.model import count
from vitlab.model.meta import on_meta_device
from vitlab.system.memory import out_of_memory
from vitlab.training.batches import train_batches
from vitlab.training.recipe import TrainingSetup
from vitlab.training.state import TrainState
from vitlab.training.step import train_step

STAGES = ("data", "forward", "backward", "optimizer")
SWEEPS = ("batch", "tokens", "width", "depth")


def composition(setup: TrainingSetup, *, rounds: int, warmup: int) -> dict[str, Any]:
    """A whole training step by stages, and inference; `train.update` itself is what runs.

    `optimizer` is all of an update that is neither forward nor backward: the gradient's norm and its clipping, the
    running means, the averaged weights.
    """
    device, watch = setup.dist.device, Stopwatch(setup.dist.device)
    net, loss = Marked(setup.net, watch, before="forward"), Marked(setup.loss, watch, after="backward")
    last = setup.steps - 1
    setup = replace(setup, net=net, loss=loss, steps=max(setup.steps, rounds + warmup))
    state = TrainState(setup, "bench")
    unscale = state.scaler.unscale_

    def optimizer_begins(optimizer: Optimizer) -> None:
        watch.mark("optimizer")
        unscale(optimizer)

    state.scaler.unscale_ = optimizer_begins
    batches = train_batches(setup, 0)
    stages: list[dict[str, float]] = []
    inference: list[float] = []
    startup = 0.0
    for step in range(warmup + rounds):
        watch.mark("data")
        setup.schedule.set(min(step, last))
        images, targets = next(batches)
        startup = startup or time.time() - psutil.Process().create_time()
        watch.mark("optimizer")
        train_step(state, images, targets)
        stages.append(watch.read())
        part = images[: max(1, len(images) // setup.fit.accumulate)]
        setup.model.eval()
        inference.append(watch.time(partial(infer, setup.model, part, setup.precision)))
        setup.model.train()
    steps = [{stage: spent[stage] for stage in STAGES} for spent in stages[warmup:]]
    peak, side = machine_peak(device, setup.precision)

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

    training = told([sum(each.values()) for each in steps], setup.fit.batch_size, 3 * setup.flops)
    middle = {stage: statistics.median(each[stage] for each in steps) for stage in STAGES}
    scale = training["ms"] / sum(middle.values())  # the medians of parts are no parts of a median
    training["stages_ms"] = {stage: ms * scale for stage, ms in middle.items()}
    training["stages_ms_of_rounds"] = steps
    return {
        "startup_seconds": startup,
        "training": training,
        "inference": told(inference[warmup:], len(part), setup.flops),
        "peak": {"flops_per_second": peak, "side": side},
    }


def alike(works: list[Work]) -> tuple[list[Work], dict[str, int], dict[str, str]]:
    """The works whose library is here, their parameters, and what there is to say about each library.

    A library's ViT may have more or fewer parameters than vitlab's, the first, as far as `peers` explains the number.
    """
    dist, counts, said = [], {}, {}
    for work in works:
        try:
            model = replace(work, device=torch.device("cpu")).model()
        except ImportError as error:
            said[work.library] = f"not installed ({error}): uv sync --group bench brings it"
            continue
        dist.append(work)
        counts[work.library] = count.parameters(model)
        if more := counts[work.library] - counts[works[0].library]:
            library = LIBRARIES[work.library]
            why = library.why if more == library.more(work.shape) else "unexplained, so it is another model"
            said[work.library] = f"{more:+,} parameters: {why}"
    return dist, counts, said


def measure(works: list[Work], *, rounds: int, warmup: int) -> dict[str, dict[str, Any]]:
    """Milliseconds of a training step and of inference, and bytes, of each library's model."""
    memory = {work.library: peak_bytes(work) for work in works}
    if None in memory.values():
        raise torch.OutOfMemoryError("out of memory")
    watch, models = Stopwatch(works[0].device), {work.library: Bare(work) for work in works}
    times: dict[str, dict[str, list[float]]] = {name: {"training": [], "inference": []} for name in models}
    order = list(models)
    for turn in range(warmup + rounds):
        order = order[1:] + order[:1]  # nobody always comes after the same
        for name in order:
            for kind, act in (("training", models[name].step), ("inference", models[name].infer)):
                models[name].model.train(kind == "training")
                took = watch.time(act)
                if turn >= warmup:
                    times[name][kind].append(took)
    return {
        name: {
            "training_ms": statistics.median(of["training"]),
            "inference_ms": statistics.median(of["inference"]),
            "memory_bytes": memory[name],
            "ms_of_rounds": of,
        }
        for name, of in times.items()
    }


def ratio(measured: dict[str, dict[str, Any]], name: str, key: str) -> float | None:
    """A library's number by vitlab's."""
    one, ours = measured[name][key], measured["vitlab"][key]
    return one / ours if one and ours else None


def points(work: Work, kind: str) -> list[Work]:
    """The work at five or six sizes around its own: of the batch, the image, the width or the depth."""
    told = work.told
    if kind == "batch":
        return [replace(work, batch=max(1, work.batch // 8) * 2**i) for i in range(6)]
    if kind == "depth":
        return [replace(work, make=partial(work.make, depth=max(1, told["depth"] // 4) * 2**i)) for i in range(5)]
    if kind == "width":  # as many heads, wider; by multiples of 4, which some positions want
        widths = around(lambda by: max(4, round(told["width"] / told["heads"] * by / 4) * 4) * told["heads"])
        return [replace(work, make=partial(work.make, width=width)) for width in widths]
    sides = around(
        lambda by: tuple(max(1, round(side // told["patch"] * by)) * told["patch"] for side in work.image_size)
    )
    return [replace(work, image_size=each) for each in sides]


def around(value: Callable[[float], Any]) -> list[Any]:
    """Five values from half of something to the double of it, or above where small ones are the same."""
    found = {value(by) for by in (0.5, 0.75, 1, 1.5, 2)}
    for by in (3, 4, 5, 6):
        found |= {value(by)} if len(found) < 5 else set()
    return sorted(found)


def size(work: Work, kind: str) -> int:
    """Where a work stands on the axis of its sweep."""
    if kind == "tokens":
        shape = {"image_size": work.image_size, "channels": work.channels, "classes": work.classes}
        return on_meta_device(work.make, **shape).grid.tokens
    return work.batch if kind == "batch" else work.told[kind]


def exponents(sizes: Sequence[int], values: Sequence[float | None]) -> list[float | None]:
    """Between neighbours: 1 where a value grows as its size does, 2 as its square; None where one is not known."""
    return [
        math.log(after / before) / math.log(y / x) if before and after else None
        for (x, y), (before, after) in zip(pairwise(sizes), pairwise(values), strict=True)
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
            measured = measure([at.of(name) for name in libraries], rounds=rounds, warmup=warmup)
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
        "largest_batch": {n: largest_batch(work.of(n)) for n in libraries} if cuda else None,
    }
