"""The recipe: `prepare` makes everything ready and refuses what cannot work, `fit` trains, `evaluate` judges."""

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import yaml
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

from vitlab import checkpoint, curves, judge, optim, runs
from vitlab.dataset.augment import Augment, evaluation
from vitlab.dataset.dataset import Dataset
from vitlab.dataset.examples import Examples
from vitlab.dataset.loader import Batch, Once, Stream, loader
from vitlab.dataset.preprocess import Normalise
from vitlab.dataset.seeding import seed_of
from vitlab.ema import Ema
from vitlab.files import write_json, write_whole
from vitlab.interrupt import Interrupt
from vitlab.loss import Loss
from vitlab.meter import Meter
from vitlab.model import count
from vitlab.model.vit import ViT
from vitlab.parallel import (
    Precision,
    System,
    World,
    describe,
    gradient_sync,
    peak_memory,
    resolve,
    spread,
)
from vitlab.profile import Trace
from vitlab.runs import Run
from vitlab.schedule import Schedule, Started
from vitlab.tracking import Tracker, Tracking, Views

log = logging.getLogger("vitlab")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(kw_only=True)
class Fit:
    """What a recipe counts.

    Args:
        epochs: passes over the training images; or
        steps: optimizer updates; or
        images: training images seen.
        batch_size: images an update, over all processes and accumulated parts.
        accumulate: parts that a process's share of the batch is computed in, one after the other.
        clip: largest norm of the gradient; None for none.
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

    Raises:
        ValueError: a value that cannot be.
    """

    epochs: float | None
    steps: int | None
    images: int | None
    batch_size: int
    accumulate: int
    clip: float | None
    layer_decay: float
    lr_scaling: Literal["none", "linear", "sqrt"]
    lr_batch_size: int
    precision: Precision
    ema_decay: float
    evaluate_every: float
    evaluation_batch_size: int
    patience: int | None
    one_batch: bool

    def __post_init__(self) -> None:
        durations = {"fit.epochs": self.epochs, "fit.steps": self.steps, "fit.images": self.images}
        said = [f"{key}={value}" for key, value in durations.items() if value is not None]
        if len(said) != 1:
            raise ValueError(f"{' and '.join(said) or 'no duration'}: give one of {', '.join(durations)}")
        counts = {
            name: getattr(self, name) for name in ("batch_size", "accumulate", "evaluation_batch_size", "lr_batch_size")
        }
        for key, value in {**counts, "patience": self.patience}.items():
            if value is not None and value < 1:
                raise ValueError(f"fit.{key}={value}: must be at least 1")
        amounts = {"clip": self.clip, "evaluate_every": self.evaluate_every}
        for key, value in {**amounts, **{k.removeprefix("fit."): v for k, v in durations.items()}}.items():
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"fit.{key}={value}: must be above 0")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"fit.layer_decay={self.layer_decay}: must be above 0 and at most 1 (off); 0.75 is usual")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"fit.ema_decay={self.ema_decay}: must be at least 0 (off) and below 1; 0.9999 is usual")

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

    def evaluations(self, steps: int, steps_per_epoch: float) -> set[int]:
        """After which updates the model is evaluated: every so many epochs, and at the end."""
        gap = max(1.0, self.evaluate_every * steps_per_epoch)
        return {round(gap * i) for i in range(1, math.floor(steps / gap + 0.5))} | {steps}


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
    loss: Loss
    optimizer: Optimizer
    schedule: Started
    steps: int
    steps_per_epoch: float
    precision: str


