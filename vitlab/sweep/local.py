"""The local launcher: one process a training, as many at once as there are slots."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import psutil

from vitlab.storage.metrics import SELECTED_BY
from vitlab.sweep.job import Child, Failure, Job, Slot
from vitlab.sweep.packs import PackProcess, Seat
from vitlab.sweep.progress import Progress
from vitlab.system.signals import Signals

WATCH = 0.2  # seconds between two polls of the processes
READ = 1.0  # seconds between two reads of their rows
FIRST = 2**30  # bytes of memory assumed of a training before one has been measured
TAIL = 12  # lines of a failed training's output
DEATH = 1  # PR_SET_PDEATHSIG of prctl(2)
LEAVE = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM)  # to a training: on Windows SIGTERM kills
KILL = 9  # SIGKILL
REFUSED = 2  # exit status of what has not begun


class Source(Protocol):
    """A source of jobs."""

    total: int  # how many there will be

    def next(self) -> Job | None:
        """The next job; None where there is none, or none yet."""

    def stops(self, job: Job, row: dict[str, Any]) -> bool:
        """Whether a training ends early after this row of its metrics."""

    def ended(self, job: Job, status: str) -> None:
        """A training has ended: finished, pruned or failed."""


class Listed:
    """A list of jobs, in order; one that starts from another run's weights waits for that run."""

    def __init__(self, jobs: Iterable[Job]):
        self.jobs = list(jobs)
        self.total = len(self.jobs)
        self.lost: set[Path] = (
            set()
        )  # runs that failed: jobs that wait for them are started, and report the missing weights

    def next(self) -> Job | None:
        for job in self.jobs:
            before = job.after
            if before is None or before.folder in self.lost or before.result()["status"] == "finished":
                self.jobs.remove(job)
                return job
        return None

    def stops(self, job: Job, row: dict[str, Any]) -> bool:
        return False

    def ended(self, job: Job, status: str) -> None:
        if status != "finished":
            self.lost.add(job.run.folder)


def slots(count: int | None, jobs: int, device: str = "auto") -> list[Slot]:
    """The machine in parts.

    The number of threads changes the last bits of a result, so the parts depend on the whole sweep and not on how much
    of it is left.

    Args:
        count: how many parts; None is one a GPU of CUDA's, one for an accelerator of another kind, or else one a
            core, but no more than there are jobs.
        jobs: of the whole sweep.
        device: `system.device` of the trainings.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    gpus = visible_gpus() if device.partition(":")[0] in ("auto", "cuda") else []
    if device.startswith("cuda:"):
        gpus = gpus[int(device[5:]) :][:1]
    other = device.partition(":")[0] not in ("auto", "cuda", "cpu")  # all trainings would be on the one that is named
    count = min(count or len(gpus) or (1 if other else len(cores)), max(1, jobs))
    share = max(1, len(cores) // count)
    parts = []
    for number in range(count):
        mine = tuple(cores[(number * share + i) % len(cores)] for i in range(share))
        if gpus:
            gpu = gpus[number % len(gpus)]
            parts.append(Slot(name=f"GPU {gpu}", cores=mine, environment={"CUDA_VISIBLE_DEVICES": gpu}))
        else:
            parts.append(Slot(name="cores " + ",".join(map(str, mine)), cores=mine, environment=threads(share)))
    return parts


def threads(count: int) -> dict[str, str]:
    return {name: str(count) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def visible_gpus() -> list[str]:
    import torch

    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = [name.strip() for name in devices.split(",") if name.strip()] if devices else []
    return [named[i] if i < len(named) else str(i) for i in range(torch.cuda.device_count())]


def start(job: Job, slot: Slot, out: Path, attempt: int) -> Child:
    """A process for a job. On Linux it has the slot's cores, and gets SIGTERM when this one dies: it saves and exits.

    On macOS and Windows, where this was not run, it shares all cores, and outlives this process.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("ab") as file:
        process: Any = subprocess.Popen(
            [sys.executable, "-m", "vitlab", *job.arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **slot.environment, "PYTHONUNBUFFERED": "1"},
            **settings_of(slot),
        )
    return Child(job=job, slot=slot, process=process, out=out, attempt=attempt)


