"""Learning-rate schedules: timm's, stepped once an optimizer update.

Update u (from 0) has the learning rate of timm's time u + 1 where there is a warm-up of w updates, so that the first
update is not lost to a rate of 0: update w - 1 has the peak exactly, and the last update has the minimum.
"""

from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from vitlab.lean import modules


@dataclass(kw_only=True)
class Schedule:
    """The contract: a linear warm-up, given in one way or none, and `fall`, what a kind does after it.

    Args:
        warmup_fraction: warm-up as a share of the training.
        warmup_epochs: warm-up in epochs.
        warmup_steps: warm-up in optimizer updates.

    Raises:
        ValueError: a warm-up given twice, negative, or not shorter than the training.
    """

    warmup_fraction: float | None
    warmup_epochs: float | None
    warmup_steps: int | None

    def fall(self, optimizer: Optimizer, updates: int, **common: Any) -> Any:
        """timm's scheduler that takes `updates` from the peak to the end."""
        raise NotImplementedError(f"{type(self).__name__} has no fall")

    def warmup(self, steps: int, steps_per_epoch: float) -> int:
        """The warm-up in updates."""
        given = {"fraction": (self.warmup_fraction, steps), "epochs": (self.warmup_epochs, steps_per_epoch)}
        given |= {"steps": (self.warmup_steps, 1)}
        said = {f"schedule.warmup_{name}": pair for name, pair in given.items() if pair[0] is not None}
        if len(said) > 1:
            both = " and ".join(f"{key}={value}" for key, (value, _) in said.items())
            raise ValueError(f"{both}: give one, and set the others to null")
        for key, (value, unit) in said.items():
            assert value is not None
            updates = round(value * unit)
            if not 0 <= updates < max(2, steps):
                raise ValueError(
                    f"{key}={value} is a warm-up of {updates} steps, and the whole training has {steps}: use from 0 to"
                    f" {(steps - 1) / unit:.3g}"
                )
            return updates
        return 0

    def start(self, optimizer: Optimizer, steps: int, steps_per_epoch: float) -> "Started":
        """The schedule of a training of `steps` updates; each group's `lr` is its peak."""
        warmup = self.warmup(steps, steps_per_epoch)
        ahead = min(1, warmup)
        updates = max(1, steps - 1 + ahead - warmup)
        common = {"warmup_t": warmup, "warmup_prefix": True, "t_in_epochs": False}
        return Started(self.fall(optimizer, updates, **common), ahead)


class Started:
    """A schedule at work on an optimizer."""

    def __init__(self, scheduler: Any, ahead: int):
        self.scheduler = scheduler
        self.ahead = ahead

    def set(self, update: int) -> None:
        """Sets the learning rates of this update, counted from 0."""
        self.scheduler.step_update(update + self.ahead)


@dataclass(kw_only=True)
class Falling(Schedule):
    """A schedule that ends at `min_lr`, the learning rate of the last update."""

    min_lr: float

    def __post_init__(self) -> None:
        if self.min_lr < 0:
            raise ValueError(f"schedule.min_lr={self.min_lr}: must be 0 or more")


class Cosine(Falling):
    """Half a cosine (Loshchilov and Hutter 2017)."""

    def fall(self, optimizer: Optimizer, updates: int, **common: Any) -> Any:
        (timm,) = modules("timm.scheduler")
        return timm.CosineLRScheduler(optimizer, t_initial=updates, lr_min=self.min_lr, **common)


class Linear(Falling):
    """A straight line."""

    def fall(self, optimizer: Optimizer, updates: int, **common: Any) -> Any:
        (timm,) = modules("timm.scheduler")
        return timm.PolyLRScheduler(optimizer, t_initial=updates, power=1.0, lr_min=self.min_lr, **common)


class Constant(Schedule):
    """The peak, to the end."""

    def fall(self, optimizer: Optimizer, updates: int, **common: Any) -> Any:
        (timm,) = modules("timm.scheduler")
        return timm.StepLRScheduler(optimizer, decay_t=updates, decay_rate=1.0, **common)
