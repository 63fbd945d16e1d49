"""Training: `fit` trains what `recipe.prepare` made ready, `update` is one step of it, `evaluate` judges."""

import logging
import math
import time
from importlib.metadata import version
from typing import Any

import torch
import yaml

from vitlab.config.errors import Interrupted
from vitlab.config.identity import cell_identity, identity
from vitlab.data.loader import local_indices
from vitlab.data.preprocess import Normalize
from vitlab.evaluation import classification, probe
from vitlab.evaluation.evaluate import evaluate
from vitlab.model import count
from vitlab.storage import checkpoint
from vitlab.storage.checkpoint import Store
from vitlab.storage.files import write_json, write_whole
from vitlab.storage.run import Run, environment
from vitlab.system.distributed import share_buffers
from vitlab.system.hardware import describe, peak_memory
from vitlab.system.parallelize import eagerly
from vitlab.system.profiler import Trace
from vitlab.system.signals import Interrupt
from vitlab.tracking import curves
from vitlab.tracking.options import ValidationMedia
from vitlab.tracking.tracker import Tracker
from vitlab.training.batches import describe_input, evaluation_batches, training_batches
from vitlab.training.optimizer import learning_rate
from vitlab.training.recipe import TrainingSetup
from vitlab.training.recovery import resume, roll_back
from vitlab.training.setup import describe_lr, facts
from vitlab.training.state import State
from vitlab.training.step import train_step

log = logging.getLogger("vitlab")


