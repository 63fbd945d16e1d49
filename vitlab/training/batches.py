"""Where training and evaluation batches come from, and on which device their images lie."""

import os
from collections.abc import Iterable

import torch

from vitlab.data.augment import Augment, Transform, evaluation
from vitlab.data.cache import Cached
from vitlab.data.dataset import Dataset
from vitlab.data.examples import Examples, Files, Pixels
from vitlab.data.geometry import Geometry
from vitlab.data.loader import Batch, Once, Stream, loader
from vitlab.system.distributed import World
from vitlab.system.options import System
from vitlab.training.recipe import Ready

RESIDENT = 0.25  # of a GPU's free memory, which images may take


def aboard(
    splits: dict[str, Examples], dataset: Dataset, augment: Augment, system: System, here: World
) -> dict[str, Examples]:
    """The splits, on the GPU if they are to lie there.

    Raises:
        ValueError: they cannot, and system.resident=true.
    """
    if here.device.type == "cpu" or system.resident is False:
        return splits
    held = {name: part for name, part in splits.items() if isinstance(part, Pixels)}
    size, free = sum(part.pixels.nbytes for part in held.values()), torch.cuda.mem_get_info(here.device)[0]
    against = {
        "these images are read from files": len(held) < len(splits),
        "they are augmented one after the other, which a CPU does": not isinstance(
            seen(augment, dataset), Geometry | None
        ),
        f"system.workers={system.workers} cannot read a GPU's memory": system.workers not in ("auto", 0),
        f"they take {size / 1e9:.1f} GB of {free / 1e9:.1f} GB that are free": size > RESIDENT * free,
    }
    if found := [reason for reason, holds in against.items() if holds]:
        if system.resident is True:
            raise ValueError(f"system.resident=true, but {found[0]}: use system.resident=auto")
        return splits
    return {name: part.on(here.device) for name, part in held.items()}


def training_order(ready: Ready, start: int) -> Stream:
    """Which images each step from `start` on sees."""
    here, train = ready.world, ready.splits["train"]
    return Stream(
        examples=len(train),
        batch=ready.fit.batch_size,
        start=start,
        stop=ready.steps,
        seed=ready.seed,
        shuffle=train.shuffle,
        repeats=ready.augment.repeats,
        rank=here.rank,
        world=here.size,
    )


def seen(augment: Augment, dataset: Dataset) -> Transform | Geometry | None:
    """What training images go through: a whole batch at once where that can be, else each alone."""
    return augment.geometry(dataset) or augment.transform(dataset)


def reading(ready: Ready) -> str:
    """How training images come to the model, in words."""
    train, transform = ready.splits["train"], seen(ready.augment, ready.dataset)
    count = workers(ready, train, transform)
    where = f"in {count} worker process{'es' * (count != 1)}" if count else "in the training's own process"
    if resides(train):
        where = "on the GPU, where all of them lie"
    if transform is None:
        return f"images come from memory as they are, {where}"
    what = "whole batches" if isinstance(transform, Geometry) else "images one by one"
    said = f"images are augmented as {what}, {where}"
    if isinstance(train, Cached):
        said += f"; they lie decoded in {ready.system.cache}"
    elif isinstance(train, Files):
        said += "; each is decoded in every epoch (system.cache=FOLDER would keep them decoded)"
    elif ready.system.cache is not None:
        said += "; system.cache is not used, for these images are in no files of their own"
    return said


def training_batches(ready: Ready, start: int) -> Iterable[Batch]:
    return batches(ready, "train", seen(ready.augment, ready.dataset), training_order(ready, start))


def evaluation_batches(ready: Ready, split: str) -> Iterable[Batch]:
    order = Once(
        examples=len(ready.splits[split]),
        batch=ready.fit.evaluation_batch_size,
        full=bool(ready.system.compile),  # which would compile the model for a smaller one again
        rank=ready.world.rank,
        world=ready.world.size,
    )
    return batches(ready, split, evaluation(ready.dataset), order)


def batches(ready: Ready, split: str, transform: Transform | Geometry | None, order: Stream | Once) -> Iterable[Batch]:
    examples = ready.splits[split]
    return loader(
        examples,
        transform,
        order,
        seed=ready.seed,
        workers=workers(ready, examples, transform),
        pin=ready.world.device.type == "cuda" and not resides(examples),
    )


def workers(ready: Ready, examples: Examples, transform: object) -> int:
    """Processes that read images: some for a GPU or for files; none where they would take a core from the training."""
    if ready.system.workers != "auto":
        return ready.system.workers
    in_memory = ready.dataset.size is not None
    if transform is None or resides(examples) or (ready.world.device.type == "cpu" and in_memory):
        return 0
    return min(8, cores() // ready.world.size)


def resides(examples: Examples) -> bool:
    """Whether the images lie on a GPU."""
    return isinstance(examples, Pixels) and examples.pixels.is_cuda


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
