"""Classes that have moved since they were first released: stored configurations and the names of runs keep the first.

`identity` hashes the first name of each class and `locate` finds its present one, so that a class can move without
giving a run another name. To move a class, or a module of them, add a line to `MOVED`.
"""

MOVED: dict[str, str] = {}  # dotted name of a class or a module: as first released -> now


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
