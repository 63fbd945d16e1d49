"""`vitlab sync [RUN...]`: uploads offline runs to Weights & Biases."""

import argparse
import subprocess
import sys
from pathlib import Path

from vitlab.cli.exit import DONE
from vitlab.config.errors import ConfigError
from vitlab.storage.files import file_errors
from vitlab.storage.run import Run, no_run

DESCRIPTION = """Uploads offline runs to Weights & Biases, with its own `wandb sync`; those that were uploaded
before are left out."""


def main(words: list[str]) -> int:
    """Finds the offline runs and hands them to W&B; the exit status is W&B's."""
    parser = argparse.ArgumentParser(prog="vitlab sync", description=DESCRIPTION)
    parser.add_argument("run", nargs="*", type=Path, help="the runs' folders; none is every run in --runs")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="PATH", help="folder of all runs; runs")
    parser.add_argument("--dry-run", action="store_true", help="only prints the command")
    options = parser.parse_intermixed_args(words)
    found = offline_folders(options.run, options.runs)
    if not found:
        print("Nothing to upload: every offline run that is there has been uploaded.")
        return DONE
    command = [sys.executable, "-m", "wandb", "sync", *map(str, found)]
    print(f"wandb sync {' '.join(map(str, found))}", flush=True)
    if options.dry_run:
        return DONE
    from vitlab.tracking.options import logged_in

    if not logged_in():
        raise ConfigError("Weights & Biases has no key here: run `wandb login`, then the same command again")
    return subprocess.run(command, check=False).returncode


@file_errors()
def offline_folders(folders: list[Path], root: Path) -> list[Path]:
    """The offline W&B folders that were not uploaded yet, the oldest first, of these runs or of all.

    Raises:
        ConfigError: a folder that is no run.
    """
    for folder in folders:
        if not (folder / "config.yaml").is_file():
            raise ConfigError(f"{folder} is not a run: {no_run(folder)}")
    places = folders or sorted(path.parent for path in root.glob("*/config.yaml"))
    found = [path for place in places for path in Run(place).offline_copies()]
    return [path for path in found if not list(path.glob("*.synced"))]
