"""A sweep: every cell of a question composed, checked and built before its first run starts."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vitlab import config as configuration
from vitlab import memory, optim, probe, recipe
from vitlab.config import ConfigError, Node
from vitlab.dataset.dataset import DatasetMissing
from vitlab.launch import Job
from vitlab.model import count
from vitlab.parallel import alone
from vitlab.question import BASELINE, SHOTS, Cell, Question
from vitlab.run import find

FOLDER = "sweeps"  # of the answers, in the folder of all runs
BACKWARD = 3  # a training step costs about three times its forward pass


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A cell that can be trained.

    Args:
        name: of the cell.
        overrides: what gives it.
        identity: what its runs have in common, whatever their seed.
        baseline: whether the others are compared with it.
        config: of its first seed.
        choices: option of each group.
        steps: of a training.
        images: that a training sees.
        parameters: of the model.
        flops_per_image: of a forward pass.
    """

    name: str
    overrides: tuple[str, ...]
    identity: str
    baseline: bool
    config: Node
    choices: Mapping[str, str]
    steps: int
    images: int
    parameters: int
    flops_per_image: int

    def job(self, seed: int) -> Job:
        """One run of it."""
        config: Node = {**self.config, "seed": seed}
        name = f"{configuration.slug(config, dict(self.choices))}-{configuration.identity(config)}"
        run = find(config["system"]["runs"], name)
        return Job(name=self.name, seed=seed, words=(*self.overrides, f"seed={seed}"), run=run, steps=self.steps)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A question whose every cell has been checked.

    Args:
        question: what is asked.
        words: overrides of every cell that were given with it.
        cells: the baseline first, where no arm is the same.
    """

    question: Question
    words: tuple[str, ...]
    cells: tuple[Checked, ...]

    @property
    def jobs(self) -> list[Job]:
        """Every run: seed by seed, so that an early end leaves whole comparisons; of a seed the longest first."""
        cells = sorted(self.cells, key=lambda cell: -cell.images * cell.flops_per_image)
        return [cell.job(seed) for seed in self.question.seeds for cell in cells]

    @property
    def runs(self) -> Path:
        """The folder of all runs."""
        return Path(self.cells[0].config["system"]["runs"])

    @property
    def folder(self) -> Path:
        """Where the answer is written."""
        return folder(self.runs, self.question, self.words)

    def record(self) -> dict[str, Any]:
        """What is kept of it beside the answer, which is made anew from it and the store, without torch or Hydra."""
        asked = self.question
        return {
            "name": asked.name,
            "file": str(asked.file),
            "scale": asked.scale,
            "words": list(self.words),
            "question": asked.question,
            "source": asked.source,
            "metric": asked.metric,
            "x": asked.x,
            "expect": asdict(asked.expect) if asked.expect.says or asked.expect.numbers else None,
            "seeds": list(asked.seeds),
            "baseline": next(cell.name for cell in self.cells if cell.baseline),
            "cells": {cell.name: {"cell": cell.identity, "overrides": list(cell.overrides)} for cell in self.cells},
        }


def folder(runs: Path, question: Question, words: Sequence[str]) -> Path:
    """Where a sweep's answer is written: the same words, the same folder."""
    name = "-".join(word for word in (question.name, question.scale) if word)
    counted = sorted(word for word in words if not word.startswith(("system.", "tracking")))
    if counted:
        name += "-" + hashlib.sha256(json.dumps(counted).encode()).hexdigest()[:6]
    return runs / FOLDER / name


def plan(question: Question, words: Iterable[str] = (), *, elsewhere: bool = False) -> Plan:
    """Composes, checks and builds every cell; reads each dataset once, and writes nothing.

    Args:
        question: what is asked.
        words: overrides of every cell.
        elsewhere: whether other machines train it: a published dataset may be missing, and the memory too small.

    Raises:
        ConfigError: a cell that cannot be, with its name, its line and the reason.
    """
    words = tuple(words)
    images: dict[str, tuple[int, int]] = {}
    costs: dict[str, tuple[int, int]] = {}
    tracked = (f"tracking.sweep={question.name}",)
    found: dict[str, Checked] = {}
    for cell in question.cells(words):
        try:
            words_of = (*cell.overrides, *tracked)
            checked = check(replace(cell, overrides=words_of), question.seeds[0], images, costs, elsewhere=elsewhere)
        except (ValueError, OSError) as error:
            where = f"{question.file}, line {cell.line}, {cell.name}"
            raise ConfigError(
                f"{where}: {error}" if cell.name != BASELINE else f"{where} of all cells: {error}"
            ) from error
        if (of := SHOTS.fullmatch(question.metric)) and int(of[1]) not in checked.config["fit"]["shots"]:
            raise ConfigError(
                f"{question.file}, line {question.lines['metric']}: metric: {question.metric}: {cell.name} has"
                f' fit.shots={checked.config["fit"]["shots"]}, and will not report it: add "fit.shots=[{of[1]}]" to'
                " the baseline"
            )
        same = found.get(checked.identity)
        if same is not None and not (same.name == BASELINE or same.name.startswith(f"{BASELINE}, ")):
            raise ConfigError(
                f"{question.file}, line {cell.line}: {cell.name} and {same.name} are the same training: leave one out"
            )
        found[checked.identity] = replace(checked, baseline=same.baseline) if same is not None else checked
    return Plan(question=question, words=words, cells=tuple(found.values()))


