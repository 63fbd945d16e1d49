"""A dataset is added by two files: a module in data/datasets and its YAML."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent.parent
MODULE = '''"""Stripes: images of horizontal or vertical lines."""

from dataclasses import dataclass

import numpy as np
import torch

from vitlab.data.dataset import Dataset
from vitlab.data.examples import Examples, Pixels


@dataclass(kw_only=True)
class Stripes(Dataset):
    """Grey images of 8x8 with one line, by its direction.

    Args:
        test_fraction: fraction of all images kept for the test.
        count: number of images.
    """

    classes = ("horizontal", "vertical")
    channels = 1
    size = (8, 8)
    mean = (0.125,)
    std = (0.33,)
    flip = True
    citation = "generated"

    test_fraction: float
    count: int

    def read(self) -> dict[str, Examples]:
        draw = np.random.default_rng(self.split_seed)
        labels = np.arange(self.count) % 2
        pixels = np.zeros((self.count, 1, 8, 8), dtype=np.uint8)
        for image, label, line in zip(pixels[:, 0], labels, draw.integers(0, 8, self.count), strict=True):
            (image.T if label else image)[line] = 255
        return {"train": Pixels(torch.from_numpy(pixels), labels)}
'''
YAML = """# Lines on black: an easy set to try things out.
_target_: vitlab.data.datasets.stripes.Stripes
image_size: null
validation_fraction: 0.1
train_fraction: 1.0
train_examples: null
split_seed: 0
folds: null
fold: 0
evaluation_crop: 1.0
test_fraction: 0.2
count: 200
"""


@pytest.mark.slow
def test_a_dataset_of_two_files_is_offered_checked_read_and_trained_on(tmp_path):
    for folder in ("vitlab", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "vitlab" / "data" / "datasets" / "stripes.py").write_text(MODULE)
    (tmp_path / "conf" / "dataset" / "stripes.yaml").write_text(YAML)

    def vitlab(*words):
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-m", "vitlab", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert "  stripes        Lines on black" in vitlab("train", "--help").stdout
    refused = vitlab("train", "dataset=stripes", "dataset.count=many")
    assert refused.returncode == 2
    assert refused.stderr == "vitlab: dataset.count=many: expected a whole number\n"
    small = ["model.width=16", "model.depth=1", "model.heads=2", "fit.batch_size=20", "tracking=off"]
    done = vitlab("train", "dataset=stripes", "dataset.count=100", "fit.steps=1", *small, "system.runs=runs")
    assert done.returncode == 0, done.stderr
    (result,) = (tmp_path / "runs").glob("stripes-*/result.json")
    assert json.loads(result.read_text())["status"] == "finished"
