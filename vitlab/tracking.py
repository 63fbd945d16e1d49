"""Tracking: metrics.jsonl is the source of truth, Weights & Biases its mirror, the terminal its face."""

import logging
import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from vitlab import pictures
from vitlab.dataset.examples import Examples
from vitlab.files import write_whole
from vitlab.journal import Journal
from vitlab.judge import Judgement
from vitlab.run import Run

log = logging.getLogger("vitlab")
QUIET = 30.0  # seconds without a line, at most, where no progress bar can be drawn
LEAVING = 10.0  # seconds for the mirror when a training ends early: a scheduler gives 30 before it kills


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
        confusion: whether the validation images' confusion matrix is sent.
        histograms: whether weights and gradients are sent as histograms at each evaluation.
        system: whether W&B watches the machine.
        checkpoint: whether the best weights are kept as an artifact, with the run's configuration.

    Raises:
        ValueError: online without a key.
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
            raise ValueError(f"tracking.mistakes={self.mistakes}: must be 0 (off) or more")
        if self.mode == "online" and not logged_in():
            raise ValueError(
                "tracking=online needs a Weights & Biases key, and there is none here: run `wandb login`, or take"
                " tracking=offline"
            )


def logged_in() -> bool:
    """Whether Weights & Biases has a key for this user; asks nobody and no network."""
    import wandb

    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return bool(wandb.login(prompt=False))
    except Exception as error:  # a key that its host refuses or a host that does not answer: init will say which
        log.debug("wandb.login: %s", error)
        return True


@dataclass(frozen=True)
class Views:
    """What the best weights do on the validation images.

    Args:
        judgement: of all of them.
        examples: the images, in the judgement's order.
    """

    judgement: Judgement
    examples: Examples


class Mirror:
    """A W&B run fed from a thread: training waits for it neither at the start nor at a row, and never falls with it."""

    def __init__(self, tracking: Tracking, run: Run, config: dict[str, Any]):
        self.tracking = tracking
        self.run = run
        self.config = config
        self.rows: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.summary: dict[str, Any] = {}
        self.views: Views | None = None
        self.thread = threading.Thread(target=self.work, name="wandb", daemon=True)
        if tracking.mode != "off":
            self.thread.start()

    def row(self, row: dict[str, Any]) -> None:
        if self.thread.is_alive():
            self.rows.put(row)

    def finish(self, summary: dict[str, Any], views: Views | None = None, patience: float = 60.0) -> None:
        """Waits until everything is written, at most `patience` seconds."""
        if self.thread.is_alive():
            self.summary, self.views = summary, views
            self.rows.put(None)
            self.thread.join(patience)
            if self.thread.is_alive():
                log.warning("Weights & Biases is still busy after %.0f s; metrics.jsonl has everything", patience)

    def work(self) -> None:
        try:
            with self.start() as remote:
                while (row := self.rows.get()) is not None:
                    remote.log({key: drawn(value) for key, value in row.items()}, step=row["step"])
                if self.views is not None:
                    remote.log(self.shown(self.views))
                if self.tracking.checkpoint and self.summary.get("status") == "finished":
                    remote.log_artifact(self.artifact())
                remote.summary.update(self.summary)
        except Exception as error:  # tracking must never end a training
            log.warning("Weights & Biases failed (%s); training goes on, metrics.jsonl has everything", error)

    def shown(self, views: Views) -> dict[str, Any]:
        """The worst mistakes as a table with images, and the confusion matrix, as W&B has them."""
        import wandb

        judgement, found = views.judgement, {}
        if self.tracking.mistakes:
            table = wandb.Table(columns=["image", "true class", "predicted class", "probability", "index"])
            for m in judgement.mistakes(self.tracking.mistakes):
                image = wandb.Image(views.examples.image(m.index))
                table.add_data(image, m.true, m.predicted, m.probability, m.index)
            found["validation/mistakes"] = table
        if self.tracking.confusion and len(judgement.classes) <= 100:  # W&B draws no more than 10,000 cells
            found["validation/confusion"] = wandb.plot.confusion_matrix(
                y_true=judgement.labels.tolist(),
                preds=judgement.predicted.tolist(),
                class_names=list(judgement.classes),
                title="validation images",
            )
        elif self.tracking.confusion:
            figure = pictures.confusion(judgement, "validation")
            found["validation/confusion"] = wandb.Image(figure)
        return found

    def artifact(self) -> Any:
        """The best weights and the configuration, which together are a model; sent from where they lie."""
        import wandb

        kept = wandb.Artifact(f"vit-{self.identity()}", type="model", metadata=self.summary)
        for file in (self.run.best, self.run.config):
            kept.add_file(str(file), policy="immutable")
        return kept

    def identity(self) -> str:
        """W&B's name of this run, the same after a resume."""
        file = self.run.folder / "wandb-id.txt"
        if not file.exists():
            write_whole(file, lambda part: part.write_text(secrets.token_hex(4)))
        return file.read_text().strip()

    def start(self) -> Any:
        import wandb

        offline = self.tracking.mode == "offline" or (self.tracking.mode == "auto" and not logged_in())
        known: dict[str, Any] = {
            "project": self.tracking.project,
            "entity": self.tracking.entity,
            "group": self.tracking.group,
            "name": self.tracking.name or self.run.folder.name,
            "tags": [*self.tracking.tags, *([f"sweep={self.tracking.sweep}"[:64]] if self.tracking.sweep else [])],
            "job_type": "sweep" if self.tracking.sweep else "train",
            "notes": self.tracking.notes,
            "id": self.identity(),
            "resume": "allow",
            "dir": str(self.run.folder),
            "config": self.config,
            "reinit": "create_new",
            "settings": wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                x_save_requirements=False,
                x_disable_stats=not self.tracking.system,
                init_timeout=20,
                finish_timeout=30,
            ),
        }
        try:
            return wandb.init(mode="offline" if offline else "online", **known)
        except wandb.Error as error:
            if offline:
                raise
            log.warning("Weights & Biases is out of reach (%s): this run is tracked offline", str(error).split("\n")[0])
            return wandb.init(mode="offline", **known)


