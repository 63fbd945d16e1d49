"""Configuration: YAML is composed by Hydra, checked against the constructors' signatures, and built into objects."""

import difflib
import hashlib
import importlib
import inspect
import json
import re
import types
import typing
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

Node = dict[str, Any]

HERE = Path(__file__).parent
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"  # in a wheel, or in a checkout

TRUSTED = ("vitlab.", "torch.optim.")  # what a config of one's own may name
MODELS = ("vitlab.model.",)  # what a stranger's may


class ConfigError(ValueError):
    """A configuration that cannot be; the message says which value, why, and what to do."""


# --- which values belong together ---------------------------------------------------------------------------------

# Ways to say one thing: an override of one of them takes the others' defaults away.
ALTERNATIVES = (
    ("fit.epochs", "fit.steps", "fit.images"),
    ("schedule.warmup_fraction", "schedule.warmup_epochs", "schedule.warmup_steps"),
)


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
            raise ConfigError(f"{word}: write group=option or key=value{nearest(word, groups)}")
        if key == "experiment":
            word = f"+experiment={value}"
        elif key in known and head.startswith("+"):
            word = f"{key}={value}"
        elif not key.startswith("hydra") and key not in groups and not is_known(key, known):
            raise ConfigError(f"{word}: there is no {key}{nearest(key, [*known, *groups])}")
        if key in groups:
            for option in value.split(",") if many else [value]:
                if "," in option:
                    raise ConfigError(f"{word}: several options for one run; add -m to train each")
                if option.strip("'\" ") not in groups[key]:
                    raise ConfigError(unknown_option(key, option, groups[key]))
        given.append(word)
    keys = {word.lstrip("+").split("=")[0] for word in given}
    for ways in ALTERNATIVES:
        if keys & set(ways):
            given += [f"{way}=null" for way in ways if way not in keys]
    return given


# --- the menu -----------------------------------------------------------------------------------------------------


def menu(root: Path = CONF) -> dict[str, dict[str, str]]:
    """Every group, its options, and the line that each option's file opens with."""
    groups: dict[str, dict[str, str]] = {}
    for file in sorted(root.rglob("*.yaml"), key=natural):
        if file.parent != root:
            lines = file.read_text().split("\n")
            first = lines[1] if lines[0].startswith("# @package") else lines[0]
            groups.setdefault(file.parent.relative_to(root).as_posix(), {})[file.stem] = first.removeprefix("# ")
    return groups


def natural(file: Path) -> list[Any]:
    """Sorts p4 before p16."""
    words = re.split(r"(\d+)", str(file.with_suffix("")))
    return [int(word) if word.isdigit() else word for word in words]


def nearest(word: str, words: Iterable[str]) -> str:
    """', did you mean ...?' where something is near."""
    found = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


# --- compose ------------------------------------------------------------------------------------------------------


