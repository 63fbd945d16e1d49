"""Starting or resuming a run, and rolling back to a checkpoint when the loss is NaN or infinite."""

import logging
import math
from typing import Any

import yaml

from vitlab.config.errors import NonFinite
from vitlab.config.identity import cell_identity
from vitlab.config.source import sources
from vitlab.data.levels import LOOKED_AT, count_levels, describe_flat
from vitlab.storage import checkpoint
from vitlab.storage.checkpoint import Checkpoints
from vitlab.storage.files import write_json, write_whole
from vitlab.storage.metrics import number
from vitlab.storage.run import Run, environment
from vitlab.system.distributed import share_buffers
from vitlab.system.hardware import describe
from vitlab.training.batches import describe_input, eval_batches, eval_workers
from vitlab.training.optimizer import learning_rate
from vitlab.training.recipe import TrainingSetup
from vitlab.training.setup import describe_capture, describe_lr
from vitlab.training.skip import report_skips
from vitlab.training.state import TrainState

log = logging.getLogger("vitlab")
ROLLBACKS = 10  # without a good evaluation in between, after which a training ends


def open_run(state: TrainState, checkpoints: Checkpoints, run: Run, config: dict[str, Any]) -> bool:
    """Resumes from the last checkpoint if there is one, and makes the folder ready; whether it resumed."""
    setup = state.setup
    if setup.dist.is_rank0:
        run.clean()
    resumed = resume(state, checkpoints)
    if resumed:
        log.info("continues from step %d of %d", state.step, setup.steps)
    elif setup.initial_weights:
        log.info("%s", setup.initial_weights)
    log.info("%s; %s", describe_lr(setup), describe_input(setup))
    if said := describe_capture(setup):
        log.info("%s", said)
    if setup.files:
        log.warning("%s", setup.files)
    if setup.dist.is_rank0:
        warn_of_flat_images(setup)
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        write_whole(run.config, lambda part: part.write_text(text, encoding="utf-8"))
        write_json(run.environment, environment(describe(setup.dist.device)))
        if not resumed:
            code = sources(config)
            write_json(run.data, setup.dataset.fingerprint() | ({"code": code} if code else {}))
        run.rewind(state.step)
        run.write_result({"status": "interrupted", "seed": setup.seed, "cell": cell_identity(config)})  # until it ends
    checkpoints.best = state.best_checkpoint()  # best.pt may be of a step after the checkpoint's
    return resumed


def warn_of_flat_images(setup: TrainingSetup) -> None:
    """One line where the training images have hardly anything to see."""
    train = setup.splits["train"]
    if flat := describe_flat(count_levels(train.take(train.sample(LOOKED_AT)), setup.dataset)):
        log.warning("%s; look at them: vitlab data", flat)


def resume(state: TrainState, checkpoints: Checkpoints) -> bool:
    """Restores the state from the newest checkpoint that can be read, if there is one."""
    dist = state.setup.dist
    found = checkpoints.newest() if dist.is_rank0 else None
    path = dist.broadcast(found and found[0])
    if path is None:
        return False
    saved = found[1] if found else checkpoint.load(path)
    best = path.with_name("best.pt")
    if "classes" not in saved and best.is_file():  # of an earlier version
        saved |= {"classes": checkpoint.load(best)["facts"]["classes"]}
    state.restore(saved)
    return True


def check_finite(state: TrainState, checkpoints: Checkpoints) -> dict[str, Any]:
    """Rolls back if a loss or gradient since the last reading was NaN or infinite; what the row says about that.

    With fit.on_nonfinite=skip such updates were left out when they came, and only here it is said.

    Raises:
        NonFinite: see `roll_back` and `report_skips`.
    """
    skips = state.fetch()
    bad = state.meter.first_nonfinite
    if state.setup.fit.on_nonfinite == "skip":
        report_skips(state, bad, *skips)
        return {}
    return {} if bad is None else {"train/rolled_back_to": roll_back(state, checkpoints, bad)}


def validate(state: TrainState, checkpoints: Checkpoints) -> dict[str, Any]:
    """Evaluates on the validation split and records the scores; what the row says about that.

    Raises:
        NonFinite: the loss is NaN or infinite, see `roll_back`.
    """
    setup, row = state.setup, {}
    if eval_workers(setup, "validation"):
        checkpoints.wait()  # they are forked, and no other thread may be at work then
    while True:
        share_buffers(setup.vit, setup.dist)
        with state.eval_weights():
            scores = state.evaluate(eval_batches(setup, "validation"))
            if math.isfinite(scores["loss"]) or row:
                state.record(scores)
                break
        row["train/rolled_back_to"] = roll_back(state, checkpoints, state.step - 1)
    state.meter.pause()
    return row | {f"val/{name}": value for name, value in scores.items() if number(value)}


def roll_back(state: TrainState, checkpoints: Checkpoints, bad: int) -> int:
    """Takes the weights of the last checkpoint and gives its step; the training continues with the next images.

    The updates since then are lost, as in PaLM (Chowdhery et al. 2022, 5.1): with the same images the loss would be
    NaN or infinite again.

    Raises:
        NonFinite: fit.on_nonfinite is not rollback, or there were too many without a good evaluation in between.
    """
    setup, step, seconds = state.setup, state.step, state.seconds
    lr = learning_rate(setup.optimizer)
    if setup.fit.on_nonfinite != "rollback":
        setup.schedule.set(bad)
        raise NonFinite(bad, setup.steps, learning_rate(setup.optimizer))
    rollbacks, in_a_row = state.rollbacks + 1, state.nonfinite_in_a_row + 1
    if in_a_row > ROLLBACKS or not resume(state, checkpoints):
        raise NonFinite(bad, setup.steps, lr, f", after {rollbacks - 1} rollbacks")
    log.warning(
        "the loss is NaN or infinite at step %d: continues from there with the weights of step %d", bad, state.step
    )
    back, state.step, state.seconds = state.step, step, seconds
    state.rollbacks, state.nonfinite_in_a_row, state.finite_since_eval = rollbacks, in_a_row, False
    state.meter.clear()
    return back
