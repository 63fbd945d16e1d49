"""Checkpoints: whole files that are checked before they are believed, loaded without running anything in them."""

import json
import logging
import pickle
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitlab.config.errors import CheckpointError
from vitlab.storage.files import write_whole
from vitlab.storage.run import Run

log = logging.getLogger("vitlab")


def save(path: Path, state: dict[str, Any], before: Path | None = None) -> None:
    """Writes tensors and plain values; what stood there before stays until the new file is whole.

    torch's format is a zip file, in which every tensor has its checksum (CRC-32).

    Args:
        path: of the file.
        state: dictionaries, lists, numbers, words, and tensors.
        before: another name, under which the file that stood there is kept.
    """

    def write(part: Path) -> None:
        with part.open("wb") as file:
            torch.save(state, file)

    write_whole(path, write, before)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What `save` wrote. Only tensors and plain values are read: a pickle that would run code is refused.

    Raises:
        CheckpointError: the file is cut short or changed, or is no such file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:  # one that cannot be read is not damaged for it
        try:
            packed = zipfile.ZipFile(file)
            if any(entry.compress_type for entry in packed.infolist()):
                raise zipfile.BadZipFile("it is compressed, which vitlab's are not")
            if (wrong := packed.testzip()) is not None:
                raise zipfile.BadZipFile(f"the checksum of {wrong} is wrong")
            file.seek(0)
            state = torch.load(file, map_location=device, weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{path} is not a checkpoint that can be read safely: {reason(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is not a checkpoint of vitlab: it holds a {type(state).__name__}")
    return state


def reason(error: Exception) -> str:
    """Why a file could not be read, in a line."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds other things than tensors and plain values"
    return str(error).strip().split("\n")[0] or type(error).__name__


def export(path: Path, weights: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Weights as safetensors, for other programs; the facts are JSON in its metadata, under `vitlab`."""
    from safetensors.torch import save as packed

    said = {"vitlab": json.dumps(facts)}
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    write_whole(path, lambda part: part.write_bytes(packed(contiguous, said)))


class Checkpoints:
    """The checkpoints that continue a run: the last, the one before it, and those that are kept.

    Files are written from a thread, one after the other, while the training goes on.

    Args:
        run: whose they are.
        on: whether this process writes; one that does not, does nothing.
        minutes: after so many without a checkpoint the next is `due`; None for never.
    """

    def __init__(self, run: Run, *, on: bool, minutes: float | None):
        self.run = run
        self.on = on
        self.minutes = minutes
        self.since = time.monotonic()
        self.thread: threading.Thread | None = None
        self.step: int | None = None  # of the last checkpoint that is on the disk
        self.best: dict[str, Any] | None = None  # what best.pt is still to hold

    @property
    def due(self) -> bool:
        return self.on and self.minutes is not None and time.monotonic() - self.since > 60 * self.minutes

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The last checkpoint that can be believed; one that cannot is named, and gets another name."""
        self.wait()
        paths = self.run.checkpoints()
        for number, path in enumerate(paths, 1):
            try:
                state = load(path)
            except CheckpointError as error:
                aside = path.with_name(f"{path.name}.damaged")
                while aside.exists():
                    aside = aside.with_name(f"{aside.name}-again")
                then = "the one before it is tried" if number < len(paths) else "there is none before it: starts anew"
                log.warning("%s; it is kept as %s, and %s", error, aside.name, then)
                path.replace(aside)
            else:
                self.step = state.get("step")
                return path, state
        return None

    def save(self, state: dict[str, Any], best: dict[str, Any] | None, *, keep: bool, rows: Callable[[], None]) -> None:
        """Has a thread write the state, and then the best weights where they are new.

        Args:
            state: of the training at `state["step"]`, as copies that nobody changes.
            best: what best.pt is to hold, if it changed.
            keep: whether the state is also kept under its step's name.
            rows: makes the metrics up to here safe first, so that they are never behind a checkpoint.
        """
        self.since = time.monotonic()
        if not self.on:
            return
        self.wait()
        self.best = best or self.best
        self.thread = threading.Thread(target=self.write, args=(state, keep, rows), name="checkpoint", daemon=True)
        self.thread.start()

    def write(self, state: dict[str, Any], keep: bool, rows: Callable[[], None]) -> None:
        try:
            rows()
            if keep:
                save(self.run.milestone(state["step"]), state)
            save(self.run.last, state, self.run.previous)
            self.step = state["step"]
            self.write_best()
        except (OSError, RuntimeError) as error:  # torch says RuntimeError for a disk that is full
            reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
            stands = "there is none yet" if self.step is None else f"that of step {self.step} stands"
            log.warning("no checkpoint of step %d (%s): %s; it goes on, and tries again", state["step"], reason, stands)

    def write_best(self) -> None:
        if self.best is not None:
            save(self.run.best, self.best)
            self.best = None

    def wait(self) -> None:
        """Until nothing is being written any more."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def finish(self) -> None:
        """Until best.pt holds the best weights.

        Raises:
            OSError: it cannot be written.
        """
        self.wait()
        if self.on:
            self.write_best()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not KeyboardInterrupt:  # somebody wants to leave at once
            self.wait()
