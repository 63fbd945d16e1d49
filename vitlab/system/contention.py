"""Waiting threads that leave the cores to others on a busy machine."""

import os
import threading
import time
from pathlib import Path

import torch

PERIOD = 1.0  # seconds of a measurement
BUSY, QUIET = 0.3, 0.03  # rates of `Delay`: threads wait passively above the first, and spin again below the second
CALM = 5  # quiet measurements in a row after which they do
TASKS = Path("/proc/self/task")


class WaitPolicy:
    """Context in which OpenMP's threads wait passively while other processes compete for this process's cores.

    A thread that waits for another one spins, which is fastest on a quiet machine. On a busy one it keeps the core from
    the thread that it waits for, and a training takes many times as long. GNU's OpenMP, torch's on Linux, spins only
    briefly while it has more threads than there are cores (`GOMP_SPINCOUNT` in the manual of libgomp), so a second pool
    of threads, which does nothing, switches between the two at any time. No result depends on it. Elsewhere, and where
    the environment sets the policy, this does nothing.

    Args:
        on: whether to watch, as on a CPU.
    """

    def __init__(self, on: bool = True):
        chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
        gnu = TASKS.is_dir() and "OpenMP" in torch.__config__.parallel_info()
        self.on = on and gnu and not chosen and torch.get_num_threads() > 1
        self.passive = False
        self.ended = threading.Event()
        self.watcher = threading.Thread(target=self.watch, name="wait policy", daemon=True)

    def __enter__(self) -> "WaitPolicy":
        if self.on:
            self.watcher.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.on:
            self.ended.set()
            self.watcher.join()

    def watch(self) -> None:
        calm, pool, delay = 0, None, Delay()
        while not self.ended.wait(PERIOD):
            rate, delay = delay.rate(), Delay()
            calm = calm + 1 if rate < QUIET else 0
            if pool is None and rate > BUSY:
                pool = IdlePool()
            elif pool is not None and calm >= CALM:
                pool = pool.close()
            self.passive = pool is not None
        if pool is not None:
            pool.close()


class IdlePool:
    """A pool of OpenMP's threads that does nothing, large enough that there are more threads than cores."""

    def __init__(self) -> None:
        self.ended, self.made = threading.Event(), threading.Event()
        self.owner = threading.Thread(target=self.own, name="idle pool", daemon=True)
        self.owner.start()
        self.made.wait()

    def own(self) -> None:
        threads = torch.get_num_threads()
        pool = max(2, len(os.sched_getaffinity(0)) - threads + 2)
        torch.set_num_threads(pool)  # of this Python thread alone, but a new one would take it over
        torch.zeros(pool * 2**16)  # enough work for all of them
        torch.set_num_threads(threads)
        self.made.set()
        self.ended.wait()

    def close(self) -> None:
        self.ended.set()
        self.owner.join()


class Delay:
    """How long this process's threads have been ready to run without a core, since it was made (Linux; else 0)."""

    def __init__(self) -> None:
        self.start, self.before = time.perf_counter(), waited()

    def rate(self) -> float:
        """Seconds of all threads, a second."""
        now = waited()
        spent = sum(now[task] - self.before[task] for task in now.keys() & self.before.keys())
        return spent / (time.perf_counter() - self.start)


def waited() -> dict[str, float]:
    """Seconds that each thread of this process was ready to run and had no core."""
    found = {}
    for task in TASKS.iterdir() if TASKS.is_dir() else ():
        try:
            found[task.name] = int((task / "schedstat").read_text(encoding="utf-8").split()[1]) / 1e9
        except (OSError, IndexError, ValueError):  # it has ended; or the kernel does not count
            continue
    return found
