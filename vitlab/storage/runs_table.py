"""All runs of a folder as a table; nothing of a run is built or executed to read it."""

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from vitlab.config.errors import ConfigError, StorageError
from vitlab.config.groups import options
from vitlab.config.moved import current_name, upgrade
from vitlab.storage.files import file_errors, read_json, read_text
from vitlab.storage.run import MOST_DATA, Run

MOST_CONFIG = 100_000  # bytes of config.yaml
MOST_VALUES = 2_000  # of one configuration
MOST_METRICS = 2**30  # bytes of metrics.jsonl
SET_ASIDE = re.compile(r"\.\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d$")  # as run.set_aside names folders
FIRST = ("run", "name", "cell", "seed", "status", "error", "written", "commit", "dirty", "vitlab", "torch")
FIRST += ("data", "code")
COUNTED = ("images", "training_flops")
# Deep nesting, which overflows the stack of libyaml, and anchors, which expand to large values.
NESTS, ANCHOR = re.compile(r"[\[{]|[-?:][ \t]+(?=[-?:]\s)"), re.compile(r"(?:^|[\s\[{,])&\S")
MOST_NESTS = 500

Line = dict[str, Any]


@file_errors()
def runs(folder: str | Path = "runs") -> pd.DataFrame:
    """The table of all runs of a folder: one line a run, sorted by name.

    Columns: `run` (its folder), `name`, `cell` (equal for runs that differ by chance alone), `seed`, `status`
    (finished, failed, interrupted, running, pruned, damaged), `error`, `written` (when, in UTC), the code it ran with
    (`commit`, `dirty`, `vitlab`, `torch`), the fingerprint of its images (`data`) and the digests of the
    user's own files (`code`, JSON), `images` seen, `training_flops` (of
    all forward and backward passes; where a run has not counted them, three times those of the forward ones), what
    result.json says (`test/accuracy`, `seconds`, ...), and the configuration
    (`model.width`; for an object its class, `model.position` = `Learned1d`; lists as JSON; None for null, NaN for a
    key that a run does not have). A run whose files cannot be read has the status damaged and says why in `error`.

    Raises:
        StorageError: the folder is not there.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise StorageError(f"{root} is not there: train something, or name the folder of the runs, system.runs=PATH")
    found = [
        path
        for path in sorted(root.iterdir(), key=lambda path: path.name)
        if not path.name.startswith(".") and not SET_ASIDE.search(path.name) and holds_config(path)
    ]
    lines, configs = [], []
    for path in found:
        line, config = read(Run(path))
        lines.append(line)
        configs.append(config)
    keys = dict.fromkeys(key for config in configs for key in config)
    results = sorted({key for line in lines for key in line} - {*FIRST, *COUNTED, *keys})
    order = dict.fromkeys((*FIRST, *COUNTED, *results, *keys))
    return pd.DataFrame({key: column(lines, key) for key in order}, index=pd.RangeIndex(len(found)))


@file_errors()
def select_runs(what: Sequence[str | Path], folder: Path | None = None) -> pd.DataFrame:
    """The table of these runs and folders of runs; of all runs in a folder where none is named.

    Raises:
        ConfigError: one is neither, or none is named.
    """
    parts, names = [], {}
    for each in [Path(name) for name in what] or ([folder] if folder else []):
        if (each / "config.yaml").is_file():
            names.setdefault(each.resolve().parent, []).append(each.resolve().name)
        elif each.is_dir():
            parts.append(runs(each))
        else:
            raise ConfigError(f"{each} is no run and no folder of runs: vitlab train or vitlab sweep makes some")
    for root, of in names.items():
        table = runs(root)
        parts.append(table[table["name"].isin(of)])
    if not parts:
        raise ConfigError("no run is named: give runs, or a folder of runs, such as runs")
    return pd.concat(parts, ignore_index=True)


@file_errors()
def history(run: str | Path) -> pd.DataFrame:
    """The rows of a run's metrics.jsonl: step, epoch, images, seconds, lr, and what was measured (else NaN).

    Raises:
        StorageError: the file is too large, or no file.
    """
    found = Run(Path(run))
    if os.path.lexists(found.metrics) and not found.metrics.is_file():
        raise StorageError(f"{found.metrics} is no regular file: remove it")
    if found.metrics.exists() and found.metrics.stat().st_size > MOST_METRICS:
        raise StorageError(f"{found.metrics} has more than {MOST_METRICS:,} bytes, which is no run's: move it away")
    return pd.DataFrame(found.rows(), columns=None if found.rows() else ["step", "epoch", "images", "seconds"])


def holds_config(path: Path) -> bool:
    try:
        return path.is_dir() and os.path.lexists(path / "config.yaml")
    except OSError:
        return False


def column(lines: list[Line], key: str) -> pd.Series:
    """A column, typed if every run has a value or all are numbers; else of objects, so that None and NaN differ."""
    values = [line.get(key, math.nan) for line in lines]
    plain = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    uniform = len({type(v) for v in values}) == 1 and isinstance(values[0], bool)
    return pd.Series(values, dtype=None if plain or uniform else object)


def read(run: Run) -> tuple[Line, Line]:
    """What is known of a run, and of that the flat configuration; never raises for what its files hold."""
    problems, nested, config, result, known = [], None, {}, {}, {}
    try:
        nested = upgrade(parse(run.config))
        config = {str(key): value for key, value in flatten(nested)}
        if len(config) > MOST_VALUES:
            raise StorageError(f"{run.config} holds more than {MOST_VALUES:,} values, no configuration has so many")
    except (StorageError, RecursionError) as error:
        nested, config = None, {}
        problems.append(str(error) or type(error).__name__)
    try:
        result = {key: tidy(value) for key, value in run.result().items() if isinstance(value, str | int | float)}
    except (StorageError, RecursionError) as error:
        problems.append(str(error))
    known, data = plain_json(run.environment), plain_json(run.data, MOST_DATA)
    git, packages = (known[key] if isinstance(known.get(key), dict) else {} for key in ("git", "packages"))
    facts = {"commit": git.get("commit"), "dirty": git.get("dirty")}
    facts |= {name: packages.get(name) for name in ("vitlab", "torch")} | {"data": data.get("hash")}
    facts["code"] = json.dumps(data["code"] if isinstance(data.get("code"), dict) else {})
    line = config | result | {key: value for key, value in facts.items() if isinstance(value, str | bool)}
    seed = config.get("seed", result.get("seed"))
    line |= {"run": str(run.folder), "name": run.folder.name, "written": written(run)}
    line["seed"] = seed if type(seed) is int and 0 <= seed < 2**53 else math.nan
    if not isinstance(result.get("cell"), str):
        line["cell"] = cell_of(nested)
    if problems:
        line |= {"status": "damaged", "error": "; ".join(problems)}
    return line | count(result, config), config


def plain_json(path: Path, most: int = 1_000_000) -> Line:
    """What a file says of a run beside its result; empty where that is not known: the run itself may be whole."""
    try:
        return read_json(path, most)
    except StorageError:
        return {}


def tidy(value: Any) -> Any:
    """A number that a column of floats can hold."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return float(value) if abs(value) < 2**1000 else math.nan
    return value


