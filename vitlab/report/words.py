"""The words of figures: what the field calls a configuration key, with its unit; a metric's are in `METRICS`."""

from collections.abc import Mapping
from typing import Any

from vitlab.report.grouping import show
from vitlab.storage.metrics import find

WORDS = {
    "augment.auto_augment": "augmentation policy",
    "augment.color_jitter": "colour jitter",
    "augment.cutmix": "CutMix",
    "augment.erase": "probability of random erasing",
    "augment.mixup": "mixup",
    "augment.repeats": "repeats of an image in a batch",
    "dataset.image_size": "image size (pixels)",
    "dataset.train_examples": "training images",
    "dataset.train_fraction": "fraction of the training images",
    "fit.batch_size": "batch size",
    "fit.clip": "largest gradient norm",
    "fit.ema_decay": "decay of the weight average",
    "fit.epochs": "epochs",
    "fit.layer_decay": "layer-wise decay of the learning rate",
    "fit.steps": "steps",
    "loss.label_smoothing": "label smoothing",
    "model.attention.dropout": "attention dropout",
    "model.depth": "depth (blocks)",
    "model.drop_path": "stochastic depth",
    "model.dropout": "dropout",
    "model.heads": "heads",
    "model.layer_scale": "layer scale",
    "model.mlp.ratio": "MLP ratio",
    "model.patch": "patch size (pixels)",
    "model.registers": "registers",
    "model.stem.widen": "width of the ResNet (multiple)",
    "model.width": "width (channels)",
    "optimizer.betas": "beta 1 and beta 2",
    "optimizer.lr": "learning rate",
    "optimizer.momentum": "momentum",
    "optimizer.weight_decay": "weight decay",
    "schedule.min_lr": "final learning rate",
    "schedule.warmup_epochs": "warm-up (epochs)",
    "schedule.warmup_fraction": "warm-up (fraction of the training)",
    "schedule.warmup_steps": "warm-up (steps)",
    "seed": "seed",
}


def words_of(key: str) -> str:
    """An axis of this metric or configuration key, in words with its unit; the key itself where none are known."""
    known = find(key)
    return known.heading if known else WORDS.get(key, key)


def settings(differs: Mapping[str, Any], without: str | None = None) -> str:
    """Values of configuration keys in words: 'batch size 32, dropout 0.1'; without those of one key."""
    parts = []
    for key, value in differs.items():
        noun = WORDS.get(key, "").partition(" (")[0]
        if key != without:
            parts.append(f"{noun} {show(value)}" if noun else f"{key.rpartition('.')[2]}={show(value)}")
    return ", ".join(parts)
