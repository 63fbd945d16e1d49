"""Which run a configuration is: its hash, its cell (the same for all seeds) and its readable name."""

import hashlib
import json

from vitlab.config.check import locate
from vitlab.config.errors import Node
from vitlab.config.moved import first_layout


def identity(config: Node) -> str:
    """Eight hexadecimal digits of everything that can change a result: the same run, the same digits.

    Where a class lives is no part of it (`moved.MOVED`), nor is what cannot change a result: `system`, `tracking`, and
    where a dataset's files lie; `init` at chance, and where weights lie of which it says what they are (`init.origin`).
    """
    counts = {key: value for key, value in config.items() if key not in ("system", "tracking", "init")}
    if (init := config.get("init", {})).get("weights") is not None:
        said = "weights" if init["origin"] else "origin"
        counts["init"] = {key: value for key, value in init.items() if key != said}
    path_options = locate(config["dataset"]["_target_"]).path_options
    counts["dataset"] = {key: value for key, value in config["dataset"].items() if key not in path_options}
    return hashlib.sha256(json.dumps(first_layout(counts), sort_keys=True).encode()).hexdigest()[:8]


def cell_identity(config: Node) -> str:
    """The same of everything but the seed: runs of one cell differ by chance alone."""
    return identity({**config, "seed": 0})


def slug(config: Node, choices: dict[str, str]) -> str:
    """A readable name: the experiment or the dataset, model and patch, and the seed."""
    words = [choices.get("dataset", ""), choices.get("model", ""), f"p{config['model']['patch']}", f"s{config['seed']}"]
    if choices.get("experiment"):
        words = [choices["experiment"], words[-1]]
    return "-".join(word for word in words if word).replace("/", "-").replace("_", "-")
