"""Shapes and types of vitlab's functions are checked at run time in the tests of `model` and `data`."""

import os
import tempfile
from pathlib import Path

os.fsync = lambda _: None  # no test pulls the plug, and a disk takes 10 ms for each file
os.environ["OMP_NUM_THREADS"] = "1"  # as many tests at once as there are cores

import jaxtyping  # noqa: E402
import pytest  # noqa: E402

TESTS = Path(__file__).parent
VITLAB = TESTS.parent / "vitlab"  # only files with such types: the hook costs time in every call
FILES = [file for name in ("model", "data") for file in (VITLAB / name).glob("*.py") if "jaxtyping" in file.read_text()]
CHECKED = [f"vitlab.{file.parent.name}.{file.stem}" for file in sorted(FILES)]
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")

import torch  # noqa: E402

os.environ.setdefault("WANDB_MODE", "offline")
os.environ["WANDB_SILENT"] = "true"
os.environ["WANDB_DATA_DIR"] = tempfile.mkdtemp(prefix="wandb-")  # what W&B stages is not kept


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _checked_calls(request):
    """Calls are checked where every part is tried; in all other tests that would be an eighth of the time."""
    checked = request.path.is_relative_to(TESTS / "model") or request.path.is_relative_to(TESTS / "data")
    jaxtyping.config.update("jaxtyping_disable", not checked)


@pytest.fixture(autouse=True, scope="session")
def _no_interpolated_defaults():
    """Hydra does not look for interpolated defaults, which no file of conf has: a quarter of a composition's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hydra._internal.defaults_list._create_interpolation_map", lambda *_: None)
        yield


@pytest.fixture
def no_curves(monkeypatch):
    """Trainings draw no learning curves, a third of what the shortest take."""
    monkeypatch.setattr("vitlab.tracking.curves.draw", lambda *_: None)


@pytest.fixture
def no_figures(monkeypatch):
    """Figures are empty files, for tests of something else: drawing is most of an answer's time."""
    from matplotlib.figure import Figure

    save = Figure.savefig

    def empty(figure, file, **options):
        if isinstance(file, Path):
            file.touch()
        else:
            save(figure, file, **options)

    monkeypatch.setattr(Figure, "savefig", empty)


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
