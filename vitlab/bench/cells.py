"""The cells of a sweep of speed, measured instead of trained: all in one process, in turn in every round."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from statistics import median
from typing import Any

from vitlab.bench.steps import StepRunner, Workload, largest_batch, peak_bytes, preload, result_if_fits, workload
from vitlab.bench.timing import Stopwatch
from vitlab.config.build import build
from vitlab.storage.run import environment
from vitlab.storage.runs_table import flatten
from vitlab.sweep.plan import Plan
from vitlab.system.distributed import join_processes
from vitlab.system.graphs import WARMUP
from vitlab.system.hardware import describe

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # of which each cell takes the fastest
MAX_MS = 1000.0  # of a batch; after a slower one no larger one is tried
MIN_GAIN = 1.05  # in images a second, by which a larger batch must be faster
REPEATS = 3  # calls in a round, of which the median counts
MEMORY = 16 * 2**30  # bytes: of one TPUv3 core, on which the paper measures
PROBED = (4, 16)  # images of the two steps from whose memory that of any batch is extrapolated


def measure_cells(plan: Plan, report: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each cell and seed, as the table of runs has one for each run; a seed is a round.

    `inference/images_per_second` is with the batch that is fastest for the cell.

    Args:
        plan: whose cells are measured.
        report: is called with a line of progress.
    """
    preload([])
    rows, measured = [], []
    with join_processes(build(plan.cells[0].config["system"])) as dist:
        known = environment(describe(dist.device))
        code = known["git"] or {"commit": None, "dirty": None}
        code |= {name: known["packages"][name] for name in ("vitlab", "torch")}
        watch = Stopwatch(dist.device)
        for cell in plan.cells:
            work = workload(cell.config, cell.shape, batch=1, device=dist.device)
            largest = most_images(work)
            runner = StepRunner(work)
            runner.model.eval()
            choose_batch(runner, watch)
            batch = len(runner.images)
            facts = dict(flatten(cell.config)) | code
            facts |= {"device": known["device"], "processes": dist.size, "precision": work.precision}
            facts |= {"cell": cell.identity, "parameters": cell.parameters, "flops_per_image": cell.flops_per_image}
            facts |= {"status": "finished", "batch": batch} | ({} if largest is None else {"largest_batch": largest})
            measured.append((cell.name, runner, facts))
            report(f"{cell.name}: the fastest batch has {batch} images, the largest {largest or 'is not known'}")
        for number, seed in enumerate(plan.question.seeds):
            measured = [*measured[1:], measured[0]]  # so that none always follows the same one
            for name, runner, facts in measured:
                start = time.perf_counter()
                ms = median(watch.time(runner.infer) for _ in range(REPEATS))
                row: dict[str, Any] = {"run": f"{name}, round {seed}", "name": f"{name}, round {seed}", "seed": seed}
                row |= {"written": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}", "seconds": time.perf_counter() - start}
                rows.append(facts | row | {"inference/images_per_second": len(runner.images) / ms * 1e3})
            report(f"round {number + 1} of {len(plan.question.seeds)}")
    return rows


def choose_batch(runner: StepRunner, watch: Stopwatch) -> None:
    """Takes the batch with which the model infers most images a second."""
    best, speed = BATCHES[0], 0.0
    for batch in BATCHES:
        runner.set_batch(batch)
        first = 1 + runner.work.captured * WARMUP  # that counts
        ms = result_if_fits(lambda first=first: min([watch.time(runner.infer) for _ in range(first + 2)][first:]))
        if ms is None:
            break
        if batch / ms > MIN_GAIN * speed:
            best, speed = batch, batch / ms
        if ms > MAX_MS:
            break
    runner.set_batch(best)


def most_images(work: Workload) -> int | None:
    """The most images that a training step fits with; on a CPU, whose memory is shared, within 16 GiB."""
    if work.device.type != "cpu":
        return largest_batch(work)
    few, many = (peak_bytes(replace(work, batch=batch)) for batch in PROBED)
    if few is None or many is None or many <= few:
        return None
    bytes_per_image = (many - few) / (PROBED[1] - PROBED[0])
    return max(0, int((MEMORY - few) / bytes_per_image) + PROBED[0])
