"""Real training processes that start at once: forked from a server that has imported everything."""

import atexit
import contextlib
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path

os.environ["PYTHONPATH"] = os.pathsep.join((str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", ""))).strip(
    ":"
)
os.environ["PYTHONWARNINGS"] = (
    "ignore:resource_tracker:UserWarning"  # it misses the semaphores of those that were killed
)
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.processes_preload"])


def work(words, environment, out, largest):
    os.setsid()
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    os.environ.update(environment)
    file = Path(out).open("a")  # noqa: SIM115 (until the process ends)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    import torch

    from vitlab.__main__ import main

    torch.set_num_threads(1)
    sys.argv = ["vitlab", *words]
    status = main(list(words))
    sys.stdout.flush()
    os._exit(status)


class Training:
    """A `vitlab` command in processes of their own, several as torchrun would start them.

    Args:
        words: of the command.
        out: file that takes the output.
        world_size: number of processes.
        largest: bytes that a file may have; more is what a full disk says.
    """

    def __init__(self, words, out, world_size=1, largest=None):
        shared = {"OMP_NUM_THREADS": "1"}
        if world_size > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            shared |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self.out = Path(out)
        self.members = []
        atexit.register(self.send, signal.SIGKILL)
        for rank in range(world_size):
            ranked = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world_size > 1 else {}
            member = SERVER.Process(target=work, args=(words, {**shared, **ranked}, str(out), largest), daemon=False)
            member.start()
            self.members.append(member)

    def wait(self, seconds=120.0):
        """The exit statuses; a negative one is the signal that ended it."""
        until = time.monotonic() + seconds
        for member in self.members:
            member.join(max(0.1, until - time.monotonic()))
        late = [member for member in self.members if member.exitcode is None]
        self.send(signal.SIGKILL)
        assert not late, f"still running after {seconds} s: {self.out.read_text()}"
        return [member.exitcode for member in self.members]

    def send(self, number, rank=None):
        """A signal to one process, or to all; SIGKILL takes their children with them, as a scheduler's does."""
        for member in self.members if rank is None else [self.members[rank]]:
            if number == signal.SIGKILL:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(member.pid, number)
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, number)

    @property
    def said(self):
        return self.out.read_text() if self.out.exists() else ""


def until(condition, seconds=60.0):
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def steps(folder):
    """How many rows the only run in a folder has logged."""
    return sum(path.read_bytes().count(b"\n") for path in Path(folder).glob("*/metrics.jsonl"))
