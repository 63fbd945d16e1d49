"""Overrides as users type them: validated, quoted, merged."""

import itertools
import json
import re
from collections.abc import Iterable
from typing import Any

from vitlab.config.errors import ConfigError
from vitlab.config.groups import ALTERNATIVES, is_known, known_keys, menu, nearest, unknown_option
from vitlab.config.moved import KEYS, current_key


def complete(overrides: Iterable[str], many: bool = False) -> list[str]:
    """The overrides in Hydra's form; alternatives of a key that is given are set to null.

    Args:
        overrides: what the user typed.
        many: whether a key may have several values (multirun).

    Raises:
        ConfigError: no override, an unknown key or option, or several values for one run.
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
    """A value quoted for Hydra, if it needs it."""
    text = str(value)
    return text if re.fullmatch(r"[\w/.\-]+", text) or text[:1] in ("'", '"') else "'" + text.replace("'", r"\'") + "'"


def show(value: Any) -> str:
    """A value in one line, as it would be typed."""
    return value if isinstance(value, str) and value.isprintable() and value else json.dumps(value)


def typed(params: dict[str, Any]) -> list[str]:
    """Parameters as overrides, floats in full precision."""
    return [f"{key}={value if isinstance(value, str) else repr(value)}" for key, value in params.items()]


def several(word: str) -> list[str]:
    """The values of an override, separated by commas outside of brackets and quotes."""
    value = word.partition("=")[2]
    return re.findall(r"(?:\[[^\]]*\]|'[^']*'|\"[^\"]*\"|[^,])+", value) or [value]


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
