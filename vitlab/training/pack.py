"""Packs: several trainings of one shape whose forward and backward passes are computed as those of one batched model.

Each training keeps its own `TrainState`: images, random draws, loss, schedule, optimizer, metrics, checkpoints. The
weights of all lie in one tensor, a row each, and what a state has of them are views.
"""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitlab.config.errors import OutOfMemory, VitlabError
from vitlab.data.batch import Batch, Kind
from vitlab.data.seeding import seed_of
from vitlab.model.packed import Packed
from vitlab.system.graphs import Captured
from vitlab.system.hardware import empty_cache
from vitlab.system.memory import out_of_memory
from vitlab.system.precision import autocast
from vitlab.training.member import Member, within
from vitlab.training.state import TrainState
from vitlab.training.step import apply_gradients, begin, buffers_before, losses, train_step

log = logging.getLogger("vitlab")
ALIGNED = 16  # numbers, to which rows are filled up: a product's last digits may depend on where its numbers lie
FEWEST = 2  # models of a product: for a single one another kernel may be used, with other last digits
Pending = tuple[TrainState, Batch]  # a training before an update: its learning rates are set, its batch is on the host


@dataclass(frozen=True)
class Together:
    """The batches of all trainings as one.

    Args:
        kind: their kinds.
        tensors: by row and name.
    """

    kind: tuple[Kind, ...]
    tensors: dict[tuple[int, str], Tensor]

    def batches(self) -> list[Batch]:
        """The batch of each training."""
        own: list[dict[str, Tensor]] = [{} for _ in self.kind]
        for (row, name), each in self.tensors.items():
            own[row][name] = each
        return [Batch(kind, tensors) for kind, tensors in zip(self.kind, own, strict=True)]


