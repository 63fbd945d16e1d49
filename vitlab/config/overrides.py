"""Overrides as users type them: completed, quoted, merged."""

import itertools
import json
import re
from collections.abc import Iterable
from typing import Any

from vitlab.config.errors import ConfigError
from vitlab.config.groups import ALTERNATIVES, is_known, known_keys, menu, nearest, unknown_option
from vitlab.config.moved import KEYS, current_key


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
        if key in KEYS:
            word, key = word.replace(key, KEYS[key], 1), KEYS[key]
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


def show(value: Any) -> str:
    """A value in one line, as it would be typed."""
    return value if isinstance(value, str) and value.isprintable() and value else json.dumps(value)


def typed(params: dict[str, Any]) -> list[str]:
    """Overrides of which the same numbers are read again."""
    return [f"{key}={value if isinstance(value, str) else repr(value)}" for key, value in params.items()]


def several(word: str) -> list[str]:
    """The values of an override: those between commas that stand in no bracket and no quotes."""
    value = word.partition("=")[2]
    return re.findall(r"(?:\[[^\]]*\]|'[^']*'|\"[^\"]*\"|[^,])+", value) or [value]


def key_of(word: str) -> str:
    """The key that an override is about."""
    return current_key(word.lstrip("+~").partition("=")[0])


def merged(*parts: Iterable[str]) -> tuple[str, ...]:
    """Overrides one after the other; a later one of the same key, or of the same matter, replaces an earlier one."""
    found: dict[str, str] = {}
    for word in itertools.chain(*parts):
        key = key_of(word)
        for ways in ALTERNATIVES:
            for way in ways if key in ways else ():
                found.pop(way, None)
        found.pop(key, None)
        found[key] = word
    return tuple(found.values())