def settings_of(slot: Slot) -> dict[str, Any]:
    """The options of `subprocess.Popen` for a process in a slot."""
    settings: dict[str, Any] = {"start_new_session": True}  # Ctrl-C is this process's to answer
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)

        def settle() -> None:
            libc.prctl(DEATH, signal.SIGTERM)
            os.sched_setaffinity(0, slot.cores)

        settings["preexec_fn"] = settle
    elif sys.platform == "win32":
        settings = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return settings


class Local:
    """The launcher.

    Args:
        parts: of the machine.
        logs: folder for what the trainings print.
        progress: shows progress.
        retries: how often a failed training is started again.
        seats: how many trainings a process computes together, at most (`vitlab.sweep.packs`); 1 is a process each.
    """

    def __init__(self, parts: Sequence[Slot], logs: Path, progress: Progress, retries: int = 0, seats: int = 1):
        self.parts = parts
        self.seats, self.together = seats, seats > 1
        self.packs: dict[str, PackProcess] = {}  # of each slot
        self.logs = logs
        self.progress = progress
        self.retries = retries
        self.running: list[Child] = []
        self.waiting: deque[tuple[Job, int]] = deque()  # to be retried, or running in another process
        self.held: tuple[Job, int] | None = None  # the next one, which goes with none of those that are running
        self.failures: list[Failure] = []
        self.largest = FIRST  # bytes that a training needed so far

    def run(self, source: Source) -> int:
        """Trains until the source is empty; returns 0, 1 if some failed, or 128 + the signal that was received."""
        looked, leaving = 0.0, False
        with Signals() as interrupt, self.progress:
            try:
                while True:
                    ended = [child for child in self.running if child.process.poll() is not None]
                    for child in ended:
                        self.running.remove(child)
                        self.settle(child, source, leaving)
                    if interrupt.received and not leaving:
                        leaving = True
                        self.send(LEAVE)
                    if ended or time.monotonic() - looked > READ:
                        looked = time.monotonic()
                        self.look(source)
                        if not leaving:
                            self.fill(source)
                        if not self.running and (leaving or not (self.waiting or self.held)):
                            break
                    self.progress.show(self.running, source.total)
                    time.sleep(WATCH)
            except KeyboardInterrupt:  # the second
                return 128 + signal.SIGINT
            finally:
                for child in self.running:
                    kill(child.process)
                for pack in self.packs.values():
                    pack.close()
        if leaving:
            return 128 + interrupt.received
        return 1 if self.failures else 0

    def fill(self, source: Source) -> None:
        """Starts jobs in free slots."""
        while True:
            used = {part.name: [child for child in self.running if child.slot is part] for part in self.parts}
            free = [part for part in self.parts if not self.full(used[part.name])]
            if self.running and not self.room():
                free = [part for part in free if used[part.name]]  # `packs.seats` has room for all of a pack
            if not free:
                return
            found = self.held or self.choose(source)
            if found is None:
                return
            self.held, (job, attempt) = None, found
            fitting = [part for part in free if all(child.job.pack == job.pack for child in used[part.name])]
            if not fitting:
                self.held = found
                return
            part = min(fitting, key=lambda each: len(used[each.name]))
            self.running.append(self.start(job, part, attempt))

    def full(self, children: Sequence[Child]) -> bool:
        """Whether a slot with these trainings takes no more."""
        return bool(children) and (children[0].job.pack is None or len(children) >= self.seats)

    def start(self, job: Job, part: Slot, attempt: int) -> Child:
        """Starts a job: in the slot's pack, or in a process of its own."""
        pack, packed = self.packs.get(part.name), job.pack is not None and self.together
        if pack is not None and (not packed or pack.process.poll() is not None):
            self.packs.pop(part.name).close()
            pack = None
        if not packed:
            return start(job, part, self.logs / f"{job.run.folder.name}.txt", attempt)
        if pack is None:
            out = self.logs / f"pack of {part.name}.txt"
            pack = self.packs[part.name] = PackProcess(part, self.seats, out, settings_of(part))
        return Child(job=job, slot=part, process=pack.train(job), out=job.run.log, attempt=attempt)

    def choose(self, source: Source) -> tuple[Job, int] | None:
        """The next job that no process trains; jobs that finished meanwhile are not trained again."""
        for _ in range(len(self.waiting)):
            self.waiting.append(self.waiting.popleft())
            job, attempt = self.waiting[-1]
            if (status := job.run.result()["status"]) != "running":
                self.waiting.pop()
                if status != "finished":
                    return job, attempt
                self.done(job, source)
        while (job := source.next()) is not None:
            status = job.run.result()["status"]
            if status == "finished":
                self.done(job, source)
            elif status == "running":
                self.progress.say(f"{job}: another process trains it: waits for that")
                self.waiting.append((job, 0))
            else:
                return job, 0
        return None

    def done(self, job: Job, source: Source) -> None:
        self.progress.done(job, "finished")
        source.ended(job, "finished")

    def room(self) -> bool:
        """Whether one more training fits in memory, if every one takes as much as the largest so far."""
        from vitlab.system.memory import total_memory

        sizes = [resident(process) for process in {child.process.pid for child in self.running}]
        self.largest = max([*sizes, self.largest])
        free = min(psutil.virtual_memory().available, total_memory() - sum(sizes))
        return free > self.largest + sum(self.largest - size for size in sizes)

    def settle(self, child: Child, source: Source, leaving: bool) -> None:
        """Handles a process that has ended."""
        job, code = child.job, child.process.returncode
        status = job.run.result()["status"] if code in (0, REFUSED) or child.pruned else "failed"
        if status == "finished":
            self.done(job, source)
        elif child.pruned:
            job.run.write_result({**job.run.result(), "status": "pruned", "steps": child.step, **child.row})
            self.progress.done(job, "pruned")
            source.ended(job, "pruned")
        elif not leaving:
            if self.fewer(child) or status == "running":  # another process was faster: `choose` waits for it
                self.waiting.append((job, child.attempt))
                return
            reason = f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
            if code == -KILL:
                reason += ", perhaps out of memory: use fewer slots, slots=N"
            if child.attempt < self.retries and code != REFUSED:
                self.progress.say(f"{job}: {reason}; retried ({child.attempt + 1} of {self.retries})")
                self.waiting.append((job, child.attempt + 1))
                return
            self.failures.append(Failure(job=job, reason=reason, tail=last_words(child)))
            self.progress.done(job, "failed")
            source.ended(job, "failed")

    def fewer(self, child: Child) -> bool:
        """Halves the seats where the system has killed a pack, perhaps for its memory; whether it has."""
        seat = child.process
        if not (isinstance(seat, Seat) and seat.lost and seat.returncode == -KILL):
            return False
        runs = len(seat.pack.running)
        if self.seats > max(1, runs // 2):
            self.seats = max(1, runs // 2)
            self.progress.say(
                f"a pack of {runs} was killed by SIGKILL, perhaps out of memory: its runs go on from their last"
                f" checkpoints, {self.seats} at a time"
            )
        return seat.pack.at_once > 1

    def look(self, source: Source) -> None:
        """Reads the new rows of the running trainings."""
        for child in self.running:
            for row in fresh(child):
                if SELECTED_BY.name in row:
                    child.row = {key: value for key, value in row.items() if key.startswith("val/")}
                    if not child.pruned and source.stops(child.job, row):
                        child.pruned = True
                        child.process.send_signal(LEAVE)

    def send(self, number: int) -> None:
        """A signal to every training."""
        for child in self.running:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(number)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Ends a training and its workers at once."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, KILL)
    else:
        with contextlib.suppress(psutil.Error):
            for each in psutil.Process(process.pid).children(recursive=True):
                each.kill()
        process.kill()
    process.wait()


def fresh(child: Child) -> list[dict[str, Any]]:
    """The rows that a training wrote since the last call."""
    path, rows = child.job.run.metrics, []
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        size = path.stat().st_size
        child.read = child.read if child.read <= size else 0  # a resumed training rewrites its file
        file.seek(child.read)
        for line in file:
            if not line.endswith(b"\n"):
                break
            child.read += len(line)
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    for row in rows:
        child.step = max(child.step, row.get("step", 0))
        child.first = child.step if child.first is None else child.first
    return rows


def resident(process: int) -> int:
    """Bytes of memory of a process and its children."""
    total = 0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(process)
        for each in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += each.memory_info().rss
    return total


def last_words(child: Child) -> str:
    """The end of what a failed training printed; of a pack that has ended, of what all of it did."""
    seat = child.process
    if not isinstance(seat, Seat):
        return tail(child.out)
    return tail(seat.pack.out) if seat.lost else seat.error or tail(child.out)


def tail(file: Path, lines: int = TAIL) -> str:
    """The end of a text file."""
    with contextlib.suppress(OSError):
        return "\n".join(file.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-lines:])
    return ""
