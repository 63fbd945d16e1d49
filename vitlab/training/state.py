"""What a training is between two steps: all that it needs to go on as if nothing had happened.

The states of random generators are no part of it: they are set from (seed, step) in each step and from (seed, epoch,
image) for each image, so the number of a step says what all of them will give, and which images come next.
"""

from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor

from vitlab.config.errors import CheckpointError
from vitlab.system.distributed import gather_state, shard_like
from vitlab.training.ema import Ema
from vitlab.training.meter import Meter
from vitlab.training.optimizer import evaluating
from vitlab.training.recipe import TrainingSetup

PLAIN = ("step", "best", "stale", "seconds", "parts", "skipped", "rollbacks", "failing", "calm")


class State:
    """A training at a step.

    `step` updates are done; `best` are the scores of the best evaluation, with its `step`, and `weights` the model's
    then; `stale` evaluations have passed since; `seconds` were spent; a batch is computed in `parts`; `skipped` updates
    were left out for not being finite and `rollbacks` made, the last `failing` of them in a row.

    Args:
        ready: what is trained.
        wrote: what the checkpoints say about who wrote them; `run` is the run's identity.
    """

    def __init__(self, setup: TrainingSetup, wrote: dict[str, str]):
        self.setup = setup
        self.wrote = wrote
        self.model = setup.model
        self.ema = Ema(setup.model, setup.fit.ema_decay)
        self.scaler = torch.amp.GradScaler(setup.dist.device.type, enabled=setup.precision == "fp16")
        self.meter = Meter(setup.dist.device)
        self.step = self.stale = self.skipped = self.rollbacks = self.failing = 0
        self.calm = True  # whether nothing was rolled back since the last evaluation
        self.seconds = 0.0
        self.parts = setup.fit.accumulate
        self.best: dict[str, Any] | None = None
        self.weights: dict[str, Tensor] = {}

    def judged(self) -> AbstractContextManager:
        """The model with the weights that are evaluated and kept: the averaged ones, where there is an average."""
        stack = ExitStack()
        stack.enter_context(evaluating(self.setup.optimizer))
        stack.enter_context(self.ema.in_place())
        return stack

    def score(self, scores: dict[str, float]) -> bool:
        """Takes the scores of an evaluation in; whether they are the best so far."""
        best = self.best
        better = best is None or (-scores["accuracy"], scores["loss"]) < (-best["accuracy"], best["loss"])
        self.stale = 0 if better else self.stale + 1
        if better:
            self.best = {"step": self.step, **scores}
            with self.judged():
                self.weights = gather_state(self.model.state_dict())
        if self.setup.fit.on_nonfinite == "rollback":
            self.failing = 0 if self.calm else self.failing
            self.calm = True
        return better

    def capture(self) -> dict[str, Any]:
        """A copy of everything, complete and on the CPU; every process must call it, and the first one gets it."""
        keep = self.setup.dist.is_rank0
        return {
            **{key: getattr(self, key) for key in PLAIN},
            "wrote": self.wrote,
            "model": gather_state(self.model.state_dict(), keep),
            "weights": self.weights,
            "optimizer": gather_state(self.setup.optimizer.state_dict(), keep),
            "ema": gather_state(self.ema.state_dict(), keep),
            "scaler": self.scaler.state_dict(),
            "meter": self.meter.state_dict(self.setup.dist),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Takes over what `capture` gave, in however many processes it did so.

        Raises:
            CheckpointError: it is of another run, or of a vitlab that kept other things.
        """
        wrote = saved.get("wrote")
        wrote = wrote if isinstance(wrote, dict) else {}
        if wrote.get("run") != self.wrote["run"]:
            raise CheckpointError(
                f"the checkpoint in this folder is of another run ({wrote.get('run')}, not {self.wrote['run']}): move"
                " the folder away"
            )
        optimizer, dist = self.setup.optimizer, self.setup.dist
        try:
            self.load_model(saved["model"])
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            of_each = {
                i: {key: shard_like(v, parameters[i]) if same(v, parameters[i]) else v for key, v in kept.items()}
                for i, kept in saved["optimizer"]["state"].items()
            }
            optimizer.load_state_dict({**saved["optimizer"], "state": of_each})
            self.ema.load_state_dict(saved["ema"])
            self.scaler.load_state_dict(saved["scaler"])
            self.meter.load_state_dict(saved["meter"], dist)
            self.weights = saved["weights"]
            for key in PLAIN:
                setattr(self, key, saved[key])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint in this folder, written by vitlab {wrote.get('vitlab')}, does not fit this one"
                f" ({str(error).splitlines()[0]}): move the folder away, or take that version"
            ) from error

    def load_model(self, weights: dict[str, Tensor]) -> None:
        """Gives the model complete weights, of which each process takes its part."""
        now = self.model.state_dict()
        self.model.load_state_dict({key: shard_like(value, now[key]) for key, value in weights.items()})


def same(value: Any, parameter: Tensor) -> bool:
    """Whether a value of an optimizer's state is a tensor that goes with its parameter's numbers."""
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape == parameter.shape
