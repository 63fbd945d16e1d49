"""Signals that end a training: it saves and leaves at the next step."""

import os
import signal
import threading
from types import FrameType


class Signals:
    """While entered, SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 set `received`; a second SIGINT raises KeyboardInterrupt.

    Slurm's `--signal` and its preemption send SIGUSR1 or SIGUSR2 before they end a job. Windows has neither, but
    SIGBREAK, which a sweep sends there.
    """

    names = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGBREAK")
    signals = tuple(getattr(signal, name) for name in names if hasattr(signal, name))

    def __init__(self) -> None:
        self.received = 0  # the signal's number

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.handle) for number in self.signals}
        else:
            self.before = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def handle(self, number: int, _: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number
        if number == signal.SIGINT:  # not print, which the signal may have interrupted
            os.write(2, b"\nsaves at the next step and leaves; Ctrl-C again leaves at once\n")
