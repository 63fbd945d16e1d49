"""Metrics: their names and what is known of each."""

import math
import re
from numbers import Real
from typing import Any


def is_accuracy(metric: str) -> bool:
    """Whether it is a share of right answers: `test/accuracy`, `test/5-shot`."""
    return "accuracy" in metric or metric.endswith("-shot")


def is_share(metric: str) -> bool:
    """Whether it is shown in percent."""
    shares = {"accuracy", "top5_accuracy", "top5", "ece", "balanced_accuracy"}
    return metric.rpartition("/")[2] in shares or metric.endswith(("-shot", "-shot_std"))


def number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


STATES = ("failed", "pruned", "interrupted", "running", "damaged")


def counterpart(metric: str) -> str:
    """What validation says of the same: no arm is chosen by its test score."""
    split, _, what = metric.partition("/")
    return metric if split == "val" else f"val/{what}" if split == "test" and what else "val/accuracy"


def higher_is_better(metric: str) -> bool:
    return is_accuracy(metric) or metric.endswith("images_per_second")


METRICS = ("test/accuracy", "test/loss", "val/accuracy", "val/loss", "seconds", "images_per_second")
MEASURED = ("inference/images_per_second",)  # metrics for which cells are measured, and not trained
COSTS = ("parameters", "flops_per_image", "training_flops", "images", "seconds")
SHOTS = re.compile(r"(?:test|val)/([1-9]\d{0,5})-shot")  # metrics of fit.shots
