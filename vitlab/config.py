"""Configuration: YAML is composed by Hydra, checked against the constructors' signatures, and built into objects."""

import copy
import hashlib
import importlib
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

from vitlab.menu import ALTERNATIVES, CONF, is_known, known_keys, menu, nearest, unknown_option
from vitlab.moved import current_name, first_name

Node = dict[str, Any]


TRUSTED = ("vitlab.", "torch.optim.", "lion_pytorch.", "schedulefree.")  # what a config of one's own may name
MODELS = ("vitlab.model.",)  # what a stranger's may
PARTS = {  # what a training is made of, and the class that each part is a kind of
    "dataset": "vitlab.dataset.dataset.Dataset",
    "model": "vitlab.model.vit.ViT",
    "init": "vitlab.start.Start",
    "augment": "vitlab.dataset.augment.Augment",
    "loss": "vitlab.loss.Loss",
    "optimizer": "torch.optim.Optimizer",
    "schedule": "vitlab.schedule.Schedule",
    "fit": "vitlab.recipe.Fit",
    "system": "vitlab.parallel.System",
    "tracking": "vitlab.tracking.Tracking",
}
FACTORIES = ("model", "optimizer")  # parts that others finish
LARGEST = 3.4028234663852886e38  # that 32 bits hold


class ConfigError(ValueError):
    """A configuration that cannot be; the message says which value, why, and what to do."""


# --- overrides -----------------------------------------------------------------------------------------------------


def complete(overrides: Iterable[str], many: bool = False) -> list[str]:
    """The overrides as Hydra takes them, with `null` for the alternatives of those that they give.

    Args:
        overrides: what the user typed.
        many: whether several values of one key are asked for (multirun).

    Raises:
        ConfigError: a word that is no override, a key that nothing reads, several values for one run.
    """
    given = []
    groups, known = menu(), known_keys()
    for word in overrides:
        head, equals, value = word.partition("=")
        key = head.lstrip("+~").split("@")[0]
        if not equals and not head.startswith("~"):
            raise ConfigError(f"{show(word)}: write group=option or key=value{nearest(word, groups)}")
        if key == "experiment":
            word = f"+experiment={value}"
        elif key == "init" and value.strip("'\" ") not in groups["init"]:
            key, word = "init.weights", f"init.weights={quoted(value)}"
        elif key in known and head.startswith("+"):
            word = f"{key}={value}"
        elif not key.startswith("hydra") and key not in groups and not is_known(key, known):
            raise ConfigError(f"{show(word)}: there is no {show(key)}{nearest(key, [*known, *groups])}")
        if key in groups:
            for option in value.split(",") if many else [value]:
                if "," in option:
                    raise ConfigError(f"{show(word)}: several options for one run; add -m to train each")
                if option.strip("'\" ") not in groups[key]:
                    raise ConfigError(unknown_option(key, show(option), groups[key]))
        given.append(word)
    keys = {word.lstrip("+").split("=")[0] for word in given}
    for ways in ALTERNATIVES:
        if keys & set(ways):
            given += [f"{way}=null" for way in ways if way not in keys]
    return given


def quoted(value: object) -> str:
    """A value as Hydra takes it for these very characters."""
    said = str(value)
    return said if re.fullmatch(r"[\w/.\-]+", said) or said[:1] in ("'", '"') else "'" + said.replace("'", r"\'") + "'"


# --- compose ------------------------------------------------------------------------------------------------------


def compose(overrides: Iterable[str] = ()) -> tuple[Node, dict[str, str]]:
    """The plain, resolved configuration of these overrides, and the option chosen of each group.

    Raises:
        ConfigError: an unknown option, key or value.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given, groups = complete(overrides), menu()
    values = [word for word in given if re.match(r"(?!hydra)\w", word) and word.split("=")[0] not in groups]
    try:
        parsed = OverridesParser.create().parse_overrides(values)
        if several := [str(word.input_line) for word in parsed if word.is_sweep_override()]:
            raise ConfigError(f"{' '.join(several)}: several values for one run; add -m to train each")
        config, choices = composed(tuple(word for word in given if word not in values))
        config = copy.deepcopy(config)
        ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
    except Exception as error:
        raise explain(error, given) from error
    return plain(config, choices)


@cache
def composed(options: tuple[str, ...]) -> tuple[Any, dict[str, str]]:
    """What Hydra makes of chosen options alone: it takes 0.2 s for that, and the cells of a sweep share many."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import open_dict

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", list(options), return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return config, choices


