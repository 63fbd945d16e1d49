"""Training and evaluation batches, and where their images are kept: in files, in memory, or on the GPU."""

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vitlab.config.errors import ConfigError
from vitlab.data.augment import Augment, Transform, eval_transform
from vitlab.data.batch import Batch
from vitlab.data.cache import Cached
from vitlab.data.dataset import Dataset
from vitlab.data.erasing import Erasing
from vitlab.data.examples import Examples, Files, Pixels
from vitlab.data.geometry import Geometry
from vitlab.data.inputs import Inputs
from vitlab.data.levels import LOOKED_AT, describe_enlarged
from vitlab.data.loader import START_METHOD, EvalSampler, TrainSampler, loader, local_indices, to_device
from vitlab.system.distributed import Distributed
from vitlab.system.hardware import memory_info, pins_memory
from vitlab.system.memory import check_fits
from vitlab.system.options import System
from vitlab.training.recipe import TrainingSetup

RESIDENT = 0.25  # of a GPU's free memory, which images may take
SMALL = 64  # pixels of a side, of images that cost little


def hold_decoded(splits: dict[str, Examples], dataset: Dataset, augment: Augment) -> dict[str, Examples]:
    """The splits; with augment.batched=true cached images of the model's input size are held in memory.

    Raises:
        ConfigError: training images of another size, or images that are not cached.
    """
    if augment.batched is not True or dataset.size is not None:
        return splits
    shape, auto, train = dataset.shape, "use augment.batched=auto", splits["train"]
    if not isinstance(train, Cached):
        raise ConfigError(f"augment.batched=true, but system.cache keeps image files, which these are not: {auto}")
    other = np.flatnonzero((train.sizes != shape).any(axis=1))
    if len(other):
        height, width = train.sizes[other[0]]
        raise ConfigError(
            f"augment.batched=true, but {len(other):,} of {len(train):,} training images are not {shape[0]}x{shape[1]}"
            f" pixels (height x width), as dataset.image_size is, such as one of {height}x{width}: a batch cannot hold"
            f" both: resize the files, or {auto}"
        )
    same = {name: part for name, part in splits.items() if isinstance(part, Cached) and (part.sizes == shape).all()}
    held = same if dataset.evaluation_crop == 1 else {"train": train}  # which evaluation does not change
    size = sum(map(len, held.values())) * dataset.channels * shape[0] * shape[1]
    check_fits(size, "augment.batched=true: these images, held in memory, take", auto)
    return splits | {name: part.in_memory() for name, part in held.items()}


def move_to_gpu(
    splits: dict[str, Examples], dataset: Dataset, augment: Augment, system: System, dist: Distributed
) -> dict[str, Examples]:
    """The splits, their images moved to the GPU if they fit and system.resident allows it.

    Raises:
        ConfigError: system.resident=true, and they cannot be moved.
    """
    if dist.device.type == "cpu" or system.resident is False:
        return splits
    held = {name: part for name, part in splits.items() if isinstance(part, Pixels)}
    size, own = sum(part.pixels.nbytes for part in held.values()), memory_info(dist.device)
    free = own[0] if own else 0
    against = {
        f"the memory of {dist.device.type} is the machine's own": own is None,
        "these images are read from files": len(held) < len(splits),
        "they are augmented one after the other, which a CPU does": not isinstance(
            train_transform(augment, dataset), Geometry | None
        ),
        f"system.workers={system.workers} cannot read a GPU's memory": system.workers not in ("auto", 0),
        f"they take {size / 1e9:.1f} GB of {free / 1e9:.1f} GB that are free": size > RESIDENT * free,
    }
    if found := [reason for reason, holds in against.items() if holds]:
        if system.resident is True:
            raise ConfigError(f"system.resident=true, but {found[0]}: use system.resident=auto")
        return splits
    return {name: part.to(dist.device) for name, part in held.items()}


def training_order(setup: TrainingSetup, start: int) -> TrainSampler:
    """The images of each step from `start` on."""
    dist, train = setup.dist, setup.splits["train"]
    return TrainSampler(
        examples=len(train),
        batch=setup.fit.batch_size,
        start=start,
        stop=setup.steps,
        seed=setup.seed,
        shuffle=train.shuffle,
        repeats=setup.augment.repeats,
        labels=train.labels if setup.fit.sampling == "balanced" else None,
        rank=dist.rank,
        world_size=dist.size,
    )


def train_transform(augment: Augment, dataset: Dataset) -> Transform | Geometry | None:
    """The augmentation of training images: of whole batches where possible, else image by image."""
    return augment.geometry(dataset) or augment.transform(dataset)


def describe_input(setup: TrainingSetup) -> str:
    """How training images are read and augmented, in words."""
    train, transform = setup.splits["train"], train_transform(setup.augment, setup.dataset)
    count = workers(setup, train, transform)
    where = f"in {count} worker process{'es' * (count != 1)}" if count else "in the training's own process"
    if on_gpu(train):
        where = "on the GPU, where all of them are"
    if transform is None:
        return f"images come from memory as they are, {where}"
    what = "whole batches" if isinstance(transform, Geometry) else "images one by one"
    text = f"images are augmented as {what}, {where}"
    if isinstance(train, Cached):
        text += f"; they are cached decoded in {setup.system.cache}"
    elif isinstance(train, Files):
        text += "; each is decoded in every epoch (system.cache=FOLDER would keep them decoded)"
    elif setup.dataset.size is None and isinstance(train, Pixels):
        text += f"; they are held in memory, decoded, from {setup.system.cache}"
    elif setup.system.cache is not None:
        text += "; system.cache is not used, because these images are not in files of their own"
    if enlarged := describe_enlarged(train.take(train.sample(LOOKED_AT)), setup.dataset):
        text += f"; {enlarged}"
    if setup.decoding.range is not None:
        text += "; deeper than 8 bits: {:.6g} is black, {:.6g} is white".format(*setup.decoding.range)
    return text


