"""Configuration: YAML is composed by Hydra, checked against the constructors' signatures, and built into objects."""

import importlib
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

from vitlab.config.errors import ConfigError, Node
from vitlab.config.groups import known_keys, menu, nearest
from vitlab.config.moved import current_name
from vitlab.config.overrides import show
from vitlab.config.own import allowed_packages, is_own, remedy
from vitlab.config.own_class import check_class, kinds_of

TRUSTED = ("vitlab.", "torch.optim.", "lion_pytorch.", "schedulefree.")  # what a trusted configuration may name
MODELS = ("vitlab.model.",)  # what an untrusted one may name
PARTS = {  # the parts of a training, and the base class of each
    "dataset": "vitlab.data.dataset.Dataset",
    "model": "vitlab.model.vit.ViT",
    "init": "vitlab.training.pretrained.Start",
    "augment": "vitlab.data.augment.Augment",
    "loss": "vitlab.training.loss.Loss",
    "optimizer": "torch.optim.Optimizer",
    "schedule": "vitlab.training.schedule.Schedule",
    "fit": "vitlab.training.recipe.Fit",
    "system": "vitlab.system.options.System",
    "tracking": "vitlab.tracking.options.Tracking",
}
FACTORIES = ("model", "optimizer")  # parts that are built later, with further arguments
PLAIN = {  # types of values: one of them in words, and several
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("a word", "words"),
    type(None): ("null", "null"),
}
LARGEST = 3.4028234663852886e38  # of float32


def locate(target: str, allowed: tuple[str, ...] = TRUSTED) -> Any:
    """The class that a `_target_` names, by its current dotted name or an earlier one.

    Raises:
        ConfigError: it is not allowed, and nothing of it is run, or does not exist.
    """
    target = current_name(target)
    module, _, name = target.rpartition(".")
    allowed = (*allowed, *allowed_packages())
    refused = ConfigError(
        f"_target_: {target} is refused: a configuration may name classes of {', '.join(allowed)} only{remedy(target)}"
    )
    if not f"{module}.".startswith(allowed) or not all(map(str.isidentifier, target.split("."))):
        raise refused
    try:
        found = getattr(imported(module, target), name)
    except AttributeError as error:
        raise ConfigError(f"_target_: {target} does not exist: {error}") from error
    if not (inspect.isclass(found) and f"{found.__module__}.".startswith(allowed)):
        raise refused
    return found


