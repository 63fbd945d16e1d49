"""The errors that vitlab raises for its user. Each message says which value, why it cannot be, and what to do instead.

The commands catch `VitlabError` alone; any other exception is a bug of vitlab's, and shows its traceback. Where one is
also a ValueError, an OSError or a RuntimeError, that is for callers of the Python API who catch those.
"""

from typing import Any

Node = dict[str, Any]


class VitlabError(Exception):
    """Something that the user can mend."""


class ConfigError(VitlabError, ValueError):
    """A value, or a combination of values, that cannot be."""


class DataError(VitlabError, ValueError):
    """Images or labels that are missing, damaged or do not go together."""


class SweepError(VitlabError, ValueError):
    """A sweep that cannot be asked or answered."""


class StorageError(VitlabError, ValueError):
    """A file of a run that is missing, damaged, or cannot be read or written."""


class CheckpointError(StorageError):
    """A checkpoint that is damaged, or does not fit the training."""
