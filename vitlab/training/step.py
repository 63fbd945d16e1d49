"""One training step: forward, backward, clip, optimizer, average."""

import logging

import torch
from torch import Tensor

from vitlab.config.errors import NonFinite, OutOfMemory
from vitlab.data.seeding import reseed
from vitlab.system.memory import out_of_memory
from vitlab.system.parallelize import gradient_sync
from vitlab.system.precision import autocast
from vitlab.training.optimizer import clip, learning_rate
from vitlab.training.state import State

log = logging.getLogger("vitlab")
SKIPS = 100  # skipped steps in a row; more, and the training is not worth going on with


def train_step(state: State, images: Tensor, targets: Tensor) -> Tensor:
    """One optimizer update, computed in `state.parts` parts; gives the norm of its gradient before clipping.

    Raises:
        OutOfMemory: a part is too large, and may not be made smaller.
        NonFinite: too many updates in a row were left out.
    """
    setup, scaler, optimizer = state.setup, state.scaler, state.setup.optimizer
    options, dist, step = setup.fit, setup.dist, state.step
    reversible = options.on_nonfinite == "skip" or options.auto_accumulate
    buffers = {b: b.clone() for b in setup.model.buffers()} if reversible else {}
    sums = None
    while sums is None:
        seed = reseed(setup.seed, step, dist.rank, 1)  # all that this step draws
        if dist.device.type == "cuda":  # torch.manual_seed would ask every backend there is, for 0.15 ms
            torch.cuda.manual_seed(seed)
        optimizer.zero_grad()
        if setup.system.compile == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        try:
            sums = backward(state, images, targets)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            smaller = next_accumulation(state, len(images))
        if sums is None:  # out of the handler, which holds on to the memory
            state.parts = smaller
            revert(buffers)
            torch.cuda.empty_cache()
            log.warning("out of memory: a batch is computed in %d parts of %d", smaller, len(images) // smaller)
    scaler.unscale_(optimizer)
    gradient = clip(setup.model, options.clip)
    norm = None if scaler.is_enabled() else gradient  # in fp16 the scaler leaves out what is infinite
    if options.on_nonfinite == "skip" and dist.any_rank(
        not sums[0].isfinite() or (norm is not None and not norm.isfinite())
    ):
        revert(buffers)
        state.skipped += 1
        state.failing += 1
        if state.failing == 1:
            log.warning("the loss is NaN or infinite at step %d: such updates are left out", step)
        if state.failing > SKIPS:
            raise NonFinite(step, setup.steps, learning_rate(optimizer), f", after {SKIPS} such steps in a row")
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
    setup, parts, sums = state.setup, state.parts, torch.zeros(2, dtype=torch.float64, device=images.device)
    for part, (x, y) in enumerate(zip(images.chunk(parts), targets.chunk(parts), strict=True)):
        with gradient_sync(setup.net, on=part == parts - 1), autocast(images.device, setup.precision):
            loss, right = setup.model.objective.losses(setup.net(x), y, setup.loss)
        state.scaler.scale(loss / parts).backward()
        sums += torch.stack((loss.detach().double() * len(x), right.sum()))
    return sums


def revert(buffers: dict[Tensor, Tensor]) -> None:
    """Gives buffers the values that they had."""
    for buffer, before in buffers.items():
        buffer.copy_(before)


def next_accumulation(state: State, images: int) -> int:
    """In how many parts a batch of this process is computed next.

    Raises:
        OutOfMemory: nobody asked for that, or the parts are single images.
    """
    setup, parts = state.setup, state.parts
    more = next((n for n in range(2 * parts, images + 1) if images % n == 0), None)
    if more is not None and setup.fit.auto_accumulate:
        return more
    way = "take a larger patch, such as patch=p16, a smaller model, or system.activation_checkpointing=true"
    if more is not None:
        way = (
            f"fit.batch_size={setup.fit.batch_size} fit.accumulate={more} is the same batch in parts of"
            f" {images // more}, and fit.auto_accumulate=true finds such parts by itself"
        )
    raise OutOfMemory(
        f"out of memory at step {state.step} with {images // parts} images of {setup.model.grid.tokens} tokens at"
        f" once: {way}"
    )
