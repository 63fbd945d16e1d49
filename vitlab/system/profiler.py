"""A trace of the first steps, for chrome://tracing or Perfetto."""

from pathlib import Path
from typing import Any


class Profiler:
    """Records `steps` steps after the first with torch's profiler and writes them to `path`; 0 does nothing."""

    def __init__(self, steps: int, path: Path):
        self.profiler: Any = None
        if steps:
            from torch import profiler

            self.profiler = profiler.profile(
                schedule=profiler.schedule(wait=0, warmup=1, active=steps, repeat=1),
                on_trace_ready=lambda trace: trace.export_chrome_trace(str(path)),
            )

    def __enter__(self) -> "Profiler":
        if self.profiler:
            self.profiler.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.profiler:
            self.profiler.__exit__(*error)

    def step(self) -> None:
        if self.profiler:
            self.profiler.step()
