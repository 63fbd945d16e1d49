"""`vitlab compare`: finished runs as a table with intervals, figures and a page."""

import argparse
import re
from pathlib import Path

from vitlab.cli.exit import DONE
from vitlab.config.errors import ConfigError
from vitlab.config.groups import SWEEPS
from vitlab.config.own import command
from vitlab.report.conclude import MAX_BYTES, answer_runs, conclude
from vitlab.storage.files import file_errors, read_json
from vitlab.storage.runs_table import select_runs

DESCRIPTION = """Compares what was trained: the arms of a sweep, single runs, or every run of a folder. Runs that differ
by their seed or fold alone are one row: mean, spread, 95 % interval, and the paired difference to the baseline."""


def main(words: list[str]) -> int:
    """Prints the table, and writes the answer into the folder of the sweep, or --out."""
    parser = argparse.ArgumentParser(prog="vitlab compare", description=DESCRIPTION)
    parser.add_argument(
        "what", nargs="*", help="a sweep's name or folder, runs, or a folder of runs; the folder of --runs"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="PATH", help="folder of all runs; runs")
    parser.add_argument("--metric", help="what is compared: test/accuracy, val/loss, seconds, ...")
    parser.add_argument("--x", help="the figure's axis: a configuration key, parameters, training_flops, ...")
    parser.add_argument("--baseline", help="the row that the others are compared with; the first")
    parser.add_argument(
        "--margin", type=float, help="an arm is equivalent if within so many points (of a loss or cost: units)"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where answer.md, answer.html and the rest go")
    parser.add_argument("--wandb", action="store_true", help="the table and the figures to Weights & Biases as well")
    options = parser.parse_intermixed_args(words)
    changed = {
        key: getattr(options, key) for key in ("metric", "x", "baseline", "margin") if getattr(options, key) is not None
    }
    if (folder := find_sweep(options.what, options.runs)) is not None:
        record = read_json(folder / "sweep.json", MAX_BYTES) | changed
        conclude(record, answer_runs(folder), options.out or folder, wandb=options.wandb)
    else:
        table = select_runs(options.what, options.runs)
        of = ", ".join(options.what) or str(options.runs)
        record = {"name": "comparison", "question": f"How do the runs of {of} differ?"} | changed
        alone = len(options.what) == 1 and not (Path(options.what[0]) / "config.yaml").is_file()
        root = Path(options.what[0]) if alone else options.runs  # beside the runs that it is about
        conclude(record, table, options.out or root / "comparison", wandb=options.wandb)
    return DONE


@file_errors()
def find_sweep(what: list[str], runs: Path) -> Path | None:
    """The folder of the sweep that is named; None where runs are named.

    Raises:
        ConfigError: a sweep of that name was not run, or at several scales.
    """
    if len(what) != 1:
        return None
    if Path(what[0]).is_dir():
        return Path(what[0]) if (Path(what[0]) / "sweep.json").is_file() else None
    name = Path(what[0]).stem if what[0].endswith(".yaml") else what[0]
    there = sorted(path.parent for path in (runs / "sweeps").glob("*/sweep.json"))
    found = [path for path in there if path.name == name]
    found = found or [path for path in there if read_json(path / "sweep.json", MAX_BYTES).get("name") == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{name} was run several times: give {' or '.join(map(str, found))}")
    listed = f" (there are {', '.join(path.name for path in there)})" if there else ""
    known = SWEEPS.rglob(f"{name}.yaml") if re.fullmatch(r"[\w-]+", name) else ()
    asked = Path(what[0]).is_file() or any(known)
    remedy = f"run it: {command('sweep', what[0])}" if asked else "give runs, or a folder of runs"
    raise ConfigError(f"{what[0]} is neither a run, nor a folder of runs, nor a sweep that was run{listed}: {remedy}")
