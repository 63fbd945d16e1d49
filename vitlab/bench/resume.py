"""What exact resumption costs: `python -m vitlab.bench.resume` trains epochs of the main job with and without it.

In one process, one after the other in every round: as they are; without checkpoints; and also with images in any order
and random generators left alone. Medians are printed, and each as a ratio to the first.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch

from vitlab.config.build import assemble
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.storage.checkpoint import Checkpoints
from vitlab.storage.run import Run
from vitlab.system.distributed import single_process
from vitlab.training import batches, step
from vitlab.training.loop import fit
from vitlab.training.setup import prepare
from vitlab.training.state import TrainState


class AnyOrder:
    """Batches of images drawn as they come: another order in every process, and none that a resume could continue."""

    def __init__(self, examples: int, batch: int, steps: int):
        self.examples, self.batch, self.steps = examples, batch, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        left: list[int] = []
        for _ in range(self.steps):
            if len(left) < self.batch:
                left += torch.randperm(self.examples).tolist()
            yield [(0, index) for index in left[: self.batch]]
            left = left[self.batch :]


def seconds(words: list[str], *, checkpoints: bool, order: bool) -> float:
    """Of a training, from its first step to its result."""
    node = check(compose(["tracking=off", *words])[0])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not checkpoints:
            stack.enter_context(mock.patch.object(Checkpoints, "save"))
            stack.enter_context(mock.patch.object(TrainState, "capture", return_value={}))
        setup = prepare(**assemble(node), dist=single_process())
        if not order:
            walk = AnyOrder(len(setup.splits["train"]), setup.fit.batch_size, setup.steps)
            stack.enter_context(mock.patch.object(batches, "training_order", return_value=walk))
            stack.enter_context(mock.patch.object(step, "reseed", return_value=0))
        return fit(setup, Run(folder), node)["seconds"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m vitlab.bench.resume", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("overrides", nargs="*", default=["fit.epochs=3"], help="as for vitlab train; fit.epochs=3")
    options = parser.parse_args()
    ways = {
        "as it is": {"checkpoints": True, "order": True},
        "no checkpoints": {"checkpoints": False, "order": True},
        "and any order": {"checkpoints": False, "order": False},
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.rounds + 1):
        for name, way in ways.items():
            took = seconds(options.overrides, **way)
            if turn:  # the first round warms up
                times[name].append(took)
    whole = statistics.median(times["as it is"])
    for name, found in times.items():
        paired = statistics.median(a / b for a, b in zip(times["as it is"], found, strict=True))
        print(f"{name:<15} {statistics.median(found):7.3f} s   as it is takes {paired:.3f} x as long")
