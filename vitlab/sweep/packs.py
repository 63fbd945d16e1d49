"""Packs of a sweep: which of its runs can be trained together, and the processes that do it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitlab.config.errors import ConfigError, Node
from vitlab.config.own import CURRENT
from vitlab.sweep.job import Job, Slot
from vitlab.system.hardware import device_named

NUMBERS = {  # of the model, in which the runs of a pack may differ; all that is not of the model may differ as well
    "model": ("dropout", "drop_path", "layer_scale", "init"),
    "attention": ("dropout",),
    "head": ("zero_init", "bias_init"),
}
WORTH = {"cpu": 1e9, "accelerator": 2e10}  # FLOPs of a forward pass up to which one model leaves the machine idle
MOST = {"cpu": 16, "accelerator": 64}  # runs of a pack


def packing(config: Node, shape: Mapping[str, Any], flops: int) -> dict[str, Any]:
    """The arguments `pack` and `alone` of a job, of which one is empty."""
    alone = why_alone(config, flops)
    return {"pack": None if alone else pack_key(config, shape), "alone": alone}


def why_alone(config: Node, flops: int) -> str:
    """Why a run is in no pack; empty if it can be.

    Args:
        config: of the run.
        flops: of an image, forward.
    """
    fit, system = config["fit"], config["system"]
    work, most = flops * fit["batch_size"] // fit["accumulate"], WORTH[kind_of(system["device"])]
    reasons = {
        f"system.compile={system['compile']} compiles one model": bool(system["compile"]),
        "system.capture=true captures the steps of one model": system["capture"] is True,
        "system.activation_checkpointing=true sets random generators back": system["activation_checkpointing"],
        f"system.profile_steps={system['profile_steps']} profiles one training": bool(system["profile_steps"]),
        "fit.auto_accumulate=true may compute each batch in other parts": fit["auto_accumulate"],
        f"one model fills the machine, with {work / 1e9:.1f} GFLOPs a forward pass": work > most,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def pack_key(config: Node, shape: Mapping[str, Any]) -> str:
    """What runs that are trained together have in common, as a hash.

    Args:
        config: of a run.
        shape: image size, channels and number of classes.
    """
    model = {key: value for key, value in config["model"].items() if key not in NUMBERS["model"]}
    for slot in ("attention", "head"):
        model[slot] = {key: value for key, value in model[slot].items() if key not in NUMBERS[slot]}
    fit = {key: config["fit"][key] for key in ("batch_size", "accumulate", "precision")}
    scaled, freeze = config["model"]["layer_scale"] is not None, config["init"]["freeze"]
    system = {key: config["system"][key] for key in ("device", "threads")}
    text = json.dumps([model, scaled, freeze, fit, system, {**shape}], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def seats(jobs: Sequence[Job], slots: int, device: str, launcher: str, most: int | None) -> int:
    """How many runs a process computes together, at most; 1 where none are.

    Args:
        jobs: of the sweep.
        slots: processes at once.
        device: `system.device` of the runs.
        launcher: packed; auto, which packs where runs of one shape would wait for a slot; or another, which does not.
        most: what the user asks for; None is `MOST`.

    Raises:
        ConfigError: launcher=packed, and no two runs go together.
    """
    if launcher not in ("auto", "packed") or most == 1:
        return 1
    together = max(Counter(job.pack for job in jobs if job.pack).values(), default=0)
    if launcher == "packed" and together < 2:
        raise ConfigError(
            f"launcher=packed: {jobs[0].alone or 'no two runs have models of one shape'}: use launcher=local"
        )
    if together <= (slots if launcher == "auto" else 1):
        return 1
    return most or MOST[kind_of(device)]


def grouped(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, those that are trained together side by side."""
    places: dict[str, int] = {}
    for place, job in enumerate(jobs):
        places.setdefault(job.pack or str(job.run.folder), place)
    return sorted(jobs, key=lambda job: places[job.pack or str(job.run.folder)])


def describe(jobs: Sequence[Job], slots: int, seats: int) -> str:
    """Which jobs are trained together, in words; and why the others are not."""
    lines = []
    for key in dict.fromkeys(job.pack for job in jobs if job.pack) if seats > 1 else ():
        members = [job for job in jobs if job.pack == key]
        size = min(seats, -(-len(members) // slots))
        names = ", ".join(dict.fromkeys(job.name for job in members))
        lines.append(f"trained together, up to {size} in a process: {len(members)} runs of {names}")
    for reason in dict.fromkeys(job.alone for job in jobs if job.alone) if seats > 1 else ():
        names = ", ".join(dict.fromkeys(job.name for job in jobs if job.alone == reason))
        lines.append(f"alone, because {reason}: {names}")
    return "\n".join(lines)


def kind_of(device: str) -> str:
    """The key of a device in `WORTH` and `MOST`."""
    return "cpu" if device_named(device).type == "cpu" else "accelerator"


class PackProcess:
    """A process that trains the runs of a pack: see `vitlab.cli.pack`.

    Args:
        slot: its part of the machine.
        at_once: how many models it computes together.
        out: what it prints.
        settings: for `subprocess.Popen`.
    """

    def __init__(self, slot: Slot, at_once: int, out: Path, settings: dict[str, Any]):
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vitlab.cli.pack", *CURRENT.get().flags(), str(at_once)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                encoding="utf-8",
                env={**os.environ, **slot.environment, "PYTHONUNBUFFERED": "1"},
                **settings,
            )
        self.out = out
        self.running: set[str] = set()  # names of runs
        self.reports: dict[str, dict[str, Any]] = {}  # of the runs that have ended
        self.reader = threading.Thread(target=self.read, name="pack", daemon=True)
        self.reader.start()

    def read(self) -> None:
        """Takes the reports of runs that have ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            report = json.loads(line)
            self.reports[report["ended"]] = report
            self.running.discard(report["ended"])

    def write(self, command: dict[str, Any]) -> None:
        """Sends a command; one that has ended takes none."""
        assert self.process.stdin is not None
        try:
            print(json.dumps(command), file=self.process.stdin, flush=True)
        except (BrokenPipeError, ValueError):
            return

    def train(self, job: Job) -> "Seat":
        """Trains a run too."""
        name = str(job.run.folder)
        self.reports.pop(name, None)
        self.running.add(name)
        self.write({"train": list(job.words), "name": name})
        return Seat(self, name)

    def close(self) -> None:
        """Sends no more runs: the process ends with those that it has."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            return


class Seat:
    """One run of a pack, for the launcher as if it were a process of its own."""

    def __init__(self, pack: PackProcess, name: str):
        self.pack, self.name, self.pid = pack, name, pack.process.pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, if it has ended."""
        ended = self.pack.process.poll()
        if ended is not None:
            self.pack.reader.join()
        self.returncode = self.pack.reports.get(self.name, {"status": ended})["status"]
        return self.returncode

    @property
    def lost(self) -> bool:
        """Whether the process has ended without a word of it."""
        return self.name not in self.pack.reports

    @property
    def error(self) -> str:
        """Why it failed, where its own log does not say that."""
        return "" if self.lost else self.pack.reports[self.name]["error"]

    def send_signal(self, number: int) -> None:
        """Asks the run to save and leave; the others go on."""
        self.pack.write({"stop": self.name})

    def kill(self) -> None:
        self.pack.process.kill()

    def wait(self) -> int:
        return self.pack.process.wait()