def check(
    cell: Cell,
    seed: int,
    images: dict[str, tuple[int, int]],
    costs: dict[str, tuple[int, int]],
    *,
    elsewhere: bool = False,
) -> Checked:
    """A cell, checked as its training would be, without memory for its weights.

    Args:
        cell: what to compose.
        seed: one of its seeds.
        images: training images of each dataset that was read before, and those of its smallest class.
        costs: parameters and FLOPs of each model that was built before.
        elsewhere: whether it is trained elsewhere.

    Raises:
        ValueError: what cannot be.
        OSError: a dataset that is not there.
    """
    node, choices = configuration.compose((*cell.overrides, f"seed={seed}"))
    config = configuration.check(node)
    key, of_data = json.dumps(config["dataset"], sort_keys=True), config["dataset"]
    try:
        data = configuration.build(of_data)
        if key not in images:
            labels = data.splits()["train"].labels
            images[key] = len(labels), probe.fewest(labels, data.classes)[0]
    except DatasetMissing:
        kind, options = configuration.locate(of_data["_target_"]), {k: v for k, v in of_data.items() if k != "_target_"}
        if not elsewhere or (found := kind.planned(**options)) is None:
            raise
        data, many = found
        images[key] = many, many // len(data.classes)  # as if they were even
    parts = configuration.assemble({k: v for k, v in config.items() if k != "dataset"}) | {"dataset": data}
    fit, make = parts["fit"], parts["model"]
    kinds = ("model", "init", "dataset", "augment", "optimizer", "fit", "system", "tracking")
    taken = {kind: parts[kind] for kind in kinds}
    world = alone("cuda" if torch.cuda.is_available() and parts["system"].device != "cpu" else "cpu")
    train, smallest = images[key]
    steps, steps_per_epoch = recipe.examine(**taken, world=world, train=train, smallest=smallest, here=not elsewhere)
    shape = {"image_size": data.shape, "channels": data.channels, "classes": len(data.classes)}
    model = memory.shadow(make, **shape)
    updates = optim.build(parts["optimizer"], model, layer_decay=fit.layer_decay, scale=fit.lr_factor())
    parts["schedule"].start(updates, steps, steps_per_epoch)
    if (of := json.dumps([config["model"], config["patch"], str(shape)], sort_keys=True)) not in costs:
        costs[of] = count.parameters(model), flops(make, shape)
    return Checked(
        name=cell.name,
        overrides=cell.overrides,
        identity=configuration.cell(config),
        baseline=cell.name == BASELINE,
        config=config,
        choices=choices,
        steps=steps,
        images=steps * fit.batch_size,
        parameters=costs[of][0],
        flops_per_image=costs[of][1],
    )


def flops(make: partial, shape: Mapping[str, Any]) -> int:
    """FLOPs of an image in a model of any depth, from its first blocks: on a square all are alike, else every other."""
    depth, image = make.keywords["depth"], (shape["channels"], *shape["image_size"])
    turn = len(set(shape["image_size"]))  # of blocks that differ: those along rows from those along columns
    few = turn - depth % turn
    less, more = (count.flops(make(**{**shape, "depth": min(depth, blocks)}), image) for blocks in (few, few + turn))
    return less + (depth - few) // turn * (more - less)


# --- time ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How long a training will take, and how that is known."""

    seconds: float | None
    source: str


def estimate(cell: Checked, known: Any) -> Estimate:
    """The time of a cell's training from what the store knows: of its own runs, or of those of the nearest cost.

    Args:
        cell: what is to be trained.
        known: table of the store's finished runs; None where there is none.
    """
    if known is None or not len(known):
        return Estimate(seconds=None, source="unknown: no run in the store")
    same = known[known["cell"] == cell.identity]
    if len(same):
        return Estimate(
            seconds=float(same["seconds"].median()), source=f"measured in {len(same)} run{'s' * (len(same) > 1)}"
        )
    rates = known["images"] * known["flops_per_image"] / known["seconds"]
    distance = (known["flops_per_image"].astype(float).apply(math.log) - math.log(cell.flops_per_image)).abs()
    nearest = rates[distance.sort_values(kind="stable").index[:5]]
    return Estimate(
        seconds=cell.images * cell.flops_per_image / float(nearest.median()),
        source=f"estimated from the {len(nearest)} of nearest cost",
    )