def imported(module: str, target: str) -> types.ModuleType:
    """The module of a `_target_`.

    Raises:
        ConfigError: it does not exist, or it is the user's own, and importing it fails.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
        if missing == (extra := target.partition(".")[0]) != "vitlab":
            raise ConfigError(
                f"{target} needs a package of its own: uv sync --extra {extra}, or pip install {extra}"
            ) from error
        if is_own(target) and not (missing and f"{module}.".startswith(f"{missing}.")):
            what = f"{type(error).__name__}: {error}"
            raise ConfigError(f"_target_: {target}: importing {module} failed: {what}: correct it there") from error
        if isinstance(error, ImportError):
            raise ConfigError(f"_target_: {target} does not exist: {error}") from error
        raise


def check(config: Node, path: str = "", allowed: tuple[str, ...] = TRUSTED) -> Node:
    """The configuration, every value checked against the type of the constructor's argument.

    Integers become floats where a float is expected, so that 1 and 1.0 are the same run.

    Raises:
        ConfigError: a key that is no argument, or a value of another type.
    """
    checked: Node = {}
    at = f"{path}." if path else ""
    wanted, needed = arguments(config, path, allowed)
    for name in needed:
        if name not in config:
            raise ConfigError(f"{at}{name} is missing: give it a value")
    for key, value in config.items():
        if key in ("_target_", "_partial_"):
            checked[key] = current_name(value) if key == "_target_" and isinstance(value, str) else value
            continue
        if wanted is not None and key not in wanted:
            target = str(config.get("_target_"))
            has = f"; {target} has {', '.join(wanted) or 'none'}" if is_own(target) else ""
            raise ConfigError(f"{at}{key}: there is no such key{nearest(key, wanted)}{has}")
        if isinstance(value, dict):
            if wanted is not None and is_own(target := str(value.get("_target_"))):
                check_class(locate(target, allowed), value, wanted[key], f"{at}{key}")
            value = check(value, f"{at}{key}", allowed)
        if wanted is not None:
            hint = wanted[key]
            fits, value = matches(value, hint)
            if not fits:
                size = ", no larger than 3.4e38" if isinstance(value, float) and not abs(value) <= LARGEST else ""
                raise ConfigError(f"{at}{key}={show(value)}: expected {spell(hint, f'{at}{key}')}{size}")
        checked[key] = value
    return checked


def arguments(config: Node, path: str, allowed: tuple[str, ...]) -> tuple[dict[str, Any] | None, list[str]]:
    """The type of each key of a node (None where any key is allowed), and the keys that are required."""
    if not path:
        kinds = {name: locate(target) for name, target in PARTS.items()}
        kinds |= {name: Callable[..., kinds[name]] for name in FACTORIES}  # ty: ignore[invalid-type-form]
        return {"seed": int, **kinds}, ["seed", *kinds]
    if "_target_" not in config:
        return None, []
    target = str(config["_target_"])
    try:
        found = inspect.signature(locate(target, allowed), eval_str=True).parameters
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        if not is_own(target):
            raise
        raise ConfigError(f"{path}: {target}: the annotations of its __init__ cannot be read: {error}") from error
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [name for name, p in found.items() if p.default is p.empty and p.kind not in open_ended]
    if config.get("_partial_"):  # arguments that no option has are given by the code
        needed = [name for name in needed if path in FACTORIES and f"{path}.{name}" in known_keys()]
    return {name: p.annotation for name, p in found.items()}, needed


def matches(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether a plain value is of the annotated type, and the value converted to it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, inspect.Parameter.empty):
        return True, value
    if hint is None or hint is type(None):
        return value is None, value
    if origin is typing.Literal:
        return any(value == a and type(value) is type(a) for a in args), value
    if origin in (typing.Union, types.UnionType):
        return next((found for a in args if (found := matches(value, a))[0]), (False, value))
    if isinstance(value, dict):
        return describes(value, hint), value
    if hint is bool:
        return isinstance(value, bool), value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
        return number, float(value) if number else value
    if hint is str:
        return isinstance(value, str), value
    if origin in (tuple, list) and isinstance(value, list):
        each = args if origin is tuple and Ellipsis not in args else (args[0],) * len(value)
        if len(each) != len(value):
            return False, value
        pairs = [matches(v, a) for v, a in zip(value, each, strict=True)]
        return all(ok for ok, _ in pairs), [v for _, v in pairs]
    return False, value


def describes(node: Node, hint: Any) -> bool:
    """Whether a node describes an object of the annotated class, or a factory where that is expected."""
    if "_target_" not in node:
        return hint is dict
    kinds, factory = kinds_of(hint)
    found = locate(str(node["_target_"]))
    called = typing.get_origin(hint) is Callable and not factory
    fits = called or (issubclass(found, kinds) and not inspect.isabstract(found))
    return fits and bool(node.get("_partial_")) == factory


def spell(hint: Any, path: str, several: bool = False) -> str:
    """An annotation in words; of several such values in the plural."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        plain = [a for a in args if a in PLAIN or typing.get_origin(a)] or list(args)
        options = [each for a in plain for each in (a.__args__ if typing.get_origin(a) is typing.Literal else [a])]
        words = list(dict.fromkeys(a if isinstance(a, str) else spell(a, path, several) for a in options))
        *first, last = words
        return f"{', '.join(first)}{',' * (len(first) > 1)} or {last}" if first else last
    if origin in (tuple, list):
        length = "" if Ellipsis in args or origin is list else f"{len(args)} "
        return f"a list of {length}{spell(args[0], path, several=True)}"
    if hint in PLAIN:
        return PLAIN[hint][several]
    group = path.replace(".", "/")
    options = menu().get(group)
    return f"an option of the group: {group}={'|'.join(options)}" if options else "an object of the configuration"
