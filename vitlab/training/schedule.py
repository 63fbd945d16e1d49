"""Learning-rate schedules: timm's, stepped once an optimizer update.

Update u (from 0) has the learning rate of timm's time u + 1 where there is a warm-up of w updates, so that the first
update does not have a learning rate of 0: update w - 1 has the peak exactly, and the last update has the minimum.
"""

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from vitlab.config.errors import ConfigError
from vitlab.system.lazy_imports import modules

logging.getLogger("timm.scheduler").setLevel(logging.ERROR)  # it warns of trainings of one step


@dataclass(kw_only=True)
class Schedule(ABC):
    """The contract: a linear warm-up, given in one way or none, and `after_warmup`, what a kind does after it.

    Args:
        warmup_fraction: warm-up as a fraction of the training.
        warmup_epochs: warm-up in epochs.
        warmup_steps: warm-up in optimizer updates.

    Raises:
        ConfigError: a warm-up given twice, negative, or not shorter than the training.
    """

    warmup_fraction: float | None
    warmup_epochs: float | None
    warmup_steps: int | None

    @abstractmethod
    def after_warmup(self, optimizer: Optimizer, updates: int, **common: Any) -> Any:
        """timm's scheduler that takes `updates` from the peak to the end."""

    def warmup(self, steps: int, steps_per_epoch: float) -> int:
        """The warm-up in updates."""
        warmups = {"fraction": (self.warmup_fraction, steps), "epochs": (self.warmup_epochs, steps_per_epoch)}
        warmups |= {"steps": (self.warmup_steps, 1)}
        chosen = {f"schedule.warmup_{name}": pair for name, pair in warmups.items() if pair[0] is not None}
        if len(chosen) > 1:
            both = " and ".join(f"{key}={value}" for key, (value, _) in chosen.items())
            raise ConfigError(f"{both}: give one, and set the others to null")
        for key, (value, unit) in chosen.items():
            assert value is not None
            updates = round(value * unit)
            if not 0 <= updates < max(2, steps):
                raise ConfigError(
                    f"{key}={value} is a warm-up of {updates} steps, and the training has {steps}: use from 0 to"
                    f" {(steps - 1) / unit:.3g}"
                )
            return updates
        return 0

    def start(
        self, optimizer: Optimizer, steps: int, steps_per_epoch: float, device: torch.device | None = None
    ) -> "Scheduler":
        """The schedule of a training of `steps` updates; each group's `lr` is its peak.

        Args:
            optimizer: whose learning rates are set.
            steps: of the training.
            steps_per_epoch: of it.
            device: where the learning rates lie in a tensor, for a step that is captured; None for numbers.
        """
        warmup = self.warmup(steps, steps_per_epoch)
        ahead = min(1, warmup)
        updates = max(1, steps - 1 + ahead - warmup)
        common = {"warmup_t": warmup, "warmup_prefix": True, "t_in_epochs": False}
        return Scheduler(self.after_warmup(optimizer, updates, **common), ahead, device)


class Scheduler:
    """A schedule applied to an optimizer."""

    def __init__(self, scheduler: Any, ahead: int, device: torch.device | None):
        self.scheduler = scheduler
        self.ahead = ahead
        self.rates = None if device is None else torch.zeros(len(scheduler.optimizer.param_groups), device=device)

    def set(self, update: int) -> None:
        """Sets the learning rates of this update, counted from 0."""
        self.scheduler.step_update(update + self.ahead)
        if self.rates is not None:  # timm wrote numbers into the groups: one copy moves all, to where they always lie
            groups = self.scheduler.optimizer.param_groups
            self.rates.copy_(torch.tensor([group["lr"] for group in groups]), non_blocking=True)
            for group, rate in zip(groups, self.rates.unbind(), strict=True):
                group["lr"] = rate


@dataclass(kw_only=True)
class Falling(Schedule):
    """A schedule that ends at `min_lr`, the learning rate of the last update."""

    min_lr: float

    def __post_init__(self) -> None:
        if self.min_lr < 0:
            raise ConfigError(f"schedule.min_lr={self.min_lr}: must be 0 or more")


@dataclass(kw_only=True)
class Cosine(Falling):
    """Half a cosine, or several with warm restarts (Loshchilov and Hutter 2017).

    Args:
        cycles: number of half cosines, of one length.
        cycle_decay: peak of each cycle as a fraction of the peak before it.
    """

    cycles: int
    cycle_decay: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cycles < 1:
            raise ConfigError(f"schedule.cycles={self.cycles}: must be at least 1")
        if not 0 < self.cycle_decay <= 1:
            raise ConfigError(f"schedule.cycle_decay={self.cycle_decay}: must be above 0 and at most 1")

    def after_warmup(self, optimizer: Optimizer, updates: int, **common: Any) -> Any:
        if self.cycles > updates:
            raise ConfigError(f"schedule.cycles={self.cycles}: there are {updates} steps after the warm-up")
        (timm,) = modules("timm.scheduler")
        cycles = {"cycle_limit": self.cycles, "cycle_decay": self.cycle_decay}
        return timm.CosineLRScheduler(
            optimizer, t_initial=updates / self.cycles, lr_min=self.min_lr, **cycles, **common
        )


