"""Everything a training needs, read, built and checked before anything is written."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.optim import Optimizer

from vitlab.data.augment import Augment
from vitlab.data.cache import cache_images
from vitlab.data.dataset import Dataset
from vitlab.data.loader import TrainSampler
from vitlab.data.preprocess import Normalize, Resize
from vitlab.data.seeding import seed_of
from vitlab.evaluation import probe
from vitlab.model import count
from vitlab.model.objective import TrainingModel
from vitlab.model.vit import ViT
from vitlab.system.distributed import Distributed
from vitlab.system.options import System
from vitlab.system.parallelize import parallelize
from vitlab.system.precision import resolve
from vitlab.tracking.options import Tracking
from vitlab.training.batches import cores, move_to_gpu
from vitlab.training.checks import examine
from vitlab.training.loss import Loss
from vitlab.training.optimizer import build_optimizer
from vitlab.training.pretrained import Start
from vitlab.training.recipe import Fit, TrainingSetup
from vitlab.training.schedule import Schedule


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
    dist: Distributed,
    seed: int,
) -> TrainingSetup:
    """Reads the images, builds the model, and refuses what cannot be trained, before anything is written.

    Raises:
        ValueError: values that do not go together, each named with a way out.
        DatasetMissing: no images where they were looked for.
        OSError: system.cache cannot be written.
    """
    precision = resolve(fit.precision, dist.device)
    fetches = getattr(dataset, "download", False)
    if fetches and not dist.is_rank0:
        dist.barrier()  # one process fetches, the others read what it fetched
    splits = dataset.splits()
    if fetches and dist.is_rank0:
        dist.barrier()
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
        dist=dist,
        train=len(splits["train"]),
        smallest=probe.fewest(splits["train"].labels, dataset.classes)[0],
    )
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
        splits = cache_images(
            splits, Path(system.cache).expanduser(), cores() if system.workers == "auto" else system.workers
        )
    splits = move_to_gpu(splits, dataset, augment, system, dist)
    shape = {"image_size": dataset.shape, "channels": dataset.channels, "classes": len(dataset.classes)}
    torch.manual_seed(seed_of(seed))
    vit = model(**shape)
    vit.objective.set_normalization(dataset.mean, dataset.std)
    initial_weights = init.apply(source, vit, dataset.classes) if source else ""
    vit = vit.to(dist.device)
    loss.start(vit.head.output)
    model_with_objective = TrainingModel(vit)
    flops, backward = count.passes(model_with_objective, (dataset.channels, *dataset.shape))
    net = parallelize(model_with_objective, dist, system)
    updates = build_optimizer(optimizer, vit, layer_decay=fit.layer_decay, scale=fit.lr_factor())
    return TrainingSetup(
        seed=seed,
        fit=fit,
        system=system,
        dist=dist,
        tracking=tracking,
        dataset=dataset,
        splits=splits,
        augment=augment,
        normalize=Normalize(dataset.mean, dataset.std).to(dist.device),
        vit=vit,
        model=model_with_objective,
        net=net,
        flops=flops,
        backward_flops=backward,
        loss=loss.to(dist.device),
        optimizer=updates,
        schedule=schedule.start(updates, steps, steps_per_epoch),
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        precision=precision,
        initial_weights=initial_weights,
    )


def describe_lr(setup: TrainingSetup) -> str:
    """The learning rate at its peak, and where it comes from."""
    options, groups = setup.fit, setup.optimizer.param_groups
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
