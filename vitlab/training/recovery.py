"""Resuming from a checkpoint, and rolling back to one when the loss is NaN or infinite."""

import logging

from vitlab.config.errors import NonFinite
from vitlab.storage import checkpoint
from vitlab.storage.checkpoint import Store
from vitlab.training.optimizer import learning_rate
from vitlab.training.state import State

log = logging.getLogger("vitlab")
ROLLBACKS = 10  # without a good evaluation in between


def resume(state: State, store: Store) -> bool:
    """Takes the state over from the last checkpoint that can be believed, if there is one."""
    dist = state.setup.dist
    found = store.newest() if dist.is_rank0 else None
    path = dist.broadcast(found and found[0])
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
    setup, step = state.setup, state.step
    lr = learning_rate(setup.optimizer)
    if setup.fit.on_nonfinite != "rollback":
        setup.schedule.set(bad)
        raise NonFinite(bad, setup.steps, learning_rate(setup.optimizer))
    rollbacks, failing = state.rollbacks + 1, state.failing + 1
    if failing > ROLLBACKS or not resume(state, store):
        raise NonFinite(bad, setup.steps, lr, f", after {rollbacks - 1} rollbacks")
    log.warning(
        "the loss is NaN or infinite at step %d: goes on from there with the weights of step %d", bad, state.step
    )
    back, state.step, state.rollbacks, state.failing = state.step, step, rollbacks, failing
    state.calm = False
    state.meter.clear()
    return back
