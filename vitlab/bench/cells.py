"""What a sweep asks of speed and memory: its cells measured instead of trained, all in one process, interleaved."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch

from vitlab.bench.steps import Bare, Work, largest_batch, peak_bytes, preload
from vitlab.bench.timing import Stopwatch
from vitlab.config.build import assemble, build
from vitlab.storage.run import environment
from vitlab.storage.runs_table import flatten
from vitlab.sweep.plan import Checked, Plan
from vitlab.system.distributed import join_processes
from vitlab.system.hardware import describe
from vitlab.system.memory import out_of_memory
from vitlab.system.precision import resolve

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # of which each cell takes the fastest
SLOW = 1.0  # seconds of a batch after which no larger one is tried
GAIN = 1.05  # by which a larger batch must be faster to be taken
TIMES = 3  # that a round times a batch, of which the median counts
MEMORY = 16 * 2**30  # bytes: of one TPUv3 core, on which the paper measures
TRAINED = (4, 16)  # images of the steps from whose memory that of any batch follows


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A cell, what it is measured with, and what does not change from round to round."""

    cell: Checked
    bare: Bare
    facts: dict[str, Any]


def measure(plan: Plan, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A line a cell and seed, as the store has one of each run; a seed is a round.

    `inference/images_per_second` is that of the batch which is fastest for the cell. `largest_batch` is the most images
    that a training step fits with: on a GPU found by doubling; on a CPU, whose memory is everybody's, the most that 16
    GiB would hold by what two smaller steps take.

    Args:
        plan: whose cells are measured.
        say: is told of each.
    """
    preload([])
    lines, done = [], []
    with join_processes(build(plan.cells[0].config["system"])) as dist:
        ran: dict[str, Any] = {"device": describe(dist.device), "processes": dist.size}
        code = environment(ran["device"])
        git = code["git"] or {"commit": None, "dirty": None}
        ran |= {"commit": git["commit"], "dirty": git["dirty"], "vitlab": code["packages"]["vitlab"]}
        ran |= {"torch": code["packages"]["torch"]}
        watch = Stopwatch(dist.device)
        for cell in plan.cells:
            work = work_of(cell, dist.device)
            largest = most(work)
            bare = fastest(work, watch)
            facts = {"largest_batch": largest, "batch": bare.work.batch, "precision": work.precision}
            done.append(Measured(cell=cell, bare=bare, facts={key: v for key, v in facts.items() if v is not None}))
            say(f"{cell.name}: the fastest batch has {bare.work.batch} images, the largest {largest or 'is not known'}")
        for number, seed in enumerate(plan.question.seeds):
            turn = number % len(done)
            for one in (*done[turn:], *done[:turn]):  # nobody always comes after the same
                began = time.perf_counter()
                pace = one.bare.work.batch / speed(one.bare, watch)
                lines.append(line(one, seed) | ran | {"inference/images_per_second": pace})
                lines[-1]["seconds"] = time.perf_counter() - began
            say(f"round {number + 1} of {len(plan.question.seeds)}")
    return lines


def work_of(cell: Checked, device: torch.device) -> Work:
    """The bare step of a cell, with one image."""
    parts = assemble({key: value for key, value in cell.config.items() if key != "dataset"})
    return Work(
        make=parts["model"],
        image_size=cell.shape["image_size"],
        channels=cell.shape["channels"],
        classes=cell.shape["classes"],
        batch=1,
        precision=resolve(parts["fit"].precision, device),
        device=device,
        loss=parts["loss"].to(device),
        optimizer=parts["optimizer"],
        system=parts["system"],
        threads=torch.get_num_threads(),
    )


def fastest(work: Work, watch: Stopwatch) -> Bare:
    """The model with the batch at which it computes most images a second."""
    best, pace = Bare(work), 0.0
    best.model.eval()
    for batch in BATCHES:
        one = best.resized(batch)
        try:
            one.infer()
            took = min(watch.time(one.infer) for _ in range(2)) / 1e3
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            break
        if batch / took > GAIN * pace:
            best, pace = one, batch / took
        if took > SLOW:
            break
    return best


def speed(bare: Bare, watch: Stopwatch) -> float:
    """Seconds of a batch's inference."""
    return statistics.median(watch.time(bare.infer) for _ in range(TIMES)) / 1e3


def most(work: Work) -> int | None:
    """The most images of a training step."""
    if work.device.type == "cuda":
        return largest_batch(work)
    few, more = (peak_bytes(replace(work, batch=batch)) for batch in TRAINED)
    if few is None or more is None or more <= few:
        return None
    each = (more - few) / (TRAINED[1] - TRAINED[0])
    return max(0, int((MEMORY - few) / each) + TRAINED[0])


def line(one: Measured, seed: int) -> dict[str, Any]:
    """What the store would say of a run."""
    cell = one.cell
    name = f"{cell.name}, round {seed}"
    flat = dict(flatten({**cell.config, "seed": seed}))
    told = {"run": name, "name": name, "cell": cell.identity, "seed": seed, "status": "finished"}
    told |= {"written": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}", "parameters": cell.parameters}
    return flat | told | {"flops_per_image": cell.flops_per_image} | one.facts
