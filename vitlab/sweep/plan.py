"""The plan of a sweep: every cell of a question composed, checked and built before its first run starts."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.config.build import assemble, build
from vitlab.config.check import check, locate
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError, DatasetMissing, Node, SweepError, VitlabError
from vitlab.config.identity import cell_identity, names
from vitlab.config.overrides import key_of, merged
from vitlab.config.own import shown_flags
from vitlab.data.dataset import read_once
from vitlab.data.fingerprint import outdated
from vitlab.model import count
from vitlab.model.meta import on_meta_device, zeroed
from vitlab.model.vit import ViT
from vitlab.storage.lock import Lock
from vitlab.storage.metrics import metric
from vitlab.storage.run import Run, find, set_aside
from vitlab.sweep.job import Job
from vitlab.sweep.packs import packing
from vitlab.sweep.question import BASELINE, FOLD, PRETRAIN, Cell, Question, source_of
from vitlab.system.distributed import single_process
from vitlab.system.hardware import device_named
from vitlab.training import pretrained
from vitlab.training.checks import examine
from vitlab.training.optimizer import build_optimizer
from vitlab.training.pretrained import Source, to_come
from vitlab.training.recipe import Recipe

FOLDER = "sweeps"  # of the answers, in the folder of all runs
Measured = tuple[ViT, int, int, int]  # a model, its parameters, and FLOPs of an image forward and backward


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A cell that can be trained.

    Args:
        name: of the cell.
        overrides: that it is composed of.
        identity: hash that its runs share, whatever their seed and fold.
        baseline: whether the others are compared with it.
        config: of its first seed.
        choices: option of each group.
        steps: of a training.
        images: that a training sees.
        parameters: of the model.
        flops_per_image: of a forward pass.
        training_flops: of all forward and backward passes.
        arm: that it stands for, if validation chooses it.
        shape: image size, channels and number of classes.
        classes: their names.
        source: pre-training whose run of the same seed it starts from.
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
    training_flops: int
    arm: str
    shape: Mapping[str, Any]
    classes: tuple[str, ...]
    source: "Checked | None" = None

    @cached_property
    def weights(self) -> Source:
        """The weights that its training will save, as shapes alone."""
        model = on_meta_device(build(self.config["model"]), **self.shape)
        return to_come(self.job(0).run.best, model, self.shape["image_size"], self.classes)

    @property
    def folds(self) -> int:
        """How many folds its runs are of; 0 where it has a single split, or one fold of its own."""
        return 0 if FOLD in map(key_of, self.overrides) else self.config["dataset"]["folds"] or 0

    def job(self, seed: int, fold: int = 0) -> Job:
        """One run of it; with a source from that of the same fold, which has not seen the test images either."""
        config: Node = {**self.config, "seed": seed}
        words = (*self.overrides, f"seed={seed}")
        facts: Node = packing(config, self.shape, self.flops_per_image, self.parameters)
        if self.folds:
            config["dataset"] = {**config["dataset"], "fold": fold}
            words, facts["fold"] = (*words, f"{FOLD}={fold}"), fold
        if self.source is not None:
            facts["after"] = self.source.job(seed, fold).run
            words = merged(words, start_from(facts["after"].folder, self.source.identity))
        run = find(config["system"]["runs"], *names(config, dict(self.choices)))
        return Job(name=self.name, seed=seed, words=words, run=run, steps=self.steps, **facts)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A question whose every cell has been checked.

    Args:
        question: what is asked.
        words: overrides of every cell that were given with it.
        cells: the baseline first, where no arm is the same.
        pretrain: pre-trainings, which run before them.
        files: what is to be said of the files of their datasets.
    """

    question: Question
    words: tuple[str, ...]
    cells: tuple[Checked, ...]
    pretrain: tuple[Checked, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def jobs(self) -> list[Job]:
        """Every run, seed by seed and fold by fold, so that an early end leaves comparisons; pre-trainings first."""
        cells = sorted(self.cells, key=lambda cell: -cell.images * cell.flops_per_image)
        each = [job for cell in (*self.pretrain, *cells) for job in self.jobs_of(cell)]
        seeds = {seed: place for place, seed in enumerate(self.question.seeds)}
        each.sort(key=lambda job: (seeds[job.seed], job.fold or 0))
        return list({job.run.folder: job for job in each}.values())  # two arms may have a cell in common

    def jobs_of(self, cell: Checked) -> list[Job]:
        """The runs of a cell: of every seed, and every fold."""
        folds = self.question.folds or range(cell.folds) if cell.folds else (0,)
        return [cell.job(seed, fold) for seed in self.question.seeds for fold in folds]

    def outdated(self) -> dict[Path, str]:
        """The folders of runs that were trained on other images, or with other code, than there is now, and why."""
        found: dict[Path, str] = {}
        for cell in (*self.pretrain, *self.cells):
            with suppress(DatasetMissing):
                found |= outdated_runs((job.run for job in self.jobs_of(cell)), cell)
        return found

    @property
    def runs(self) -> Path:  # the folder of all of them
        return Path(self.cells[0].config["system"]["runs"])

    @property
    def folder(self) -> Path:
        """Where the answer is written."""
        return folder(self.runs, self.question, self.words)

    def record(self) -> dict[str, Any]:
        """What sweep.json holds: with it and the runs the answer is written again, without torch or Hydra."""
        asked = self.question
        return {
            "name": asked.name,
            "file": str(asked.file),
            **{key: getattr(asked, key) for key in ("scale", "question", "source", "metric", "x", "margin")},
            "words": list(self.words),
            **({"flags": flags} if (flags := shown_flags()) else {}),
            "expect": asdict(asked.expect) if asked.expect.finding or asked.expect.numbers else None,
            "seeds": list(asked.seeds),
            "baseline": next(cell.arm for cell in self.cells if cell.baseline),
            "cells": {cell.name: cell_record(cell) for cell in self.cells},
            "series": {cell.name: cell.series for cell in asked.cells(self.words) if cell.series},
            **({"pretrain": {cell.name: cell_record(cell) for cell in self.pretrain}} if self.pretrain else {}),
        }


def outdated_runs(runs: Iterable[Run], cell: Checked) -> dict[Path, str]:
    """The folders of those runs that were trained on other images, or with other code, than a cell has now, and why."""

    def now() -> Node:
        return build(cell.config["dataset"]).fingerprint()

    with read_once():
        return {run.folder: words for run in runs if run.has_begun() and (words := outdated(run, cell.config, now))}


def set_changed_aside(changed: Mapping[Path, str], config: Node) -> None:
    """Sets aside the runs that are outdated, where `system.retrain` asks for it.

    Raises:
        SweepError: neither `system.retrain` nor `system.changed_data` is given.
        StorageError: another process is training one of them.
    """
    if not changed or (config["system"]["changed_data"] and not config["system"]["retrain"]):
        return
    if not config["system"]["retrain"]:
        run, words = next(iter(changed.items()))
        raise SweepError(
            f"{len(changed)} of the runs are of other images or code, such as {run}, which {words}:"
            " system.retrain=true trains them anew and keeps the old folders, system.changed_data=true takes them as"
            " they are"
        )
    for run in map(Run, changed):
        with Lock(run.lock):
            print(f"{run.folder} {changed[run.folder]}: it is kept as {set_aside(run)}")


def cell_record(cell: Checked) -> dict[str, Any]:
    """What sweep.json holds of a cell."""
    return {"cell": cell.identity, "overrides": list(cell.overrides), "arm": cell.arm, "folds": cell.folds}


def start_from(weights: Path | str, origin: str) -> tuple[str, str]:
    """Overrides of a training that starts from the run of its own seed."""
    return f"init={weights}", f"init.origin={origin}"


def folder(runs: Path, question: Question, words: Sequence[str]) -> Path:
    """The folder of a sweep's answer, by its name, scale and overrides."""
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
    images: dict[str, np.ndarray] = {}
    files: dict[str, None] = {}
    models: dict[str, Measured] = {}
    tracked = (f"tracking.sweep={question.name}",)

    def checked(cell: Cell, before: Mapping[str, Checked]) -> Checked:
        source = before[name] if (name := source_of(cell.overrides)) is not None else None
        try:
            cell = replace(cell, overrides=(*cell.overrides, *tracked))
            return check_cell(cell, question.seeds[0], images, files, models, source, elsewhere=elsewhere)
        except VitlabError as error:
            where = f"{question.file}, line {cell.line}, {cell.name}"
            of_all = " of all cells" if cell.name == BASELINE else ""
            raise ConfigError(f"{where}{of_all}: {error}") from error

    cells = question.cells(words)
    before: dict[str, Checked] = {}
    for name, overrides in question.pretrain.items():
        inherited = merged(
            (word for word in merged(question.baseline, words) if not key_of(word).startswith("init")), overrides
        )
        line = question.lines.get(f"pretrain.{name}", 1)
        before[name] = checked(Cell(name=PRETRAIN + name, overrides=inherited, line=line, arm=name), before)
    arms: dict[str, list[Checked]] = {}
    shots = metric(question.metric).count
    for cell in cells:
        one = checked(cell, before)
        if shots and shots not in one.config["fit"]["shots"]:
            raise ConfigError(
                f"{question.file}, line {question.lines['metric']}: metric: {question.metric}: {cell.name} has"
                f' fit.shots={one.config["fit"]["shots"]}, and will not report it: add "fit.shots=[{shots}]" to'
                " the baseline"
            )
        arms.setdefault(cell.arm, []).append(one)
        check_folds(question, one)
    found: dict[frozenset[str], list[Checked]] = {}
    for arm, its in arms.items():
        key = frozenset(one.identity for one in its)
        same = found.get(key)
        if same is not None and not (same[0].arm == BASELINE or same[0].arm.startswith(f"{BASELINE}, ")):
            line = next(cell.line for cell in cells if cell.arm == arm)
            raise ConfigError(
                f"{question.file}, line {line}: {arm} and {same[0].arm} are the same training: leave one out"
            )
        found[key] = its if same is None else [replace(one, baseline=same[0].baseline) for one in its]
    return Plan(
        question=question,
        words=words,
        cells=tuple(itertools.chain(*found.values())),
        pretrain=tuple(before.values()),
        files=tuple(filter(None, files)),
    )


def check_folds(question: Question, cell: Checked) -> None:
    """Refuses folds that are not there, and a choice by validation images that are test images of other folds."""
    if question.folds and not 0 <= min(question.folds) <= max(question.folds) < cell.folds:
        given = f"{question.file}, line {question.lines[f'axes.{FOLD}']}: {FOLD}={', '.join(map(str, question.folds))}"
        raise ConfigError(f"{given}: {cell.name} has dataset.folds={cell.folds or 'null'}: give `folds: K` instead")
    if cell.folds and (question.search or cell.arm != cell.name):
        raise ConfigError(
            f"dataset.folds={cell.folds}: {question.name} chooses values by validation images, which other folds test"
            f" on: choose on one fold, {FOLD}=0, then sweep the chosen values over all"
        )


def check_cell(
    cell: Cell,
    seed: int,
    images: dict[str, np.ndarray],
    files: dict[str, None],
    models: dict[str, Measured],
    source: Checked | None = None,
    *,
    elsewhere: bool = False,
) -> Checked:
    """A cell, checked as its training would be, on the meta device.

    Args:
        cell: to be composed.
        seed: one of its seeds.
        images: training images of each class of each dataset that was read before.
        files: what is to be said of their files.
        models: those that were built before, on the meta device.
        source: pre-training that it starts from, which has not run yet.
        elsewhere: whether other machines train it.

    Raises:
        ConfigError: the cell is invalid.
        DataError: a dataset that is not there, or damaged.
    """
    words = (*cell.overrides, f"seed={seed}")
    if source is not None:
        words = merged(words, start_from(source.job(seed).run.folder, source.identity))
    node, choices = compose(words)
    config = check(node)
    key, of_data = json.dumps(config["dataset"], sort_keys=True), config["dataset"]
    try:
        data = build(of_data)
        if key not in images:
            labels = data.cut()["train"].labels
            images[key] = np.bincount(labels, minlength=len(data.classes))
            files[data.passed_over] = None
    except DatasetMissing:
        kind, options = locate(of_data["_target_"]), {k: v for k, v in of_data.items() if k != "_target_"}
        if not elsewhere or (found := kind.planned(**options)) is None:
            raise
        data, many = found
        if key not in images:  # as if the classes were even
            images[key] = np.bincount(np.arange(many) % len(data.classes), minlength=len(data.classes))
    parts = assemble({k: v for k, v in config.items() if k != "dataset"}) | {"dataset": data}
    recipe = Recipe(**parts)
    dist = single_process(device_named(recipe.system.device))
    shape, frozen = recipe.image_shape, recipe.init.freeze
    weights = source.weights if source else None if elsewhere else recipe.init.read()
    steps, steps_per_epoch = examine(recipe, dist, source=weights, images=images[key], on_this_machine=not elsewhere)
    if (of := json.dumps([config["model"], str(shape), frozen], sort_keys=True)) not in models:
        model = on_meta_device(recipe.model, **shape)
        models[of] = (model, count.parameters(model), *flops(recipe.model, shape, frozen))
    model, parameters, forward, backward = models[of]
    updates = build_optimizer(recipe.optimizer, model, layer_decay=recipe.fit.layer_decay, scale=recipe.fit.lr_factor())
    recipe.schedule.start(updates, steps, steps_per_epoch)
    images_seen = steps * recipe.fit.batch_size
    return Checked(
        name=cell.name,
        overrides=cell.overrides,
        identity=cell_identity(config),
        baseline=cell.arm == BASELINE,
        arm=cell.arm,
        source=source,
        shape=shape,
        classes=data.classes,
        config=config,
        choices=choices,
        steps=steps,
        images=images_seen,
        parameters=parameters,
        flops_per_image=forward,
        training_flops=images_seen * (forward + backward),
    )


def flops(make: Any, shape: Mapping[str, Any], frozen: bool = False) -> tuple[int, int]:
    """FLOPs of an image, forward and backward, in a model of any depth from its first blocks.

    On a square image all are alike, else every other.
    """
    depth, image = make.keywords["depth"], (shape["channels"], *shape["image_size"])
    turn = len(set(shape["image_size"]))  # of blocks that differ: those along rows from those along columns
    few = turn - depth % turn
    counted = []
    for blocks in (few, few + turn):
        model = zeroed(make, **{**shape, "depth": min(depth, blocks)})
        if frozen:
            pretrained.freeze(model)
        counted.append(count.passes(model, image))
    less, more = counted
    forward, backward = (a + (depth - few) // turn * (b - a) for a, b in zip(less, more, strict=True))
    return forward, backward
