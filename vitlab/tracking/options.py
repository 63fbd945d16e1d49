"""The `tracking` group of the configuration."""

import logging
import os
from dataclasses import dataclass
from typing import Literal

from vitlab.config.errors import ConfigError
from vitlab.data.examples import Examples
from vitlab.evaluation.classification import ClassificationReport

log = logging.getLogger("vitlab")


@dataclass(kw_only=True)
class Tracking:
    """How Weights & Biases mirrors a run.

    Args:
        mode: auto is online where the user is logged in, else offline; off leaves W&B out.
        project: of W&B.
        entity: user or team; None is the user's default.
        group: runs that belong together.
        name: None is the folder's name.
        tags: words to filter by; none is one for each option chosen.
        notes: a sentence about the run.
        sweep: name of the sweep that the run is part of, which becomes a tag and W&B's job type.
        mistakes: validation images in the table of the worst mistakes; 0 for no table.
        confusion: whether the validation images' confusion matrix is sent, and precision, recall, F1 and ROC-AUC of
            each class.
        histograms: whether weights and gradients are sent as histograms at each evaluation.
        system: whether W&B watches the machine.
        checkpoint: whether the best weights are kept as an artifact, with the run's configuration.

    Raises:
        ConfigError: online without a key.
    """

    mode: Literal["auto", "online", "offline", "off"]
    project: str
    entity: str | None
    group: str | None
    name: str | None
    tags: tuple[str, ...]
    notes: str | None
    sweep: str | None
    mistakes: int
    confusion: bool
    histograms: bool
    system: bool
    checkpoint: bool

    def __post_init__(self) -> None:
        if self.mistakes < 0:
            raise ConfigError(f"tracking.mistakes={self.mistakes}: must be 0 (off) or more")
        if self.mode == "online" and not logged_in():
            raise ConfigError(
                "tracking=online needs a Weights & Biases key, and there is none here: run `wandb login`, or take"
                " tracking=offline"
            )


def logged_in() -> bool:
    """Whether Weights & Biases has a key for this user, without a prompt and without a request."""
    import wandb

    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return bool(wandb.login(prompt=False))
    except Exception as error:  # a refused key or an unreachable host: wandb.init reports which
        log.debug("wandb.login: %s", error)
        return True


@dataclass(frozen=True)
class ValidationMedia:
    """The classification report of the best weights on the validation images.

    Args:
        report: of all of them.
        examples: the images, in the report's order.
    """

    report: ClassificationReport
    examples: Examples
