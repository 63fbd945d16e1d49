"""A checked configuration built into objects."""

import os
from functools import partial
from typing import Any

from vitlab.config.check import TRUSTED, locate
from vitlab.config.errors import ConfigError, Node
from vitlab.config.own import is_own
from vitlab.config.own_class import construct


def build(node: Any, allowed: tuple[str, ...] = TRUSTED, **more: Any) -> Any:
    """The object that a node describes: the `_target_`'s, or with `_partial_` a factory of it.

    Args:
        node: plain containers; lists become tuples.
        allowed: what a `_target_` may name.
        more: further arguments.

    Raises:
        ConfigError: a `_target_` that is not allowed.
        ConfigError: what the constructor refuses.
    """
    if isinstance(node, list):
        return tuple(build(item, allowed) for item in node)
    if isinstance(node, str):  # what begins with ~ is a path; it is stored, and identifies a run, as it was given
        return os.path.expanduser(node) if node.startswith("~") else node  # noqa: PTH111 (a text that is no path stays)
    if not isinstance(node, dict):
        return node
    arguments = {key: build(value, allowed) for key, value in node.items() if key not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return arguments
    found = locate(str(node["_target_"]), allowed)
    if is_own(str(node["_target_"])) and hasattr(found, "forward"):  # of an optimizer more is asked than a call
        found = partial(construct, found)
    return partial(found, **arguments, **more) if node.get("_partial_") else found(**arguments, **more)


def assemble(config: Node) -> dict[str, Any]:
    """The objects of a checked configuration, as `prepare` takes them."""
    parts = {key: build(value) for key, value in config.items() if key not in ("seed",)}
    if not 0 <= config["seed"] < 2**63:
        raise ConfigError(f"seed={config['seed']}: must be 0 or more, and below 2^63")
    return {**parts, "seed": config["seed"]}
