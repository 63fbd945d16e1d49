"""Run folders: one a run, found by the run's identity."""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from datetime import datetime
from glob import escape
from itertools import product
from pathlib import Path
from typing import Any

from vitlab.config.errors import DiskFull, StorageError
from vitlab.storage.files import file_errors, read_json, write_json, write_whole
from vitlab.storage.lock import holder

LEAST_DISK = 64 * 2**20  # bytes
MOST_RESULT = 10_000_000  # bytes of result.json, which has six numbers a class
MOST_DATA = 100_000_000  # bytes of data.json; a thousand classes take 30,000


@dataclass(frozen=True)
class Run:
    """The folder of one run.

    `config.yaml` (resolved), `metrics.jsonl` (a row a logged step), `result.json`, `last.pt` and `previous.pt` (they
    continue the training), `step-N.pt` (the same, kept), `best.pt` (weights chosen on validation), `best.safetensors`
    (the same, for other programs), `test-correct.bin` (see `predictions`), `data.json` (the fingerprint of its images),
    `curves.png`, `log.txt`, `environment.json`, `lock`, and `wandb/`; of `vitlab evaluate`, `vitlab probe` and `vitlab
    export` also `evaluation/`, `probe.json` and `export/`.
    """

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", self.folder.expanduser())

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
    def previous(self) -> Path:
        return self.folder / "previous.pt"

    def milestone(self, step: int) -> Path:
        return self.folder / f"step-{step}.pt"

    def checkpoints(self) -> list[Path]:
        """The files that continue the training, the newest first."""
        kept = [(int(path.stem[5:]), path) for path in self.folder.glob("step-*.pt") if path.stem[5:].isdecimal()]
        found = [self.last, self.previous, *(path for _, path in sorted(kept, reverse=True))]
        return [path for path in found if path.is_file()]

    @property
    def best(self) -> Path:
        return self.folder / "best.pt"

    @property
    def export(self) -> Path:
        return self.folder / "best.safetensors"

    @property
    def test_correct(self) -> Path:
        return self.folder / "test-correct.bin"

    @property
    def curves(self) -> Path:
        return self.folder / "curves.png"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def environment(self) -> Path:
        return self.folder / "environment.json"

    @property
    def data(self) -> Path:
        return self.folder / "data.json"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def wandb_id(self) -> Path:
        """W&B's name of the run, and WANDB_DIR where that was set."""
        return self.folder / "wandb-id.txt"

    def offline_copies(self) -> list[Path]:
        """W&B's folders of trainings that were tracked offline, the oldest first."""
        found = set(self.folder.glob("wandb/offline-run-*"))
        if self.wandb_id.is_file():
            name, *folders = self.wandb_id.read_text(encoding="utf-8").splitlines() or [""]
            folders += filter(None, [os.environ.get("WANDB_DIR")])
            for folder, below in product(folders if name else (), ("wandb", ".wandb")):
                found |= set((Path(folder).expanduser() / below).glob(f"offline-run-*-{escape(name)}"))
        return sorted(path for path in found if path.is_dir())

    def create(self) -> None:
        """Creates the folder if there is none.

        Raises:
            StorageError: it cannot be written there, or a file of it is a link, which would be written through.
            DiskFull: there is too little space.
        """
        with file_errors(self.folder, "written", "give another folder, system.runs=PATH"):
            self.folder.mkdir(parents=True, exist_ok=True)
            if links := [path.name for path in self.folder.iterdir() if path.is_symlink()]:
                raise StorageError(
                    f"{self.folder} holds a symbolic link, {links[0]}, and what is written there would go elsewhere:"
                    " move it away"
                )
            odd = [path.name for path in self.folder.iterdir() if not (path.is_file() or path.is_dir())]
            if odd:
                raise StorageError(f"{self.folder} holds {odd[0]}, which is no file: move it away")
            (self.folder / "writable.json").write_text("{}", encoding="utf-8")
            (self.folder / "writable.json").unlink()
        free = shutil.disk_usage(self.folder).free
        if free < LEAST_DISK:
            raise DiskFull(
                f"{self.folder} has {free / 2**20:.0f} MB of disk left, too little for a run: free some, or give"
                " another folder, system.runs=PATH"
            )

    def clean(self) -> None:
        """Removes partial files left by a process that was killed; only for the holder of the lock."""
        for part in self.folder.glob(".*.part"):
            part.unlink()

    def result(self) -> dict[str, Any]:
        """The contents of result.json; a run without one was interrupted.

        Its `status` is finished, failed or interrupted; and running where a live process holds the run's lock: the
        file itself says interrupted from the start, which is true whenever that process ends.

        Raises:
            StorageError: the file is damaged.
        """
        path = self.folder / "result.json"
        try:
            result = read_json(path, MOST_RESULT) if path.exists() else {"status": "interrupted"}
            if not isinstance(result.get("status"), str):
                raise StorageError("it holds no status")
        except StorageError as error:
            raise StorageError(f"{path} is damaged ({error}): move the run's folder away and train it again") from error
        running = result["status"] == "interrupted" and holder(self.lock) is not None
        return result | {"status": "running"} if running else result

    def has_begun(self) -> bool:
        """Whether a training would continue it, or find it finished."""
        return bool(self.checkpoints()) or self.result()["status"] == "finished"

    def write_result(self, result: dict[str, Any]) -> None:
        write_json(self.folder / "result.json", result)

    @file_errors()
    def rows(self, having: str = "") -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, up to one that was cut short; only those that have a key, where one is given."""
        rows, word = [], f'"{having}"' if having else ""
        for line in (
            self.metrics.read_text(encoding="utf-8", errors="replace").splitlines() if self.metrics.exists() else []
        ):
            if word not in line:
                continue
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                break
            rows.append(row)
        return rows

    def rewind(self, step: int) -> None:
        """Removes the rows after this step from metrics.jsonl, before the training resumes there."""
        kept = "".join(json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step)
        write_whole(self.metrics, lambda part: part.write_text(kept, encoding="utf-8"))


@file_errors()
def find(root: str | Path, *names: str) -> Run:
    """The run below `root` with the identity of one of these names, the first that is there or else the first of all.

    The slug before the last dash may differ.
    """
    for name in names:
        identity = name.rsplit("-", 1)[1]
        if found := sorted(path for path in Path(root).glob(f"*-{identity}") if path.is_dir()):
            return Run(found[0])
    return Run(Path(root) / names[0])


def set_aside(run: Run) -> Path:
    """Renames a finished run's folder, which is kept."""
    kept = run.folder.with_name(f"{run.folder.name}.{datetime.now():%Y-%m-%d_%H-%M-%S}")
    with file_errors(run.folder, "renamed", "look whether the folder above it can be written to"):
        run.folder.rename(kept)
    return kept


