"""Trainings computed together, as in the packs of a sweep, timed beside one that is trained alone."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from vitlab.bench.cells import MIN_GAIN
from vitlab.bench.steps import begin_peak
from vitlab.bench.timing import Stopwatch
from vitlab.config.build import assemble
from vitlab.config.errors import ConfigError, Node, OutOfMemory
from vitlab.data.batch import Batch
from vitlab.data.dataset import read_once
from vitlab.model import count
from vitlab.sweep.local import slots
from vitlab.sweep.packs import most_together, packing
from vitlab.system.distributed import Distributed
from vitlab.system.hardware import peak_memory
from vitlab.system.memory import format_bytes, free_memory
from vitlab.training.batches import train_batches
from vitlab.training.pack import Pack, Pending
from vitlab.training.setup import prepare
from vitlab.training.state import TrainState
from vitlab.training.step import train_step

SLOTS = 2**20  # more runs than there are slots


def measure_packs(
    config: Node,
    numbers: Sequence[int],
    dist: Distributed,
    report: Callable[[list[dict[str, Any]]], None],
    *,
    at_once: int | None,
    rounds: int,
    warmup: int,
) -> dict[str, Any]:
    """Times the updates of several trainings, with their data, in turn with those of one that is trained alone.

    Gives a row for each number; which is `best`; and what a sweep computes together by itself. `memory_bytes` is the
    peak so far, the images' included.

    Args:
        config: of the trainings, which differ in their seeds.
        numbers: of trainings; 1 is the plain step.
        dist: this process.
        report: is called with the rows so far; one of a number that does not fit is the last, and has no times.
        at_once: how many are computed as one model; None is all.
        rounds: that are measured.
        warmup: rounds before those.

    Raises:
        ConfigError: they cannot be computed as one model.
    """
    watch, before, rows = Stopwatch(dist.device), begin_peak(dist.device), []
    with read_once():
        alone = start(config, dist)
        setup, states = alone.setup, [start(config, dist)]
        shape = {"image_size": setup.dataset.shape, "channels": setup.dataset.channels}
        shape |= {"classes": len(setup.dataset.classes)}
        parameters = count.parameters(setup.vit)
        facts = packing(config, shape, setup.flops, parameters)
        if not setup.batchable:
            raise ConfigError(f"--packed: {facts['alone']}: leave that out")
        for number in sorted({*numbers}):
            row: dict[str, Any] = {"runs": number, "at_once": min(number, at_once or number)}
            needed, free = (number - len(states)) * facts["memory"], free_memory(dist.device)
            if needed > free:
                row["failed"] = f"about {format_bytes(needed)} more, of {format_bytes(free)} that are free"
            else:
                states += [start({**config, "seed": seed}, dist) for seed in range(len(states), number)]
                try:
                    row |= time_pack(alone, states[:number], row["at_once"], watch, rounds, warmup)
                except OutOfMemory as error:
                    row["failed"] = str(error)
            row["memory_bytes"] = max(0, peak_memory(dist.device) - before)
            rows.append(row)
            report(rows)
            if "failed" in row:
                break
    device = config["system"]["device"]
    parts = len(slots(None, SLOTS, device))
    most, why = most_together(device, facts["memory"], parts)
    return {
        "rows": rows,
        "best": best({row["runs"]: row["times_as_fast"] for row in rows if "failed" not in row}),
        "sweep": {"together": most, "processes": parts, "alone": facts["alone"] or (why if most < 2 else "")},
        "precision": setup.precision,
        "parameters": parameters,
        "flops_per_image": setup.flops,
        "images": setup.fit.batch_size,
    }


def start(config: Node, dist: Distributed) -> TrainState:
    """The state of a training."""
    return TrainState(prepare(**assemble(config), dist=dist), "bench")


def time_pack(
    alone: TrainState, states: Sequence[TrainState], at_once: int, watch: Stopwatch, rounds: int, warmup: int
) -> dict[str, Any]:
    """The times of an update of several trainings, and of as many updates of another that is alone, in every round.

    One update alone would be so short that on a busy machine it is often not interrupted, as longer ones are.

    Raises:
        ConfigError: the models cannot be computed as one.
        OutOfMemory: not even two of them fit into memory.
    """
    pack, number = Pack(at_once), len(states)
    single = next_batches(alone, number * (warmup + rounds))
    os.environ["VITLAB_PACK"] = str(number)  # they share the cores for their workers, as in a sweep
    try:
        batches = [next_batches(state, warmup + rounds) for state in states]
    finally:
        del os.environ["VITLAB_PACK"]

    def together() -> None:
        pack.step([next_update(*training) for training in zip(states, batches, strict=True)])

    def one_by_one() -> None:
        for _ in range(number):
            train_step(*next_update(alone, single))

    times: dict[str, list[float]] = {"alone": [], "together": []}
    for _ in range(warmup + rounds):
        times["alone"].append(watch.time(one_by_one))
        times["together"].append(times["alone"][-1] if number == 1 else watch.time(together))
        if pack.separate:
            raise ConfigError("--packed: these models cannot be computed as one: leave --packed out")
    times = {kind: ms[warmup:] for kind, ms in times.items()}
    ms, images = median(times["together"]), alone.setup.fit.batch_size
    return {
        "at_once": min(number, pack.at_once),  # fewer where all did not fit into memory
        "ms": ms / number,
        "images_per_second": number * images / ms * 1e3,
        "times_as_fast": median(times["alone"]) / ms,
        "ms_of_rounds": times,
    }


def next_batches(state: TrainState, updates: int) -> Iterator[Batch]:
    """The batches of the next updates of a training, also of those after its end."""
    return train_batches(replace(state.setup, steps=state.step + updates), state.step)


def next_update(state: TrainState, batches: Iterator[Batch]) -> Pending:
    """The next update of a training, ready to be computed."""
    state.setup.schedule.set(min(state.step, state.setup.steps - 1))
    return state, next(batches)


def best(times_as_fast: Mapping[int, float]) -> int:
    """The number of trainings from which more are not faster by `MIN_GAIN`; 1 is as fast as one alone."""
    found, speed = 1, 1.0
    for number, times in sorted(times_as_fast.items()):
        if times > MIN_GAIN * speed:
            found, speed = number, times
    return found
