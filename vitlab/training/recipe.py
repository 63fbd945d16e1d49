"""The recipe of a training: its parts as they come from the configuration, and what is made ready of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from vitlab.config.errors import ConfigError
from vitlab.data.augment import Augment
from vitlab.data.dataset import Dataset
from vitlab.data.examples import Examples
from vitlab.data.preprocess import Decoding, Normalize
from vitlab.evaluation import probe
from vitlab.model.objective import Classify, TrainingModel
from vitlab.model.vit import ViT
from vitlab.system.distributed import Distributed
from vitlab.system.options import System
from vitlab.system.precision import Precision
from vitlab.tracking.options import Tracking
from vitlab.training.loss import Loss
from vitlab.training.pretrained import Start
from vitlab.training.schedule import Schedule, Scheduler


@dataclass(kw_only=True)
class Fit:
    """How long and how a model is trained: the `fit` group of the configuration.

    Args:
        epochs: passes over the training images; or
        steps: optimizer updates; or
        images: training images seen.
        batch_size: images an update, over all processes and accumulation steps.
        accumulate: gradient accumulation steps of an update.
        auto_accumulate: whether a batch that does not fit into memory is computed in more accumulation steps, instead
            of ending the training; random draws (dropout) then differ. In one process only.
        clip: largest norm of the gradient; None for no clipping.
        on_nonfinite: what happens when the loss or the gradient is NaN or infinite: stop; skip that update (each step
            then waits for the GPU, or if it is captured copies all weights); or rollback to the last checkpoint's
            weights, and continue with the next images. A skip is said, and 100 in a row end the training, at the next
            row of metrics.jsonl or the next checkpoint.
        layer_decay: the learning rate of each layer as a fraction of that of the layer after it; 1 is off.
        lr_scaling: how optimizer.lr grows with the batch, `linear` (Goyal et al. 2017) or `sqrt` of batch_size /
            lr_batch_size; `none` is off.
        lr_batch_size: the batch size that optimizer.lr is meant for.
        precision: of matrix products; auto is bf16 if the hardware has it, else fp32.
        ema_decay: of the exponential moving average of the weights, which is then evaluated and kept; 0 is off.
        evaluate_every: epochs between two evaluations on the validation split.
        evaluation_batch_size: images an evaluation step.
        best: the metric of an evaluation by which the best weights are chosen; of equal ones the lower loss.
        patience: evaluations without a better one, by `best`, after which the training stops early; None is off.
        one_batch: whether every step trains on the same batch.
        sampling: `uniform`: every image once an epoch; `balanced`: every class equally often, so that an epoch has the
            images of a small class several times and only some of a large one.
        shots: few-shot evaluations of the best weights, in training images a class, such as 5: the metrics
            `val/5-shot` and `test/5-shot`, the mean of 5 draws (see `vitlab probe`).

    Raises:
        ConfigError: a value out of its range.
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
    best: Literal["val/accuracy", "val/loss", "val/macro_f1", "val/balanced_accuracy"]
    patience: int | None
    one_batch: bool
    sampling: Literal["uniform", "balanced"]
    shots: tuple[int, ...]

    def __post_init__(self) -> None:
        durations = {"fit.epochs": self.epochs, "fit.steps": self.steps, "fit.images": self.images}
        given = [f"{key}={value}" for key, value in durations.items() if value is not None]
        if len(given) != 1:
            raise ConfigError(f"{' and '.join(given) or 'no duration'}: give one of {', '.join(durations)}")
        counts = ("steps", "images", "batch_size", "accumulate", "lr_batch_size", "evaluation_batch_size", "patience")
        for key in (*counts, "epochs", "evaluate_every"):
            value = getattr(self, key)
            if value is not None and not 0 < value <= 10**12:
                raise ConfigError(f"fit.{key}={value}: must be above 0, and at most 10^12")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ConfigError(f"fit.clip={self.clip}: must be above 0, or null for none; 1.0 is usual")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"fit.layer_decay={self.layer_decay}: must be above 0 and at most 1 (off); 0.75 is usual")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"fit.ema_decay={self.ema_decay}: must be at least 0 (off) and below 1; 0.9999 is usual")
        probe.check(f"fit.shots={list(self.shots)}", self.shots)
        if self.one_batch and self.shots:
            raise ConfigError(f"fit.shots={list(self.shots)} with fit.one_batch=true, which has no images to draw from")
        if self.one_batch and self.sampling != "uniform":
            raise ConfigError(f"fit.sampling={self.sampling} with fit.one_batch=true, which draws once: leave one out")

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
class Recipe:
    """The parts that a training is made of, as `assemble` builds them from a configuration."""

    seed: int
    model: Callable[..., ViT]
    init: Start
    dataset: Dataset
    augment: Augment
    loss: Loss
    optimizer: Callable[..., Optimizer]
    schedule: Schedule
    fit: Fit
    system: System
    tracking: Tracking

    @property
    def image_shape(self) -> dict[str, Any]:
        """The image size, channels and classes that the model is built for."""
        data = self.dataset
        return {"image_size": data.shape, "channels": data.channels, "classes": len(data.classes)}

    @property
    def classifies(self) -> bool:
        """Whether the model is trained to predict classes."""
        objective = getattr(self.model, "keywords", {}).get("objective", Classify)
        return getattr(objective, "func", objective).classifies


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """Everything a training needs, checked."""

    seed: int
    fit: Fit
    system: System
    dist: Distributed
    tracking: Tracking
    dataset: Dataset
    splits: dict[str, Examples]
    decoding: Decoding  # of their image files
    augment: Augment
    normalize: Normalize
    vit: ViT
    model: TrainingModel  # the ViT with its objective
    net: nn.Module  # the model as all processes train it together
    flops: int  # of one image, forward
    backward_flops: int
    loss: Loss
    optimizer: Optimizer
    schedule: Scheduler
    steps: int
    steps_per_epoch: float
    precision: str
    not_captured: str  # why steps are not captured as CUDA graphs; empty if they are
    initial_weights: str  # where the weights come from, in words; empty if they are random
    files: str  # what is to be said of the dataset's files: what was passed over, and copies in two splits

    @property
    def captured(self) -> bool:
        """Whether steps are captured as CUDA graphs, and the numbers that change with every step lie in tensors."""
        return not self.not_captured

    @property
    def batchable(self) -> bool:
        """Whether nothing that was asked for stands against computing it as one of several models."""
        special = self.system.compile or self.system.activation_checkpointing or self.fit.auto_accumulate
        return self.dist.size == 1 and not (special or self.captured)

    def model_facts(self) -> dict[str, Any]:
        """What a trained model needs to be used: sizes, classes, and what its images go through."""
        data = self.dataset
        return {
            "image_size": list(data.shape),
            "channels": data.channels,
            "classes": list(data.classes),
            "crop": data.evaluation_crop if data.size is None else 1.0,
            "mean": list(data.mean),
            "std": list(data.std),
            "background": (colour := data.background_colour()) and list(colour),
            "range": self.decoding.range and list(self.decoding.range),
        }
