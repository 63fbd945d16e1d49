"""Everything a training needs, read, built and checked before anything is written."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitlab.data.cache import cache_images
from vitlab.data.copies import find_copies
from vitlab.data.loader import TrainSampler
from vitlab.data.preprocess import Normalize, Resize
from vitlab.data.seeding import seed_of
from vitlab.evaluation import probe
from vitlab.model import count
from vitlab.model.objective import TrainingModel
from vitlab.system import graphs
from vitlab.system.distributed import Distributed
from vitlab.system.memory import keep_freed_memory
from vitlab.system.parallelize import parallelize
from vitlab.system.precision import resolve
from vitlab.training.batches import cores, hold_decoded, move_to_gpu
from vitlab.training.checks import choose_capture, examine
from vitlab.training.optimizer import build_optimizer
from vitlab.training.recipe import Recipe, TrainingSetup


def prepare(*, dist: Distributed, **parts: Any) -> TrainingSetup:
    """Reads the images, builds the model, and refuses what cannot be trained, before anything is written.

    Args:
        dist: the processes that train together.
        parts: of a `Recipe`.

    Raises:
        ConfigError: values that do not go together.
        DataError: images that are missing or damaged.
        StorageError: system.cache cannot be written.
    """
    recipe = Recipe(**parts)
    seed, fit, system, dataset, augment = recipe.seed, recipe.fit, recipe.system, recipe.dataset, recipe.augment
    precision = resolve(fit.precision, dist.device)
    if dist.device.type == "cpu" and dist.size == 1:
        keep_freed_memory()
    fetches = getattr(dataset, "download", False)
    if fetches and not dist.is_rank0:
        dist.barrier()  # one process fetches, the others read what it fetched
    splits = dataset.splits()
    if fetches and dist.is_rank0:
        dist.barrier()
    decoding = splits["train"].decoding
    said = [dataset.passed_over, find_copies(splits) if dist.is_rank0 else ""]
    source = recipe.init.read()
    images = np.bincount(splits["train"].labels, minlength=len(dataset.classes))
    not_captured = choose_capture(recipe, dist, precision)
    steps, steps_per_epoch = examine(recipe, dist, source=source, images=images)
    if fit.shots:  # in the order of the draws; they are read as for an evaluation
        drawn = probe.draw(splits["train"].labels, len(dataset.classes), max(fit.shots), probe.DRAWS)
        splits["support"] = splits["train"].take(drawn.ravel())
    if fit.one_batch:
        first = next(
            iter(TrainSampler(examples=len(splits["train"]), batch=fit.batch_size, start=0, stop=1, seed=seed))
        )
        splits["train"] = splits["train"].take(torch.tensor([index for _, index in first]).numpy())
    min_size = dict.fromkeys(splits, Resize(dataset.shape, dataset.evaluation_crop).min_size)
    min_size["train"] = augment.min_size(dataset)
    splits = {name: part.reduced(min_size[name]) for name, part in splits.items()}
    if system.cache is not None:
        splits = cache_images(splits, Path(system.cache), cores() if system.workers == "auto" else system.workers)
    splits = hold_decoded(splits, dataset, augment)
    splits = move_to_gpu(splits, dataset, augment, system, dist)
    torch.manual_seed(seed_of(seed))
    vit = recipe.model(**recipe.image_shape)
    vit.objective.set_normalization(dataset.mean, dataset.std)
    initial_weights = recipe.init.apply(source, vit, dataset.classes) if source else ""
    vit = vit.to(dist.device)
    recipe.loss.start(vit.head.output)
    model = TrainingModel(vit)
    flops, backward = count.passes(model, (dataset.channels, *dataset.shape))
    net = parallelize(model, dist, system)
    updates = build_optimizer(
        recipe.optimizer, vit, layer_decay=fit.layer_decay, scale=fit.lr_factor(), capturable=not not_captured
    )
    return TrainingSetup(
        seed=seed,
        fit=fit,
        system=system,
        dist=dist,
        tracking=recipe.tracking,
        dataset=dataset,
        splits=splits,
        decoding=decoding,
        augment=augment,
        normalize=Normalize(dataset.mean, dataset.std).to(dist.device),
        vit=vit,
        model=model,
        net=net,
        flops=flops,
        backward_flops=backward,
        loss=recipe.loss.to(dist.device),
        optimizer=updates,
        schedule=recipe.schedule.start(updates, steps, steps_per_epoch, None if not_captured else dist.device),
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        precision=precision,
        not_captured=not_captured,
        initial_weights=initial_weights,
        files="; ".join(filter(None, said)),
    )


def describe_capture(setup: TrainingSetup) -> str:
    """Whether steps are captured as CUDA graphs, in words; empty on a device that has none."""
    if setup.dist.device.type not in graphs.DEVICES:
        return ""
    if setup.captured:
        return "each step is captured as a CUDA graph"
    return f"steps are not captured as CUDA graphs: {setup.not_captured}"


def describe_lr(setup: TrainingSetup) -> str:
    """The learning rate at its peak, and where it comes from."""
    options, groups = setup.fit, setup.optimizer.param_groups
    peak = max(group["initial_lr"] * group["lr_scale"] for group in groups)
    text = f"learning rate {peak:.3g} at its peak"
    if options.lr_scaling != "none":
        text += (
            f": {peak / options.lr_factor():.3g} x {options.lr_factor():.3g}, {options.lr_scaling} in the batch,"
            f" {options.batch_size} / {options.lr_batch_size}"
        )
    if options.layer_decay != 1:
        least = min(group["initial_lr"] * group["lr_scale"] for group in groups)
        text += f"; {least:.3g} in the first layer (fit.layer_decay={options.layer_decay})"
    return text