def count(result: Line, config: Line) -> Line:
    """Images seen, and floating-point operations to train on them, where the run has not counted them itself."""
    steps, flops, batch = result.get("steps"), result.get("flops_per_image"), config.get("fit.batch_size")
    if not (isinstance(steps, int | float) and isinstance(batch, int | float)):
        return {}
    images = float(steps) * float(batch)
    counted = isinstance(result.get("training_flops"), int | float) or not isinstance(flops, int | float)
    return {"images": images} | ({} if counted else {"training_flops": 3.0 * flops * images})


def written(run: Run) -> str:
    """When the status of the run was last written, to tell which of two copies is newer."""
    for path in (run.folder / "result.json", run.config):
        try:
            return f"{datetime.fromtimestamp(path.stat().st_mtime, UTC):%Y-%m-%d %H:%M:%S.%f}"
        except (OSError, ValueError, OverflowError):
            continue
    return ""


def cell_of(config: Any) -> str | None:
    """The cell of a run whose result.json does not have it; None if it is unknown."""
    try:
        target = config["dataset"]["_target_"]
        if not isinstance(target, str) or not current_name(target).startswith("vitlab.data."):
            return None
        from vitlab.config.identity import cell_identity  # imports the datasets, and torch with them

        return cell_identity(config)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


class Careful(yaml.SafeLoader):
    """The safe loader without aliases, and in Python, where deep nesting is an error and no crash."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it holds an alias, which vitlab never writes")
        return super().compose_node(parent, index)


def parse(path: Path) -> Any:
    """The configuration in an untrusted file, in 1 ms: by libyaml, unless it looks odd.

    Raises:
        StorageError: it is damaged, or cannot be read.
    """
    text = read_text(path, MOST_CONFIG)
    odd = ANCHOR.search(text) or len(NESTS.findall(text)) > MOST_NESTS
    try:
        found = yaml.load(text, Careful if odd else getattr(yaml, "CSafeLoader", Careful))
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(f"{path} is damaged ({' '.join(str(error).split())[:300]}): remove it") from error
    if not isinstance(found, dict):
        raise StorageError(f"{path} is damaged (it holds no mapping): remove it")
    return found


def flatten(node: Line, path: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with dots, and plain values; a part by its option, or its class where several options make it."""
    if path and "_target_" in node:
        target = current_name(str(node["_target_"]))
        yield path, options().get((path.replace(".", "/"), target), target.rpartition(".")[2])
    for key, value in node.items():
        at = f"{path}.{key}" if path else str(key)
        if key in ("_target_", "_partial_"):
            continue
        elif isinstance(value, dict):
            yield from flatten(value, at)
        elif isinstance(value, list):
            yield at, json.dumps(value, default=str)
        else:
            yield at, tidy(value) if value is None or isinstance(value, str | int | float) else str(value)
