"""One training step: forward, backward, clip, optimizer, average."""

import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vitlab.config.errors import OutOfMemory
from vitlab.data.batch import Batch
from vitlab.data.seeding import reseed
from vitlab.system.graphs import Captured, capturing
from vitlab.system.hardware import empty_cache, seed_device
from vitlab.system.memory import out_of_memory
from vitlab.system.parallelize import gradient_sync
from vitlab.system.precision import autocast
from vitlab.training.optimizer import clip
from vitlab.training.skip import count_skip, restore, snapshot
from vitlab.training.state import TrainState

log = logging.getLogger("vitlab")


def train_step(state: TrainState, batch: Batch) -> None:
    """One optimizer update: the host's part of it, around `update`.

    Args:
        state: of the training, its learning rates set; its step is counted up.
        batch: on the host.

    Raises:
        OutOfMemory: a batch is too large, and may not be computed in smaller parts.
    """
    seed_step(state)
    begin(state, batch)
    if state.setup.captured:
        capture_update(state, batch)
    else:
        update(state, batch.to(state.setup.dist.device))
    state.step += 1


def begin(state: TrainState, batch: Batch) -> None:
    """Sets the numbers that change with every step."""
    state.meter.begin(state.step, len(batch))
    state.ema.set(state.step)


def capture_update(state: TrainState, batch: Batch) -> None:
    """The update as a CUDA graph, which is captured where there is none yet."""
    state.graphs = state.graphs or Captured(partial(update, state), state.setup.dist.device)
    while True:
        try:
            state.graphs(batch)
            return
        except RuntimeError as error:  # of the capture: `forward_backward` answers what comes before
            if not out_of_memory(error):
                raise
            parts = next_accumulation(state, len(batch))
        compute_in_parts(state, parts, len(batch))


def update(state: TrainState, batch: Batch) -> None:
    """The device's part of an update.

    With `setup.captured` the host reads nothing, and all that stays is changed in place.
    """
    images, targets = state.inputs(batch)
    before = buffers_before(state)
    apply_gradients(state, forward_backward(state, images, targets, before), len(images), before)


def buffers_before(state: TrainState) -> dict[Tensor, Tensor]:
    """The model's buffers, where an update may be left out or computed again."""
    fit = state.setup.fit
    return snapshot(state.vit.buffers()) if fit.on_nonfinite == "skip" or fit.auto_accumulate else {}


def apply_gradients(state: TrainState, sums: dict[str, Tensor], images: int, before: dict[Tensor, Tensor]) -> None:
    """Clips the gradients, and updates weights, average and metrics.

    Args:
        state: of the training, its gradients computed.
        sums: of each training metric over the images.
        images: how many there were.
        before: the model's buffers before the forward pass.
    """
    setup, scaler, optimizer = state.setup, state.scaler, state.optimizer
    skips = setup.fit.on_nonfinite == "skip"
    scaler.unscale_(optimizer)
    state.gradient_norm.copy_(clip(state.parameters, setup.fit.clip))
    finite = sums["loss"].isfinite()
    if not scaler.is_enabled():  # which skips infinite gradients itself
        finite = finite & state.gradient_norm.isfinite()
    if skips:
        finite = setup.dist.all_reduce_sum((~finite).int()) == 0
        before = snapshot(state.tensors() if setup.captured else ()) | before
        count_skip(state, ~finite)
    state.meter.check(finite)
    if setup.captured or not skips or finite:  # a step that is not captured is read here, which is faster than copies
        state.meter.add(sums, images)
        scaler.step(optimizer)
        state.ema.update()
    if skips:
        restore(state.tensors() if setup.captured else before, before, where=~finite)
    scaler.update()


def seed_step(state: TrainState) -> None:
    """Seeds all random draws of a step."""
    setup = state.setup
    seed_device(setup.dist.device, reseed(setup.seed, state.step, setup.dist.rank, 1))


def forward_backward(
    state: TrainState, images: Tensor, targets: Tensor, buffers: dict[Tensor, Tensor]
) -> dict[str, Tensor]:
    """The gradients of a batch; and the sum of each training metric over its images.

    With fit.auto_accumulate a batch that is too large for the memory is computed again in smaller parts.
    """
    setup = state.setup
    while True:
        setup.optimizer.zero_grad()
        if setup.system.compile == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return accumulate(state, images, targets)
        except RuntimeError as error:
            if not out_of_memory(error) or capturing():
                raise
            parts = next_accumulation(state, len(images))
        for buffer, value in buffers.items():
            buffer.copy_(value)
        compute_in_parts(state, parts, len(images))


def accumulate(state: TrainState, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Forward and backward of a batch in `state.accumulation_steps` parts; sums of the metrics over its images."""
    setup, parts = state.setup, state.accumulation_steps
    sums: dict[str, Tensor] = {}
    for part, (x, y) in enumerate(zip(images.chunk(parts), targets.chunk(parts), strict=True)):
        with gradient_sync(setup.net, on=part == parts - 1), autocast(images.device, setup.precision):
            loss, sums = losses(state, setup.net(x), y, sums)
        loss.backward()
    return sums


def losses(
    state: TrainState, outputs: Any, targets: Tensor, sums: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a part of a batch, as it is differentiated; and the sums of the metrics with those of this part."""
    setup, exact = state.setup, state.meter.totals.dtype
    loss, metrics = setup.vit.objective.losses(outputs, targets, setup.loss)
    named = {"loss": loss.detach().to(exact) * len(targets)}
    named |= {name: values.to(exact).sum() for name, values in metrics.items()}
    sums = {name: sums[name] + value if sums else value for name, value in named.items()}
    return state.scaler.scale(loss / state.accumulation_steps), sums


def compute_in_parts(state: TrainState, parts: int, images: int) -> None:
    """Computes this and later batches in more parts; called outside of the handler, which keeps the memory alive."""
    state.accumulation_steps = parts
    state.close()
    empty_cache(state.setup.dist.device)
    log.warning("out of memory: a batch is computed in %d parts of %d", parts, images // parts)
    seed_step(state)


def next_accumulation(state: TrainState, images: int) -> int:
    """In how many parts a process's batch is computed after it was too large for the memory.

    Raises:
        OutOfMemory: fit.auto_accumulate is false, or the parts are single images.
    """
    setup, parts = state.setup, state.accumulation_steps
    more = next((n for n in range(2 * parts, images + 1) if images % n == 0), None)
    if more is not None and setup.fit.auto_accumulate:
        return more
    remedy = "use a larger patch, such as patch=p16, a smaller model, or system.activation_checkpointing=true"
    if more is not None:
        remedy = (
            f"fit.batch_size={setup.fit.batch_size} fit.accumulate={more} is the same batch in parts of"
            f" {images // more}, and fit.auto_accumulate=true finds such parts by itself"
        )
    raise OutOfMemory(
        f"out of memory at step {state.step} with {images // parts} images of {setup.vit.grid.tokens} tokens at"
        f" once: {remedy}"
    )
