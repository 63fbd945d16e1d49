"""Resuming from a checkpoint, and rolling back to one when the loss is NaN or infinite."""

import logging

from vitlab.storage import checkpoint
from vitlab.storage.checkpoint import Store
from vitlab.training.optimizer import learning_rate
from vitlab.training.state import State

log = logging.getLogger("vitlab")
ROLLBACKS = 10  # without a good evaluation in between


def resume(state: State, store: Store) -> bool:
    """Takes the state over from the last checkpoint that can be believed, if there is one."""
    here = state.ready.world
    found = store.newest() if here.first else None
    path = here.tell(found and found[0])
    if path is None:
        return False
    state.restore(found[1] if found else checkpoint.load(path))
    return True


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
