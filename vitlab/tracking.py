"""Tracking: metrics.jsonl is the source of truth, Weights & Biases its mirror, the terminal its face."""

import json
import logging
import os
import queue
import secrets
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from vitlab.runs import Run

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
        tags: words to filter by.
        notes: a sentence about the run.

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

    def __post_init__(self) -> None:
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


class Mirror:
    """A W&B run fed from a thread: training waits for it neither at the start nor at a row, and never falls with it."""

    def __init__(self, tracking: Tracking, run: Run, config: dict[str, Any]):
        self.tracking = tracking
        self.run = run
        self.config = config
        self.rows: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.summary: dict[str, Any] = {}
        self.thread = threading.Thread(target=self.work, name="wandb", daemon=True)
        if tracking.mode != "off":
            self.thread.start()

    def row(self, row: dict[str, Any]) -> None:
        if self.thread.is_alive():
            self.rows.put(row)

    def finish(self, summary: dict[str, Any], patience: float = 60.0) -> None:
        """Waits until everything is written, at most `patience` seconds."""
        if self.thread.is_alive():
            self.summary = summary
            self.rows.put(None)
            self.thread.join(patience)
            if self.thread.is_alive():
                log.warning("Weights & Biases is still busy after %.0f s; metrics.jsonl has everything", patience)

    def work(self) -> None:
        try:
            with self.start() as remote:
                while (row := self.rows.get()) is not None:
                    remote.log(row, step=row["step"])
                remote.summary.update(self.summary)
        except Exception as error:  # tracking must never end a training
            log.warning("Weights & Biases failed (%s); training goes on, metrics.jsonl has everything", error)

    def start(self) -> Any:
        import wandb

        offline = self.tracking.mode == "offline" or (self.tracking.mode == "auto" and not logged_in())
        identity = self.run.folder / "wandb-id.txt"
        if not identity.exists():
            identity.write_text(secrets.token_hex(4))
        known: dict[str, Any] = {
            "project": self.tracking.project,
            "entity": self.tracking.entity,
            "group": self.tracking.group,
            "name": self.tracking.name or self.run.folder.name,
            "tags": list(self.tracking.tags),
            "notes": self.tracking.notes,
            "id": identity.read_text().strip(),
            "resume": "allow",
            "dir": str(self.run.folder),
            "config": self.config,
            "reinit": "create_new",
            "settings": wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                x_save_requirements=False,
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
        self.file = run.metrics.open("a", buffering=1) if on else None
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

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        if self.file:
            self.file.close()
        if self.mirror and any(error):
            self.mirror.finish({"status": "interrupted"})

    def step(self) -> None:
        self.bar.update()

    def row(self, row: dict[str, Any]) -> None:
        """One logged step: `step`, `epoch`, `images`, `lr`, `train/loss` ... and what an evaluation adds."""
        if not self.file or not self.mirror:
            return
        self.file.write(json.dumps(row) + "\n")
        self.mirror.row(row)
        faces = {"images_per_second": ("{:,.0f} images/s", 1), "train/loss": ("loss {:.3f}", 1)}
        faces |= {"train/accuracy": ("accuracy {:.1f} %", 100), "val/accuracy": ("validation {:.1f} %", 100)}
        self.shown |= {key: form.format(row[key] * by) for key, (form, by) in faces.items() if key in row}
        self.bar.set_postfix_str("  ".join(self.shown.values()), refresh=False)
        if "val/accuracy" in row and self.bar.disable:
            log.info("step %d/%d  %s", row["step"], self.steps, "  ".join(self.shown.values()))

    def finish(self, result: dict[str, Any]) -> None:
        """Tells the mirror what came out."""
        if self.mirror:
            self.mirror.finish(result)


class Console(logging.Handler):
    """Lines to the terminal, above a progress bar where one runs."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


@contextmanager
def logging_to(file: Path | None, *, speak: bool = True) -> Generator[None]:
    """Sends vitlab's log to the terminal and, with times, to a file."""
    handlers: list[logging.Handler] = [Console()] if speak else []
    if file is not None:
        handlers.append(logging.FileHandler(file, delay=True))
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
