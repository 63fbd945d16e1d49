"""Training: `fit` trains what `recipe.prepare` made ready, `update` is one step of it, `evaluate` judges."""

import logging
import math
import time
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.optim import Optimizer

from vitlab import checkpoint, curves, judge, optim, probe
from vitlab.checkpoint import Store
from vitlab.config import cell, identity
from vitlab.dataset.loader import AGAIN, Batch, places
from vitlab.dataset.preprocess import Normalise
from vitlab.dataset.seeding import reseed, seeded
from vitlab.files import write_json, write_whole
from vitlab.interrupt import Interrupt
from vitlab.model import count
from vitlab.model.objective import Classify
from vitlab.parallel import World, autocast, describe, eagerly, gradient_sync, peak_memory, share_buffers
from vitlab.profile import Trace
from vitlab.recipe import Ready, evaluation_batches, facts, rates, reading, training_batches
from vitlab.run import Run, environment
from vitlab.state import State
from vitlab.tracking import Tracker, Views

log = logging.getLogger("vitlab")
SKIPS = 100  # skipped steps in a row; more, and the training is not worth going on with
ROLLBACKS = 10  # without a good evaluation in between


def fit(ready: Ready, run: Run, config: dict[str, Any]) -> dict[str, Any]:
    """Trains, keeps the best weights by validation accuracy, reads the test images once with them, says what came out.

    A run that was interrupted goes on from its last checkpoint as if nothing had happened: on a CPU to the last bit.

    Args:
        ready: from `prepare`.
        run: where everything is written.
        config: what `config.yaml` and Weights & Biases are told.

    Raises:
        NonFinite: the loss is no number any more.
        OutOfMemory: a batch is too large.
        Stopped: a signal asked to leave; everything is saved.
    """
    options, here, device, total = ready.fit, ready.world, ready.world.device, ready.steps
    normalise = Normalise(ready.dataset.mean, ready.dataset.std).to(device)
    batchwise = ready.augment.batchwise(len(ready.dataset.classes))
    wrote = {"vitlab": version("vitlab"), "torch": str(torch.__version__), "run": identity(config)}
    known = {"seed": ready.seed, "cell": cell(config)}
    state = State(ready, wrote)
    store = Store(run, on=here.first, minutes=ready.system.save_minutes)

    # From the last checkpoint, if there is one.
    if here.first:
        run.clean()
    resumed = resume(state, store)
    if resumed:
        log.info("continues from step %d of %d", state.step, total)
    elif ready.began:
        log.info("%s", ready.began)
    log.info("%s; %s", rates(ready), reading(ready))
    start, before, began = state.step, state.seconds, time.perf_counter()
    if here.first:
        write_whole(run.config, lambda part: part.write_text(yaml.safe_dump(config, sort_keys=False)))
        write_json(run.environment, environment(describe(device)))
        run.rewind(start)
        run.write_result({"status": "interrupted", **known})  # true until something better is
    batches = iter(training_batches(ready, start))  # its workers start before any thread does
    tracker = Tracker(run, ready.tracking, config, steps=total, start=start, on=here.first)
    trace = Trace(ready.system.profile_steps if here.first else 0, run.folder / "trace.json")

    def seconds() -> float:
        return before + time.perf_counter() - began

    def best() -> dict[str, Any] | None:
        if state.best is None:
            return None
        return {"step": state.best["step"], "model": state.weights, "facts": facts(ready), "wrote": wrote}

    def save(*, better: bool = False) -> None:
        state.seconds = seconds()
        keep = ready.system.keeps(state.step, ready.steps_per_epoch)
        store.save(state.capture(), best() if better else None, keep=keep, rows=tracker.sync)
        state.meter.skip()

    def judged() -> dict[str, float]:
        store.wait()  # loaders fork, and no other thread may be at work then
        share_buffers(ready.model, here)
        with state.judged():
            batches = evaluation_batches(ready, "validation")
            return evaluate(ready.model, batches, normalise, here, ready.precision, ready.model.objective)

    store.best = best()  # best.pt may be of a step that the checkpoint knows nothing of
    reason, asked = "", 0
    with tracker, trace, store, Interrupt() as interrupt:
        if options.on_nonfinite == "rollback" and not resumed:
            save()
        for step in range(start, total):
            if options.patience is not None and state.stale >= options.patience:
                reason = f"no better validation for {state.stale} evaluations"
                break
            ready.schedule.set(step)
            pixels, labels = next(batches)
            images = normalise(pixels.to(device, non_blocking=True))
            targets = labels = labels.to(device, non_blocking=True)
            if batchwise is not None:
                which = places(options.batch_size, here.rank, here.size)
                images, targets = batchwise(images, labels, which, ready.seed, step)
            gradient = update(state, images, targets)
            trace.step()
            tracker.step()

            asked, due = here.most(interrupt.asked, store.due)
            evaluating = options.evaluates(state.step, total, ready.steps_per_epoch)
            logging_ = evaluating or state.step % ready.system.log_every == 0
            saving = evaluating or asked or due or ready.system.keeps(state.step, ready.steps_per_epoch)
            if not (logging_ or saving):
                continue
            bad = state.meter.fault(here)
            rolled = None if bad is None else roll_back(state, store, bad)
            better = False
            if logging_:
                row = {
                    "step": state.step,
                    "epoch": state.step / ready.steps_per_epoch,
                    "images": state.step * options.batch_size,
                    "training_flops": state.step * options.batch_size * (ready.flops + ready.backward_flops),
                    "seconds": seconds(),
                    "lr": learning_rate(ready.optimizer),
                    **state.meter.read(here),
                }
                row |= {"train/gradient_norm": float(gradient)} if math.isfinite(float(gradient)) else {}
                row |= {"train/skipped": state.skipped} if options.on_nonfinite == "skip" else {}
                row |= {} if rolled is None else {"train/rolled_back_to": rolled}
                if evaluating:
                    tracker.watch(ready.model)
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
                raise Stopped(state.step, total, asked, store.step)
        if reason:
            log.info("stops at step %d of %d: %s", state.step, total, reason)
        if asked:
            store.wait()
            raise Stopped(total, total, asked, store.step)

        # The test images, read once, with the weights that validation chose.
        store.finish()
        state.load_model(state.weights)
        batches = evaluation_batches(ready, "test")
        test = evaluate(ready.model, batches, normalise, here, ready.precision, ready.model.objective)
    took = seconds()
    few = few_shot(ready, normalise)
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
        "epochs": state.step / ready.steps_per_epoch,
        "seconds": took,
        "images_per_second": state.meter.pace(),
        "parameters": count.parameters(ready.model),
        "flops_per_image": ready.flops,
        "training_flops": state.step * options.batch_size * (ready.flops + ready.backward_flops),
        "peak_memory_bytes": peak_memory(device),
        "precision": ready.precision,
        "processes": here.size,
        "accumulate": state.parts,
        "skipped": state.skipped,
        "rollbacks": state.rollbacks,
        "device": describe(device),
        "test_images": len(ready.splits["test"]),
        "classifies": ready.model.objective.classifies,
        **known,
    }
    views = None
    if here.tell(tracker.curious) and ready.model.objective.classifies:
        batches = evaluation_batches(ready, "validation")
        found = judge.predictions(ready.model, batches, normalise, here, ready.precision)
        views = Views(judge.Judgement.of(*found, ready.dataset.classes), ready.splits["validation"])
    tracker.finish(result, views)
    if here.first:
        described = {"facts": facts(ready), "wrote": wrote, "model": config["model"], "patch": config["patch"]}
        try:
            checkpoint.export(run.export, state.weights, described)
            curves.draw(run.rows(), run.curves, run.folder.name)
        except OSError as error:  # a full disk; all that counts is there
            log.warning("%s: the weights are in best.pt, the curve in metrics.jsonl", error)
        run.write_result(result)
    here.wait()
    return result


