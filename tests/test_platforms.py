"""What Windows and macOS lack is not needed: the modules and functions of Unix, and `fork`.

Nothing was run there: here they are taken away, and workers are started with `spawn`.
"""

import importlib
import os
import signal
import subprocess
import sys
import time
from multiprocessing.reduction import ForkingPickler
from pickle import loads

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from tests.training.test_loop import SMALL, fit
from vitlab.config.build import assemble
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.groups import menu
from vitlab.data import cache, loader
from vitlab.data.augment import eval_transform
from vitlab.sweep import local
from vitlab.system.lazy_imports import modules
from vitlab.system.signals import Signals
from vitlab.training.batches import train_transform

WITHOUT_UNIX = """
import importlib, multiprocessing, os, pathlib, pkgutil, select, signal, sys, threading
import filelock, hydra, pandas, psutil, sklearn.datasets, torch, torchvision, wandb
import torch._dynamo, torch.distributed, torch.utils.data, timm.data, timm.scheduler

for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "sched_setaffinity", "fork", "getuid", "geteuid", "killpg", "sysconf", "pread"):
    delattr(os, name)
for name in ("SIGUSR1", "SIGUSR2", "SIGKILL"):
    delattr(signal, name)
del select.poll
open_folder = os.open
def windows_open(path, flags, *rest, **named):
    if isinstance(path, (str, pathlib.Path)) and pathlib.Path(path).is_dir():
        raise PermissionError(13, "Permission denied", str(path))
    return open_folder(path, flags, *rest, **named)
os.open = windows_open
is_there = pathlib.Path.is_file, pathlib.Path.is_dir
pathlib.Path.is_file = lambda path: not str(path).startswith("/proc") and is_there[0](path)
pathlib.Path.is_dir = lambda path: not str(path).startswith("/proc") and is_there[1](path)

import vitlab
for module in pkgutil.walk_packages(vitlab.__path__, "vitlab."):
    importlib.import_module(module.name)
from vitlab.__main__ import main
from vitlab.storage.lock import Lock, holder
from vitlab.system.hardware import peak_memory

runs = pathlib.Path(sys.argv[1])
words = ["train", "fit.steps=2", "patch=p4", "tracking=off", f"system.runs={runs}", "dataset.train_examples=90"]
words += ["model.width=8", "model.depth=1", "model.heads=1", "fit.batch_size=16"]
assert main(words) == 0
assert main([*words, "system.retrain=true"]) == 0
(run,) = [path for path in runs.iterdir() if "." not in path.name]
assert holder(run / "lock") is None
with Lock(run / "lock"):
    assert holder(run / "lock")["process"] == os.getpid()
assert holder(run / "lock") is None
assert peak_memory(torch.device("cpu")) > 2**26
print("done")
"""


@pytest.mark.slow
def test_a_training_runs_without_what_only_unix_has(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_UNIX, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.stdout.endswith("done\n"), done.stdout + done.stderr


@pytest.fixture(autouse=True)
def whole_packages():
    """timm and torchvision as they are imported where workers are spawned."""
    modules.cache_clear()
    importlib.import_module("torchvision")
    importlib.import_module("timm.data")


@pytest.fixture
def spawned(monkeypatch):
    for module in (loader, cache):
        monkeypatch.setattr(module, "START_METHOD", "spawn")


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(10):
            pixels = draw.integers(0, 255, (12, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


@pytest.mark.slow
def test_spawned_workers_feed_a_training_as_forked_ones_do(tmp_path, folder, monkeypatch):
    found = []
    words = ["dataset=image_folder", f"dataset.root={folder}", "dataset.image_size=8", "dataset.train_examples=null"]
    words += ["augment=randaugment", "fit.batch_size=4", "fit.steps=2", "system.workers=1", "tracking=off"]
    words += [f"system.cache={tmp_path / 'cache'}"]
    for method in ("fork", "spawn"):
        for module in (loader, cache):
            monkeypatch.setattr(module, "START_METHOD", method)
        run, result = fit(tmp_path / method, *words)
        found.append([row["train/loss"] for row in run.rows()] + [result["test/loss"]])
    assert found[0] == found[1]


@pytest.mark.parametrize("augment", [*menu()["augment"]])
def test_the_augmentation_of_every_option_can_be_sent_to_a_worker(augment, folder):
    for words in (SMALL, ("dataset=image_folder", f"dataset.root={folder}", "dataset.image_size=8")):
        parts = assemble(check(compose([*words, f"augment={augment}", "tracking=off"])[0]))
        for transform in (train_transform(parts["augment"], parts["dataset"]), eval_transform(parts["dataset"])):
            assert type(loads(ForkingPickler.dumps(transform))) is type(transform)


def test_a_worker_is_sent_the_file_of_cached_images_and_not_their_pixels(tmp_path, folder):
    parts = assemble(check(compose(["dataset=image_folder", f"dataset.root={folder}", "dataset.image_size=8"])[0]))
    cached = cache.cache_images(parts["dataset"].splits(), tmp_path / "cache", 0)["train"]
    sent = bytes(ForkingPickler.dumps(cached))
    assert len(sent) < cached.pixels.nbytes
    for index in range(len(cached)):
        assert loads(sent).image(index).tobytes() == cached.image(index).tobytes()


def test_a_training_and_its_workers_are_ended_where_there_are_no_process_groups(monkeypatch):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    parent = subprocess.Popen([sys.executable, "-c", code])
    while not (children := psutil.Process(parent.pid).children()):
        time.sleep(0.05)
    monkeypatch.delattr(os, "killpg")
    local.kill(parent)
    assert parent.returncode == -9
    psutil.wait_procs(children, timeout=10)
    assert not children[0].is_running() or children[0].status() == psutil.STATUS_ZOMBIE


def test_the_signals_are_those_of_the_machine():
    assert Signals.signals == (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


@pytest.mark.slow
def test_pixels_in_memory_can_be_sent(spawned):
    parts = assemble(check(compose([*SMALL, "tracking=off"])[0]))
    train = parts["dataset"].splits()["train"]
    order = loader.EvalSampler(examples=len(train), batch=16)
    (alone, sent) = (
        torch.cat([images for images, _ in loader.loader(train, None, order, workers=workers)]) for workers in (0, 1)
    )
    assert torch.equal(alone, sent)
