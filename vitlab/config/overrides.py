"""Overrides as users type them: read by Hydra's grammar, validated, quoted, merged."""

import itertools
import json
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from vitlab.config.errors import ConfigError
from vitlab.config.groups import ALTERNATIVES, TEXTS, is_known, known_keys, menu, nearest, unknown_option
from vitlab.config.moved import KEYS, current_key

RUNS = "a run has its own folder: use system.runs=FOLDER for another place"
REFUSED = {  # options of Hydra's that would be ignored
    "hydra.mode": "use -m to train several runs",
    "hydra.run.dir": RUNS,
    "hydra.sweep.subdir": RUNS,
    "hydra.job.chdir": f"a run leaves the working directory as it is; {RUNS}",
    "hydra.output_subdir": "the configuration is config.yaml in the run's folder: leave it out",
}
SEVERAL = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweep")  # options of several runs alone


def complete(overrides: Iterable[str], many: bool = False) -> list[str]:
    """The overrides in Hydra's form; alternatives of a key that is given are set to null.

    Args:
        overrides: what the user typed.
        many: whether a key may have several values (multirun).

    Raises:
        ConfigError: no override, an unknown key or option, or several values for one run.
    """
    overrides, given = list(overrides), []
    groups, known = menu(), known_keys()
    for word in overrides:
        if re.match(r"[^\s=]+=[^\s'\"\[{(]*\s+[\w./+~-]+=", word) and key_of(word) not in TEXTS:
            raise ConfigError(f"{show(word)}: several overrides in one: give each as a word of its own, {word.split()}")
    for word in itertools.chain.from_iterable(map(unpacked, overrides)):
        head, equals, value = word.partition("=")
        key = head.lstrip("+~").split("@")[0]
        if key in KEYS:
            head, key = head.replace(key, KEYS[key], 1), KEYS[key]
        if not equals and not head.startswith("~"):
            raise ConfigError(f"{show(word)}: write group=option or key=value{nearest(word, groups)}")
        if key in REFUSED:
            raise ConfigError(f"{show(word)}: {REFUSED[key]}")
        if key.startswith(SEVERAL) and not many:
            raise ConfigError(f"{show(word)}: one run has no use for it: add -m, or leave it out")
        if key == "init" and value.strip("'\" ") not in groups["init"]:
            head = key = "init.weights"
        elif key not in groups and not key.startswith("hydra") and not is_known(key, known):
            raise ConfigError(f"{show(word)}: there is no {show(key)}{nearest(key, [*known, *groups])}")
        if head.startswith("~") and not key.startswith("hydra"):
            raise ConfigError(undeletable(head, key))
        if key == "experiment":
            head = "+experiment"
        elif not key.startswith("hydra"):
            head = head.lstrip("+")
        if not equals:
            given.append(word)
        elif key in groups:
            given.append(f"{head}={','.join(chosen_options(key, word, many))}")
        else:
            given.append(in_grammar(head, value, many))
    keys = {word.lstrip("+").split("=")[0] for word in given}
    if {"dataset.folds", "dataset.test_fraction"} <= keys and "dataset.folds=null" not in given:
        raise ConfigError("dataset.folds and dataset.test_fraction: a fold is the test split: give one")
    for ways in ALTERNATIVES:
        if keys & set(ways):
            given += [f"{way}=null" for way in ways if way not in keys]
    return given


