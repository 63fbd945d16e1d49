"""What a class of the user's own must be: checked before it is built, so that its mistakes are said in a sentence."""

import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable
from typing import Any

from vitlab.config.errors import ConfigError, Node
from vitlab.config.groups import nearest
from vitlab.config.own import is_own


def kinds_of(hint: Any) -> tuple[tuple[type, ...], bool]:
    """The classes that an annotation admits, none of a callable; and whether it asks for a factory of one of them."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Callable and args[0] is not Ellipsis:
        return (), False
    if origin is types.UnionType and len(rest := [arg for arg in args if arg is not types.NoneType]) < len(args):
        return kinds_of(functools.reduce(operator.or_, rest))
    factory = origin is Callable
    made = args[-1] if factory else hint
    return tuple(kind for kind in (typing.get_args(made) or (made,)) if inspect.isclass(kind)), factory


def check_class(found: type, node: Node, hint: Any, path: str) -> None:
    """Refuses a class of the user's own that cannot be the part that its option is.

    Args:
        found: the class.
        node: of its option.
        hint: what is expected there.
        path: dotted, of the node.

    Raises:
        ConfigError: `_partial_` is missing or too many, or the class is not derived, abstract, or overrides nothing.
    """
    kinds, factory = kinds_of(hint)
    if not kinds:
        return
    name, bases = dotted(found), " or ".join(map(dotted, kinds))
    if factory and not node.get("_partial_"):
        raise ConfigError(f"{path}: {name}: vitlab gives it more arguments: add _partial_: true to the option's YAML")
    if not factory and node.get("_partial_"):
        raise ConfigError(f"{path}: {name}: it gets all its arguments from the option: leave _partial_ out of its YAML")
    if not issubclass(found, kinds):
        raise ConfigError(f"{path}: {name} is not derived from {bases}: write class {found.__name__}(...) of it")
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(vars(found)["__abstractmethods__"]))
        raise ConfigError(f"{path}: {name} lacks {lacking}: define it")
    base = next(kind for kind in found.__mro__ if not is_own(dotted(kind)))
    if base not in kinds:
        return
    mine = {key for kind in found.__mro__[: found.__mro__.index(base)] for key in vars(kind)}
    methods = {key for key in dir(base) if callable(getattr(base, key)) and key != "__init__"}
    forward = inspect.unwrap(getattr(base, "forward", construct))
    bare = "NotImplementedError" in forward.__code__.co_names  # its hooks do nothing, and a constructor is not enough
    if mine & (methods if bare else {*dir(base)} - {*vars(type("Empty", (), {}))}):
        return
    hooks = [key for kind in base.__mro__ if dotted(kind).startswith("vitlab.") for key in vars(kind) if key in methods]
    near = next((hint for key in sorted(mine) if key[0] != "_" and (hint := nearest(key, hooks))), "")
    raise ConfigError(f"{path}: {name} overrides nothing of {dotted(base)}, and would do nothing of its own{near}")


def construct(found: type, /, *args: Any, **given: Any) -> Any:
    """An instance of a class of the user's own.

    Raises:
        ConfigError: its constructor does not take what it is given.
    """
    try:
        inspect.signature(found).bind(*args, **given)
    except TypeError as error:
        names = ", ".join(given) or "one argument"
        raise ConfigError(
            f"{dotted(found)}: {error}: it is built with {names}: let __init__ take these, and give what else it needs"
            " in the option's YAML"
        ) from error
    return found(*args, **given)


def dotted(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
