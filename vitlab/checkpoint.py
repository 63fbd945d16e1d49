"""Checkpoints: one file each, whole or not there, loaded without running anything in them."""

from pathlib import Path
from typing import Any

import torch

from vitlab.files import write_whole


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes tensors and plain values; what stood there before stays until the new file is whole."""
    write_whole(path, lambda part: torch.save(state, part))


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What `save` wrote. Only tensors and plain values are read: a pickle that would run code is refused.

    Raises:
        ValueError: the file is damaged, or is no such file.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{path} is not a checkpoint that can be read safely ({type(error).__name__}: {reason})"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a checkpoint of vitlab: it holds a {type(state).__name__}")
    return state
