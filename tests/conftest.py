"""Shapes and types of vitlab's functions are checked at run time in every test."""

import os
import tempfile
from functools import wraps
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # as many tests at once as there are cores

from jaxtyping import install_import_hook

VITLAB = Path(__file__).parents[1] / "vitlab"  # only files with such types: the hook costs time in every call
FILES = [file for name in ("model", "data") for file in (VITLAB / name).glob("*.py") if "jaxtyping" in file.read_text()]
CHECKED = [f"vitlab.{file.parent.name}.{file.stem}" for file in sorted(FILES)]
install_import_hook(CHECKED, "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

os.environ.setdefault("WANDB_MODE", "offline")
os.environ["WANDB_SILENT"] = "true"
os.environ["WANDB_DATA_DIR"] = tempfile.mkdtemp(prefix="wandb-")  # what W&B stages is not kept


def pytest_xdist_auto_num_workers():
    """One more than there are cores: many tests wait for processes of their own."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 7) + 1


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def no_curves(monkeypatch):
    """Trainings draw no learning curves, a third of what the shortest take."""
    monkeypatch.setattr("vitlab.tracking.curves.draw", lambda *_: None)


@pytest.fixture
def no_pdf(monkeypatch):
    """Empty PDFs, which are half of an answer's time, for tests of something else."""
    from matplotlib.backends.backend_pdf import FigureCanvasPdf

    draw = FigureCanvasPdf.print_pdf

    @wraps(draw)  # its signature says what it takes
    def empty(canvas, file, **options):
        if isinstance(file, Path):
            file.touch()
        else:
            draw(canvas, file, **options)  # Matplotlib's own look at how large it will be

    monkeypatch.setattr(FigureCanvasPdf, "print_pdf", empty)


@pytest.fixture
def accelerator():
    """The GPU of this machine, of any kind; a test that takes it is one of `-m cuda`."""
    return torch.accelerator.current_accelerator(check_available=True)


@pytest.fixture
def recorder(monkeypatch):
    """Functions are captured on a CPU too, by recording their operations."""
    from tests.recording import Recorder

    return Recorder().install(monkeypatch)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    for item in items:
        of_any_kind = "accelerator" in getattr(item, "fixturenames", ())
        if of_any_kind:
            item.add_marker(pytest.mark.cuda)
        there = torch.accelerator.is_available() if of_any_kind else torch.cuda.is_available()
        if item.get_closest_marker("cuda") and not there:
            item.add_marker(pytest.mark.skip(reason=f"needs a {'GPU' if of_any_kind else 'CUDA GPU'}"))
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, len(item.path.parts)))  # the longest first
