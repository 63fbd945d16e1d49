"""The store of runs: one folder a run, found by what identifies it."""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vitlab.files import write_json, write_whole

LEAST_DISK = 64 * 2**20  # bytes


@dataclass(frozen=True)
class Run:
    """The folder of one run.

    `config.yaml` (resolved), `metrics.jsonl` (a row a logged step), `result.json`, `last.pt` (continues the training),
    `best.pt` (weights chosen on validation), `curves.png`, `log.txt`, `environment.json`, and `wandb/`.
    """

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def last(self) -> Path:
        return self.folder / "last.pt"

    @property
    def best(self) -> Path:
        return self.folder / "best.pt"

    @property
    def curves(self) -> Path:
        return self.folder / "curves.png"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def environment(self) -> Path:
        return self.folder / "environment.json"

    def create(self) -> None:
        """Makes the folder where there is none.

        Raises:
            OSError: it cannot be written there, or the disk is full.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "probe.json", {})
            (self.folder / "probe.json").unlink()
        except OSError as error:
            reason = error.strerror or error
            raise OSError(
                f"{self.folder} cannot be written ({reason}): give another folder, system.runs=PATH"
            ) from error
        free = shutil.disk_usage(self.folder).free
        if free < LEAST_DISK:
            raise OSError(
                f"{self.folder} has {free / 2**20:.0f} MB of disk left, too little for a run: free some, or give"
                " another folder, system.runs=PATH"
            )

    def result(self) -> dict[str, Any]:
        """What result.json says; a run that never wrote one was interrupted.

        Raises:
            ValueError: the file is not JSON.
        """
        path = self.folder / "result.json"
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            return {"status": "interrupted"}
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is damaged ({error}): move the run's folder away and train it again") from error

    def write_result(self, result: dict[str, Any]) -> None:
        write_json(self.folder / "result.json", result)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line that was cut short is left out."""
        rows = []
        for line in self.metrics.read_text().splitlines() if self.metrics.exists() else []:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def rewind(self, step: int) -> None:
        """Takes the rows after this step out of metrics.jsonl: the training goes on from there."""
        kept = "".join(json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step)
        write_whole(self.metrics, lambda part: part.write_text(kept))


def find(root: str | Path, name: str) -> Run:
    """The run of this name below `root`: what stands before the last dash may differ, what identifies it may not."""
    identity = name.rsplit("-", 1)[1]
    found = sorted(path for path in Path(root).glob(f"*-{identity}") if path.is_dir())
    return Run(found[0] if found else Path(root) / name)


def set_aside(run: Run) -> Path:
    """Gives a finished run's folder another name, under which it is kept."""
    kept = run.folder.with_name(f"{run.folder.name}.{datetime.now():%Y-%m-%d_%H-%M-%S}")
    run.folder.rename(kept)
    return kept


def environment(device: str) -> dict[str, Any]:
    """What a run ran on: packages, code, device, command."""
    import platform
    import subprocess
    from importlib import metadata

    def git(*words: str) -> str | None:
        here = Path(__file__).parent
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    names = ("vitlab", "torch", "torchvision", "timm", "numpy", "pillow", "hydra-core", "omegaconf", "einops", "wandb")
    commit = git("rev-parse", "HEAD") if shutil.which("git") else None
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(metadata, name) for name in names},
        "git": None if commit is None else {"commit": commit, "dirty": bool(git("status", "--porcelain"))},
        "device": device,
        "cpus": os.cpu_count(),
    }


def version(metadata: Any, name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
