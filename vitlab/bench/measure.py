"""The measurements of `vitlab bench`: a training step by stages, the steps of several libraries, and how costs grow.

`measure_stages` times the step that a training makes, with its data. `measure_steps` times steps on random images,
which other libraries' models can make as well: in one process, in turn in every round, with the same precision, loss
and optimizer. All numbers are medians over rounds, after warm-up rounds.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.optim import Optimizer

from vitlab.bench.libraries import LIBRARIES
from vitlab.bench.steps import StepRunner, Workload, infer, largest_batch, peak_bytes, result_if_fits, ways
from vitlab.bench.timing import Stopwatch, Timed, Traffic, launch_ms, machine_bandwidth, machine_peak
from vitlab.data.batch import Batch
from vitlab.model import count
from vitlab.model.meta import on_meta_device
from vitlab.system.graphs import WARMUP
from vitlab.training.batches import train_batches
from vitlab.training.recipe import TrainingSetup
from vitlab.training.state import TrainState
from vitlab.training.step import train_step

STAGES = ("data", "forward", "backward", "optimizer")
COSTS = ("training_ms", "inference_ms", "memory_bytes")
POWERS, STEPS = tuple(2.0**n for n in range(-3, 12)), (0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 6)
SWEEPS = {  # how many sizes, and the factors that give them; of those that are the same size one counts
    "batch": (6, POWERS),
    "tokens": (5, STEPS),
    "width": (5, STEPS),
    "depth": (5, POWERS[1:]),
}

Costs = dict[str, dict[str, Any]]  # of each library: COSTS, and ms_of_rounds


def measure_stages(setup: TrainingSetup, *, rounds: int, warmup: int) -> dict[str, Any]:
    """Times `train_step` with its data by stages, and inference; nothing is captured as a CUDA graph.

    The stage `optimizer` is all of a step that is neither data, forward nor backward: clipping, the optimizer, running
    means, averaged weights.
    """
    device, watch, last = setup.dist.device, Stopwatch(setup.dist.device), setup.steps - 1
    setup.loss.register_forward_hook(lambda *_: watch.start("backward"))
    setup = replace(setup, net=Timed(setup.net, watch, "forward"), steps=max(setup.steps, rounds + warmup))
    state: Any = TrainState(replace(setup, not_captured="a graph has no stages"), "bench")
    unscale, inputs = state.scaler.unscale_, state.inputs

    def unscale_and_mark(optimizer: Optimizer) -> None:
        watch.start("optimizer")
        unscale(optimizer)

    def timed_inputs(batch: Batch) -> tuple[Tensor, Tensor]:
        watch.start("data")
        made = inputs(batch)
        watch.start("optimizer")
        return made

    state.scaler.unscale_, state.inputs = unscale_and_mark, timed_inputs
    batches = train_batches(setup, 0)
    stages: list[dict[str, float]] = []
    inference: list[float] = []
    startup = 0.0
    for step in range(warmup + rounds):
        watch.start("data")
        setup.schedule.set(min(step, last))
        batch = next(batches).to(device)
        startup = startup or time.time() - psutil.Process().create_time()
        watch.start("optimizer")
        train_step(state, batch)
        stages.append(watch.read())
        images, _ = inputs(batch)
        part = images[: max(1, len(images) // setup.fit.accumulate)]
        setup.vit.eval()
        inference.append(watch.time(partial(infer, setup.vit, part, setup.precision)))
        setup.vit.train()
    peak, side = machine_peak(device, setup.precision)
    stages = [{stage: ms[stage] for stage in STAGES} for ms in stages[warmup:]]
    training = speed([sum(ms.values()) for ms in stages], setup.fit.batch_size, 3 * setup.flops, peak)
    medians = {stage: median(ms[stage] for ms in stages) for stage in STAGES}
    scale = training["ms"] / sum(medians.values())  # the median of a sum is not the sum of the medians
    training["stages_ms"] = {stage: ms * scale for stage, ms in medians.items()}
    training["stages_ms_of_rounds"] = stages
    return {
        "startup_seconds": startup,
        "training": training,
        "inference": speed(inference[warmup:], len(part), setup.flops, peak),
        "peak": {"flops_per_second": peak, "side": side},
    }


def speed(ms: list[float], images: int, flops_per_image: float, peak: float) -> dict[str, Any]:
    """The median of the rounds, as milliseconds, images and FLOPs a second."""
    images_per_second = images / median(ms) * 1e3
    return {
        "ms": median(ms),
        "images_per_second": images_per_second,
        "flops_per_second": flops_per_image * images_per_second,
        "share_of_peak": flops_per_image * images_per_second / peak,
        "images": images,
        "ms_of_rounds": ms,
    }


def installed(works: list[Workload]) -> tuple[list[Workload], dict[str, int], dict[str, str]]:
    """The workloads whose library is installed, their parameters, and a note on each library that differs.

    A library's ViT may have more or fewer parameters than vitlab's, the first, where `libraries` explains the number.
    """
    found, parameters, notes = [], {}, {}
    for work in works:
        try:
            model = replace(work, device=torch.device("cpu")).model()
        except ImportError as error:
            notes[work.library] = f"not installed ({error}): uv sync --group bench brings it"
            continue
        found.append(work)
        parameters[work.library] = count.parameters(model)
        if more := parameters[work.library] - parameters[works[0].library]:
            library = LIBRARIES[work.library]
            why = library.why if more == library.more(work.sizes) else "unexplained, so it is another model"
            notes[work.library] = f"{more:+,} parameters: {why}"
    return found, parameters, notes


def measure_steps(works: list[Workload], *, rounds: int, warmup: int) -> Costs:
    """Times a training step and inference of each library's model, and measures their memory.

    Of eager ones the operations of a training step are counted, and the bytes that these read and write.

    Raises:
        torch.OutOfMemoryError: one of them does not fit.
    """
    memory = {work.library: peak_bytes(work) for work in works}
    if None in memory.values():
        raise torch.OutOfMemoryError("out of memory")
    watch, runners = Stopwatch(works[0].device), {work.library: StepRunner(work) for work in works}
    traffic = {
        name: Traffic() for name, runner in runners.items() if not (runner.work.captured or runner.work.system.compile)
    }
    for name, counted in traffic.items():
        with counted:
            runners[name].train()
    warmup = max(warmup, works[0].captured * (WARMUP + 1))
    times: dict[str, dict[str, list[float]]] = {name: {"training": [], "inference": []} for name in runners}
    order = list(runners)
    for number in range(warmup + rounds):
        order = order[1:] + order[:1]  # so that none always follows the same one
        for name in order:
            runner = runners[name]
            for kind, run in (("training", runner.train), ("inference", runner.infer)):
                runner.model.train(kind == "training")
                ms = watch.time(run)
                if number >= warmup:
                    times[name][kind].append(ms)
    return {
        name: {
            "training_ms": median(ms["training"]),
            "inference_ms": median(ms["inference"]),
            "memory_bytes": memory[name],
            "ms_of_rounds": ms,
        }
        | ({"operations": traffic[name].operations, "bytes": traffic[name].bytes} if name in traffic else {})
        for name, ms in times.items()
    }


def measure_ways(
    works: list[Workload],
    captures: bool,
    known: dict[str, Any],
    report: Callable[[str, Costs, Costs], None],
    **rounds: int,
) -> dict[str, Costs]:
    """The costs of each library in each way (eager, captured, compiled, both), and what limits a training step.

    That is the longest of four times, each as if there were no other: the matrix products at the machine's peak; all
    operations' inputs and outputs at the speed of a copy (an upper bound: what caches hold or a compiler fuses is not
    read again); launching every operation from Python, which a graph does not; and making the next batch ready.

    Args:
        works: of each library.
        captures: whether steps can be captured as CUDA graphs.
        known: from `measure_stages`, and the `flops_per_image`.
        report: is called with each way, its costs, and their ratios to vitlab's.
        rounds: as for `measure_steps`.
    """
    device, peak, found = works[0].device, known["peak"]["flops_per_second"], {}
    bandwidth, launch = machine_bandwidth(device), launch_ms(device)
    for way in ways(works[0], captures):
        found[way] = costs = measure_steps([ways(work, captures)[way] for work in works], **rounds)
        for name, cost in costs.items():
            eager, flops = found["eager"][name], 3 * known["flops_per_image"] * works[0].batch
            limits = {
                "matrix products": flops / peak * 1e3,
                "memory": eager["bytes"] / bandwidth * 1e3,
                "launches": 0.0 if way in ("captured", "both") else eager["operations"] * launch,
                "data": known["training"]["stages_ms"]["data"],
            }
            cost["images_per_second"] = works[0].batch / cost["training_ms"] * 1e3
            cost["share_of_peak"] = limits["matrix products"] / cost["training_ms"]
            cost |= {"limits_ms": limits, "limit": max(limits, key=lambda kind: limits[kind])}
        report(way, costs, ratios(costs))
    return found


def by_cost(libraries: Iterable[str], value: Callable[[str, str], Any]) -> Costs:
    """A value for each library and each of `COSTS`."""
    return {name: {key: value(name, key) for key in COSTS} for name in libraries}


def ratios(costs: Costs) -> Costs:
    """The costs of each library divided by those of vitlab."""
    return by_cost(costs, lambda name, key: costs[name][key] / (costs["vitlab"][key] or math.nan))


def scaled(work: Workload, axis: str, factor: float) -> Workload:
    """The workload with a batch, an image, a width or a depth that is about `factor` times as large."""
    model = work.make.keywords
    if axis == "batch":
        return replace(work, batch=max(1, int(work.batch * factor)))
    if axis == "depth":
        return replace(work, make=partial(work.make, depth=max(1, int(model["depth"] * factor))))
    if axis == "width":  # as many heads, whose width is a multiple of 4, as some positions want
        width = max(4, 4 * round(model["width"] / model["heads"] * factor / 4)) * model["heads"]
        return replace(work, make=partial(work.make, width=width))
    patch = model["patch"]
    return replace(work, image_size=tuple(patch * max(1, round(side // patch * factor)) for side in work.image_size))


def size_of(work: Workload, axis: str) -> int:
    """Images of the batch, tokens, width or depth."""
    if axis == "tokens":
        return on_meta_device(work.make, **work.inputs).grid.tokens
    return work.batch if axis == "batch" else work.make.keywords[axis]


def sweep_points(work: Workload, axis: str) -> dict[int, Workload]:
    """Five or six sizes around that of the workload, and the workload of each."""
    number, factors = SWEEPS[axis]
    points: dict[int, Workload] = {}
    for factor in factors:
        if len(points) < number:
            point = scaled(work, axis, factor)
            points[size_of(point, axis)] = point
    return dict(sorted(points.items()))


def exponent(sizes: tuple[int, int], values: tuple[float | None, float | None]) -> float | None:
    """The exponent by which a value grows with a size: 1 is proportional, 2 quadratic; None where one is unknown."""
    before, after = values
    return math.log(after / before) / math.log(sizes[1] / sizes[0]) if before and after else None


def growth(sizes: tuple[int, int], before: Costs, after: Costs) -> Costs:
    return by_cost(after, lambda name, key: exponent(sizes, (before[name][key], after[name][key])))


def measure_growth(
    work: Workload, axis: str, libraries: list[str], report: Callable[[int, Costs, Costs], None], **rounds: int
) -> dict[str, Any]:
    """The costs of each library at every size of an axis, up to the first that does not fit.

    Args:
        work: the sizes are around its own.
        axis: batch, tokens, width or depth.
        libraries: whose models are measured.
        report: is called with each size, its costs, and the exponents of their growth.
        rounds: as for `measure_steps`.
    """
    sizes: list[int] = []
    costs: list[Costs] = []
    exponents: list[Costs] = []
    failed = None
    for size, point in sweep_points(work, axis).items():
        works = [replace(point, library=name) for name in libraries]
        now = result_if_fits(partial(measure_steps, works, **rounds))
        if now is None:
            failed = size
            break
        if costs:
            exponents.append(growth((sizes[-1], size), costs[-1], now))
        report(size, now, exponents[-1] if costs else {})
        sizes.append(size)
        costs.append(now)
    doubles = axis == "batch" and work.device.type != "cpu"
    return {
        "kind": axis,
        "sizes": sizes,
        "libraries": by_cost(libraries, lambda name, key: [each[name][key] for each in costs]),
        "exponents": by_cost(libraries, lambda name, key: [each[name][key] for each in exponents]),
        "out_of_memory_at": failed,
        "largest_batch": {name: largest_batch(replace(work, library=name)) for name in libraries} if doubles else None,
    }
