"""What has changed since it was first released: stored configurations and the names of runs keep the first form.

`identity` hashes the first name of each class and `locate` finds its present one, so that a class can move without
giving a run another name. To move a class, or a module of them, add a line to `MOVED`; to move a key, one to `KEYS`,
and change `upgrade` and `first_layout`; to add an option to what stored runs have, add a line to `ADDED`.
"""

from typing import Any

from vitlab.config.errors import Node

MOVED = {  # dotted name of a module or a class: as first released -> now
    "vitlab.dataset.augment": "vitlab.data.augment",
    "vitlab.dataset.digits": "vitlab.data.datasets.digits",
    "vitlab.dataset.mnist": "vitlab.data.datasets.mnist",
    "vitlab.dataset.published": "vitlab.data.datasets.torchvision_sets",
    "vitlab.dataset.image_folder": "vitlab.data.datasets.image_folder",
    "vitlab.dataset.imagenet": "vitlab.data.datasets.imagenet",
    "vitlab.dataset.hf": "vitlab.data.datasets.huggingface",
    "vitlab.dataset.shards": "vitlab.data.datasets.webdataset",
    "vitlab.dataset.synthetic": "vitlab.data.datasets.synthetic",
    "vitlab.loss": "vitlab.training.loss",
    "vitlab.optim.Muon": "vitlab.training.muon.Muon",
    "vitlab.parallel.System": "vitlab.system.options.System",
    "vitlab.recipe.Fit": "vitlab.training.recipe.Fit",
    "vitlab.schedule": "vitlab.training.schedule",
    "vitlab.start.Start": "vitlab.training.pretrained.Start",
    "vitlab.tracking.Tracking": "vitlab.tracking.options.Tracking",
}
KEYS = {"patch.size": "model.patch"}  # key as first released -> now

# Options that came later, and what the code did before them: of a group, or of one class. A stored configuration
# without the option has this value, and a run with this value has the name that it had before.
PIXELS = {"background": None, "range": None}
ADDED: dict[str, dict[str, Any]] = {
    "dataset": {"folds": None, "fold": 0},
    "system": {"changed_data": False, "capture": False},
    "vitlab.data.datasets.huggingface.HuggingFace": PIXELS,
    "vitlab.data.datasets.image_folder.ImageFolder": PIXELS | dict.fromkeys(("train", "validation", "test"), "auto"),
    "vitlab.data.datasets.webdataset.WebDataset": PIXELS,
    "vitlab.training.recipe.Fit": {"best": "val/accuracy", "sampling": "uniform"},
    "vitlab.model.resnet.ResNet": {"padding": "both"},
    "vitlab.training.loss.CrossEntropy": {"class_weights": None},
    "vitlab.training.loss.SigmoidCrossEntropy": {"class_weights": None},
}


def added(group: str, node: Node) -> Node:
    """The options of a part that came later."""
    target = current_name(str(node.get("_target_")))
    return ADDED.get(group, {}) | ADDED.get(target, {})


def current_key(key: str) -> str:
    """The key that a user or a stored file may call by its first name."""
    return KEYS.get(key, key)


def upgrade(config: Node) -> Node:
    """A stored configuration with the keys of today: `patch: {size: N}` became `model.patch`, and `ADDED`."""
    match config:
        case {"patch": {"size": size}, "model": {**model}} if "patch" not in model:
            rest = {key: value for key, value in config.items() if key != "patch"}
            config = {**rest, "model": {**model, "patch": size}}
    if not isinstance(config, dict):
        return config
    return {group: with_added(group, part) for group, part in config.items()}


def first_layout(config: Node) -> Node:
    """A configuration with the keys and class names that it was first released with."""
    config = {group: without_added(group, part) for group, part in upgrade(config).items()}
    model = {key: value for key, value in config["model"].items() if key != "patch"}
    return with_first_names({**config, "model": model, "patch": {"size": config["model"]["patch"]}})


def with_added(group: str, part: Any) -> Any:
    """A part, and those in it, with the options that came later."""
    if not isinstance(part, dict):
        return part
    return {**added(group, part), **{key: with_added(f"{group}.{key}", value) for key, value in part.items()}}


def without_added(group: str, part: Any) -> Any:
    """A part, and those in it, without the options that came later and change nothing."""
    if not isinstance(part, dict):
        return part
    later = added(group, part)
    kept = {key: value for key, value in part.items() if key not in later or value != later[key]}
    return {key: without_added(f"{group}.{key}", value) for key, value in kept.items()}


def with_first_names(node: Any) -> Any:
    """A configuration in which each class has the name that it was first released under."""
    if isinstance(node, list):
        return [with_first_names(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {k: first_name(v) if k == "_target_" else with_first_names(v) for k, v in node.items()}


def current_name(target: str) -> str:
    """The dotted name that a stored `_target_` has now."""
    return renamed(target, MOVED)


def first_name(target: str) -> str:
    """The dotted name that stored configurations know a class by."""
    return renamed(target, {now: first for first, now in MOVED.items()})


def renamed(target: str, names: dict[str, str]) -> str:
    """`target` with its longest prefix that is in `names` replaced."""
    words = target.split(".")
    for length in range(len(words), 0, -1):
        if (found := names.get(".".join(words[:length]))) is not None:
            return ".".join([found, *words[length:]])
    return target