def compose(overrides: Iterable[str] = ()) -> tuple[Node, dict[str, str]]:
    """The plain, resolved configuration of these overrides, and the option chosen of each group.

    Raises:
        ConfigError: an unknown option, key or value.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import open_dict

    given = complete(overrides)
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose("train", given, return_hydra_config=True)
    except Exception as error:
        raise explain(error, given) from error
    choices = config.hydra.runtime.choices
    with open_dict(config):
        del config["hydra"]
    return plain(config, choices)


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
        raise ConfigError(str(error).split("\n")[0]) from error
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
        has = f"; {', '.join(owners)} has it" if owners else nearest(key, known_keys())
        return ConfigError(f"{key}: the chosen options have no such key{has}")
    return ConfigError(text.split(" To append")[0])


def unknown_option(group: str, option: str, options: Iterable[str]) -> str:
    listed = ", ".join(options)
    remedy = f"; for a size of your own: patch.size={option}" if group == "patch" and option.isdigit() else ""
    if group == "patch" and f"p{option}" in options:
        remedy = f"; did you mean patch=p{option}?"
    return f"{group}={option}: there is no such option; {group} is one of {listed}{remedy or nearest(option, options)}"


def known_keys(root: Path = CONF) -> dict[str, list[tuple[str, str]]]:
    """Every key that some option has, dotted, and the (group, option) pairs that have it."""
    found: dict[str, list[tuple[str, str]]] = {"seed": []}
    for group, options in menu(root).items():
        for option in options:
            text = (root / group / f"{option}.yaml").read_text()
            for key in re.findall(r"^([a-z_0-9]+):", text, flags=re.MULTILINE) if group != "experiment" else ():
                if key != "defaults":
                    found.setdefault(f"{group.replace('/', '.')}.{key}", []).append((group, option))
    return found


def is_known(key: str, known: Iterable[str]) -> bool:
    return any(k == key or k.startswith(f"{key}.") for k in known)


def defaults(root: Path = CONF) -> dict[str, str]:
    """The option of each group that is taken when nothing is said."""
    found = {}
    for file, prefix in ((root / "train.yaml", ""), (root / "model" / "vit.yaml", "model/")):
        for group, option in re.findall(r'^  - (\w+): "?(\w+)', file.read_text(), flags=re.MULTILINE):
            found[prefix + group] = option
    return found


def help_text() -> str:
    """The menu of groups and options, one line each."""
    lines = [
        "vitlab train [group=option] [key=value] ...   trains one Vision Transformer; with -m one for each combination",
        "",
    ]
    taken = defaults()
    for group, options in sorted(menu().items(), key=lambda item: item[0].split("/")):
        lines.append(f"{'+' if group == 'experiment' else ''}{group}=")
        lines += [f"  {'*' if taken.get(group) == name else ' '} {name:<14} {line}" for name, line in options.items()]
        lines.append("")
    lines += [
        "* is taken when you say nothing.",
        "seed=0, and any key of the options: model.width=96 optimizer.lr=3e-4 fit.epochs=10 dataset.train_examples=500",
        "",
        "  vitlab train --cfg job            the whole configuration, not trained",
        "  vitlab train -m patch=p1,p2,p4    one training an option",
        "  vitlab train --hydra-help         Hydra's own flags",
        '  eval "$(vitlab train -sc install=bash)"   completion with the tab key',
    ]
    return "\n".join(lines)


# --- check --------------------------------------------------------------------------------------------------------


def locate(target: str, allowed: tuple[str, ...] = TRUSTED) -> Any:
    """The class that a `_target_` names.

    Raises:
        ConfigError: it is not among the allowed ones: nothing of it is run.
    """
    module, _, name = target.rpartition(".")
    refused = ConfigError(
        f"_target_: {target} is refused: a configuration may name classes of {', '.join(allowed)} only"
    )
    if not f"{module}.".startswith(allowed):
        raise refused
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
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
    if not path:
        for name, value in (("seed", config["seed"]), ("patch.size", config["patch"]["size"])):
            if not matches(value, int)[0]:
                raise ConfigError(f"{name}={show(value)}: expected {spell(int, name)}")
    wanted: dict[str, inspect.Parameter] | None = None
    if "_target_" in config:
        wanted = dict(inspect.signature(locate(str(config["_target_"]), allowed)).parameters)
        missing = [
            n for n, p in wanted.items() if p.default is p.empty and n not in config and p.kind is not p.VAR_KEYWORD
        ]
        if missing and not config.get("_partial_"):
            raise ConfigError(f"{at}{missing[0]} is missing: give it a value")
    for key, value in config.items():
        if key in ("_target_", "_partial_"):
            checked[key] = value
            continue
        if wanted is not None and key not in wanted:
            raise ConfigError(f"{at}{key}: there is no such key{nearest(key, wanted)}")
        if isinstance(value, dict):
            value = check(value, f"{at}{key}", allowed)
        if wanted is not None:
            hint = wanted[key].annotation
            fits, value = matches(value, hint)
            if not fits:
                raise ConfigError(f"{at}{key}={show(value)}: expected {spell(hint, f'{at}{key}')}")
        checked[key] = value
    return checked


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
        return "_target_" in value and (hint is not float and hint is not int), value
    if hint is bool:
        return isinstance(value, bool), value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
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


def spell(hint: Any, path: str) -> str:
    """An annotation in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(spell(a, path) for a in args))
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
    return json.dumps(value) if not isinstance(value, str) else value


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


# --- identity -----------------------------------------------------------------------------------------------------


def identity(config: Node) -> str:
    """Eight hexadecimal digits of everything that can change a result: the same run, the same digits.

    What cannot is left out: `system`, `tracking`, and where a dataset's files lie.
    """
    counts = {key: value for key, value in config.items() if key not in ("system", "tracking")}
    places = locate(config["dataset"]["_target_"]).places
    counts["dataset"] = {key: value for key, value in config["dataset"].items() if key not in places}
    return hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest()[:8]


def slug(config: Node, choices: dict[str, str]) -> str:
    """A readable name: the experiment or the dataset, model and patch, and the seed."""
    words = [choices.get("dataset", ""), choices.get("model", ""), f"p{config['patch']['size']}", f"s{config['seed']}"]
    if choices.get("experiment"):
        words = [choices["experiment"], words[-1]]
    return "-".join(word for word in words if word).replace("/", "-").replace("_", "-")