class Linear(Falling):
    """Linear decay."""

    def after_warmup(self, optimizer: Optimizer, updates: int, **common: Any) -> Any:
        (timm,) = modules("timm.scheduler")
        return timm.PolyLRScheduler(optimizer, t_initial=updates, power=1.0, lr_min=self.min_lr, **common)


class Constant(Schedule):
    """The peak learning rate to the end."""

    def after_warmup(self, optimizer: Optimizer, updates: int, **common: Any) -> Any:
        (timm,) = modules("timm.scheduler")
        return timm.StepLRScheduler(optimizer, decay_t=updates, decay_rate=1.0, **common)


@dataclass(kw_only=True)
class Step(Schedule):
    """The peak, multiplied by a factor at each of some milestones (He et al. 2016).

    Args:
        milestones: fractions of the training, increasing.
        factor: what the learning rate is multiplied by at each.
    """

    milestones: tuple[float, ...]
    factor: float

    def __post_init__(self) -> None:
        if not all(0 < m < 1 for m in self.milestones) or sorted(set(self.milestones)) != list(self.milestones):
            raise ConfigError(
                f"schedule.milestones={list(self.milestones)}: must be increasing fractions of the training, such as"
                " [0.5, 0.75]"
            )
        if not 0 < self.factor < 1:
            raise ConfigError(f"schedule.factor={self.factor}: must lie between 0 and 1; 0.1 is usual")

    def after_warmup(self, optimizer: Optimizer, updates: int, **common: Any) -> Any:
        (timm,) = modules("timm.scheduler")
        warmup = common["warmup_t"]
        ahead = min(1, warmup)
        steps = updates + 1 - ahead + warmup
        # timm multiplies one step before a milestone
        milestones = [round(fraction * steps) + ahead - warmup + 1 for fraction in self.milestones]
        if milestones and milestones[0] <= ahead:
            raise ConfigError(
                f"schedule.milestones={list(self.milestones)}: the first falls into the warm-up: raise it, or shorten"
                " schedule.warmup_fraction"
            )
        return timm.MultiStepLRScheduler(optimizer, decay_t=milestones, decay_rate=self.factor, **common)


@dataclass(kw_only=True)
class Wsd(Falling):
    """Warm-up, stable, decay: the peak, and a decay at the end that can begin at any step (Hu et al. 2024).

    Args:
        decay_fraction: the decay as a fraction of the training.
        decay: shape of the decay; `1-sqrt` did best in Haegele et al. 2024.
    """

    decay_fraction: float
    decay: Literal["linear", "1-sqrt", "cosine"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.decay_fraction <= 1:
            raise ConfigError(f"schedule.decay_fraction={self.decay_fraction}: must be above 0 and at most 1")

    def after_warmup(self, optimizer: Optimizer, updates: int, **common: Any) -> Any:
        (timm,) = modules("timm.scheduler")
        del common["warmup_prefix"]  # always so in this one
        length = max(1, round(self.decay_fraction * (updates + common["warmup_t"])))
        return timm.WSDLRScheduler(
            optimizer,
            t_initial=updates,
            decay_t=min(updates, length),
            lr_min=self.min_lr,
            decay_fn=self.decay,
            **self.stable(common["warmup_t"]),
            **common,
        )

    def stable(self, warmup: int) -> dict[str, Any]:
        """timm's options for the steps between warm-up and decay."""
        return {"stable_fn": "constant"}


@dataclass(kw_only=True)
class Rsqrt(Wsd):
    """The reciprocal square root of the step, then a decay: trainings of open length (Zhai et al. 2022).

    Args:
        timescale: steps after which the learning rate has fallen to 1 / sqrt(2) of the peak; None is the warm-up's
            length.
    """

    timescale: int | None

    def stable(self, warmup: int) -> dict[str, Any]:
        timescale = self.timescale if self.timescale is not None else warmup
        if timescale < 1:
            raise ConfigError(
                f"schedule.timescale={timescale}: must be at least 1 step; null takes the warm-up's length, which is"
                f" {warmup} here"
            )
        return {"stable_fn": "rsqrt", "stable_timescale": float(timescale)}