def drawn(value: Any) -> Any:
    """Counts and edges as W&B's histogram; anything else as it is."""
    if not isinstance(value, tuple):
        return value
    import wandb

    return wandb.Histogram(np_histogram=value)


def histogram(values: Tensor, bins: int = 64) -> tuple[Any, Any]:
    """Counts, and the edges of as many equal widths from the least to the greatest value."""
    return np.histogram(values.detach().float().cpu().numpy(), bins=bins)


class Tracker:
    """Rows to metrics.jsonl and the mirror; progress to the terminal. Entered while the training runs.

    Args:
        run: whose metrics these are.
        tracking: how W&B mirrors them.
        config: what W&B is told about the run.
        steps: of the whole training.
        start: first step of this process.
        on: whether this process writes; one that does not, does nothing.
    """

    def __init__(self, run: Run, tracking: Tracking, config: dict[str, Any], *, steps: int, start: int, on: bool):
        self.journal = Journal(run.metrics) if on else None
        self.mirror = Mirror(tracking, run, config) if on else None
        self.steps = steps
        self.bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            disable=not on or not sys.stderr.isatty(),
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix} [{elapsed} < {remaining}]",
        )
        self.shown: dict[str, str] = {}
        self.spoke = time.monotonic()
        self.histograms: dict[str, tuple[Any, Any]] = {}
        self.waits = False  # rows, for a disk that is full

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.bar.close()
        if self.journal:
            self.written(self.journal.flush)
            self.journal.close()
        if self.mirror and kind is not None:
            self.mirror.finish({"status": "interrupted"}, patience=0 if kind is KeyboardInterrupt else LEAVING)

    def written(self, write: Callable[[], None]) -> None:
        """Has rows written, or says once why they wait: a full disk ends no training."""
        try:
            write()
        except OSError as error:
            if not self.waits:
                log.warning("metrics.jsonl cannot be written (%s): its rows wait in memory", error.strerror or error)
            self.waits = True
        else:
            self.waits = False

    def sync(self) -> None:
        """Until every row is on the disk; raises OSError where it cannot be."""
        if self.journal:
            self.journal.sync()

    def step(self) -> None:
        self.bar.update()

    def watch(self, model: nn.Module) -> None:
        """Takes the weights and gradients of this step for the mirror's next row, where they are asked for."""
        if self.mirror and self.mirror.tracking.histograms:
            for name, parameter in model.named_parameters():
                self.histograms[f"weights/{name}"] = histogram(parameter)
                if parameter.grad is not None:
                    self.histograms[f"gradients/{name}"] = histogram(parameter.grad)

    def row(self, row: dict[str, Any]) -> None:
        """One logged step: `step`, `epoch`, `images`, `lr`, `train/loss` ... and what an evaluation adds."""
        if not self.journal or not self.mirror:
            return
        self.written(partial(self.journal.add, row))
        self.mirror.row(row | self.histograms)
        self.histograms = {}
        faces = {"images_per_second": ("{:,.0f} images/s", 1), "train/loss": ("loss {:.3f}", 1)}
        faces |= {"train/accuracy": ("accuracy {:.1f} %", 100), "val/accuracy": ("validation {:.1f} %", 100)}
        self.shown |= {key: form.format(row[key] * by) for key, (form, by) in faces.items() if key in row}
        self.bar.set_postfix_str("  ".join(self.shown.values()), refresh=False)
        if self.bar.disable and ("val/accuracy" in row or time.monotonic() - self.spoke > QUIET):
            self.spoke = time.monotonic()
            log.info("step %d/%d  %s", row["step"], self.steps, "  ".join(self.shown.values()))

    @property
    def curious(self) -> bool:
        """Whether the mirror wants to see what the best weights do on the validation images."""
        if self.mirror is None or not self.mirror.thread.is_alive():
            return False
        return bool(self.mirror.tracking.mistakes or self.mirror.tracking.confusion)

    def finish(self, result: dict[str, Any], views: Views | None) -> None:
        """Tells the mirror what came out."""
        if self.mirror:
            self.mirror.finish(result, views)


class LogFile(logging.FileHandler):
    """log.txt; a line for which the disk has no room is left out."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class Console(logging.Handler):
    """Lines to the terminal, above a progress bar where one runs."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


@contextmanager
def logging_to(file: Path | None, *, speak: bool = True) -> Generator[None]:
    """Sends vitlab's log to the terminal and, with times, to a file."""
    handlers: list[logging.Handler] = [Console() if speak else logging.NullHandler()]
    if file is not None:
        handlers.append(LogFile(file, delay=True))
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
