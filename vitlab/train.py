"""Training: `fit` trains what `recipe.prepare` made ready, `evaluate` judges."""

import logging
import math
import signal
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
import yaml
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

from vitlab import checkpoint, curves, judge, optim, runs
from vitlab.dataset.loader import Batch
from vitlab.dataset.preprocess import Normalise
from vitlab.dataset.seeding import seed_of
from vitlab.ema import Ema
from vitlab.files import write_json, write_whole
from vitlab.interrupt import Interrupt
from vitlab.meter import Meter
from vitlab.model import count
from vitlab.parallel import World, alone, autocast, describe, gradient_sync, peak_memory, spread
from vitlab.profile import Trace
from vitlab.recipe import Ready, evaluation_batches, facts, rates, training_batches
from vitlab.runs import Run
from vitlab.tracking import Tracker, Views

log = logging.getLogger("vitlab")


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
        batches = evaluation_batches(replace(ready, world=alone(device)), "validation")
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


def learning_rate(optimizer: Optimizer) -> float:
    return max(group["lr"] for group in optimizer.param_groups)