def fit(setup: TrainingSetup, run: Run, config: dict[str, Any]) -> dict[str, Any]:
    """Trains, keeps the best weights by validation accuracy, reads the test images once with them, says what came out.

    A run that was interrupted goes on from its last checkpoint as if nothing had happened: on a CPU to the last bit.

    Args:
        ready: from `prepare`.
        run: where everything is written.
        config: what `config.yaml` and Weights & Biases are told.

    Raises:
        NonFinite: the loss is no number any more.
        OutOfMemory: a batch is too large.
        Interrupted: a signal asked to leave; everything is saved.
    """
    options, dist, device, total = setup.fit, setup.dist, setup.dist.device, setup.steps
    normalize = Normalize(setup.dataset.mean, setup.dataset.std).to(device)
    batchwise = setup.augment.batchwise(len(setup.dataset.classes))
    wrote = {"vitlab": version("vitlab"), "torch": str(torch.__version__), "run": identity(config)}
    known = {"seed": setup.seed, "cell": cell_identity(config)}
    state = State(setup, wrote)
    store = Store(run, on=dist.is_rank0, minutes=setup.system.save_minutes)

    # From the last checkpoint, if there is one.
    if dist.is_rank0:
        run.clean()
    resumed = resume(state, store)
    if resumed:
        log.info("continues from step %d of %d", state.step, total)
    elif setup.began:
        log.info("%s", setup.began)
    log.info("%s; %s", describe_lr(setup), describe_input(setup))
    start, before, began = state.step, state.seconds, time.perf_counter()
    if dist.is_rank0:
        write_whole(run.config, lambda part: part.write_text(yaml.safe_dump(config, sort_keys=False)))
        write_json(run.environment, environment(describe(device)))
        run.rewind(start)
        run.write_result({"status": "interrupted", **known})  # true until something better is
    batches = iter(training_batches(setup, start))  # its workers start before any thread does
    tracker = Tracker(run, setup.tracking, config, steps=total, start=start, on=dist.is_rank0)
    trace = Trace(setup.system.profile_steps if dist.is_rank0 else 0, run.folder / "trace.json")

    def seconds() -> float:
        return before + time.perf_counter() - began

    def best() -> dict[str, Any] | None:
        if state.best is None:
            return None
        return {"step": state.best["step"], "model": state.weights, "facts": facts(setup), "wrote": wrote}

    def save(*, better: bool = False) -> None:
        state.seconds = seconds()
        keep = setup.system.keeps(state.step, setup.steps_per_epoch)
        store.save(state.capture(), best() if better else None, keep=keep, rows=tracker.sync)
        state.meter.skip()

    def judged() -> dict[str, float]:
        store.wait()  # loaders fork, and no other thread may be at work then
        share_buffers(setup.model, dist)
        with state.judged():
            batches = evaluation_batches(setup, "validation")
            return evaluate(setup.model, batches, normalize, dist, setup.precision, setup.model.objective)

    store.best = best()  # best.pt may be of a step that the checkpoint knows nothing of
    reason, asked = "", 0
    with tracker, trace, store, Interrupt() as interrupt:
        if options.on_nonfinite == "rollback" and not resumed:
            save()
        for step in range(start, total):
            if options.patience is not None and state.stale >= options.patience:
                reason = f"no better validation for {state.stale} evaluations"
                break
            setup.schedule.set(step)
            pixels, labels = next(batches)
            images = normalize(pixels.to(device, non_blocking=True))
            targets = labels = labels.to(device, non_blocking=True)
            if batchwise is not None:
                which = local_indices(options.batch_size, dist.rank, dist.size)
                images, targets = batchwise(images, labels, which, setup.seed, step)
            gradient = train_step(state, images, targets)
            trace.step()
            tracker.step()

            asked, due = dist.all_reduce_max(interrupt.asked, store.due)
            evaluating = options.evaluates(state.step, total, setup.steps_per_epoch)
            logging_ = evaluating or state.step % setup.system.log_every == 0
            saving = evaluating or asked or due or setup.system.keeps(state.step, setup.steps_per_epoch)
            if not (logging_ or saving):
                continue
            bad = state.meter.fault(dist)
            rolled = None if bad is None else roll_back(state, store, bad)
            better = False
            if logging_:
                row = {
                    "step": state.step,
                    "epoch": state.step / setup.steps_per_epoch,
                    "images": state.step * options.batch_size,
                    "training_flops": state.step * options.batch_size * (setup.flops + setup.backward_flops),
                    "seconds": seconds(),
                    "lr": learning_rate(setup.optimizer),
                    **state.meter.read(dist),
                }
                row |= {"train/gradient_norm": float(gradient)} if math.isfinite(float(gradient)) else {}
                row |= {"train/skipped": state.skipped} if options.on_nonfinite == "skip" else {}
                row |= {} if rolled is None else {"train/rolled_back_to": rolled}
                if evaluating:
                    tracker.watch(setup.model)
                    scores = judged()
                    if not math.isfinite(scores["loss"]):
                        row["train/rolled_back_to"] = roll_back(state, store, step)
                        scores = judged()
                    row |= {f"val/{key}": value for key, value in scores.items()}
                    better = state.score(scores)
                    state.meter.skip()
                tracker.row(row)
            if saving or rolled is not None:
                save(better=better)
            if asked and state.step < total:
                store.wait()
                raise Interrupted(state.step, total, asked, store.step)
        if reason:
            log.info("stops at step %d of %d: %s", state.step, total, reason)
        if asked:
            store.wait()
            raise Interrupted(total, total, asked, store.step)

        # The test images, read once, with the weights that validation chose.
        store.finish()
        state.load_model(state.weights)
        batches = evaluation_batches(setup, "test")
        test = evaluate(setup.model, batches, normalize, dist, setup.precision, setup.model.objective)
    took = seconds()
    few = few_shot(setup, normalize)
    assert state.best is not None
    result = {
        "status": "finished",
        "val/accuracy": state.best["accuracy"],
        "val/loss": state.best["loss"],
        "test/accuracy": test["accuracy"],
        "test/loss": test["loss"],
        **few,
        "best_step": state.best["step"],
        "steps": state.step,
        "epochs": state.step / setup.steps_per_epoch,
        "seconds": took,
        "images_per_second": state.meter.pace(),
        "parameters": count.parameters(setup.model),
        "flops_per_image": setup.flops,
        "training_flops": state.step * options.batch_size * (setup.flops + setup.backward_flops),
        "peak_memory_bytes": peak_memory(device),
        "precision": setup.precision,
        "processes": dist.size,
        "accumulate": state.parts,
        "skipped": state.skipped,
        "rollbacks": state.rollbacks,
        "device": describe(device),
        "test_images": len(setup.splits["test"]),
        "classifies": setup.model.objective.classifies,
        **known,
    }
    views = None
    if dist.broadcast(tracker.wants_media) and setup.model.objective.classifies:
        batches = evaluation_batches(setup, "validation")
        found = classification.predictions(setup.model, batches, normalize, dist, setup.precision)
        views = ValidationMedia(
            classification.ClassificationReport.of(*found, setup.dataset.classes), setup.splits["validation"]
        )
    tracker.finish(result, views)
    if dist.is_rank0:
        described = {"facts": facts(setup), "wrote": wrote, "model": config["model"]}
        try:
            checkpoint.export(run.export, state.weights, described)
            curves.draw(run.rows(), run.curves, run.folder.name)
        except OSError as error:  # a full disk; all that counts is there
            log.warning("%s: the weights are in best.pt, the curve in metrics.jsonl", error)
        run.write_result(result)
    dist.barrier()
    return result


def few_shot(setup: TrainingSetup, normalize: Normalize) -> dict[str, float]:
    """Few-shot accuracies of the weights that the model has, on validation and test images; none unless asked for."""
    found: dict[str, float] = {}
    if not setup.fit.shots:
        return found

    def features(split: str) -> probe.Features:
        with eagerly(bool(setup.system.compile)):
            batches = evaluation_batches(setup, split)
            return probe.features(setup.model, batches, normalize, setup.dist, setup.precision)

    shape = (probe.DRAWS, len(setup.dataset.classes), max(setup.fit.shots), -1)
    support = features("support").values.reshape(shape)
    for short, split in (("val", "validation"), ("test", "test")):
        for shots, accuracies in probe.few_shot(support, features(split), setup.fit.shots).items():
            found[f"{short}/{shots}-shot"] = sum(accuracies) / len(accuracies)
            found[f"{short}/{shots}-shot_std"] = probe.spread(accuracies) or 0.0
    return found
