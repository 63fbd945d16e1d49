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


def pytest_collection_modifyitems(items):
    for item in items:
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
