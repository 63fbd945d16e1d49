"""The training loop: `fit` trains what `setup.prepare` made ready."""

import logging
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, TypeVar

from vitlab.config.errors import Interrupted
from vitlab.config.identity import identity
from vitlab.data.batch import Batch
from vitlab.storage.checkpoint import Checkpoints
from vitlab.storage.run import Run
from vitlab.system.contention import WaitPolicy
from vitlab.system.profiler import Profiler
from vitlab.system.signals import Signals
from vitlab.tracking.tracker import Tracker
from vitlab.training.batches import eval_batches, train_batches
from vitlab.training.pack import Pack
from vitlab.training.recipe import TrainingSetup
from vitlab.training.recovery import check_finite, open_run, validate
from vitlab.training.result import finish
from vitlab.training.state import TrainState
from vitlab.training.step import train_step

log = logging.getLogger("vitlab")
Result = TypeVar("Result")
Updates = Generator[tuple[TrainState, Batch], None, Result]  # before each update; whoever goes on has computed it


def fit(setup: TrainingSetup, run: Run, config: dict[str, Any]) -> dict[str, Any]:
    """Trains one model: see `training_loop`."""
    return train_alone(training_loop(setup, run, config))


def training_loop(
    setup: TrainingSetup, run: Run, config: dict[str, Any], signals: Signals | None = None
) -> Updates[dict[str, Any]]:
    """Trains, keeps the best weights by `fit.best` on the validation split, and evaluates them once on the test split.

    A run that was interrupted continues from its last checkpoint as if it had never stopped: on a CPU to the last bit.
    The updates are left to the caller: `train_alone` computes them one by one, a pack those of several trainings.

    Args:
        setup: from `prepare`.
        run: the folder that everything is written to.
        config: for `config.yaml` and Weights & Biases.
        signals: of a process that trains several models, and answers them; None where it trains this one.

    Returns:
        The contents of result.json.

    Raises:
        NonFinite: the loss is NaN or infinite.
        OutOfMemory: a batch is too large.
        Interrupted: a signal asked to stop; everything is saved.
    """
    dist, system = setup.dist, setup.system
    state = TrainState(setup, identity(config), identity(config, as_written=True))
    checkpoints = Checkpoints(run, on=dist.is_rank0, minutes=system.save_minutes)
    resumed = open_run(state, checkpoints, run, config)
    batches = train_batches(setup, state.step)  # its workers start before any thread does
    tracker = Tracker(run, setup.tracking, config, steps=setup.steps, start=state.step, on=dist.is_rank0)
    profiler = Profiler(system.profile_steps if dist.is_rank0 else 0, run.folder / "trace.json")

    with tracker, profiler, checkpoints, closing(state), ExitStack() as stack:
        if signals is None:
            stack.enter_context(WaitPolicy(dist.device.type == "cpu"))
            signals = stack.enter_context(Signals())
        if setup.fit.on_nonfinite == "rollback" and not resumed:
            save(state, checkpoints, tracker)
        for batch in state.meter.waiting(batches):
            if state.out_of_patience:
                reason = f"no better validation for {state.evals_since_best} evaluations"
                log.info("stops at step %d of %d: %s", state.step, setup.steps, reason)
                break
            setup.schedule.set(state.step)
            yield state, batch
            profiler.step()
            tracker.step()
            due = what_is_due(state, signals, checkpoints)
            if not (due.log or due.checkpoint):
                continue
            row = check_finite(state, checkpoints)  # the first wait for the GPU
            if due.log:
                row |= state.row()
                if due.evaluation:
                    tracker.watch(setup.vit, state.copies)
                    row |= validate(state, checkpoints)
                tracker.row(row)
            if due.checkpoint or "train/rolled_back_to" in row:
                save(state, checkpoints, tracker)
            if due.stop:
                checkpoints.wait()
                raise Interrupted(state.step, setup.steps, due.stop, checkpoints.step)
        checkpoints.finish()
        state.load_model(state.weights)
        test = state.evaluate(eval_batches(setup, "test"))
    return finish(state, run, config, tracker, test)


def train_alone(training: Updates[Result]) -> Result:
    """Computes each update of a training; gives what the training returns.

    One that was in a pack goes on as a pack of one, so that its last digits do not depend on where it was interrupted.
    """
    pack = Pack(1)
    try:
        update = next(training)
        while True:
            state, batch = update
            try:
                if state.packed and state.setup.batchable:
                    pack.step([update])
                else:
                    train_step(state, batch)
            except BaseException as error:  # raised where the training is, which closes its files
                training.throw(error)
            update = next(training)
    except StopIteration as end:
        return end.value


@dataclass(frozen=True)
class Due:
    """What follows a step; `stop` is the signal that asked for it, or 0."""

    evaluation: bool
    log: bool
    checkpoint: bool
    stop: int


def what_is_due(state: TrainState, signals: Signals, checkpoints: Checkpoints) -> Due:
    """What follows this step, agreed by all processes; no GPU is waited for."""
    setup = state.setup
    stop, overdue = setup.dist.all_reduce_max(signals.received, checkpoints.due)
    evaluation = setup.fit.evaluates(state.step, setup.steps, setup.steps_per_epoch)
    kept = setup.system.keeps(state.step, setup.steps_per_epoch)
    return Due(
        evaluation=evaluation,
        log=evaluation or state.step % setup.system.log_every == 0,
        checkpoint=bool(evaluation or stop or overdue or kept),
        stop=stop,
    )


def save(state: TrainState, checkpoints: Checkpoints, tracker: Tracker) -> None:
    """Writes a checkpoint, and the best weights if they are of this step."""
    keep = state.setup.system.keeps(state.step, state.setup.steps_per_epoch)
    best = state.best_checkpoint() if state.is_best else None

    def ready() -> None:  # in the thread that writes
        state.copies.wait()
        tracker.sync()

    checkpoints.save(state.capture(), best, keep=keep, ready=ready)
    state.meter.pause()
