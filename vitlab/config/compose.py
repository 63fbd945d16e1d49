"""Overrides composed by Hydra into one plain, resolved configuration."""

import copy
import os
import re
import typing
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import cache
from typing import Any

from vitlab.config.errors import ConfigError, Node
from vitlab.config.groups import CONF, known_keys, menu, nearest
from vitlab.config.overrides import complete, parse
from vitlab.config.own import CURRENT


def compose(overrides: Iterable[str] = ()) -> tuple[Node, dict[str, str]]:
    """The plain, resolved configuration of these overrides, and the chosen option of each group.

    Raises:
        ConfigError: an unknown option, key or value.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    given, groups = complete(overrides), menu()
    values = [word for word in given if re.match(r"(?!hydra)\w", word) and word.split("=")[0] not in groups]
    with explained():
        searchpath = CURRENT.get().searchpath()
        config, choices = composed((*searchpath, *(word for word in given if word not in values)))
        config = copy.deepcopy(config)
        ConfigLoaderImpl._apply_overrides_to_config([parse(word) for word in values], config)
    return plain(config, choices)


@cache
def composed(options: tuple[str, ...]) -> tuple[Any, dict[str, str]]:
    """Hydra's configuration of these options; cached, for it takes 0.2 s and the cells of a sweep share many."""
    import hydra
    from omegaconf import open_dict

    with fresh_hydra(), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", list(options), return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return config, choices


@contextmanager
def fresh_hydra() -> Generator[None]:
    """Restores afterwards what the program that imports vitlab has set Hydra up for."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton
    from hydra.version import VersionBase

    instances: dict[Any, Any] = Singleton._instances
    kinds = (GlobalHydra, VersionBase)
    before = {kind: instances.pop(kind) for kind in kinds if kind in instances}
    try:
        yield
    finally:
        for kind in kinds:
            instances.pop(kind, None)
        instances.update(before)


def plain(config: Any, choices: Any) -> tuple[Node, dict[str, str]]:
    """Hydra's configuration as plain containers, and the chosen option of each group."""
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

    try:
        node = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or "a value"
        what = ", the folder of the images" if key == "dataset.root" else ""
        raise ConfigError(f"{key} has no value: give one{what}, {key}={'FOLDER' if what else 'VALUE'}") from error
    except InterpolationResolutionError as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}: give it a value") from error
    config = typing.cast(Node, node)
    if str(runs := config["system"]["runs"]).startswith("~"):  # needed before anything is built
        config["system"]["runs"] = os.path.expanduser(runs)  # noqa: PTH111
    return config, {str(k): str(v) for k, v in choices.items() if not str(k).startswith("hydra/")}


@contextmanager
def explained() -> Generator[None]:
    """Turns an error of Hydra's or OmegaConf's into a ConfigError of one sentence."""
    try:
        yield
    except Exception as error:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        if not isinstance(error, HydraException | OmegaConfBaseException):
            raise
        raise explain(error) from error


def explain(error: Exception) -> ConfigError:
    """Hydra's complaint as one sentence with a way out."""
    text = " ".join(line.strip() for line in str(error).split("\n") if line.strip())
    if found := re.match(r"Could not override '([^']+)'", text):
        key = found[1]
        owners = [f"{group}={option}" for group, option in known_keys().get(key, [])]
        verb = "have" if len(owners) > 1 else "has"
        has = f"; {', '.join(owners)} {verb} it" if owners else nearest(key, known_keys())
        return ConfigError(f"{key}: the chosen options have no such key{has}")
    return ConfigError(text.split(" To append")[0])
