"""The identity of a run: its hash, its cell (equal for all seeds and folds) and its readable name."""

import hashlib
import json
import os
import re

from vitlab.config.check import locate
from vitlab.config.errors import Node
from vitlab.config.moved import first_layout


def identity(config: Node, *, as_written: bool = False) -> str:
    """Hash of everything that can change a result, as eight hexadecimal digits.

    The paths of a dataset count in one spelling, unless `as_written`, as in earlier versions.

    Left out are names that changed since (`moved`), `system`, `tracking`, the folder of a dataset's files, `init` where
    weights are drawn at random, and the path of weights whose origin is given (`init.origin`).
    """
    counts = {key: value for key, value in config.items() if key not in ("system", "tracking", "init")}
    if (init := config.get("init", {})).get("weights") is not None:
        redundant = "weights" if init["origin"] else "origin"
        counts["init"] = {key: value for key, value in init.items() if key != redundant}
    kind = locate(config["dataset"]["_target_"])
    paths, hidden = () if as_written else kind.hashed_paths, kind.path_options
    dataset = {key: value for key, value in config["dataset"].items() if key not in hidden}
    counts["dataset"] = {key: one_spelling(value) if key in paths else value for key, value in dataset.items()}
    return hashlib.sha256(json.dumps(first_layout(counts), sort_keys=True).encode()).hexdigest()[:8]


def cell_identity(config: Node) -> str:
    """Hash of everything but the seed and the fold: the runs of a cell are repetitions."""
    return identity({**config, "seed": 0, "dataset": {**config["dataset"], "fold": 0}})


def one_spelling(paths: str | None) -> str | None:
    """Paths as they are hashed: relative where they lie in the working directory, else absolute; addresses as they are.

    Args:
        paths: one, or several separated by `::`.
    """

    def plain(path: str) -> str:
        if not path or re.match(r"\w+:", path):
            return path
        absolute, here = os.path.abspath(os.path.expanduser(path)), os.getcwd()  # noqa: PTH100, PTH109, PTH111
        inside = os.path.commonpath([absolute, here]) == here
        return os.path.relpath(absolute, here) if inside else absolute

    return paths and "::".join(map(plain, paths.split("::")))


def slug(config: Node, choices: dict[str, str]) -> str:
    """A readable name: the experiment or the dataset, model and patch; the fold, where there are any, and the seed."""
    words = [choices.get("dataset", ""), choices.get("model", ""), f"p{config['model']['patch']}"]
    if choices.get("experiment"):
        words = [choices["experiment"]]
    words += [f"f{config['dataset']['fold']}"] if config["dataset"]["folds"] is not None else []
    words.append(f"s{config['seed']}")
    return "-".join(word for word in words if word).replace("/", "-").replace("_", "-")


def names(config: Node, choices: dict[str, str]) -> tuple[str, ...]:
    """The name of a run's folder, and the one that earlier versions gave it, by its paths as they are written."""
    return tuple(f"{slug(config, choices)}-{identity(config, as_written=earlier)}" for earlier in (False, True))
