"""Tracker: writes metrics to metrics.jsonl, which W&B mirrors, and progress to the terminal."""

import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from vitlab.storage.jsonl import Journal
from vitlab.storage.metrics import METRICS, SELECTED_BY
from vitlab.storage.run import Run
from vitlab.system.host_copies import HostCopies
from vitlab.tracking.logs import NotebookLine, in_notebook
from vitlab.tracking.options import Tracking, ValidationMedia
from vitlab.tracking.wandb_mirror import LEAVING, Mirror

log = logging.getLogger("vitlab")
SHOWN = {  # metrics of the progress line
    "images_per_second": "{} images/s",
    "train/loss": "loss {}",
    "train/accuracy": "accuracy {}",
    "data_wait": "{} of the time waits for images",
    SELECTED_BY.name: "validation {}",
}
WAITS = 0.1  # share of the time spent on getting images above which the progress line has it
QUIET = 30.0  # seconds without a line, at most, where no progress bar can be drawn


def histogram(values: Tensor, copies: HostCopies, bins: int = 64) -> tuple[Any, Any]:
    """Counts, and the edges of as many equal widths from the least to the greatest of the values that are finite."""
    copies.wait()
    found = values.float().numpy()
    return np.histogram(found[np.isfinite(found)], bins=bins)


class Tracker:
    """Rows to metrics.jsonl and the mirror; progress to the terminal. Entered while the training runs.

    Args:
        run: whose metrics these are.
        tracking: how W&B mirrors them.
        config: of the run, for W&B.
        steps: of the training, all together.
        start: first step of this process.
        on: whether this process writes; otherwise every method does nothing.
    """

    def __init__(self, run: Run, tracking: Tracking, config: dict[str, Any], *, steps: int, start: int, on: bool):
        self.journal = Journal(run.metrics) if on else None
        self.mirror = Mirror(tracking, run, config) if on else None
        self.steps = steps
        notebook = on and in_notebook()
        self.bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            disable=not (on and (notebook or sys.stderr.isatty())),
            file=NotebookLine() if notebook else sys.stderr,
            mininterval=0.5 if notebook else 0.1,  # seconds
            ncols=116 if notebook else None,
            dynamic_ncols=not notebook,
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix} [{elapsed} < {remaining}]",
        )
        self.shown: dict[str, str] = {}
        self.spoke = time.monotonic()
        self.watched: dict[str, Callable[[], Any]] = {}  # histograms for the mirror's next row
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
        """Writes rows; on a full disk warns once and keeps them in memory, so that training goes on."""
        try:
            write()
        except OSError as error:
            if not self.waits:
                log.warning("metrics.jsonl cannot be written (%s): its rows wait in memory", error.strerror or error)
            self.waits = True
        else:
            self.waits = False

    def sync(self) -> None:
        """Writes every row to the disk, or raises OSError."""
        if self.journal:
            self.journal.sync()

    def step(self) -> None:
        self.bar.update()

    def watch(self, model: nn.Module, copies: HostCopies) -> None:
        """Copies weights and gradients; the mirror draws histograms of them, if tracking.histograms is set."""
        if self.mirror and self.mirror.tracking.histograms:
            pairs = [(name, p, p.grad) for name, p in model.named_parameters()]
            watched: dict[str, Tensor] = {f"weights/{name}": weight for name, weight, _ in pairs}
            watched |= {f"gradients/{name}": gradient for name, _, gradient in pairs if gradient is not None}
            self.watched = {name: partial(histogram, v, copies) for name, v in copies.copy(watched).items()}

    def row(self, row: dict[str, Any]) -> None:
        """One logged step: `step`, `epoch`, `images`, `lr`, `train/loss` ... and what an evaluation adds."""
        if not self.journal or not self.mirror:
            return
        self.written(partial(self.journal.add, row))
        self.mirror.row(row | self.watched)
        self.watched = {}
        self.shown |= {key: label.format(METRICS[key].format(row[key])) for key, label in SHOWN.items() if key in row}
        if row.get("data_wait", 1) <= WAITS:
            self.shown.pop("data_wait", None)
        self.bar.set_postfix_str("  ".join(self.shown.values()), refresh=False)
        if self.bar.disable and (SELECTED_BY.name in row or time.monotonic() - self.spoke > QUIET):
            self.spoke = time.monotonic()
            log.info("step %d/%d  %s", row["step"], self.steps, "  ".join(self.shown.values()))

    @property
    def wants_media(self) -> bool:
        """Whether the mirror takes mistakes or the confusion matrix of the validation images."""
        if self.mirror is None or not self.mirror.thread.is_alive():
            return False
        return bool(self.mirror.tracking.mistakes or self.mirror.tracking.confusion)

    def finish(self, result: dict[str, Any], views: ValidationMedia | None) -> None:
        """Sends the result to the mirror and waits for it."""
        if self.mirror:
            self.mirror.finish(result, views)
