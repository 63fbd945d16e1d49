"""The errors that vitlab raises for its user. Each message says which value, why it cannot be, and what to do instead.

The commands catch `VitlabError` alone; any other exception is a bug of vitlab, and shows its traceback. Where one is
also a ValueError, an OSError or a RuntimeError, that is for callers of the Python API who catch those.
"""

import copyreg
from typing import Any

Node = dict[str, Any]


class VitlabError(Exception):
    """The base of the tree: something that the user can correct."""

    def __reduce__(self) -> tuple:  # pickled between processes without a second call of __init__
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # ty: ignore[missing-attribute]


class ConfigError(VitlabError, ValueError):
    """A value, or a combination of values, that cannot be."""


class DataError(VitlabError, ValueError):
    """Images or labels that are missing, damaged or do not go together."""


class DatasetMissing(DataError):
    """A dataset whose files are not where they were looked for; the remedy is the command that gets them."""

    def __init__(self, name: str, looked: list, remedy: str):
        self.looked, self.remedy = ", ".join(str(place) for place in looked), remedy
        super().__init__(f"{name} is not there: looked for {self.looked}. {remedy}")


class SweepError(VitlabError, ValueError):
    """A sweep that cannot be asked or answered."""


class SweepFileError(SweepError):
    """A mistake in a sweep file; the message names the line."""


class StorageError(VitlabError, OSError, ValueError):
    """A file or folder that is missing, damaged, or cannot be read or written."""


class CheckpointError(StorageError):
    """A checkpoint that is damaged, or does not fit the training."""


class Locked(StorageError):
    """A folder that another process is writing to."""


class DiskFull(StorageError):
    """A disk without room for what is to be written."""


class OutOfMemory(VitlabError, RuntimeError):
    """A batch that does not fit into memory."""


class NonFinite(VitlabError, ArithmeticError):
    """A loss that is NaN or infinite."""

    def __init__(self, step: int, steps: int, lr: float, more: str = ""):
        super().__init__(
            f"the loss is NaN or infinite at step {step} of {steps}{more}, at a learning rate of {lr:.3g}. Try a"
            " smaller optimizer.lr, a longer warm-up (schedule.warmup_fraction), fit.clip=1.0 or fit.precision=fp32"
            + ("" if more else ", or fit.on_nonfinite=skip or rollback")
        )


class Interrupted(VitlabError):
    """A training that a signal stopped, with everything saved.

    Args:
        step: that it reached.
        steps: of the whole training.
        signal: its number.
        saved: the step of the last checkpoint on disk.
    """

    def __init__(self, step: int, steps: int, signal: int, saved: int | None):
        self.signal = signal
        self.saved = saved
        where = "" if saved == step else f" (that could not be saved: it continues from step {saved or 0})"
        super().__init__(f"stopped at step {step} of {steps}{where}; the same command continues it")


class RankLost(VitlabError):
    """Another process of a distributed training that has ended."""
