"""A comparison in Weights & Biases: its table and its figures, as a run of its own."""

import logging
from pathlib import Path
from typing import Any

from vitlab.report.table import Comparison
from vitlab.tracking.options import logged_in, mode_of_environment, project_of_environment

log = logging.getLogger("vitlab")


def send(record: dict[str, Any], comparison: Comparison, folder: Path) -> None:
    """Logs what an answer shows; online where the user is logged in, else offline into the answer's folder.

    A failure is a line, for the answer has been written. WANDB_MODE, WANDB_PROJECT and WANDB_ENTITY are heard.

    Args:
        record: what was asked, as `sweep.Plan.record` has it.
        comparison: its table.
        folder: of the answer, with its figures.
    """
    import wandb

    try:
        mode = mode_of_environment()
        if mode == "off":
            print("WANDB_MODE=disabled, or WANDB_DISABLED: nothing was sent to Weights & Biases")
            return
        settings = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True, init_timeout=20)
        with wandb.init(
            project=project_of_environment(),
            name=f"{record['name']}: comparison",
            group=record["name"],
            job_type="comparison",
            tags=[f"sweep={record['name']}"[:64]],
            notes=comparison.title,
            config={key: record.get(key) for key in ("source", "metric", "x", "scale", "seeds", "words")},
            dir=str(folder),
            mode=mode if mode != "auto" else "online" if logged_in() else "offline",
            reinit="create_new",
            settings=settings,
        ) as run:
            frame = comparison.frame()
            frame = frame.astype({name: str for name in frame if frame[name].dtype == object})
            pictures = {path.stem: wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))}
            run.log({"comparison": wandb.Table(dataframe=frame), **pictures}, step=0)
    except Exception as error:  # the answer is there, whatever becomes of its copy
        log.warning("Weights & Biases failed (%s); the answer is in %s", error, folder)
        print(f"Weights & Biases failed ({str(error).splitlines()[0]}); the answer is in {folder}")
