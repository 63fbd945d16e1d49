"""Logging to the terminal and to log.txt of a run."""

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from tqdm import tqdm

log = logging.getLogger("vitlab")
OWNER: ContextVar[object] = ContextVar("OWNER", default=None)  # whose log the lines of this context go to; None is any


class LogFile(logging.FileHandler):
    """log.txt; lines are dropped while the disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class Console(logging.Handler):
    """Lines to the terminal, above a progress bar where one runs."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


class NotebookLine:
    """One line of a notebook's output, which each write replaces: a progress bar leaves no others behind."""

    def __init__(self) -> None:
        from IPython.display import display

        self.shown = display({"text/plain": ""}, raw=True, display_id=True)

    def write(self, text: str) -> None:
        if line := text.strip():
            self.shown.update({"text/plain": line}, raw=True)

    def flush(self) -> None:
        pass


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this code."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return hasattr(get_shell(), "kernel")


@contextmanager
def logging_to(file: Path | None, *, speak: bool = True) -> Generator[None]:
    """Sends vitlab's log to the terminal and, with times, to a file.

    Of several trainings that take turns in one process, each in a context of its own, each gets its own lines.
    """
    handlers: list[logging.Handler] = [Console() if speak else logging.NullHandler()]
    if file is not None:
        handlers.append(LogFile(file, delay=True, encoding="utf-8", errors="backslashreplace"))
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before, owner, outer = (log.level, log.propagate), object(), OWNER.get()
    OWNER.set(owner)
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in handlers:
        handler.addFilter(lambda _: OWNER.get() in (owner, None))
        log.addHandler(handler)
    try:
        yield
    finally:
        OWNER.set(outer)
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
        log.level, log.propagate = before
