"""Values that do not go together, refused before a training begins."""

from typing import Any

import numpy as np
from jaxtyping import Int
from torch.optim import SGD, Adam, AdamW

from vitlab.config.errors import ConfigError
from vitlab.evaluation import probe
from vitlab.model.meta import Unfilled, on_meta_device
from vitlab.system import graphs
from vitlab.system.distributed import Distributed
from vitlab.system.footprint import check_memory
from vitlab.system.precision import resolve
from vitlab.training.optimizer import in_tensors
from vitlab.training.pretrained import Source
from vitlab.training.recipe import Recipe


def examine(
    recipe: Recipe,
    dist: Distributed,
    *,
    source: Source | None,
    images: Int[np.ndarray, " classes"],
    on_this_machine: bool = True,
) -> tuple[int, float]:
    """Refuses values that do not go together; gives the steps of the training, and the steps of an epoch.

    Args:
        recipe: what is to be trained.
        dist: the processes that train it.
        source: the weights that `init` starts from, on the meta device or not; None for random ones.
        images: training images of each class.
        on_this_machine: whether it is to be trained on this machine, whose memory must hold it.

    Raises:
        ConfigError: with value, reason and remedy.
    """
    fit, system, dataset, augment = recipe.fit, recipe.system, recipe.dataset, recipe.augment
    precision, train = resolve(fit.precision, dist.device), int(images.sum())
    if fit.batch_size > train:
        raise ConfigError(f"fit.batch_size={fit.batch_size}: there are {train} training images: use at most that")
    if fit.batch_size % (dist.size * fit.accumulate):
        raise ConfigError(
            f"fit.batch_size={fit.batch_size} cannot be cut into {dist.size} process(es) x fit.accumulate="
            f"{fit.accumulate} equal parts: use a multiple of {dist.size * fit.accumulate}"
        )
    probe.check(f"fit.shots={list(fit.shots)}", fit.shots, int(images.min()))
    check_classes(recipe, images)
    sharded = system.parallel == "fsdp" and dist.size > 1
    if sharded and precision == "fp16":
        raise ConfigError("fit.precision=fp16 with system.parallel=fsdp: fp16 needs ddp; or use fit.precision=bf16")
    if sharded and recipe.tracking.histograms:
        raise ConfigError(
            "tracking.histograms=true with system.parallel=fsdp: each process has a part of each weight: use ddp"
        )
    if fit.auto_accumulate and dist.size > 1:
        raise ConfigError(
            f"fit.auto_accumulate=true with {dist.size} processes, which cannot run out of memory together: give"
            " fit.accumulate instead"
        )
    if system.compile == "graphs" and (fit.accumulate > 1 or fit.auto_accumulate or dist.size > 1):
        raise ConfigError(
            "system.compile=graphs: a graph writes its gradients to the same place each time, which neither parts of a"
            " batch nor several processes allow: use system.compile=true, or one process and one part"
        )
    if dist.size > 1 and augment.mixes and fit.batch_size % (2 * dist.size):
        raise ConfigError(
            f"fit.batch_size={fit.batch_size}: each of {dist.size} processes needs pairs of images to mix: use a"
            f" multiple of {2 * dist.size}, or augment.mixup=0 augment.cutmix=0"
        )
    train = fit.batch_size if fit.one_batch else train
    steps = fit.total(train)
    steps_per_epoch = train / fit.batch_size
    augment.transform(dataset)
    augment.geometry(dataset)
    if augment.batched is True and dataset.size is None and system.cache is None:
        raise ConfigError(
            "augment.batched=true, but these images are decoded from files, one after the other: system.cache=FOLDER"
            " keeps them decoded; or use augment.batched=auto"
        )
    momentum = getattr(recipe.optimizer, "keywords", {}).get("momentum")  # with SGD's of 0 nothing is kept
    if on_this_machine:
        check_memory(
            recipe.model,
            **recipe.image_shape,
            device=dist.device,
            copies=1 if sharded else 2 + (momentum != 0) + bool(fit.ema_decay),
            batch=1 if fit.auto_accumulate else fit.batch_size // (dist.size * fit.accumulate),
            half=precision != "fp32",
            recomputed=system.activation_checkpointing,
        )
    if source is not None:
        with Unfilled():
            recipe.init.apply(source, on_meta_device(recipe.model, **recipe.image_shape), dataset.classes)
    return steps, steps_per_epoch


def why_not_captured(recipe: Recipe, dist: Distributed, precision: str) -> str:
    """The one reason why the training step is not captured as a CUDA graph; empty if it can be."""
    optimizer: Any = getattr(recipe.optimizer, "func", recipe.optimizer)
    scales = optimizer in (Adam, AdamW, SGD)  # the kernels that skip an update of fp16 by themselves
    reasons = {
        f"{dist.size} processes train together": dist.size > 1,
        "system.compile=graphs captures the model by itself": recipe.system.compile == "graphs",
        f"{optimizer.__name__} may keep numbers on the CPU": not in_tensors(optimizer),
        f"with fit.precision=fp16 {optimizer.__name__} waits for the GPU": precision == "fp16" and not scales,
        "system.activation_checkpointing=true sets random generators back": recipe.system.activation_checkpointing,
        "tracking.histograms=true reads the gradients after the step": recipe.tracking.histograms,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def choose_capture(recipe: Recipe, dist: Distributed, precision: str) -> str:
    """Why the training step is not captured, be it that it was not asked for; empty if it is.

    Raises:
        ConfigError: system.capture=true, and it cannot be.
    """
    asked, reason = recipe.system.capture, why_not_captured(recipe, dist, precision)
    if asked is True and reason:
        raise ConfigError(f"system.capture=true: {reason}: leave one out")
    if asked == "auto" and dist.device.type not in graphs.AUTOMATIC:
        return "that was not tested on a GPU yet (system.capture=true tries it)"
    return "system.capture=false" if asked is False else reason


def check_classes(recipe: Recipe, images: Int[np.ndarray, " classes"]) -> None:
    """Tells the loss the classes, and refuses what does not go with them.

    Args:
        recipe: what is to be trained.
        images: training images of each class.

    Raises:
        ConfigError: with value, reason and remedy.
    """
    fit, data, weights = recipe.fit, recipe.dataset, getattr(recipe.loss, "class_weights", None)
    of_classes = {
        f"loss.class_weights={weights}": weights is not None,
        f"fit.best={fit.best}": fit.best in ("val/macro_f1", "val/balanced_accuracy"),
    }
    if (odd := [option for option, holds in of_classes.items() if holds]) and not recipe.classifies:
        raise ConfigError(f"{odd[0]}: model/objective=masked_patch predicts patches and no classes: leave it out")
    if fit.sampling == "balanced":
        reasons = {
            f"the class {data.classes[int(images.argmin())]} has no training images: give it some, or take it out": (
                not images.all()
            ),
            "loss.class_weights=balanced too, and small classes would count twice: use one of the two": (
                weights == "balanced"
            ),
            "these images are read from shards one after the other, and a draw by class would jump between all of them:"
            " use loss.class_weights=balanced": data.in_shards,
        }
        if found := [reason for reason, holds in reasons.items() if holds]:
            raise ConfigError(f"fit.sampling=balanced: {found[0]}")
        images = np.ones_like(images)  # as they are drawn
    recipe.loss.set_classes(data.classes, images)
