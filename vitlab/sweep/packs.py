"""Packs of a sweep: which of its runs can be trained together, and the processes that do it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitlab.config.errors import ConfigError, Node
from vitlab.config.own import CURRENT
from vitlab.sweep.job import Job, Slot
from vitlab.sweep.question import Search
from vitlab.system.hardware import device_named
from vitlab.system.memory import format_bytes, free_memory

NUMBERS = {  # of the model, in which the runs of a pack may differ; all that is not of the model may differ as well
    "model": ("dropout", "drop_path", "layer_scale", "init"),
    "attention": ("dropout",),
    "head": ("zero_init", "bias_init"),
}
WORTH = {"cpu": 1e9, "accelerator": 2e10}  # FLOPs of a forward pass up to which one model leaves the machine idle
MOST = {"cpu": 16, "accelerator": 64}  # runs of a pack
COPIES = 8 * 4  # bytes for each weight: its gradient, moments, average, and copies of these
SHARE = 0.5  # of the memory that is free, for packs
AHEAD = 4  # a search that learns from its trials tries at most one of 4 of them at once


def packing(config: Node, shape: Mapping[str, Any], flops: int, parameters: int) -> dict[str, Any]:
    """The arguments `pack`, `alone` and `memory` of a job; one of the first two is empty."""
    alone, model = why_alone(config, flops), config["model"]
    kept = work_of(config, flops) * model["heads"] // model["width"]  # about what a step keeps: more for small heads
    memory = kept + COPIES * parameters
    return {"pack": None if alone else pack_key(config, shape), "alone": alone, "memory": memory}


def work_of(config: Node, flops: int) -> int:
    """FLOPs of the forward pass of what is computed at once."""
    return flops * config["fit"]["batch_size"] // config["fit"]["accumulate"]


def why_alone(config: Node, flops: int) -> str:
    """Why a run is in no pack; empty if it can be.

    Args:
        config: of the run.
        flops: of an image, forward.
    """
    fit, system = config["fit"], config["system"]
    work, most = work_of(config, flops), WORTH[kind_of(system["device"])]
    reasons = {
        f"system.compile={system['compile']} compiles one model": bool(system["compile"]),
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
    drops = config["model"]["attention"].get("dropout", 0) > 0  # without, other kernels may be used
    system = {key: config["system"][key] for key in ("device", "threads", "capture")}
    text = json.dumps([model, scaled, drops, freeze, fit, system, {**shape}], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def seats(
    jobs: Sequence[Job], slots: int, device: str, launcher: str, asked: int | None, search: Search | None = None
) -> int:
    """How many runs a process computes together, at most, where they are spread evenly; 1 where none are.

    Args:
        jobs: of the sweep; of a search those of the baseline, whose trials are taken for runs like them.
        slots: processes at once.
        device: `system.device` of the runs.
        launcher: packed; auto, which packs where runs of one shape would wait for a slot, but no search that learns
            from its trials; or another, which does not pack.
        asked: how many; None is `MOST`, or what fits into memory.
        search: of the sweep.

    Raises:
        ConfigError: launcher=packed, and no two runs go together; or more are asked for than may be.
    """
    tpe = search is not None and search.method == "tpe"
    if launcher not in ("auto", "packed") or (launcher == "auto" and (asked == 1 or (tpe and asked is None))):
        return 1
    trials = search.trials if search else 0
    likes = Counter(job.pack for job in (*[*jobs[:1]] * trials, *jobs) if job.pack)
    together = max(likes.values(), default=0)
    most, why = MOST[kind_of(device)], ""
    if asked is None and likes:
        most, why = most_together(device, max(job.memory for job in jobs if job.pack), slots)
    if tpe:
        most = min(asked or most, max(1, trials // AHEAD // slots))
        why = f"a tpe search tries at most 1 of {AHEAD} of its {trials} trials at once, here {most} in each slot"
        if asked and asked > most:
            raise ConfigError(f"pack={asked}: {why}: give more trials, or a smaller pack")
    if launcher == "packed" and min(together, asked or most) < 2:
        reason = why or f"pack={asked} packs nothing"
        if together < 2:
            reason = jobs[0].alone or "no two runs have models of one shape"
        raise ConfigError(f"launcher=packed: {reason}: use launcher=local")
    if launcher == "auto" and together <= slots:
        return 1
    return min(asked or most, max(2, -(-together // slots)))


def most_together(device: str, memory: int, slots: int) -> tuple[int, str]:
    """How many runs a process computes together, at most, if no number is asked for; and their memory, in words.

    Args:
        device: `system.device` of the runs.
        memory: bytes of a run.
        slots: processes at once.
    """
    kind = device_named(device)
    free = SHARE * free_memory(kind) / (slots if kind.type == "cpu" else 1)  # each GPU has its own
    most = min(MOST[kind_of(device)], max(1, int(free / memory)))
    return most, f"two runs take about {format_bytes(2 * memory)} of {format_bytes(free)} that a process may"


def grouped(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, those that are trained together side by side."""
    places: dict[str, int] = {}
    for place, job in enumerate(jobs):
        places.setdefault(job.pack or str(job.run.folder), place)
    return sorted(jobs, key=lambda job: places[job.pack or str(job.run.folder)])


def describe(jobs: Sequence[Job], slots: int, seats: int, trials: int = 0) -> str:
    """Which jobs and trials are trained together, in words, and why others are not; empty where none are."""
    if seats == 1:
        return ""
    lines = [f"trained together, in {slots} process{'es' * (slots > 1)} at once:"]
    if trials:
        lines.append(f"  {trials} trials: up to {seats} in each, where their models are of one shape")
    for key, count in Counter(job.pack for job in jobs if job.pack).items():
        names = ", ".join(dict.fromkeys(job.name for job in jobs if job.pack == key))
        size = min(seats, -(-count // slots))
        lines.append(f"  {count} run{'s' * (count > 1)} of {names}: up to {size} in each")
    for reason, count in Counter(job.alone for job in jobs if job.alone).items():
        names = ", ".join(dict.fromkeys(job.name for job in jobs if job.alone == reason))
        lines.append(f"  alone, {count} run{'s' * (count > 1)} of {names}: {reason}")
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
                env={**os.environ, **slot.environment, "PYTHONUNBUFFERED": "1", "VITLAB_PACK": str(at_once)},
                **settings,
            )
        self.out, self.at_once = out, at_once
        self.running: set[str] = set()  # names of runs
        self.reports: dict[str, dict[str, Any]] = {}  # of the runs that have ended
        self.reader = threading.Thread(target=self.read, name="pack", daemon=True)
        self.reader.start()

    def read(self) -> None:
        """Takes the reports of runs that have ended."""
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                report = json.loads(line)
                self.reports[report["ended"]] = report
                self.running.discard(report["ended"])

    def write(self, command: dict[str, Any]) -> None:
        """Sends a command; one that has ended takes none."""
        assert self.process.stdin is not None
        with suppress(OSError):
            print(json.dumps(command), file=self.process.stdin, flush=True)

    def train(self, job: Job) -> "Seat":
        """Trains a run too."""
        name = str(job.run.folder)
        self.reports.pop(name, None)
        self.running.add(name)
        self.write({"train": list(job.words), "name": name})
        return Seat(self, name)

    def close(self) -> None:
        """Sends no more runs, and waits for the process, which ends with those that it has."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        self.process.wait()
        self.reader.join()


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
