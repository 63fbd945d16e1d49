"""The `tracking` group of the configuration."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitlab.config.errors import ConfigError
from vitlab.data.examples import Examples
from vitlab.evaluation.classification import ClassificationReport

log = logging.getLogger("vitlab")
Mode = Literal["auto", "online", "offline", "off"]
MODES: dict[str, Mode] = {  # of WANDB_MODE
    "online": "online",
    "offline": "offline",
    "disabled": "off",
    "shared": "online",
    "run": "online",  # older words
    "dryrun": "offline",
}
PROJECT = "vitlab"
LONGEST_TAG, LONGEST_PROJECT = 64, 128  # characters that W&B takes
IN_NO_PROJECT, IN_NO_ID = "/\\#?%:", ":;,#?/'"


@dataclass(kw_only=True)
class Tracking:
    """How Weights & Biases mirrors a run. What is left open here is taken from W&B's environment variables.

    `WANDB_RUN_ID`, `WANDB_RESUME`, `WANDB_DIR` and `WANDB_JOB_TYPE` are heard as well; the first by a single run alone,
    when it is first trained.

    Args:
        mode: auto is that of `WANDB_MODE` or `WANDB_DISABLED`, else online where the user is logged in, else offline;
            off leaves W&B out.
        project: of W&B; None is `WANDB_PROJECT`, or vitlab.
        entity: user or team; None is `WANDB_ENTITY`, or the user's default.
        group: runs that belong together; None is `WANDB_RUN_GROUP`, or the seeds of one configuration.
        name: None is `WANDB_NAME`, or the folder's name.
        tags: words to filter by; none is `WANDB_TAGS`, with commas, or one for each option chosen.
        notes: a sentence about the run; None is `WANDB_NOTES`.
        sweep: name of the sweep that the run is part of, which becomes a tag and W&B's job type.
        mistakes: validation images in the table of the worst mistakes; 0 for no table.
        confusion: whether the validation images' confusion matrix is sent, and precision, recall, F1 and ROC-AUC of
            each class.
        histograms: whether weights and gradients are sent as histograms at each evaluation.
        system: whether W&B watches the machine.
        checkpoint: whether the best weights are kept as an artifact, with the run's configuration.

    Raises:
        ConfigError: online without a key, or a value that W&B refuses.
    """

    mode: Mode
    project: str | None
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
        said = "tracking=online"
        if self.mode == "auto":
            self.mode, said = mode_of_environment(), f"WANDB_MODE={os.environ.get('WANDB_MODE')}"
        if self.mode == "off":
            return
        for option in ("entity", "group", "name", "notes"):
            variable = f"WANDB_{'RUN_' * (option == 'group')}{option.upper()}"
            setattr(self, option, getattr(self, option) or os.environ.get(variable) or None)
        self.project = self.project or project_of_environment()
        words = os.environ.get("WANDB_TAGS", "").split(",")
        self.tags = tuple(self.tags) or tuple(word.strip() for word in words if word.strip())
        self.check()
        if self.mode == "online" and not logged_in():
            raise ConfigError(
                f"{said} needs a Weights & Biases key, and there is none here: run `wandb login`, or take"
                " tracking=offline"
            )

    def check(self) -> None:
        """Refuses what W&B would refuse once the training runs."""
        project, run_id = str(self.project), os.environ.get("WANDB_RUN_ID", "")
        if found := sorted(set(project) & set(IN_NO_PROJECT)):
            raise ConfigError(
                f"tracking.project={project} (or WANDB_PROJECT): Weights & Biases takes no {found[0]} in a project's"
                " name: leave it out; a team is tracking.entity=TEAM"
            )
        if len(project) > LONGEST_PROJECT:
            raise ConfigError(
                f"tracking.project={project[:20]}... (or WANDB_PROJECT) has {len(project)} characters: Weights & Biases"
                f" takes at most {LONGEST_PROJECT}"
            )
        for tag in self.tags:
            if not 1 <= len(tag) <= LONGEST_TAG:
                raise ConfigError(
                    f"tracking.tags (or WANDB_TAGS): {tag[:20]!r}... has {len(tag)} characters: Weights & Biases takes"
                    f" tags of 1 to {LONGEST_TAG}"
                )
        if run_id.strip() != run_id or set(run_id) & set(IN_NO_ID):
            raise ConfigError(
                f"WANDB_RUN_ID={run_id}: Weights & Biases takes no spaces around it, and none of {IN_NO_ID} in it"
            )
        if (resume := os.environ.get("WANDB_RESUME") or "allow") not in ("allow", "must", "never", "auto"):
            raise ConfigError(f"WANDB_RESUME={resume}: must be allow, must, never or auto")
        folder = Path(os.environ.get("WANDB_DIR") or ".").expanduser()
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if "WANDB_DIR" in os.environ and not (there.is_dir() and os.access(there, os.R_OK | os.W_OK)):
            raise ConfigError(f"WANDB_DIR={folder} cannot be written: give another folder, or unset it")


def mode_of_environment() -> Mode:
    """The mode that WANDB_DISABLED or WANDB_MODE asks for; auto where neither is set.

    Raises:
        ConfigError: it is no mode of W&B.
    """
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "off"
    mode = os.environ.get("WANDB_MODE") or "auto"
    if mode not in (*MODES, "auto"):
        raise ConfigError(f"WANDB_MODE={mode}: must be online, offline or disabled")
    return MODES.get(mode, "auto")


def project_of_environment() -> str:
    return os.environ.get("WANDB_PROJECT") or PROJECT


def ignore_run_id() -> None:
    """Takes WANDB_RUN_ID out of the environment before several runs: as one W&B run they would overwrite each other."""
    if name := os.environ.pop("WANDB_RUN_ID", None):
        print(f"WANDB_RUN_ID={name} is not used: these are several runs, and each has its own")


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