def plain(config: Any, choices: Any) -> tuple[Node, dict[str, str]]:
    """Hydra's configuration as plain containers, and the option chosen of each group."""
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

    try:
        node = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or "a value"
        raise ConfigError(f"{key} has no value: give one, {key}=VALUE") from error
    except InterpolationResolutionError as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}: give it a value") from error
    return typing.cast(Node, node), {str(k): str(v) for k, v in choices.items() if not str(k).startswith("hydra/")}


def explain(error: Exception, overrides: Iterable[str]) -> Exception:
    """Hydra's complaint as one sentence with a way out; an error that is not Hydra's or OmegaConf's as it is."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(error, HydraException | OmegaConfBaseException):
        return error
    text = " ".join(line.strip() for line in str(error).split("\n") if line.strip())
    if text.startswith("Ambiguous value"):
        several = [word for word in overrides if "," in word]
        return ConfigError(f"{' '.join(several)}: several values for one run; add -m to train each")
    if found := re.match(r"Could not override '([^']+)'", text):
        key = found[1]
        owners = [f"{group}={option}" for group, option in known_keys().get(key, [])]
        verb = "have" if len(owners) > 1 else "has"
        has = f"; {', '.join(owners)} {verb} it" if owners else nearest(key, known_keys())
        return ConfigError(f"{key}: the chosen options have no such key{has}")
    return ConfigError(text.split(" To append")[0])


# --- check --------------------------------------------------------------------------------------------------------


def locate(target: str, allowed: tuple[str, ...] = TRUSTED) -> Any:
    """The class that a `_target_` names, by its present dotted name or by an earlier one.

    Raises:
        ConfigError: it is not among the allowed ones: nothing of it is run.
    """
    target = current_name(target)
    module, _, name = target.rpartition(".")
    refused = ConfigError(
        f"_target_: {target} is refused: a configuration may name classes of {', '.join(allowed)} only"
    )
    if not f"{module}.".startswith(allowed):
        raise refused
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        extra = target.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name == extra != "vitlab":
            raise ConfigError(
                f"{target} needs a package of its own: uv sync --extra {extra}, or pip install {extra}"
            ) from error
        raise ConfigError(f"_target_: {target} does not exist: {error}") from error
    if not (inspect.isclass(found) and f"{found.__module__}.".startswith(allowed)):
        raise refused
    return found


def check(config: Node, path: str = "", allowed: tuple[str, ...] = TRUSTED) -> Node:
    """The configuration with every value held against the annotation of the argument that it goes to.

    Whole numbers become floats where a float is wanted, so that 1 and 1.0 are the same run.

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
            raise ConfigError(f"{at}{key}: there is no such key{nearest(key, wanted)}")
        if isinstance(value, dict):
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
    """The type that each key of a node asks for, and the keys that it cannot do without; None where any will do."""
    if not path:
        kinds = {name: locate(target) for name, target in PARTS.items()}
        kinds |= {name: Callable[..., kinds[name]] for name in FACTORIES}  # ty: ignore[invalid-type-form]
        return {"seed": int, "patch": dict, **kinds}, ["seed", "patch", *kinds]
    if path == "patch":
        return {"size": int}, ["size"]
    if "_target_" not in config:
        return None, []
    found = inspect.signature(locate(str(config["_target_"]), allowed), eval_str=True).parameters
    needed = [name for name, p in found.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if config.get("_partial_"):  # what no option has is given by the code
        needed = [name for name in needed if path in FACTORIES and f"{path}.{name}" in known_keys()]
    return {name: p.annotation for name, p in found.items()}, needed


def matches(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether a plain value is of the annotated type, and the value as that type has it."""
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
    """Whether a node is of an object of the annotated class, or of a factory where one is asked for."""
    if "_target_" not in node:
        return hint is dict
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    factory = origin is Callable and args[0] is Ellipsis
    made = args[-1] if factory else hint
    kinds = tuple(kind for kind in (typing.get_args(made) or (made,)) if inspect.isclass(kind))
    found = locate(str(node["_target_"]))
    fits = issubclass(found, kinds) and not inspect.isabstract(found) if factory or origin is not Callable else True
    return fits and bool(node.get("_partial_")) == factory


def spell(hint: Any, path: str) -> str:
    """An annotation in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        plain = [a for a in args if a in (int, float, bool, str, type(None)) or typing.get_origin(a)]
        return " or ".join(dict.fromkeys(spell(a, path) for a in plain or args))
    if origin in (tuple, list):
        return (
            f"a list of {spell(args[0], path)}"
            if Ellipsis in args or origin is list
            else f"{len(args)} numbers, [a, b]"
        )
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "null"}
    if hint in names:
        return names[hint]
    group = path.replace(".", "/")
    options = menu().get(group)
    return f"an option of the group: {group}={'|'.join(options)}" if options else "an object of the configuration"


def show(value: Any) -> str:
    """A value in one line, as it would be typed."""
    return value if isinstance(value, str) and value.isprintable() and value else json.dumps(value)


# --- build --------------------------------------------------------------------------------------------------------


def build(node: Any, allowed: tuple[str, ...] = TRUSTED, **more: Any) -> Any:
    """The object that a node describes: the `_target_`'s, or with `_partial_` a factory of it.

    Args:
        node: plain containers; lists become tuples.
        allowed: what a `_target_` may name.
        more: further arguments.

    Raises:
        ConfigError: a `_target_` that is not allowed.
        ValueError: what the constructor refuses.
    """
    if isinstance(node, list):
        return tuple(build(item, allowed) for item in node)
    if not isinstance(node, dict):
        return node
    arguments = {key: build(value, allowed) for key, value in node.items() if key not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return arguments
    found = locate(str(node["_target_"]), allowed)
    return partial(found, **arguments, **more) if node.get("_partial_") else found(**arguments, **more)


def assemble(config: Node) -> dict[str, Any]:
    """The objects of a checked configuration, as `recipe.prepare` takes them."""
    parts = {key: build(value) for key, value in config.items() if key not in ("patch", "seed", "model")}
    if not 0 <= config["seed"] < 2**63:
        raise ValueError(f"seed={config['seed']}: must be 0 or more, and below 2^63")
    return {
        **parts,
        "model": build(config["model"], patch=config["patch"]["size"]),
        "seed": config["seed"],
    }


# --- identity -----------------------------------------------------------------------------------------------------


def identity(config: Node) -> str:
    """Eight hexadecimal digits of everything that can change a result: the same run, the same digits.

    Where a class lives is no part of it (`vitlab.moved`), nor is what cannot change a result: `system`, `tracking`, and
    where a dataset's files lie; `init` at chance, and where weights lie of which it says what they are (`init.origin`).
    """
    counts = {key: value for key, value in config.items() if key not in ("system", "tracking", "init")}
    if (init := config.get("init", {})).get("weights") is not None:
        said = "weights" if init["origin"] else "origin"
        counts["init"] = {key: value for key, value in init.items() if key != said}
    places = locate(config["dataset"]["_target_"]).places
    counts["dataset"] = {key: value for key, value in config["dataset"].items() if key not in places}
    return hashlib.sha256(json.dumps(with_first_names(counts), sort_keys=True).encode()).hexdigest()[:8]


def with_first_names(node: Any) -> Any:
    """A configuration in which each class has the name that it was first released under."""
    if isinstance(node, list):
        return [with_first_names(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {k: first_name(v) if k == "_target_" else with_first_names(v) for k, v in node.items()}


def cell(config: Node) -> str:
    """The same of everything but the seed: runs of one cell differ by chance alone."""
    return identity({**config, "seed": 0})


def slug(config: Node, choices: dict[str, str]) -> str:
    """A readable name: the experiment or the dataset, model and patch, and the seed."""
    words = [choices.get("dataset", ""), choices.get("model", ""), f"p{config['patch']['size']}", f"s{config['seed']}"]
    if choices.get("experiment"):
        words = [choices["experiment"], words[-1]]
    return "-".join(word for word in words if word).replace("/", "-").replace("_", "-")