def resume(state: State, store: Store) -> bool:
    """Takes the state over from the last checkpoint that can be believed, if there is one."""
    here = state.ready.world
    found = store.newest() if here.first else None
    path = here.tell(found and found[0])
    if path is None:
        return False
    state.restore(found[1] if found else checkpoint.load(path))
    return True


def update(state: State, images: Tensor, targets: Tensor) -> Tensor:
    """One optimizer update, computed in `state.parts` parts; gives the norm of its gradient before clipping.

    Raises:
        OutOfMemory: a part is too large, and may not be made smaller.
        NonFinite: too many updates in a row were left out.
    """
    ready, scaler, optimizer = state.ready, state.scaler, state.ready.optimizer
    options, here, step = ready.fit, ready.world, state.step
    reversible = options.on_nonfinite == "skip" or options.auto_accumulate
    buffers = {b: b.clone() for b in ready.model.buffers()} if reversible else {}
    sums = None
    while sums is None:
        seed = reseed(ready.seed, step, here.rank, 1)  # all that this step draws
        if here.device.type == "cuda":  # torch.manual_seed would ask every backend there is, for 0.15 ms
            torch.cuda.manual_seed(seed)
        optimizer.zero_grad()
        if ready.system.compile == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        try:
            sums = backward(state, images, targets)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            smaller = relief(state, len(images))
        if sums is None:  # out of the handler, which holds on to the memory
            state.parts = smaller
            revert(buffers)
            torch.cuda.empty_cache()
            log.warning("out of memory: a batch is computed in %d parts of %d", smaller, len(images) // smaller)
    scaler.unscale_(optimizer)
    gradient = optim.clip(ready.model, options.clip)
    norm = None if scaler.is_enabled() else gradient  # in fp16 the scaler leaves out what is infinite
    if options.on_nonfinite == "skip" and here.agree(
        not sums[0].isfinite() or (norm is not None and not norm.isfinite())
    ):
        revert(buffers)
        state.skipped += 1
        state.failing += 1
        if state.failing == 1:
            log.warning("the loss was no finite number at step %d: such updates are left out", step)
        if state.failing > SKIPS:
            raise NonFinite(step, ready.steps, learning_rate(optimizer), f", after {SKIPS} such steps in a row")
    else:
        state.failing = 0 if options.on_nonfinite == "skip" else state.failing
        state.meter.add(step, sums, len(images), norm)
        scaler.step(optimizer)
        state.ema.update(step)
    scaler.update()
    state.step += 1
    return gradient


def backward(state: State, images: Tensor, targets: Tensor) -> Tensor:
    """The gradients of a batch, part by part; gives the sums of loss and right answers over its images."""
    ready, parts, sums = state.ready, state.parts, torch.zeros(2, dtype=torch.float64, device=images.device)
    for part, (x, y) in enumerate(zip(images.chunk(parts), targets.chunk(parts), strict=True)):
        with gradient_sync(ready.net, on=part == parts - 1), autocast(images.device, ready.precision):
            loss, right = ready.model.objective.losses(ready.net(x), y, ready.loss)
        state.scaler.scale(loss / parts).backward()
        sums += torch.stack((loss.detach().double() * len(x), right.sum()))
    return sums


def revert(buffers: dict[Tensor, Tensor]) -> None:
    """Gives buffers the values that they had."""
    for buffer, before in buffers.items():
        buffer.copy_(before)


def out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def relief(state: State, images: int) -> int:
    """In how many parts a batch of this process is computed next.

    Raises:
        OutOfMemory: nobody asked for that, or the parts are single images.
    """
    ready, parts = state.ready, state.parts
    more = next((n for n in range(2 * parts, images + 1) if images % n == 0), None)
    if more is not None and ready.fit.auto_accumulate:
        return more
    way = "take a larger patch, such as patch=p16, a smaller model, or system.activation_checkpointing=true"
    if more is not None:
        way = (
            f"fit.batch_size={ready.fit.batch_size} fit.accumulate={more} is the same batch in parts of"
            f" {images // more}, and fit.auto_accumulate=true finds such parts by itself"
        )
    raise OutOfMemory(
        f"out of memory at step {state.step} with {images // parts} images of {ready.model.grid.tokens} tokens at"
        f" once: {way}"
    )


def roll_back(state: State, store: Store, bad: int) -> int:
    """Takes the weights of the last checkpoint, of whose step it tells; the training goes on with the next images.

    The updates since then are lost, as in PaLM (Chowdhery et al. 2022, 5.1): with the same images they would come to
    the same end.

    Raises:
        NonFinite: that is not asked for, or has been done too often without a good evaluation in between.
    """
    ready, step = state.ready, state.step
    lr = learning_rate(ready.optimizer)
    if ready.fit.on_nonfinite != "rollback":
        ready.schedule.set(bad)
        raise NonFinite(bad, ready.steps, learning_rate(ready.optimizer))
    rollbacks, failing = state.rollbacks + 1, state.failing + 1
    if failing > ROLLBACKS or not resume(state, store):
        raise NonFinite(bad, ready.steps, lr, f", after {rollbacks - 1} rollbacks")
    log.warning(
        "the loss was no finite number at step %d: goes on from there with the weights of step %d", bad, state.step
    )
    back, state.step, state.rollbacks, state.failing = state.step, step, rollbacks, failing
    state.calm = False
    state.meter.clear()
    return back


class NonFinite(ArithmeticError):
    """The loss is infinite or no number."""

    def __init__(self, step: int, steps: int, lr: float, more: str = ""):
        super().__init__(
            f"the loss was no finite number at step {step} of {steps}{more}, at a learning rate of {lr:.3g}. Try a"
            " smaller optimizer.lr, a longer warm-up (schedule.warmup_fraction), fit.clip=1.0 or fit.precision=fp32"
            + ("" if more else ", or fit.on_nonfinite=skip or rollback")
        )


class OutOfMemory(RuntimeError):
    """A batch is too large for the memory; says what to do."""


class Stopped(Exception):
    """A signal asked the training to leave."""

    def __init__(self, step: int, steps: int, number: int, saved: int | None):
        self.signal = number
        self.saved = saved
        where = "" if saved == step else f" (that could not be saved: step {saved or 0} is what it goes on from)"
        super().__init__(f"stopped at step {step} of {steps}{where}; the same command goes on")


def evaluate(
    model: nn.Module, batches: Iterable[Batch], normalise: Normalise, here: World, precision: str, objective: Classify
) -> dict[str, float]:
    """Mean loss (`loss`: cross-entropy without smoothing) and share of right answers (`accuracy`), every image once."""
    model.eval()
    # What the objective draws is the same each time. FSDP's gathered weights cannot be used after inference_mode.
    with torch.no_grad(), torch.inference_mode(here.size == 1), seeded(0):
        if here.device.type == "cuda":
            torch.cuda.manual_seed(0)
        totals = torch.zeros(3, dtype=torch.float64, device=here.device)
        for pixels, labels in batches:
            labels = labels.to(here.device, non_blocking=True)
            try:
                with autocast(here.device, precision):
                    out = model(normalise(pixels.to(here.device, non_blocking=True)))
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                raise OutOfMemory(
                    f"out of memory in evaluation with {len(pixels)} images at once: use a smaller"
                    " fit.evaluation_batch_size"
                ) from error
            loss, right = objective.judge(out, labels)
            totals += torch.stack((loss.sum(), right.sum(), (labels != AGAIN).sum().double()))
    model.train()
    loss, right, images = here.sum(totals).tolist()
    return {"loss": loss / images, "accuracy": right / images}


def few_shot(ready: Ready, normalise: Normalise) -> dict[str, float]:
    """Few-shot accuracies of the weights that the model has, on validation and test images; none unless asked for."""
    found: dict[str, float] = {}
    if not ready.fit.shots:
        return found

    def features(split: str) -> probe.Features:
        with eagerly(bool(ready.system.compile)):
            batches = evaluation_batches(ready, split)
            return probe.features(ready.model, batches, normalise, ready.world, ready.precision)

    shape = (probe.DRAWS, len(ready.dataset.classes), max(ready.fit.shots), -1)
    support = features("support").values.reshape(shape)
    for short, split in (("val", "validation"), ("test", "test")):
        for shots, accuracies in probe.few_shot(support, features(split), ready.fit.shots).items():
            found[f"{short}/{shots}-shot"] = sum(accuracies) / len(accuracies)
            found[f"{short}/{shots}-shot_std"] = probe.spread(accuracies) or 0.0
    return found


def learning_rate(optimizer: Optimizer) -> float:
    return max(group["lr"] for group in optimizer.param_groups)
