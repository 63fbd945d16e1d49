"""Classes that have moved since they were first released: stored configurations and the names of runs keep the first.

`identity` hashes the first name of each class and `locate` finds its present one, so that a class can move without
giving a run another name. To move a class, or a module of them, add a line to `MOVED`.
"""

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
