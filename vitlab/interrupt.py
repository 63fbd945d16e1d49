"""A polite answer to signals: the training saves and leaves at the next step."""

import signal
import threading
from types import FrameType


class Interrupt:
    """While entered, SIGTERM and SIGINT set `asked`; a second SIGINT interrupts at once, as usual."""

    signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.asked = 0  # the signal's number

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.ask) for number in self.signals}
        else:
            self.before = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def ask(self, number: int, _: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number
