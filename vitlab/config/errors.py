"""The errors that vitlab raises for its user: each says which value, why, and what to do instead."""

from typing import Any

Node = dict[str, Any]


class ConfigError(ValueError):
    """A configuration that cannot be; the message says which value, why, and what to do."""
