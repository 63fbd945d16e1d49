"""A training in a pack: its numbers lie in one row of the pack's tensors, and are updated in large pieces."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from vitlab.system.lazy_imports import spare_dynamo
from vitlab.training.state import TrainState


class Member:
    """A training whose parameters, gradients and averages are views of rows.

    Its optimizer's update, where that is the same for each number, works on one piece a parameter group and not on each
    parameter, which is where a small model's update spends its time. The state's own optimizer, which is scheduled and
    saved, has the options, and views of the numbers.

    Args:
        state: of the training.
        places: of each parameter in a row, by name.
        weights: the row of the parameters, which takes over their values.
        gradients: the row of their gradients.
        averages: the row of their moving averages.
    """

    def __init__(
        self,
        state: TrainState,
        places: Mapping[str, slice],
        *,
        weights: Tensor,
        gradients: Tensor,
        averages: Tensor,
    ):
        self.state, self.own = state, state.setup.optimizer
        state.close()  # what was captured works at other addresses
        self.generator = torch.Generator(weights.device)
        named = dict(state.setup.model.named_parameters())
        for name, parameter in named.items():
            place = places[name]
            parameter.data = weights[place].copy_(parameter.data.flatten()).view_as(parameter)
            parameter.grad = gradients[place].view_as(parameter) if parameter.requires_grad else None
        if average := state.ema.average:
            for number, (name, old) in enumerate(zip(named, average, strict=True)):
                average[number] = averages[places[name]].copy_(old.flatten()).view_as(old)
            state.ema.pieces = ([averages], [weights])
        place_of = {named[name]: place for name, place in places.items()}
        pieces = [piece([place_of[p] for p in group["params"]]) for group in self.own.param_groups]
        state.use_own_optimizer()
        self.optimizer = self.own
        if elementwise(self.own) and all(pieces) and all(map(self.alike, self.own.param_groups)):
            state.parameters = [nn.Parameter(weights[each]) for each in pieces if each]
            for parameter, each in zip(state.parameters, filter(None, pieces), strict=True):
                parameter.grad = gradients[each]
            self.optimizer = over(state.parameters, self.own)
            state.optimizer = self.optimizer
        self.shared = self.optimizer is self.own
        self.share()

    def leave_out(self, unused: set[str]) -> None:
        """Updates parameter by parameter from now on, without those that get no gradient; before the first update."""
        for name in unused:
            self.state.setup.model.get_parameter(name).grad = None
        self.use_own_optimizer()

    def use_own_optimizer(self) -> None:
        """Updates parameter by parameter from now on."""
        for values in () if self.optimizer is self.own else self.own.state.values():
            values.update({key: value.clone() for key, value in values.items() if is_scalar(value)})
        self.optimizer, self.shared = self.own, True
        self.state.use_own_optimizer()

    def alike(self, group: dict[str, Any]) -> bool:
        """Whether the optimizer has seen all parameters of a group equally often: those without gradient never."""
        states = [self.own.state.get(parameter, {}) for parameter in group["params"]]
        seen = [{key: float(value) if is_scalar(value) else None for key, value in each.items()} for each in states]
        return all(each == seen[0] for each in seen)

    @property
    def attached(self) -> bool:
        """Whether the state works on these pieces still: not after a checkpoint was taken."""
        return self.state.optimizer is self.optimizer

    def begin(self, seed: int) -> None:
        """Before an update: seeds its random draws, and takes over the learning rates."""
        self.generator.manual_seed(seed)
        if self.optimizer is not self.own:
            for group, own in zip(self.optimizer.param_groups, self.own.param_groups, strict=True):
                group.update({key: value for key, value in own.items() if key != "params"})

    def share(self) -> None:
        """Gives the state's own optimizer views of the numbers of the other one, once there are some."""
        if self.shared or not self.optimizer.state:
            return
        for group, own in zip(self.optimizer.param_groups, self.own.param_groups, strict=True):
            (whole,) = group["params"]
            for parameter, place in zip(own["params"], within(own["params"]), strict=True):
                self.own.state[parameter] = {
                    key: value[place].view_as(parameter) if same_shape(value, whole) else value
                    for key, value in self.optimizer.state[whole].items()
                }
        self.shared = True


def elementwise(optimizer: Optimizer) -> bool:
    """Whether an optimizer's update of a number depends on nothing but this number's own history."""
    return type(optimizer) in (Adam, AdamW, SGD) or type(optimizer).__module__.startswith("lion_pytorch.")


def within(parameters: Iterable[Tensor]) -> list[slice]:
    """The place of each parameter in a row of them all."""
    ends = [0, *itertools.accumulate(parameter.numel() for parameter in parameters)]
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


def piece(places: list[slice]) -> slice | None:
    """The places as one, if they follow each other."""
    joined = all(one.stop == other.start for one, other in itertools.pairwise(places))
    return slice(places[0].start, places[-1].stop) if joined else None


def over(pieces: Sequence[Tensor], own: Optimizer) -> Optimizer:
    """An optimizer like another one, with its state, over one piece for each of its groups."""
    optimizer = object.__new__(type(own))
    optimizer.__dict__.update({key: value for key, value in vars(own).items() if key != "step"})
    optimizer.state = defaultdict(dict)
    optimizer.param_groups = [
        {**group, "params": [whole]} for group, whole in zip(own.param_groups, pieces, strict=True)
    ]
    for group, whole in zip(own.param_groups, pieces, strict=True):
        states = [own.state[parameter] for parameter in group["params"] if parameter in own.state]
        for key, value in states[0].items() if states else ():
            alike = same_shape(value, group["params"][0])
            optimizer.state[whole][key] = torch.cat([state[key].flatten() for state in states]) if alike else value
    return spare_dynamo(optimizer)


def is_scalar(value: Any) -> bool:
    """Whether a value of an optimizer's state is a tensor of one number, such as the count of steps."""
    return isinstance(value, Tensor) and value.ndim == 0


def same_shape(value: Any, tensor: Tensor) -> bool:
    """Whether a value of an optimizer's state is a tensor of its parameter's shape."""
    return isinstance(value, Tensor) and value.shape == tensor.shape and value.ndim > 0
