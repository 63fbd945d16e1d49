"""A polite answer to signals: the training saves and leaves at the next step."""

import os
import signal
import threading
from types import FrameType


class Signals:
    """While entered, SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 set `asked`; a second SIGINT interrupts at once.

    SIGUSR1 and SIGUSR2 are what Slurm's `--signal` and its preemption send ahead of the end.
    """

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.received = 0  # the signal's number

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.ask) for number in self.signals}
        else:
            self.before = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def ask(self, number: int, _: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number
        if number == signal.SIGINT:  # no print: the signal may have come in the middle of one
            os.write(2, b"\nsaves at the next step and leaves; Ctrl-C again leaves at once\n")
