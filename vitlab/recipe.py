"""The recipe: what a training is made of, checked before anything is written, and the batches it sees."""

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from vitlab import memory, optim, probe
from vitlab.dataset.augment import Augment, Transform, evaluation
from vitlab.dataset.cache import Cached, cached
from vitlab.dataset.dataset import Dataset
from vitlab.dataset.examples import Examples, Files, Pixels
from vitlab.dataset.geometry import Geometry
from vitlab.dataset.loader import Batch, Once, Stream, loader
from vitlab.dataset.preprocess import Resize
from vitlab.dataset.seeding import seed_of
from vitlab.loss import Loss
from vitlab.model import count
from vitlab.model.vit import ViT
from vitlab.parallel import Precision, System, World, resolve, spread
from vitlab.schedule import Schedule, Started
from vitlab.start import Source, Start
from vitlab.tracking import Tracking

RESIDENT = 0.25  # of a GPU's free memory, which images may take


@dataclass(kw_only=True)
class Fit:
    """What a recipe counts.

    Args:
        epochs: passes over the training images; or
        steps: optimizer updates; or
        images: training images seen.
        batch_size: images an update, over all processes and accumulated parts.
        accumulate: parts that a process's share of the batch is computed in, one after the other.
        auto_accumulate: whether a batch that is too large for the memory is computed in more parts, instead of ending
            the training; random draws (dropout) are then others than with one part. In one process.
        clip: largest norm of the gradient; None for none.
        on_nonfinite: what to do when the loss or the gradient is infinite or no number: stop; skip that update (a GPU
            is then waited for in each step); or rollback to the last checkpoint's weights, with the images that come
            next.
        layer_decay: each layer learns at this share of the rate of the one after it; 1 for one rate.
        lr_scaling: how optimizer.lr grows with the batch, `linear` (Goyal et al. 2017) or `sqrt` of batch_size /
            lr_batch_size; `none` takes it as it is.
        lr_batch_size: the batch that optimizer.lr is meant for.
        precision: of the matrix products; auto is bf16 where the hardware has it, else fp32.
        ema_decay: of the moving average of the weights, which is then what is evaluated and kept; 0 for none.
        evaluate_every: epochs between two evaluations on the validation images.
        evaluation_batch_size: images a step there.
        patience: evaluations without a better one after which the training ends; None for never.
        one_batch: train on the same batch again and again.
        shots: training images a class, such as 5, that the best weights are judged by once more at the end, their
            features frozen: `val/5-shot` and `test/5-shot` of result.json, the mean of 5 draws (`vitlab.probe`).

    Raises:
        ValueError: a value that cannot be.
    """

    epochs: float | None
    steps: int | None
    images: int | None
    batch_size: int
    accumulate: int
    auto_accumulate: bool
    clip: float | None
    on_nonfinite: Literal["stop", "skip", "rollback"]
    layer_decay: float
    lr_scaling: Literal["none", "linear", "sqrt"]
    lr_batch_size: int
    precision: Precision
    ema_decay: float
    evaluate_every: float
    evaluation_batch_size: int
    patience: int | None
    one_batch: bool
    shots: tuple[int, ...]

    def __post_init__(self) -> None:
        durations = {"fit.epochs": self.epochs, "fit.steps": self.steps, "fit.images": self.images}
        said = [f"{key}={value}" for key, value in durations.items() if value is not None]
        if len(said) != 1:
            raise ValueError(f"{' and '.join(said) or 'no duration'}: give one of {', '.join(durations)}")
        counts = ("steps", "images", "batch_size", "accumulate", "lr_batch_size", "evaluation_batch_size", "patience")
        for key in (*counts, "epochs", "evaluate_every"):
            value = getattr(self, key)
            if value is not None and not 0 < value <= 10**12:
                raise ValueError(f"fit.{key}={value}: must be above 0, and at most 10^12")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"fit.clip={self.clip}: must be above 0, or null for none; 1.0 is usual")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"fit.layer_decay={self.layer_decay}: must be above 0 and at most 1 (off); 0.75 is usual")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"fit.ema_decay={self.ema_decay}: must be at least 0 (off) and below 1; 0.9999 is usual")
        probe.check(f"fit.shots={list(self.shots)}", self.shots)
        if self.one_batch and self.shots:
            raise ValueError(f"fit.shots={list(self.shots)} with fit.one_batch=true, which has no images to draw from")

    def total(self, examples: int) -> int:
        """The training in optimizer updates."""
        if self.steps is not None:
            return self.steps
        images = self.images if self.images is not None else (self.epochs or 0) * examples
        return max(1, math.ceil(images / self.batch_size))

    def lr_factor(self) -> float:
        """What the learning rate is multiplied by for this batch."""
        ratio = self.batch_size / self.lr_batch_size
        return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[self.lr_scaling]

    def evaluates(self, done: int, steps: int, steps_per_epoch: float) -> bool:
        """Whether the model is evaluated after update `done` of `steps`: every so many epochs, and at the end."""
        gap = max(1.0, self.evaluate_every * steps_per_epoch)
        turn = round(done / gap)
        return done == steps or (0 < turn < math.floor(steps / gap + 0.5) and round(gap * turn) == done)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Everything a training needs, checked."""

    seed: int
    fit: Fit
    system: System
    world: World
    tracking: Tracking
    dataset: Dataset
    splits: dict[str, Examples]
    augment: Augment
    model: ViT
    net: nn.Module  # the model as all processes train it
    flops: int  # of one image, forward
    backward_flops: int  # of the same
    loss: Loss
    optimizer: Optimizer
    schedule: Started
    steps: int
    steps_per_epoch: float
    precision: str
    began: str  # what its weights begin as, in words; empty for chance


def prepare(
    *,
    model: Callable[..., ViT],
    init: Start,
    dataset: Dataset,
    augment: Augment,
    loss: Loss,
    optimizer: Callable[..., Optimizer],
    schedule: Schedule,
    fit: Fit,
    system: System,
    tracking: Tracking,
    world: World,
    seed: int,
) -> Ready:
    """Reads the images, builds the model, and refuses what cannot be trained, before anything is written.

    Raises:
        ValueError: values that do not go together, each named with a way out.
        DatasetMissing: no images where they were looked for.
        OSError: system.cache cannot be written.
    """
    precision = resolve(fit.precision, world.device)
    fetches = getattr(dataset, "download", False)
    if fetches and not world.first:
        world.wait()  # one process fetches, the others read what it fetched
    splits = dataset.splits()
    if fetches and world.first:
        world.wait()
    source = init.read()
    steps, steps_per_epoch = examine(
        model=model,
        init=init,
        source=source,
        dataset=dataset,
        augment=augment,
        optimizer=optimizer,
        fit=fit,
        system=system,
        tracking=tracking,
        world=world,
        train=len(splits["train"]),
        smallest=probe.fewest(splits["train"].labels, dataset.classes)[0],
    )
    if fit.shots:  # in the order of the draws; they are read as for an evaluation
        drawn = probe.draw(splits["train"].labels, len(dataset.classes), max(fit.shots), probe.DRAWS)
        splits["support"] = splits["train"].take(drawn.ravel())
    if fit.one_batch:
        first = next(iter(Stream(examples=len(splits["train"]), batch=fit.batch_size, start=0, stop=1, seed=seed)))
        splits["train"] = splits["train"].take(torch.tensor([index for _, index in first]).numpy())
    least = dict.fromkeys(splits, Resize(dataset.shape, dataset.evaluation_crop).least)
    least["train"] = augment.least(dataset)
    splits = {name: part.reduced(least[name]) for name, part in splits.items()}
    if system.cache is not None:
        splits = cached(
            splits, Path(system.cache).expanduser(), cores() if system.workers == "auto" else system.workers
        )
    splits = aboard(splits, dataset, augment, system, world)
    shape = {"image_size": dataset.shape, "channels": dataset.channels, "classes": len(dataset.classes)}
    torch.manual_seed(seed_of(seed))
    vit = model(**shape)
    vit.objective.know(dataset.mean, dataset.std)
    began = init.apply(source, vit, dataset.classes) if source else ""
    vit = vit.to(world.device)
    loss.start(vit.head.output)
    flops, backward = count.passes(vit, (dataset.channels, *dataset.shape))
    net = spread(vit, world, system)
    updates = optim.build(optimizer, vit, layer_decay=fit.layer_decay, scale=fit.lr_factor())
    return Ready(
        seed=seed,
        fit=fit,
        system=system,
        world=world,
        tracking=tracking,
        dataset=dataset,
        splits=splits,
        augment=augment,
        model=vit,
        net=net,
        flops=flops,
        backward_flops=backward,
        loss=loss.to(world.device),
        optimizer=updates,
        schedule=schedule.start(updates, steps, steps_per_epoch),
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        precision=precision,
        began=began,
    )


def examine(
    *,
    model: Callable[..., ViT],
    init: Start,
    source: Source | None,
    dataset: Dataset,
    augment: Augment,
    optimizer: Callable[..., Optimizer],
    fit: Fit,
    system: System,
    tracking: Tracking,
    world: World,
    train: int,
    smallest: int,
    here: bool = True,
) -> tuple[int, float]:
    """Refuses values that do not go together; gives the training in steps, and the steps of an epoch.

    Args:
        source: what `init` starts from, be it without memory; None for chance.
        train: number of training images; the rest as `prepare` takes it.
        smallest: those of the smallest class.
        here: whether it is to be trained on this machine, whose memory must hold it.

    Raises:
        ValueError: each with a way out.
    """
    precision = resolve(fit.precision, world.device)
    if fit.batch_size > train:
        raise ValueError(f"fit.batch_size={fit.batch_size}: there are {train} training images: use at most that")
    if fit.batch_size % (world.size * fit.accumulate):
        raise ValueError(
            f"fit.batch_size={fit.batch_size} cannot be cut into {world.size} process(es) x fit.accumulate="
            f"{fit.accumulate} equal parts: use a multiple of {world.size * fit.accumulate}"
        )
    probe.check(f"fit.shots={list(fit.shots)}", fit.shots, smallest)
    sharded = system.parallel == "fsdp" and world.size > 1
    if sharded and precision == "fp16":
        raise ValueError("fit.precision=fp16 with system.parallel=fsdp: fp16 needs ddp; or use fit.precision=bf16")
    if sharded and tracking.histograms:
        raise ValueError(
            "tracking.histograms=true with system.parallel=fsdp: each process has a part of each weight: use ddp"
        )
    if fit.auto_accumulate and world.size > 1:
        raise ValueError(
            f"fit.auto_accumulate=true with {world.size} processes, which cannot run out of memory together: give"
            " fit.accumulate instead"
        )
    if system.compile == "graphs" and (fit.accumulate > 1 or fit.auto_accumulate or world.size > 1):
        raise ValueError(
            "system.compile=graphs: a graph writes its gradients to the same place each time, which neither parts of a"
            " batch nor several processes allow: use system.compile=true, or one process and one part"
        )
    if world.size > 1 and augment.mixes and fit.batch_size % (2 * world.size):
        raise ValueError(
            f"fit.batch_size={fit.batch_size}: each of {world.size} processes needs pairs of images to mix: use a"
            f" multiple of {2 * world.size}, or augment.mixup=0 augment.cutmix=0"
        )
    train = fit.batch_size if fit.one_batch else train
    steps = fit.total(train)
    steps_per_epoch = train / fit.batch_size
    augment.transform(dataset)
    augment.geometry(dataset)
    shape = {"image_size": dataset.shape, "channels": dataset.channels, "classes": len(dataset.classes)}
    momentum = getattr(optimizer, "keywords", {}).get("momentum")  # SGD's may be 0: nothing is kept for it then
    if here:
        memory.check(
            model,
            **shape,
            device=world.device,
            copies=1 if sharded else 2 + (momentum != 0) + bool(fit.ema_decay),
            batch=1 if fit.auto_accumulate else fit.batch_size // (world.size * fit.accumulate),
            half=precision != "fp32",
            recomputed=system.activation_checkpointing,
        )
    if source is not None:
        init.apply(source, memory.shadow(model, **shape), dataset.classes)
    return steps, steps_per_epoch


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


def rates(ready: Ready) -> str:
    """The learning rate at its peak, and where it comes from."""
    options, groups = ready.fit, ready.optimizer.param_groups
    peak = max(group["initial_lr"] * group["lr_scale"] for group in groups)
    said = f"learning rate {peak:.3g} at its peak"
    if options.lr_scaling != "none":
        said += (
            f": {peak / options.lr_factor():.3g} x {options.lr_factor():.3g}, {options.lr_scaling} in the batch,"
            f" {options.batch_size} / {options.lr_batch_size}"
        )
    if options.layer_decay != 1:
        least = min(group["initial_lr"] * group["lr_scale"] for group in groups)
        said += f"; {least:.3g} in the first layer (fit.layer_decay={options.layer_decay})"
    return said


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


def facts(ready: Ready) -> dict[str, Any]:
    """What a trained model needs to be used: sizes, classes, and what its images go through."""
    data = ready.dataset
    return {
        "image_size": list(data.shape),
        "channels": data.channels,
        "classes": list(data.classes),
        "crop": data.evaluation_crop if data.size is None else 1.0,
        "mean": list(data.mean),
        "std": list(data.std),
    }
