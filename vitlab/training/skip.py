"""Leaving out updates whose loss or gradient is NaN or infinite.

In a captured step this is decided on the device: the update is computed all the same, and everything that it changed
gets back the values from before. The counts are read at the next row or checkpoint, where it is said.
"""

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from vitlab.config.errors import NonFinite
from vitlab.training.meter import NEVER
from vitlab.training.optimizer import learning_rate
from vitlab.training.state import TrainState

log = logging.getLogger("vitlab")
SKIPS = 100  # skipped steps in a row after which a training ends


@torch.no_grad()
def snapshot(tensors: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    """A copy of each tensor's numbers."""
    return {tensor: tensor.clone() for tensor in tensors}


@torch.no_grad()
def restore(tensors: Iterable[Tensor], before: dict[Tensor, Tensor], where: Tensor) -> None:
    """Gives tensors the values of their `snapshot`, in place, if `where` is true; those without one become 0."""
    for tensor in tensors:
        if tensor in before:
            torch.where(where, before[tensor], tensor, out=tensor)
        else:
            tensor.masked_fill_(where, 0)


def count_skip(state: TrainState, bad: Tensor) -> None:
    """Counts an update if it is left out: of all; and in a row, which goes on for good above SKIPS."""
    skipped, in_a_row = state.skips.unbind()
    skipped += bad
    in_a_row.copy_((in_a_row + 1) * (bad | (in_a_row > SKIPS)))


def report_skips(state: TrainState, first: int | None, skipped: int, in_a_row: int) -> None:
    """Takes over how many updates were left out, and says where that began.

    Args:
        state: of the training.
        first: the first such update since the last reading; None if there was none.
        skipped: such updates, of the whole training.
        in_a_row: the last ones, without another in between.

    Raises:
        NonFinite: there were too many in a row.
    """
    if first is not None and state.nonfinite_in_a_row == 0:
        log.warning("the loss is NaN or infinite at step %d: such updates are skipped", first)
    state.meter.bad.fill_(NEVER)
    state.skipped, state.nonfinite_in_a_row = skipped, in_a_row
    if state.nonfinite_in_a_row > SKIPS:
        last, lr = state.step - state.nonfinite_in_a_row + SKIPS, learning_rate(state.setup.optimizer)
        raise NonFinite(last, state.setup.steps, lr, f", after {SKIPS} such steps in a row")