class Pack:
    """Computes one update of each of several trainings.

    Args:
        at_once: how many models are computed together, three where 2 would leave one by itself; fewer after they did
            not fit into memory.
    """

    def __init__(self, at_once: int):
        self.at_once = max(FEWEST, at_once)
        self.members: list[Member] = []
        self.separate: list[TrainState] = []  # whose models cannot be computed as one
        self.graphs: Captured | None = None  # of the update

    def step(self, pending: Sequence[Pending]) -> None:
        """One optimizer update of each training.

        Raises:
            OutOfMemory: not even two models fit into memory.
        """
        states = [state for state, _ in pending]
        held = [member.state for member in self.members] == states and all(each.attached for each in self.members)
        if any(state in self.separate for state in states):
            self.step_separately(pending)
            return
        try:
            if not held:
                self.hold(states)
            self.update_all([batch for _, batch in pending])
        except Exception as error:
            if held or isinstance(error, VitlabError):
                raise
            reason = str(error).partition("\n")[0]
            log.warning("trained one after the other: the models cannot be computed as one (%s)", reason)
            self.separate = states
        if self.separate is states:
            self.step_separately(pending)
            return
        for state in states:
            state.packed = max(state.packed, len(states))
            state.step += 1

    def update_all(self, batches: Sequence[Batch]) -> None:
        """The update of all trainings; where they are captured, as a CUDA graph.

        Raises:
            OutOfMemory: not even two models fit into memory.
        """
        kind = tuple(batch.kind for batch in batches)
        tensors = {(row, name): each for row, batch in enumerate(batches) for name, each in batch.tensors.items()}
        before = {name: buffer.clone() for name, buffer in self.buffers.items()}
        while True:
            for member, batch in zip(self.members, batches, strict=True):
                begin(member.state, batch)
                member.begin(seed_of(member.state.setup.seed, member.state.step, 0, 1))
            try:
                if self.graphs:
                    self.graphs(Together(kind, tensors))
                else:
                    device = self.weights.device
                    self.update(Together(kind, {key: each.to(device) for key, each in tensors.items()}))
                return
            except Exception as error:
                for name, buffer in self.buffers.items():
                    buffer.copy_(before[name])
                if not out_of_memory(error):
                    raise
                self.at_once //= 2
            if self.at_once < FEWEST:
                raise OutOfMemory(f"out of memory with {FEWEST} models at once: use launcher=local")
            empty_cache(self.weights.device)
            log.warning("out of memory: %d models are computed at once", self.at_once)
            self.divide()

    def update(self, together: "Together") -> None:
        """The device's part of an update of all trainings; see `vitlab.training.step.update`."""
        states, batches = [member.state for member in self.members], together.batches()
        inputs = [state.inputs(batch) for state, batch in zip(states, batches, strict=True)]
        before = [buffers_before(state) for state in states]
        known, drawn = len(self.unused), numpy_draws()
        images, targets = [images for images, _ in inputs], [targets for _, targets in inputs]
        sums = [sums for part in self.parts for sums in self.backward(*part, images, targets)]
        if numpy_draws() != drawn:  # torch's would have failed
            raise RuntimeError("a part draws random numbers from NumPy")
        for member, own, buffers, batch in zip(self.members, sums, before, batches, strict=True):
            if len(self.unused) > known:  # they must not decay
                member.leave_out(self.unused)
            apply_gradients(member.state, own, len(batch), buffers)
            member.share()

    def close(self) -> None:
        """Drops the CUDA graphs."""
        if self.graphs:
            self.graphs.release()
            self.graphs = None

    def step_separately(self, pending: Sequence[Pending]) -> None:
        """One optimizer update of each training, one after the other."""
        for member in self.members:
            member.use_own_optimizer()
        self.members = []
        for update in pending:
            train_step(*update)

    def hold(self, states: Sequence[TrainState]) -> None:
        """Puts the numbers of these trainings into rows."""
        models, device = [state.setup.model for state in states], states[0].setup.dist.device
        self.rows = max(FEWEST, len(states))
        self.places = layout(states[0])
        size = -(-max(place.stop for place in self.places.values()) // ALIGNED) * ALIGNED
        self.weights, self.gradients, averages = (torch.zeros(self.rows, size, device=device) for _ in range(3))
        models += models[: self.rows - len(states)]  # computed, and not looked at
        named = [dict(model.named_buffers()) for model in models]
        self.buffers = {name: torch.stack([own[name] for own in named]) for name in named[0]}
        self.models, self.members = models, []
        for row, state in enumerate(states):
            rows = {"weights": self.weights[row], "gradients": self.gradients[row], "averages": averages[row]}
            self.members.append(Member(state, self.places, **rows))
            for name, stacked in self.buffers.items():
                owner, _, leaf = name.rpartition(".")
                state.setup.model.get_submodule(owner)._buffers[leaf] = stacked[row]
        self.weights[len(states) :] = self.weights[0]
        self.unused: set[str] = set()  # parameters without a gradient, known after the first step
        spare = [torch.Generator(device) for _ in range(self.rows - len(states))]
        self.generators = [*(member.generator for member in self.members), *spare]
        self.captured = all(state.setup.captured for state in states)
        self.divide()

    def divide(self) -> None:
        """Divides the rows into those that are computed together."""
        self.close()
        if self.captured:
            self.graphs = Captured(self.update, self.weights.device, *self.generators)
        parts = min(-(-self.rows // self.at_once), self.rows // FEWEST)
        ends = [self.rows * part // parts for part in range(parts + 1)]
        named = dict(self.models[0].named_parameters())
        self.parts: list[tuple[slice, Packed, dict[str, Tensor], dict[str, Tensor]]] = []
        for start, stop in itertools.pairwise(ends):
            weights, gradients = {}, {}
            for name, place in self.places.items():
                shape = (stop - start, *named[name].shape)
                weights[name] = self.weights[start:stop, place].view(shape)
                if named[name].requires_grad:
                    weights[name].requires_grad_()
                    gradients[name] = self.gradients[start:stop, place].view(shape)
            self.parts.append((slice(start, stop), Packed(self.models[start:stop]), weights, gradients))

    def backward(
        self,
        rows: slice,
        forward: Packed,
        weights: dict[str, Tensor],
        gradients: dict[str, Tensor],
        images: list[Tensor],
        targets: list[Tensor],
    ) -> list[dict[str, Tensor]]:
        """The gradients of the trainings in some rows; and for each the sums of its training metrics."""
        members = self.members[rows]
        setup, parts = members[0].state.setup, members[0].state.accumulation_steps
        spare = rows.stop - rows.start - len(members)
        buffers = {name: buffer[rows] for name, buffer in self.buffers.items()}
        batches = [each.chunk(parts) for each in images[rows]]
        labels = [each.chunk(parts) for each in targets[rows]]
        sums: list[dict[str, Tensor]] = [{} for _ in members]
        for part in range(parts):
            together = torch.stack([each[part] for each in batches + batches[:1] * spare])
            total = torch.zeros((), device=self.weights.device)
            with autocast(self.weights.device, setup.precision):
                outputs = of_each(forward(weights, buffers, together, self.generators[rows]))
                for number, member in enumerate(members):
                    loss, sums[number] = losses(member.state, outputs[number], labels[number][part], sums[number])
                    total = total + loss
            found = torch.autograd.grad(total, [weights[name] for name in gradients], allow_unused=True)
            for (name, kept), gradient in zip(gradients.items(), found, strict=True):
                if gradient is None:
                    self.unused.add(name)
                elif part:
                    kept.add_(gradient)
                else:
                    kept.copy_(gradient)
        return sums


def layout(state: TrainState) -> dict[str, slice]:
    """The place of each parameter in a row, by name: the groups of the optimizer one after the other, then the rest."""
    names = {parameter: name for name, parameter in state.setup.model.named_parameters()}
    grouped = [parameter for group in state.setup.optimizer.param_groups for parameter in group["params"]]
    ordered = [*dict.fromkeys([*grouped, *names])]
    return {names[parameter]: place for parameter, place in zip(ordered, within(ordered), strict=True)}


def numpy_draws() -> bytes:
    """The state of NumPy's global generator."""
    _, words, place, *_ = np.random.get_state()  # noqa: NPY002
    return np.append(words, place).tobytes()


def of_each(outputs: Tensor | tuple[Tensor, ...]) -> list:
    """The outputs of each model."""
    return (
        [*outputs.unbind()]
        if isinstance(outputs, Tensor)
        else [*zip(*(each.unbind() for each in outputs), strict=True)]
    )