def prepare(
    *,
    model: Callable[..., ViT],
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
    """
    precision = resolve(fit.precision, world.device)
    fetches = getattr(dataset, "download", False)
    if fetches and not world.first:
        world.wait()  # one process fetches, the others read what it fetched
    splits = dataset.splits()
    if fetches and world.first:
        world.wait()
    train = splits["train"]
    if fit.batch_size > len(train):
        raise ValueError(f"fit.batch_size={fit.batch_size}: there are {len(train)} training images: use at most that")
    if fit.batch_size % (world.size * fit.accumulate):
        raise ValueError(
            f"fit.batch_size={fit.batch_size} cannot be cut into {world.size} process(es) x fit.accumulate="
            f"{fit.accumulate} equal parts: use a multiple of {world.size * fit.accumulate}"
        )
    if fit.one_batch:
        first = next(iter(Stream(examples=len(train), batch=fit.batch_size, start=0, stop=1, seed=seed)))
        splits["train"] = train = train.take(torch.tensor([index for _, index in first]).numpy())
    steps = fit.total(len(train))
    steps_per_epoch = len(train) / fit.batch_size
    augment.transform(dataset)

    torch.manual_seed(seed_of(seed))
    net = model(image_size=dataset.shape, channels=dataset.channels, classes=len(dataset.classes)).to(world.device)
    loss.start(net.head.output)
    updates = optim.build(optimizer, net, layer_decay=fit.layer_decay, scale=fit.lr_factor())
    return Ready(
        seed=seed,
        fit=fit,
        system=system,
        world=world,
        tracking=tracking,
        dataset=dataset,
        splits=splits,
        augment=augment,
        model=net,
        loss=loss.to(world.device),
        optimizer=updates,
        schedule=schedule.start(updates, steps, steps_per_epoch),
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        precision=precision,
    )


def fit(ready: Ready, run: Run, config: dict[str, Any]) -> dict[str, Any]:
    """Trains, keeps the best weights by validation accuracy, reads the test images once with them, says what came out.

    A run that was interrupted goes on from its last checkpoint.

    Args:
        ready: from `prepare`.
        run: where everything is written.
        config: what `config.yaml` and Weights & Biases are told.

    Raises:
        NonFinite: the loss is no number any more.
        Stopped: a signal asked to leave; everything is saved.
    """
    options, here, device, model = ready.fit, ready.world, ready.world.device, ready.model
    total, parts = ready.steps, options.accumulate
    normalise = Normalise(ready.dataset.mean, ready.dataset.std).to(device)
    batchwise = ready.augment.batchwise(len(ready.dataset.classes), device)
    ema = Ema(model, options.ema_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=ready.precision == "fp16")
    if ready.system.compile:
        model.compile()
    net = spread(model, here)
    evaluations = options.evaluations(total, ready.steps_per_epoch)

    # From the last checkpoint, if there is one.
    state: dict[str, Any] = {"step": 0, "best": None, "stale": 0, "seconds": 0.0}
    if run.last.exists():
        state = checkpoint.load(run.last, device)
        model.load_state_dict(state["model"])
        ready.optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        ema.load_state_dict(state["ema"])
        log.info("continues from step %d of %d", state["step"], total)
    log.info("%s", rates(ready))
    start, best, stale, before = state["step"], state["best"], state["stale"], state["seconds"]

    if here.first:
        write_whole(run.config, lambda part: part.write_text(yaml.safe_dump(config, sort_keys=False)))
        write_json(run.environment, runs.environment(describe(device)))
        run.rewind(start)
        run.write_result({"status": "interrupted", "seed": ready.seed})  # true until something better is
    batches = iter(training_batches(ready, start))  # its workers start before any thread does
    tracker = Tracker(run, ready.tracking, config, steps=total, start=start, on=here.first)
    trace = Trace(ready.system.profile_steps if here.first else 0, run.folder / "trace.json")

    meter = Meter(device)
    began = time.perf_counter()
    done, reason = start, ""
    with tracker, trace, Interrupt() as interrupt:
        for step in range(start, total):
            if options.patience is not None and stale >= options.patience:
                reason = f"no better validation for {stale} evaluations"
                break
            torch.manual_seed(seed_of(ready.seed, step, here.rank, 1))  # dropout and stochastic depth of this step
            ready.schedule.set(step)
            pixels, labels = next(batches)
            images = normalise(pixels.to(device, non_blocking=True))
            targets = labels = labels.to(device, non_blocking=True)
            if batchwise is not None:
                images, targets = batchwise(images, labels, ready.seed, step, here.rank)

            for part, (x, y) in enumerate(zip(images.chunk(parts), targets.chunk(parts), strict=True)):
                with gradient_sync(net, on=part == parts - 1), autocast(device, ready.precision):
                    logits = net(x)
                    loss = ready.loss(logits, y)
                scaler.scale(loss / parts).backward()
                meter.add(step, loss, logits, y)
            scaler.unscale_(ready.optimizer)
            gradient = optim.clip(model, options.clip)
            if step + 1 in evaluations:
                tracker.watch(model)
            scaler.step(ready.optimizer)
            scaler.update()
            ready.optimizer.zero_grad()
            ema.update(step)
            done = step + 1
            trace.step()
            tracker.step()

            leaving = here.agree(bool(interrupt.asked)) if here.size == 1 or done % 10 == 0 else False
            evaluating = done in evaluations
            if not (evaluating or leaving or done % ready.system.log_every == 0):
                continue
            means, bad = meter.read(here)
            if bad is not None:
                ready.schedule.set(bad)
                raise NonFinite(bad, total, learning_rate(ready.optimizer))
            row = {
                "step": done,
                "epoch": done / ready.steps_per_epoch,
                "images": done * options.batch_size,
                "seconds": before + time.perf_counter() - began,
                "lr": learning_rate(ready.optimizer),
                "train/gradient_norm": float(gradient),
                **means,
            }
            if evaluating:
                with optim.evaluating(ready.optimizer), ema.in_place():
                    scores = evaluate(model, evaluation_batches(ready, "validation"), normalise, here, ready.precision)
                    if not math.isfinite(scores["loss"]):
                        raise NonFinite(step, total, learning_rate(ready.optimizer))
                    row |= {f"val/{key}": value for key, value in scores.items()}
                    better = best is None or (-scores["accuracy"], scores["loss"]) < (-best["accuracy"], best["loss"])
                    best, stale = ({"step": done, **scores}, 0) if better else (best, stale + 1)
                    if better and here.first:
                        checkpoint.save(run.best, {"step": done, "model": model.state_dict(), "facts": facts(ready)})
                meter.skip()
            tracker.row(row)
            if (evaluating or leaving) and here.first:
                seconds = before + time.perf_counter() - began
                state = {"step": done, "best": best, "stale": stale, "seconds": seconds, "model": model.state_dict()}
                state |= {
                    "optimizer": ready.optimizer.state_dict(),
                    "scaler": scaler.state_dict(),
                    "ema": ema.state_dict(),
                }
                checkpoint.save(run.last, state)
                meter.skip()
            if leaving and done < total:
                raise Stopped(done, total, interrupt.asked or signal.SIGTERM)
    seconds = before + time.perf_counter() - began
    if reason:
        log.info("stops at step %d of %d: %s", done, total, reason)

    # The test images, read once, with the weights that validation chose.
    here.wait()
    model.load_state_dict(checkpoint.load(run.best, device)["model"])
    test = evaluate(model, evaluation_batches(ready, "test"), normalise, here, ready.precision)
    assert best is not None
    shape = (ready.dataset.channels, *ready.dataset.shape)
    result = {
        "status": "finished",
        "val/accuracy": best["accuracy"],
        "val/loss": best["loss"],
        "test/accuracy": test["accuracy"],
        "test/loss": test["loss"],
        "best_step": best["step"],
        "steps": done,
        "epochs": done / ready.steps_per_epoch,
        "seconds": seconds,
        "images_per_second": meter.pace(),
        "parameters": count.parameters(model),
        "flops_per_image": count.flops(model, shape),
        "peak_memory_bytes": peak_memory(device),
        "precision": ready.precision,
        "device": describe(device),
        "seed": ready.seed,
    }
    views = None
    if tracker.curious:  # one process sees all of them
        batches = evaluation_batches(replace(ready, world=World(0, 1, device)), "validation")
        judged = judge.predictions(model, batches, normalise, here, ready.precision)
        views = Views(judge.Judgement.of(*judged, ready.dataset.classes), ready.splits["validation"])
    tracker.finish(result, views)
    if here.first:
        curves.draw(run.rows(), run.curves, run.folder.name)
        run.write_result(result)
    here.wait()
    return result


class NonFinite(ArithmeticError):
    """The loss is infinite or no number."""

    def __init__(self, step: int, steps: int, lr: float):
        super().__init__(
            f"the loss was no finite number at step {step} of {steps}, at a learning rate of {lr:.3g}. Try a smaller"
            " optimizer.lr, a longer warm-up (schedule.warmup_fraction), fit.clip=1.0, or fit.precision=fp32"
        )


class Stopped(Exception):
    """A signal asked the training to leave; everything is saved."""

    def __init__(self, step: int, steps: int, number: int):
        self.signal = int(number)
        super().__init__(f"stopped at step {step} of {steps}; the same command goes on from there")


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], normalise: Normalise, here: World, precision: str
) -> dict[str, float]:
    """Mean cross-entropy (`loss`, without smoothing) and share of right answers (`accuracy`), every image once."""
    model.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=here.device)
    for pixels, labels in batches:
        labels = labels.to(here.device, non_blocking=True)
        with autocast(here.device, precision):
            logits = model(normalise(pixels.to(here.device, non_blocking=True)))
        loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
        right = (logits.argmax(dim=-1) == labels).sum()
        totals += torch.stack((loss.double(), right.double(), totals.new_tensor(len(labels))))
    model.train()
    loss, right, images = here.sum(totals).tolist()
    return {"loss": loss / images, "accuracy": right / images}


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


def learning_rate(optimizer: Optimizer) -> float:
    return max(group["lr"] for group in optimizer.param_groups)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


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


def training_batches(ready: Ready, start: int) -> Iterable[Batch]:
    transform = ready.augment.transform(ready.dataset)
    return loader(
        ready.splits["train"],
        transform,
        training_order(ready, start),
        seed=ready.seed,
        workers=workers(ready, transform),
        pin=ready.world.device.type == "cuda",
    )


def evaluation_batches(ready: Ready, split: str) -> Iterable[Batch]:
    here, examples, transform = ready.world, ready.splits[split], evaluation(ready.dataset)
    order = Once(examples=len(examples), batch=ready.fit.evaluation_batch_size, rank=here.rank, world=here.size)
    return loader(examples, transform, order, workers=workers(ready, transform), pin=here.device.type == "cuda")


def workers(ready: Ready, transform: object) -> int:
    """Processes that read images: some for a GPU or for files; none where they would take a core from the training."""
    if ready.system.workers != "auto":
        return ready.system.workers
    if transform is None or (ready.world.device.type == "cpu" and ready.dataset.size is not None):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores // ready.world.size)


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