def faster_input(setup: TrainingSetup) -> str:
    """What would let this training wait less for its images, in words; empty where nothing would."""
    augment, train, shape = setup.augment, setup.splits["train"], setup.dataset.shape
    transform, system = train_transform(augment, setup.dataset), replace(setup.system, workers="auto")
    count, most = workers(setup, train, transform), workers(replace(setup, system=system), train, transform)
    of_one_size = isinstance(train, Pixels) or (isinstance(train, Cached) and bool((train.sizes == shape).all()))
    colours = augment.auto_augment or augment.color_jitter
    ways = {
        f"system.workers=auto, which is {most}, instead of {count}": count < most,
        "system.cache=FOLDER, which keeps images decoded": isinstance(train, Files)
        and setup.steps > setup.steps_per_epoch,
        "augment.batched=true, whole batches instead of single images": of_one_size
        and not (colours or isinstance(transform, Geometry | None)),
        f"a cheaper policy than augment.auto_augment={augment.auto_augment}": augment.auto_augment is not None,
        f"smaller images than dataset.image_size={shape[0]}x{shape[1]}": max(shape) > SMALL,
    }
    return "; ".join(way for way, helps in ways.items() if helps)


def train_inputs(setup: TrainingSetup) -> Inputs:
    """What makes images and targets of the training batches, on the device."""
    augment, train = setup.augment, setup.splits["train"]
    transform, device = train_transform(augment, setup.dataset), setup.dist.device
    pixels = train.pixels if isinstance(train, Pixels) and not workers(setup, train, transform) else None
    indexed = pixels is not None and pixels.device.type == device.type and isinstance(transform, Geometry | None)
    return Inputs(
        size=setup.dataset.shape,
        normalize=setup.normalize,
        pixels=pixels if indexed else None,
        geometry=transform if indexed else None,
        erasing=Erasing(augment.erase, fixed_shapes=setup.captured) if augment.erase else None,
        mixing=augment.mixing(len(setup.dataset.classes)),
    )


def train_batches(setup: TrainingSetup, start: int) -> Iterator[Batch]:
    """The batches from step `start` on, on the host, for `train_inputs`."""
    inputs, order, train = train_inputs(setup), training_order(setup, start), setup.splits["train"]
    which = local_indices(setup.fit.batch_size, setup.dist.rank, setup.dist.size)
    if inputs.pixels is None:
        read = iter(read_batches(setup, "train", train_transform(setup.augment, setup.dataset), order))
        found = ({"pixels": pixels, "labels": labels} for pixels, labels in read)
    else:
        found = (
            {"images": torch.from_numpy(images), "labels": torch.from_numpy(train.labels[images])}
            | (inputs.geometry.draws(setup.seed, rounds, images) if inputs.geometry else {})
            for rounds, images in order.arrays()
        )
    return (inputs.draw(tensors, which, setup.seed, step) for step, tensors in enumerate(found, start))


def eval_batches(setup: TrainingSetup, split: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalized images and labels of a split, once and in order, on the device."""
    order = EvalSampler(
        examples=len(setup.splits[split]),
        batch=setup.fit.evaluation_batch_size,
        full=bool(setup.system.compile),  # a smaller last batch would be compiled for again
        rank=setup.dist.rank,
        world_size=setup.dist.size,
    )
    batches = read_batches(setup, split, split_transform(setup, split), order)
    return to_device(batches, setup.normalize, setup.dist.device)


def read_batches(
    setup: TrainingSetup, split: str, transform: Transform | Geometry | None, order: TrainSampler | EvalSampler
) -> DataLoader:
    """The DataLoader of a split: pixels and labels."""
    examples = setup.splits[split]
    return loader(
        examples,
        transform,
        order,
        seed=setup.seed,
        workers=workers(setup, examples, transform),
        pin=pins_memory(setup.dist.device) and not on_gpu(examples),
    )


def workers(setup: TrainingSetup, examples: Examples, transform: object) -> int:
    """DataLoader workers: none where whole batches are quickly made of images in memory."""
    if setup.system.workers != "auto":
        return setup.system.workers
    here = isinstance(transform, Geometry) or worker_cores() == 1 or START_METHOD != "fork"  # others start slowly
    on_cpu = setup.dist.device.type == "cpu" and isinstance(examples, Pixels)
    return 0 if transform is None or on_gpu(examples) or (on_cpu and here) else worker_cores()


def eval_workers(setup: TrainingSetup, split: str) -> int:
    """DataLoader workers of an evaluation."""
    return workers(setup, setup.splits[split], split_transform(setup, split))


def split_transform(setup: TrainingSetup, split: str) -> Transform | None:
    """The transform of an image in evaluation; None where they are in memory at the model's input size."""
    return None if isinstance(setup.splits[split], Pixels) else eval_transform(setup.dataset)


def on_gpu(examples: Examples) -> bool:
    """Whether the images are on a GPU."""
    return isinstance(examples, Pixels) and examples.pixels.device.type != "cpu"


def worker_cores() -> int:
    """A training's share of the machine's cores, less an eighth for the training itself; at least 1."""
    sharers = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * int(os.environ.get("VITLAB_PACK", "1"))
    share = max(1, cores() // sharers)
    return share - share // 8


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
