"""Shapes and types of vitlab's functions are checked at run time in every test."""

import os
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"  # as many tests at once as there are cores

from jaxtyping import install_import_hook

install_import_hook(["vitlab.model", "vitlab.data"], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

os.environ.setdefault("WANDB_MODE", "offline")
os.environ["WANDB_SILENT"] = "true"
os.environ["WANDB_DATA_DIR"] = tempfile.mkdtemp(prefix="wandb-")  # what W&B stages is not kept


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


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