CODE = ("vitlab", "conf", "pyproject.toml")  # the code that a run depends on


def environment(device: str) -> dict[str, Any]:
    """What a run ran on: packages, code, device, command."""
    import platform
    import subprocess
    from importlib import metadata

    def git(*words: str) -> str | None:
        here = Path(__file__).parent.parent.parent
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, encoding="utf-8", errors="replace")
        return done.stdout.strip() if done.returncode == 0 else None

    names = ("vitlab", "torch", "torchvision", "timm", "numpy", "pillow", "hydra-core", "omegaconf", "einops", "wandb")
    commit = git("rev-parse", "HEAD") if shutil.which("git") else None
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(metadata, name) for name in names},
        "git": None if commit is None else {"commit": commit, "dirty": bool(git("status", "--porcelain", "--", *CODE))},
        "device": device,
        "cpus": os.cpu_count(),
    }


def version(metadata: Any, name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def no_run(path: Path) -> str:
    """Why a path is no run's folder, and what to give instead."""
    if (path.parent / "config.yaml").is_file():
        return f"give the run's folder: {path.parent}"
    if not path.is_dir():
        return f"{'it is a file' if path.exists() else 'there is no such folder'}: give the folder of one, runs/NAME"
    runs = sorted(place.parent for place in path.glob("*/config.yaml"))
    return (
        f"it has no config.yaml: give {f'a run in it, such as {runs[0]}' if runs else 'the folder of one, runs/NAME'}"
    )
