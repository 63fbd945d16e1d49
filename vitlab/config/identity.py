"""The identity of a run: its hash, its cell (equal for all seeds and folds) and its readable name."""

import hashlib
import json

from vitlab.config.check import locate
from vitlab.config.errors import Node
from vitlab.config.moved import first_layout


def identity(config: Node) -> str:
    """Hash of everything that can change a result, as eight hexadecimal digits.

    Left out are names that changed since (`moved`), `system`, `tracking`, the folder of a dataset's files, `init` where
    weights are drawn at random, and the path of weights whose origin is given (`init.origin`).
    """
    counts = {key: value for key, value in config.items() if key not in ("system", "tracking", "init")}
    if (init := config.get("init", {})).get("weights") is not None:
        redundant = "weights" if init["origin"] else "origin"
        counts["init"] = {key: value for key, value in init.items() if key != redundant}
    path_options = locate(config["dataset"]["_target_"]).path_options
    counts["dataset"] = {key: value for key, value in config["dataset"].items() if key not in path_options}
    return hashlib.sha256(json.dumps(first_layout(counts), sort_keys=True).encode()).hexdigest()[:8]


def cell_identity(config: Node) -> str:
    """Hash of everything but the seed and the fold: the runs of a cell are repetitions."""
    return identity({**config, "seed": 0, "dataset": {**config["dataset"], "fold": 0}})


def slug(config: Node, choices: dict[str, str]) -> str:
    """A readable name: the experiment or the dataset, model and patch; the fold, where there are any, and the seed."""
    words = [choices.get("dataset", ""), choices.get("model", ""), f"p{config['model']['patch']}"]
    if choices.get("experiment"):
        words = [choices["experiment"]]
    words += [f"f{config['dataset']['fold']}"] if config["dataset"]["folds"] is not None else []
    words.append(f"s{config['seed']}")
    return "-".join(word for word in words if word).replace("/", "-").replace("_", "-")
