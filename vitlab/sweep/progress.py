"""Progress of a sweep: a live table in a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vitlab.storage.metrics import SELECTED_BY

if TYPE_CHECKING:
    from vitlab.sweep.job import Child, Job

FEW = 8  # trainings that are named in a line
QUIET = 30.0  # seconds between two lines of progress where no table can be drawn


class Progress:
    """The progress display.

    Args:
        before: runs that were finished when the sweep started.
    """

    def __init__(self, before: int = 0, write: Callable[[str], object] = print):
        self.before = before
        self.write = write
        self.live: Any = None
        self.counts = {"finished": 0, "failed": 0, "pruned": 0}
        self.began = self.spoke = time.monotonic()

    def __enter__(self) -> "Progress":
        if sys.stdout.isatty():
            from rich.live import Live

            self.live = Live(auto_refresh=False, transient=True)
            self.live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.__exit__(None, None, None)
            self.live = None

    def say(self, line: str) -> None:
        if self.live is not None:
            self.live.console.print(line, markup=False, highlight=False)
        else:
            self.write(line)

    def done(self, job: "Job", status: str) -> None:
        self.counts[status] += 1
        scores = ""
        if status == "finished":
            with contextlib.suppress(ValueError, KeyError):
                result = job.run.result()
                scores = f"  validation {SELECTED_BY.format(result[SELECTED_BY.name])}, {result['seconds']:.0f} s"
        self.say(f"{status:<8}  {job}{scores}")

    def show(self, running: "Sequence[Child]", total: int) -> None:
        ended = sum(self.counts.values())
        share = ended + sum(child.share for child in running)
        passed = time.monotonic() - self.began
        left = f", about {span(passed / share * (total - share))} left" if share > 0.2 and passed > 5 else ""
        queued = total - ended - len(running)
        head = f"{ended + self.before} of {total + self.before} done, {len(running)} running, {queued} queued"
        head += "".join(f", {self.counts[key]} {key}" for key in ("failed", "pruned") if self.counts[key])
        if self.live is not None:
            self.live.update(self.table(f"{head}   {span(passed)}{left}", running), refresh=True)
        elif time.monotonic() - self.spoke > QUIET:
            self.spoke = time.monotonic()
            self.write(f"{head}{left}: {where(running)}")

    def table(self, head: str, running: "Sequence[Child]") -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(head), title_justify="left", box=None, pad_edge=False)
        for name in ("cell", "", "on", "", "validation", "left"):
            table.add_column(name)
        for child in running:
            left = child.left()
            accuracy = SELECTED_BY.format(child.row[SELECTED_BY.name]) if child.row else ""
            table.add_row(
                Text(child.job.name),
                child.job.repetition,
                child.slot.name,
                ProgressBar(total=1.0, completed=child.share, width=24),
                accuracy,
                "" if left is None else span(left),
            )
        return table


def where(running: "Sequence[Child]") -> str:
    """How far each training is, in a line; where there are many, of each slot how many, and the least and greatest."""
    if len(running) <= FEW:
        return "; ".join(f"{child.job} {child.share:.0%}" for child in running)
    slots: dict[str, list[float]] = {}
    for child in running:
        slots.setdefault(child.slot.name, []).append(child.share)
    return "; ".join(f"{len(of)} on {slot} {min(of):.0%} to {max(of):.0%}" for slot, of in slots.items())


def span(seconds: float) -> str:
    """A readable duration: 42 s, 3 min 20 s, 2 h 5 min, 3 days 4 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    if seconds < 86400:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    span = timedelta(seconds=seconds)
    return f"{span.days} days {span.seconds // 3600} h"