@cache
def parse(word: str) -> Any:
    """An override as Hydra's grammar reads it; None if it does not."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, RecursionError):  # the latter of a thousand brackets
        return None


def unpacked(word: str) -> list[str]:
    """The overrides of a dictionary for a group, `fit={steps: 3}`."""
    if "={" not in word or not (parsed := parse(word)) or not isinstance(parsed.value(), dict):
        return [word]
    node = parsed.key_or_group.replace("/", ".")
    if node.startswith("hydra") or node in known_keys() or not is_known(node, known_keys()):
        return [word]
    from hydra.core.override_parser.types import Transformer

    pairs = [f"{node}.{key}={Transformer.str(each)}" for key, each in parsed._value.items()]
    return list(itertools.chain.from_iterable(map(unpacked, pairs)))


def undeletable(head: str, key: str) -> str:
    """Why a group or a key cannot be deleted, and what can be done instead."""
    options = menu().get(key)
    if options is None:
        return f"{head}: a key cannot be deleted: give it another value, {key}=VALUE"
    if key == "experiment":
        return f"{head}: there is no experiment unless one is given: leave it out"
    return f"{head}: a group cannot be deleted: take {key}={'none' if 'none' in options else '|'.join(options)}"


def chosen_options(group: str, word: str, many: bool) -> list[str]:
    """The options of a group that an override names, without repetitions.

    Raises:
        ConfigError: one that does not exist, or several for one run.
    """
    options = menu()[group]
    found = list(dict.fromkeys(value.strip("'\" ") for value in several(word)))
    for option in found:
        if option not in options:
            raise ConfigError(unknown_option(group, show(option), options))
    if not found:
        raise ConfigError(f"{show(word)}: no option is like that; {group} is one of {', '.join(options)}")
    if len(found) > 1 and not many:
        raise ConfigError(f"{show(word)}: several options for one run; add -m to train each")
    return found


def in_grammar(head: str, value: str, many: bool) -> str:
    """An override of a key in Hydra's grammar. What the grammar does not read as text is quoted where it is one: a path
    such as `~/My Data (1)`, or `123` for a key of a text.

    Raises:
        ConfigError: several values for one run, or a list that the grammar does not read.
    """
    word, key = f"{head}={value}", key_of(head)
    parsed, text = parse(word), key in TEXTS
    values = several(word) if many else [value]
    if values not in ([], [value]) and (text or parsed is None or len(set(values)) < len(values)):
        return f"{head}={','.join(in_grammar(head, each, False).partition('=')[2] for each in dict.fromkeys(values))}"
    if parsed is None and not text and value[:1] in ("[", "{"):
        raise ConfigError(f"{show(word)}: this is no list of Hydra's: quote the texts in it, {key}=\"['a b','c']\"")
    if parsed is None or (text and not is_text(parsed)):
        return f"{head}={quoted(value)}"
    if parsed.is_sweep_override() and not many:
        raise ConfigError(f"{show(word)}: several values for one run; add -m to train each")
    if is_glob(parsed):
        raise ConfigError(f"{show(word)}: glob() chooses options of a group, and {key} is none")
    return word


def is_glob(parsed: Any) -> bool:
    """Whether a value is a `glob()`."""
    return parsed.value_type is not None and parsed.value_type.name == "GLOB_CHOICE_SWEEP"


def is_text(parsed: Any) -> bool:
    """Whether Hydra's grammar reads a value as text, or as null."""
    from hydra.core.override_parser.types import QuotedString

    return isinstance(parsed._value, str | QuotedString | None)


def quoted(value: object) -> str:
    """A text quoted for Hydra's grammar."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(str(value), Quote.single).with_quotes()


def show(value: Any) -> str:
    """A value in one line, as it would be typed."""
    return value if isinstance(value, str) and value.isprintable() and value else json.dumps(value)


def typed(params: dict[str, Any]) -> list[str]:
    """Parameters as overrides, floats in full precision."""
    return [f"{key}={value if isinstance(value, str) else repr(value)}" for key, value in params.items()]


def several(word: str) -> list[str]:
    """The values of an override as they were typed, between commas outside of brackets and quotes; or as Hydra has
    those of `choice()`, `range()`, `shuffle()`, and of `glob()` for a group.
    """
    key, value, parsed = key_of(word), word.partition("=")[2], parse(word)
    if key.startswith(("system.", "tracking.")) and key in TEXTS:  # several would be the same run, again and again
        return [value]
    pieces = re.findall(r"(?:\[[^\]]*\]|\{[^}]*\}|\([^)]*\)|'[^']*'|\"[^\"]*\"|[^,])+", value)
    typed = [piece.strip() for piece in pieces] if len(pieces) > 1 else [value]
    if parsed is None:
        return typed
    if not parsed.is_discrete_sweep():
        return [value]
    names = parsed._value.filter(list(menu().get(key, ()))) if is_glob(parsed) else [*parsed.sweep_string_iterator()]
    return typed if len(typed) == len(names) > 1 else names


def key_of(word: str) -> str:
    """The key of an override, by its current name."""
    return current_key(word.lstrip("+~").partition("=")[0])


def merged(*parts: Iterable[str]) -> tuple[str, ...]:
    """Overrides in order; a later one of the same key, or of an alternative of it, replaces an earlier one."""
    found: dict[str, str] = {}
    for word in itertools.chain(*parts):
        key = key_of(word)
        for ways in ALTERNATIVES:
            for way in ways if key in ways else ():
                found.pop(way, None)
        found.pop(key, None)
        found[key] = word
    return tuple(found.values())
