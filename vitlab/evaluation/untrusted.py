"""Files of an untrusted run, read as plain values: nothing in them is built or executed."""

import os
from typing import Any

import yaml

from vitlab.config.errors import ConfigError, Node, StorageError, VitlabError
from vitlab.config.moved import upgrade
from vitlab.config.overrides import show
from vitlab.storage.files import file_errors, read_json, read_text
from vitlab.storage.run import MOST_RESULT, Run, no_run

MOST_BYTES, MOST_LETTERS = 100_000, 10_000  # of a config.yaml and of a value in it; vitlab's have about 3,000 and 80


class PlainLoader(yaml.SafeLoader):
    """Loads YAML of plain values only: no aliases, which can expand without bound, and no duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self.refuse("it has an alias", self.peek_event())
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode) and len(node.value) > MOST_LETTERS:
            self.refuse(f"a value has {len(node.value):,} letters", node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag == "tag:yaml.org,2002:str"]
        if len(set(keys)) < len(node.value):
            self.refuse("a key is given twice, or is not a string", node)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        value = super().construct_object(node, deep)
        plain = isinstance(value, dict | list | str | float | int | None)
        if not plain or (isinstance(value, int) and abs(value) >= 2**63):
            self.refuse("a value is neither a string, a number of 64 bits, a list nor a mapping", node)
        return value

    def refuse(self, problem: str, there: Any) -> None:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=there.start_mark)


@file_errors()
def read_config(run: Run) -> Node:
    """The configuration of a run, as plain values: interpolations stay text, and nothing is built.

    Raises:
        ConfigError: there is none, or it is not one of vitlab's.
    """
    if not run.config.is_file():
        raise ConfigError(f"{run.folder} is not a run: {no_run(run.folder)}")
    try:
        config = yaml.load(read_text(run.config, MOST_BYTES), PlainLoader)
    except (yaml.YAMLError, StorageError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{run.config} cannot be read safely ({reason}{line}): train the run again") from error
    config = upgrade(config)
    wanted = ("model._target_", "model.patch", "dataset._target_", "fit.evaluation_batch_size")
    for section, key in (word.split(".") for word in wanted):
        if not isinstance(config, dict) or not isinstance(config.get(section), dict) or key not in config[section]:
            raise ConfigError(f"{run.config} is not the configuration of a run: it has no {section}.{key}")
        if key != "_target_" and not (type(value := config[section][key]) is int and value >= 1):
            raise ConfigError(f"{run.config}: {section}.{key}={show(value)}: expected a whole number, at least 1")
    return config


def recorded(run: Run) -> Node:
    """The contents of a run's result.json; a run that never wrote one was interrupted."""
    path = run.folder / "result.json"
    return read_json(path, MOST_RESULT) if os.path.lexists(path) else {"status": "interrupted"}


def describe_error(error: Exception) -> str:
    """The message of an error in one line; with its class name if it is not a VitlabError."""
    message = " ".join(str(error).split())
    return message if isinstance(error, VitlabError) and message else f"{type(error).__name__}: {message}"
