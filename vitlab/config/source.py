"""The source files of the user's own classes: their digests tell whether a run was trained with the same code."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from vitlab.config.check import locate
from vitlab.config.own import is_own

DIGESTS: dict[str, tuple[Any, str]] = {}  # by module: of the file as it was when the module was loaded


def sources(node: Any) -> dict[str, str]:
    """The digest of the source file of each class of the user's own that a node names, and of its base classes."""
    found = {}
    for target in targets(node):
        for kind in locate(target, ()).__mro__ if is_own(target) else ():
            if is_own(f"{kind.__module__}."):
                module = sys.modules[kind.__module__]
                found[shown(module)] = digest(module)
    return dict(sorted(found.items()))


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` below a node."""
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from targets(value)
    if isinstance(node, dict) and isinstance(node.get("_target_"), str):
        yield node["_target_"]


def shown(module: ModuleType) -> str:
    """The file of a module below the folder that its package lies in, mine/row.py: the same on every machine."""
    file, name = Path(str(module.__file__)), module.__name__.split(".")
    return "/".join(file.parts[-len(name) - (file.stem == "__init__") :])


def digest(module: ModuleType) -> str:
    """The hash of a module's file, with the line ends of Unix; read once, for later changes are not what runs."""
    spec, known = DIGESTS.get(module.__name__, (None, ""))
    if spec is not module.__spec__:  # a module that is loaded again has another one
        text = Path(str(module.__file__)).read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        known = hashlib.sha256(text).hexdigest()[:16]
        DIGESTS[module.__name__] = module.__spec__, known
    return known
