"""One training step: forward, backward, clip, optimizer, average."""

import logging

import torch
from torch import Tensor, nn

from vitlab.config.errors import NonFinite, OutOfMemory
from vitlab.data.seeding import reseed
from vitlab.system.hardware import empty_cache, seed_device
from vitlab.system.memory import out_of_memory
from vitlab.system.parallelize import gradient_sync
from vitlab.system.precision import autocast
from vitlab.training.optimizer import clip, learning_rate
from vitlab.training.state import TrainState

log = logging.getLogger("vitlab")
SKIPS = 100  # skipped steps in a row after which a training ends


def train_step(state: TrainState, images: Tensor, targets: Tensor) -> None:
    """One optimizer update.

    Args:
        state: of the training; its step is counted up.
        images: normalized images on the device.
        targets: class indices (b), or class probabilities (b classes).

    Raises:
        OutOfMemory: a batch is too large, and may not be computed in smaller parts.
        NonFinite: too many updates in a row were skipped.
    """
    setup, scaler, optimizer = state.setup, state.scaler, state.setup.optimizer
    skips = setup.fit.on_nonfinite == "skip"
    buffers = snapshot(setup.vit) if skips or setup.fit.auto_accumulate else {}
    sums = forward_backward(state, images, targets, buffers)
    scaler.unscale_(optimizer)
    state.gradient_norm = clip(setup.vit, setup.fit.clip)
    checked = None if scaler.is_enabled() else state.gradient_norm  # in fp16 the scaler skips infinite gradients
    if skips and setup.dist.any_rank(not (sums["loss"].isfinite() and (checked is None or checked.isfinite()))):
        restore(buffers)
        count_skip(state)
    else:
        state.nonfinite_in_a_row = 0 if skips else state.nonfinite_in_a_row
        state.meter.add(state.step, sums, len(images), checked)
        scaler.step(optimizer)
        state.ema.update(state.step)
    scaler.update()
    state.step += 1


def forward_backward(
    state: TrainState, images: Tensor, targets: Tensor, buffers: dict[Tensor, Tensor]
) -> dict[str, Tensor]:
    """The gradients of a batch; and the sum of each training metric over its images.

    With fit.auto_accumulate a batch that is too large for the memory is computed again in smaller parts.
    """
    setup = state.setup
    while True:
        seed = reseed(setup.seed, state.step, setup.dist.rank, 1)  # all random draws of this step
        seed_device(setup.dist.device, seed)
        setup.optimizer.zero_grad()
        if setup.system.compile == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return accumulate(state, images, targets)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            parts = next_accumulation(state, len(images))
        state.accumulation_steps = parts  # outside of the handler, which keeps the memory alive
        restore(buffers)
        empty_cache(setup.dist.device)
        log.warning("out of memory: a batch is computed in %d parts of %d", parts, len(images) // parts)


def accumulate(state: TrainState, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Forward and backward of a batch in `state.accumulation_steps` parts; sums of the metrics over its images."""
    setup, parts, exact = state.setup, state.accumulation_steps, state.meter.totals.dtype
    sums: dict[str, Tensor] = {}
    for part, (x, y) in enumerate(zip(images.chunk(parts), targets.chunk(parts), strict=True)):
        with gradient_sync(setup.net, on=part == parts - 1), autocast(images.device, setup.precision):
            loss, metrics = setup.vit.objective.losses(setup.net(x), y, setup.loss)
        state.scaler.scale(loss / parts).backward()
        named = {"loss": loss.detach().to(exact) * len(x)} | {name: m.to(exact).sum() for name, m in metrics.items()}
        sums = {name: sums[name] + value if sums else value for name, value in named.items()}
    return sums


def snapshot(model: nn.Module) -> dict[Tensor, Tensor]:
    """A copy of each buffer (running means), for `restore`."""
    return {buffer: buffer.clone() for buffer in model.buffers()}


def restore(buffers: dict[Tensor, Tensor]) -> None:
    """Gives buffers the values of their `snapshot`."""
    for buffer, before in buffers.items():
        buffer.copy_(before)


def count_skip(state: TrainState) -> None:
    """Counts a skipped update.

    Raises:
        NonFinite: there were too many in a row.
    """
    state.skipped += 1
    state.nonfinite_in_a_row += 1
    if state.nonfinite_in_a_row == 1:
        log.warning("the loss is NaN or infinite at step %d: such updates are skipped", state.step)
    if state.nonfinite_in_a_row > SKIPS:
        lr = learning_rate(state.setup.optimizer)
        raise NonFinite(state.step, state.setup.steps, lr, f", after {SKIPS} such steps in a row")


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
