"""The Weights & Biases copy of a run; a failure of it never stops a training."""

import logging
import os
import queue
import secrets
import threading
from contextvars import copy_context
from pathlib import Path
from typing import Any

from vitlab.evaluation import pictures
from vitlab.storage.files import write_whole
from vitlab.storage.metrics import TABLE
from vitlab.storage.run import Run
from vitlab.tracking.options import Tracking, ValidationMedia, logged_in

log = logging.getLogger("vitlab")
LEAVING = 10.0  # seconds for the mirror when a training ends early: a scheduler gives 30 before it kills


class Mirror:
    """A W&B run fed from a thread: training never waits for it, and does not fail with it."""

    def __init__(self, tracking: Tracking, run: Run, config: dict[str, Any]):
        self.tracking = tracking
        self.run = run
        self.config = config
        self.rows: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.summary: dict[str, Any] = {}
        self.views: ValidationMedia | None = None
        self.thread = threading.Thread(target=copy_context().run, args=(self.work,), name="wandb", daemon=True)
        if tracking.mode != "off":
            self.thread.start()

    def row(self, row: dict[str, Any]) -> None:
        if self.thread.is_alive():
            self.rows.put(row)

    def finish(self, summary: dict[str, Any], views: ValidationMedia | None = None, patience: float = 60.0) -> None:
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
                for each in TABLE:
                    if each.source == "validation" and not each.family:
                        remote.define_metric(each.name, summary="max" if each.higher_is_better else "min")
                while (row := self.rows.get()) is not None:
                    remote.log({key: drawn(value) for key, value in row.items()}, step=row["step"])
                if self.views is not None:
                    remote.log(self.shown(self.views))
                if self.tracking.checkpoint and self.summary.get("status") == "finished":
                    remote.log_artifact(self.artifact())
                remote.summary.update(self.summary)
        except Exception as error:  # tracking must never end a training
            log.warning("Weights & Biases failed (%s); training goes on, metrics.jsonl has everything", error)

    def shown(self, views: ValidationMedia) -> dict[str, Any]:
        """The worst mistakes as a table with images, and the confusion matrix, as W&B has them."""
        import wandb

        report, media = views.report, {}
        if self.tracking.mistakes:
            table = wandb.Table(columns=["image", "true class", "predicted class", "probability", "index"])
            for m in report.mistakes(self.tracking.mistakes):
                image = wandb.Image(views.examples.image(m.index))
                table.add_data(image, m.true, m.predicted, m.probability, m.index)
            media["validation/mistakes"] = table
        if self.tracking.confusion:
            rows = report.class_rows
            media["validation/classes"] = wandb.Table(columns=[*rows[0]], data=[[*row.values()] for row in rows])
        if self.tracking.confusion and len(report.classes) <= 100:  # W&B draws no more than 10,000 cells
            media["validation/confusion"] = wandb.plot.confusion_matrix(
                y_true=report.labels.tolist(),
                preds=report.predicted.tolist(),
                class_names=list(report.classes),
                title="validation images",
            )
        elif self.tracking.confusion:
            figure = pictures.confusion(report, "validation")
            media["validation/confusion"] = wandb.Image(figure)
        return media

    def artifact(self) -> Any:
        """The best weights and the configuration, uploaded in place."""
        import wandb

        kept = wandb.Artifact(f"vit-{self.identity()}", type="model", metadata=self.summary)
        for file in (self.run.best, self.run.config):
            kept.add_file(str(file), policy="immutable")
        return kept

    def identity(self) -> str:
        """W&B's name of this run, the same after a resume; WANDB_RUN_ID is taken when there is none yet."""
        file, given = self.run.wandb_id, os.environ.get("WANDB_RUN_ID")
        if not file.exists():
            name = given or secrets.token_hex(4)
            where = f"{self.folder()}\n" if "WANDB_DIR" in os.environ else ""  # for `vitlab sync`
            write_whole(file, lambda part: part.write_text(f"{name}\n{where}", encoding="utf-8"))
        name = file.read_text(encoding="utf-8").split("\n")[0].strip()
        if given and given != name:
            log.warning("WANDB_RUN_ID=%s is not used: this run is %s there already", given, name)
        return name

    def folder(self) -> Path:
        """Where W&B keeps its files."""
        return Path(os.environ.get("WANDB_DIR") or self.run.folder).expanduser().absolute()

    def start(self) -> Any:
        import wandb

        offline = self.tracking.mode == "offline" or (self.tracking.mode == "auto" and not logged_in())
        settings: dict[str, Any] = {
            "silent": True,
            "console": "off",
            "disable_git": True,
            "x_save_requirements": False,
            "x_disable_stats": not self.tracking.system,
            "init_timeout": 20,
            "finish_timeout": 30,
        }
        known: dict[str, Any] = {
            "project": self.tracking.project,
            "entity": self.tracking.entity,
            "group": self.tracking.group,
            "name": self.tracking.name or self.run.folder.name,
            "tags": [*self.tracking.tags, *([f"sweep={self.tracking.sweep}"[:64]] if self.tracking.sweep else [])],
            "job_type": os.environ.get("WANDB_JOB_TYPE") or ("sweep" if self.tracking.sweep else "train"),
            "notes": self.tracking.notes,
            "id": self.identity(),
            "resume": os.environ.get("WANDB_RESUME") or "allow",
            "dir": str(self.folder()),
            "config": self.config,
            "reinit": "create_new",
            "settings": wandb.Settings(  # the environment's own go before
                **{name: value for name, value in settings.items() if f"WANDB_{name.upper()}" not in os.environ}
            ),
        }
        try:
            return wandb.init(mode="offline" if offline else "online", **known)
        except wandb.Error as error:
            if offline:
                raise
            log.warning("Weights & Biases is out of reach (%s): this run is tracked offline", str(error).split("\n")[0])
            wandb.teardown()  # its service would hold the run's name
            return wandb.init(mode="offline", **known)


def drawn(value: Any) -> Any:
    """A picture's file and the histogram that a function gives, as W&B's; anything else as it is."""
    if not (callable(value) or isinstance(value, Path)):
        return value
    import wandb

    return wandb.Image(str(value)) if isinstance(value, Path) else wandb.Histogram(np_histogram=value())
