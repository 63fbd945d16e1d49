"""Checkpoints: written whole or not at all, verified by checksums, and loaded without running code in them."""

import json
import logging
import pickle
import re
import threading
import time
import zipfile
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitlab.config.errors import CheckpointError, StorageError
from vitlab.storage.files import file_errors, write_whole
from vitlab.storage.run import Run

log = logging.getLogger("vitlab")


def save(path: Path, state: dict[str, Any], before: Path | None = None) -> None:
    """Writes tensors and plain values with `torch.save`; an older file stays until the new one is complete.

    torch's format is a zip file with a checksum (CRC-32) of every tensor.

    Args:
        path: of the file.
        state: dictionaries, lists, numbers, strings and tensors.
        before: a second name, under which the older file is kept.
    """

    def write(part: Path) -> None:
        with part.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch's word for a disk that is full
                raise StorageError(f"{path} cannot be written ({reason(error)}): free some space") from error

    write_whole(path, write, before)


def load(path: Path, device: torch.device | str = "cpu", *, zipped: bool = True) -> dict[str, Any]:
    """Loads what `save` wrote. Only tensors and plain values are read: a pickle that would run code is refused.

    Args:
        path: of the file.
        device: where its tensors go.
        zipped: whether it is a zip file with checksums, as it is but for files of torch before 1.6.

    Raises:
        CheckpointError: the file is truncated, changed, or not a checkpoint.
        StorageError: it cannot be read.
    """
    with file_errors(path), path.open("rb") as file:  # one that cannot be read is not damaged for it
        try:
            if zipped:
                check_archive(zipfile.ZipFile(file))
            file.seek(0)
            state = torch.load(file, map_location=device, weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{path} is not a checkpoint that can be read safely: {reason(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is not a checkpoint of vitlab: it holds a {type(state).__name__}")
    return state


def check_archive(archive: zipfile.ZipFile) -> None:
    """Raises BadZipFile for a file of torch's that is compressed, or whose checksums are wrong."""
    if any(entry.compress_type for entry in archive.infolist()):
        raise zipfile.BadZipFile("it is compressed, which torch's files are not")
    if (wrong := archive.testzip()) is not None:
        raise zipfile.BadZipFile(f"the checksum of {wrong} is wrong")


def model_weights(state: dict[str, Any]) -> Any:
    """The weights of the model, by names without what DDP (`module.`) and torch.compile (`_orig_mod.`) add to them."""
    weights = state.get("model")
    if not isinstance(weights, dict):
        return weights
    wrapper = re.compile(r"(^|\.)((module|_orig_mod)\.)+")
    found = {wrapper.sub(r"\1", name) if isinstance(name, str) else name: each for name, each in weights.items()}
    return found if len(found) == len(weights) else weights


def reason(error: Exception) -> str:
    """Why a file could not be read, in one line."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds other objects than tensors and plain values"
    return str(error).strip().split("\n")[0] or type(error).__name__


def export(path: Path, weights: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Writes weights as safetensors, for other programs; the facts are JSON in its metadata, under `vitlab`."""
    from safetensors import torch as safetensors

    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    data = safetensors.save(contiguous, {"vitlab": json.dumps(facts)})
    write_whole(path, lambda part: part.write_bytes(data))


class Checkpoints:
    """The checkpoints of a run: the last, the one before it, the milestones and the best weights.

    A thread writes the files while the training continues.

    Args:
        run: whose checkpoints these are.
        on: whether this process writes them; if not, nothing is done.
        minutes: since the last checkpoint until the next is `due`; None for never.
    """

    def __init__(self, run: Run, *, on: bool, minutes: float | None):
        self.run = run
        self.on = on
        self.minutes = minutes
        self.since = time.monotonic()
        self.thread: threading.Thread | None = None
        self.step: int | None = None  # of the last checkpoint on disk
        self.best: dict[str, Any] | None = None  # contents of best.pt, until they are written
        self.abandoned = False  # by Ctrl-C: the thread's errors are not reported any more

    @property
    def due(self) -> bool:
        return self.on and self.minutes is not None and time.monotonic() - self.since > 60 * self.minutes

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is intact; damaged ones are reported and renamed."""
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

    def save(
        self, state: dict[str, Any], best: dict[str, Any] | None, *, keep: bool, ready: Callable[[], None]
    ) -> None:
        """Starts a thread that writes the state, then the best weights.

        Args:
            state: of the training at `state["step"]`; copies that nothing changes after `ready`.
            best: contents of best.pt, if they changed.
            keep: whether to write a milestone, step-N.pt, too.
            ready: called first, by the thread: waits for the copies, and flushes the metrics to disk, so that no
                checkpoint is ahead of its metrics.
        """
        self.since = time.monotonic()
        if not self.on:
            return
        self.wait()
        self.best = best or self.best
        self.thread = threading.Thread(
            target=copy_context().run, args=(self.write, state, keep, ready), name="checkpoint", daemon=True
        )
        self.thread.start()

    def write(self, state: dict[str, Any], keep: bool, ready: Callable[[], None]) -> None:
        try:
            ready()
            if keep:
                save(self.run.milestone(state["step"]), state)
            save(self.run.last, state, self.run.previous)
            self.step = state["step"]
            self.write_best()
        except (OSError, RuntimeError) as error:
            if self.abandoned:  # what it writes to is closed
                return
            reason = getattr(error, "strerror", None) or error
            last = "there is none yet" if self.step is None else f"that of step {self.step} stands"
            log.warning("no checkpoint of step %d: %s; %s; training continues", state["step"], reason, last)

    def write_best(self) -> None:
        if self.best is not None:
            save(self.run.best, self.best)
            self.best = None

    def wait(self) -> None:
        """Waits until the thread has written everything."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def finish(self) -> None:
        """Waits until best.pt holds the best weights; raises StorageError if it cannot be written."""
        self.wait()
        if self.on:
            self.write_best()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.abandoned = kind is KeyboardInterrupt  # a second Ctrl-C: leave at once
        if not self.abandoned:
            self.wait()
