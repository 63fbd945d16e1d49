"""The state of a training between two steps: all that it needs to continue as if it had never stopped.

The states of random generators are no part of it: they are set from (seed, step) in each step and from (seed, epoch,
image) for each image, so the number of a step determines every draw, and which images come next.
"""

import math
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from vitlab.config.errors import CheckpointError
from vitlab.evaluation.evaluate import Evaluator
from vitlab.storage.metrics import rank
from vitlab.system.distributed import shard_like
from vitlab.system.graphs import Captured
from vitlab.system.host_copies import HostCopies
from vitlab.training.batches import train_inputs
from vitlab.training.ema import Ema
from vitlab.training.meter import Meter
from vitlab.training.optimizer import evaluating, learning_rate, set_capturable
from vitlab.training.recipe import TrainingSetup

SAVED = {  # attributes that are saved as they are, and their names in checkpoints of 0.1.0
    "step": "step",
    "best": "best",
    "evals_since_best": "stale",
    "seconds": "seconds",
    "accumulation_steps": "parts",
    "skipped": "skipped",
    "rollbacks": "rollbacks",
    "nonfinite_in_a_row": "failing",
    "finite_since_eval": "calm",
}


class TrainState:
    """A training after `step` updates.

    Attributes:
        step: updates done.
        best: the scores of the best evaluation, and its `step`.
        weights: the model's weights at that step, to be read after `copies.wait()`.
        copies: makes the copies on the CPU.
        optimizer, parameters: that an update works on: in a pack, the same numbers in larger pieces.
        packed: how many trainings were computed together, at most; 0 outside of packs.
        evals_since_best: evaluations since then.
        accumulation_steps: parts that a batch is computed in.
        skipped: updates left out because the loss or the gradient was NaN or infinite, at the last reading.
        rollbacks: times that the weights of an earlier checkpoint were taken.
        nonfinite_in_a_row: skips or rollbacks since the last good step or evaluation, at the last reading.
        finite_since_eval: whether nothing was rolled back since the last evaluation.
        gradient_norm: of the last update, before clipping; `last_norm` is its number at the last `fetch`.

    Args:
        setup: what is trained.
        run_id: the run's identity, which its checkpoints carry.
        earlier_id: the one that an earlier version may have given it.
    """

    def __init__(self, setup: TrainingSetup, run_id: str, earlier_id: str | None = None):
        self.setup, self.run_ids = setup, (run_id, earlier_id)
        self.wrote = {"vitlab": version("vitlab"), "torch": str(torch.__version__), "run": run_id}
        self.vit, self.inputs = setup.vit, train_inputs(setup)
        self.use_own_optimizer()
        self.ema = Ema(setup.vit, setup.fit.ema_decay, setup.captured)
        self.graphs: Captured | None = None  # of the update
        self.evaluate = Evaluator(
            setup.model, setup.dist, setup.precision, setup.vit.objective, captured=setup.captured
        )
        self.scaler = torch.amp.GradScaler(setup.dist.device.type, enabled=setup.precision == "fp16")
        self.meter = Meter(setup.dist.device)
        self.step = self.evals_since_best = self.skipped = self.rollbacks = self.nonfinite_in_a_row = 0
        self.finite_since_eval = True
        self.accumulation_steps, self.packed = setup.fit.accumulate, 0
        self.best: dict[str, Any] | None = None
        self.weights: dict[str, Tensor] = {}
        self.copies = HostCopies(setup.dist.device)
        self.skips = torch.zeros(2, dtype=torch.int64, device=setup.dist.device)  # see `skip`
        self.gradient_norm, self.last_norm = torch.zeros((), device=setup.dist.device), 0.0
        self.seconds_before, self.started = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds spent, those before a resume included."""
        return self.seconds_before + time.perf_counter() - self.started

    @seconds.setter
    def seconds(self, value: float) -> None:
        self.seconds_before, self.started = value, time.perf_counter()

    def tensors(self) -> list[Tensor]:
        """What an update changes: weights, the optimizer's state, averages, sums of metrics."""
        kept = [value for own in self.optimizer.state.values() for value in own.values()]
        kept = [value for value in kept if isinstance(value, Tensor)]
        own = [*self.ema.average, self.meter.totals, self.meter.images]
        return [*self.vit.parameters(), *self.vit.buffers(), *kept, *own]

    @property
    def flops(self) -> int:
        """Floating-point operations so far, forward and backward."""
        return self.step * self.setup.fit.batch_size * (self.setup.flops + self.setup.backward_flops)

    @property
    def out_of_patience(self) -> bool:
        """Whether early stopping ends the training."""
        patience = self.setup.fit.patience
        return patience is not None and self.evals_since_best >= patience

    @property
    def is_best(self) -> bool:
        """Whether the evaluation at this step was the best so far."""
        return self.best is not None and self.best["step"] == self.step

    def fetch(self) -> tuple[int, int]:
        """Reads from the device, in one copy, what a row, a checkpoint and the decisions of this step need.

        Returns:
            Updates left out, and how many in a row.
        """
        self.last_norm, skipped, in_a_row = self.meter.fetch(self.setup.dist, self.gradient_norm, self.skips)
        return int(skipped), int(in_a_row)

    def row(self) -> dict[str, Any]:
        """The row of metrics.jsonl for the steps since the last one, as of `fetch`."""
        setup = self.setup
        row = {
            "step": self.step,
            "epoch": self.step / setup.steps_per_epoch,
            "images": self.step * setup.fit.batch_size,
            "training_flops": self.flops,
            "seconds": self.seconds,
            "lr": learning_rate(setup.optimizer),
            **self.meter.read(setup.dist),
        }
        row |= {"train/gradient_norm": self.last_norm} if math.isfinite(self.last_norm) else {}
        row |= {"train/skipped": self.skipped} if setup.fit.on_nonfinite == "skip" else {}
        return row

    @contextmanager
    def eval_weights(self) -> Generator[None]:
        """While entered, the model has the weights that are evaluated and kept: the averaged ones, if there are any."""
        with evaluating(self.setup.optimizer), self.ema.in_place():
            yield

    def close(self) -> None:
        """Drops the CUDA graphs: at the end, and where what they were captured with changes."""
        for each in (self.graphs, self.evaluate.graphs):
            if each:
                each.release()

    def record(self, scores: dict[str, Any]) -> None:
        """Takes the scores of an evaluation, and keeps the weights if they are the best; within `eval_weights`."""
        by = self.setup.fit.best
        if self.best is None or rank(scores, by) > rank(self.best, by):
            self.best = {"step": self.step, **scores}
            self.weights = self.copies.copy(self.vit.state_dict())
            self.evals_since_best = 0
        else:
            self.evals_since_best += 1
        if self.setup.fit.on_nonfinite == "rollback":
            self.nonfinite_in_a_row = 0 if self.finite_since_eval else self.nonfinite_in_a_row
            self.finite_since_eval = True

    def best_checkpoint(self) -> dict[str, Any] | None:
        """The contents of best.pt."""
        if self.best is None:
            return None
        facts = self.setup.model_facts()
        return {"step": self.best["step"], "model": self.weights, "facts": facts, "wrote": self.wrote}

    def capture(self) -> dict[str, Any]:
        """A copy of everything, complete and on the CPU; every process must call it, and rank 0 gets it.

        It is not to be read before `copies.wait()`.
        """
        keep, copy, optimizer = self.setup.dist.is_rank0, self.copies.copy, self.setup.optimizer
        averaged = bool(self.ema.average) or hasattr(optimizer, "eval")  # what is evaluated are other weights
        return {
            **{name: getattr(self, name) for name in SAVED},
            "wrote": self.wrote,
            "packed": self.packed,
            "classes": list(self.setup.dataset.classes),
            "model": self.weights if self.is_best and not averaged else copy(self.vit.state_dict(), keep),
            "weights": self.weights,
            "optimizer": copy(optimizer.state_dict(), keep),
            "ema": copy(self.ema.state_dict(), keep),
            "scaler": self.scaler.state_dict(),
            "meter": self.meter.state_dict(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Takes over what `capture` gave, whatever the number of processes that it was captured in.

        Raises:
            CheckpointError: it is of another run, or of a vitlab that saved other things.
        """
        wrote = saved.get("wrote")
        wrote = wrote if isinstance(wrote, dict) else {}
        if wrote.get("run") not in self.run_ids:
            raise CheckpointError(
                f"the checkpoint in this folder is of another run ({wrote.get('run')}, not {self.wrote['run']}): move"
                " the folder away"
            )
        classes = list(self.setup.dataset.classes)
        if (before := saved.get("classes", classes)) != classes:
            odd = [f"{was} is now {name}" for was, name in zip(before, classes, strict=False) if was != name]
            raise CheckpointError(
                f"the checkpoint in this folder is of {len(before)} classes, and the images are of {len(classes)}, or"
                f" others ({', '.join(odd[:3]) or 'the first are the same'}): labels would be exchanged: move the"
                " folder away, or give the images that it was trained on"
            )
        optimizer = self.setup.optimizer
        self.close()  # the optimizer's state goes to other addresses
        try:
            self.load_model(saved["model"])
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            states = {
                i: {key: shard_like(v, parameters[i]) if like(v, parameters[i]) else v for key, v in state.items()}
                for i, state in saved["optimizer"]["state"].items()
            }
            optimizer.load_state_dict({**saved["optimizer"], "state": states})
            set_capturable(optimizer, self.setup.captured)
            self.use_own_optimizer()
            self.ema.load_state_dict(saved["ema"])
            self.scaler.load_state_dict(saved["scaler"])
            self.meter.load_state_dict(saved["meter"], self.setup.dist)
            self.weights, self.packed = saved["weights"], saved.get("packed", 0)
            for name, first_name in SAVED.items():
                setattr(self, name, saved[name] if name in saved else saved[first_name])
            self.skips.copy_(torch.tensor([self.skipped, self.nonfinite_in_a_row]))
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint in this folder, written by vitlab {wrote.get('vitlab')}, does not fit this one"
                f" ({str(error).splitlines()[0]}): move the folder away, or use that version"
            ) from error

    def use_own_optimizer(self) -> None:
        """Updates parameter by parameter from now on, as outside of a pack."""
        self.optimizer, self.parameters = self.setup.optimizer, list(self.vit.parameters())

    def load_model(self, weights: dict[str, Tensor]) -> None:
        """Gives the model complete weights; with FSDP each process takes its part."""
        self.copies.wait()
        now = self.vit.state_dict()
        self.vit.load_state_dict({key: shard_like(value, now[key]) for key, value in weights.items()})


def like(value: Any, parameter: Tensor) -> bool:
    """Whether a value of an optimizer's state is a tensor of its parameter's shape."""
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape == parameter.shape
