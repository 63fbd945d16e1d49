"""How images reach a training: the time that waits for them, workers, and what would be faster."""

import itertools
import time
from types import SimpleNamespace

import pytest
import torch

from tests.disk import write_images
from tests.training.test_loop import ALONE, SMALL, fit
from vitlab.cli.run import format_wait, summary
from vitlab.config.build import assemble
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.storage.metrics import METRICS
from vitlab.storage.run import Run
from vitlab.system.distributed import Distributed
from vitlab.tracking.tracker import Tracker
from vitlab.training import batches, loop, meter
from vitlab.training.batches import cores, faster_input, train_transform, worker_cores, workers
from vitlab.training.meter import Meter
from vitlab.training.setup import prepare


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now.seconds)
    return now


def test_the_share_of_time_that_waits_for_batches_is_that_between_two_steps_and_no_other(clock):
    measured = Meter(torch.device("cpu"))

    def slow():
        for batch in range(4):
            clock.seconds += 3
            yield batch

    def steps(count):
        for _ in range(count):
            next(found)
            measured.begin(1, 2)
            clock.seconds += 1

    found = measured.waiting(slow())
    steps(2)
    assert measured.read(ALONE) == {"images_per_second": 4 / 8, "data_wait": 6 / 8}
    clock.seconds += 50  # an evaluation
    measured.pause()
    steps(1)
    measured.pause()  # a checkpoint
    steps(1)
    clock.seconds += 4  # of the training, but not for its images
    assert measured.read(ALONE)["data_wait"] == 3 / 8
    assert measured.data_wait() == 9 / 16
    assert next(found, None) is None


def test_a_training_that_waits_says_so_in_each_row_and_in_its_result(tmp_path, monkeypatch):
    def slow(setup, start):
        for batch in batches.train_batches(setup, start):
            time.sleep(0.05)
            yield batch

    monkeypatch.setattr(loop, "train_batches", slow)
    run, result = fit(tmp_path, "fit.steps=4", "model.depth=1")
    for found, images in (*((row, 16) for row in run.rows()), (result, 64)):
        assert 0.05 * images / 16 <= found["data_wait"] * images / found["images_per_second"] < 10  # seconds
        assert found["data_wait"] < 1
    assert METRICS["data_wait"].format(0.345) == "34%"
    assert "waiting " not in summary(run, result)  # for less than a second
    said = summary(run, result | {"seconds": 300.0, "data_wait": 0.345}, faster="fewer images")
    assert "waiting     34% of the training waited for images; faster with fewer images" in said


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"data_wait": 0.5, "seconds": 60.0}, "50% of the training waited for images"),
        ({"data_wait": 0.19, "seconds": 6000.0}, ""),
        ({"data_wait": 0.5, "seconds": 6.0}, ""),
        ({"seconds": 60.0}, ""),  # of an earlier vitlab
    ],
)
def test_the_summary_speaks_of_waiting_where_it_matters(result, said):
    assert format_wait(result, "") == said


def test_the_progress_line_has_the_wait_only_while_it_is_long(tmp_path, monkeypatch):
    shown, run = [], Run(tmp_path / "run")
    run.create()
    with Tracker(run, prepared().tracking, {}, steps=3, start=0, on=True) as tracker:
        monkeypatch.setattr(tracker.bar, "set_postfix_str", lambda text, refresh: shown.append(text))
        for wait in (0.05, 0.34, 0.1):
            tracker.row({"step": 1, "train/loss": 2.0, "data_wait": wait})
    assert shown == ["loss 2.000", "loss 2.000  34% of the time waits for images", "loss 2.000"]


def prepared(*words, dist=ALONE):
    return prepare(**assemble(check(compose([*SMALL, *words])[0])), dist=dist)


@pytest.mark.parametrize(("there", "processes", "expected"), [(1, 1, 1), (2, 1, 2), (16, 1, 14), (64, 8, 7), (4, 8, 1)])
def test_workers_use_this_processs_share_of_the_cores(monkeypatch, there, processes, expected):
    monkeypatch.setattr(batches, "cores", lambda: there)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert worker_cores() == expected
    found = {}
    for words in ("augment=none", "augment=flip_crop", "augment=randaugment", "system.workers=3"):
        setup = prepared(words)
        train = setup.splits["train"]
        found[words] = workers(setup, train, train_transform(setup.augment, setup.dataset))
    several = expected if expected > 1 else 0  # one core augments no faster in another process
    assert list(found.values()) == [0, 0, several, 3]
    monkeypatch.setattr(batches, "START_METHOD", "spawn")  # of scripts that may lack `if __name__ == "__main__"`
    assert workers(prepared("augment=randaugment"), train, len) == 0


def test_a_gpu_has_workers_for_images_one_by_one(monkeypatch):
    monkeypatch.setattr(batches, "cores", lambda: 1)
    setup = prepared("augment=randaugment")
    there = SimpleNamespace(system=setup.system, dist=Distributed(0, 1, torch.device("cuda")))
    assert workers(there, setup.splits["train"], train_transform(setup.augment, setup.dataset)) == 1
    assert cores() >= 1


POLICY = "a cheaper policy than augment.auto_augment=rand-m9-mstd0.5-inc1"
CACHE, BATCHED = "system.cache=FOLDER, which keeps images decoded", "augment.batched=true, whole batches"
WORKERS = "system.workers=auto, which is 4, instead of 1"


@pytest.mark.parametrize(
    ("words", "faster"),
    [
        ("", []),
        ("augment=randaugment", [POLICY]),
        ("augment=randaugment system.workers=1", [WORKERS, POLICY]),
        ("augment=randaugment system.workers=4", [POLICY]),
        ("augment=flip_crop system.workers=1", []),
        ("augment=flip_crop augment.batched=false", [BATCHED]),
        ("files augment=flip_crop", [CACHE]),
        ("files augment=flip_crop fit.steps=1", []),  # each image is decoded once
        ("files augment=flip_crop system.workers=1 dataset.image_size=72", [WORKERS, CACHE, "smaller images than"]),
        ("files augment=flip_crop cached", [BATCHED]),
        ("files augment=flip_crop cached dataset.image_size=24", []),
        ("files augment=flip_crop cached augment.batched=true dataset.evaluation_crop=1", []),
        ("files augment=randaugment cached", [POLICY]),
    ],
)
def test_only_what_can_help_a_training_is_advised(tmp_path, monkeypatch, words, faster):
    monkeypatch.setattr(batches, "cores", lambda: 4)
    write_images(tmp_path / "images", n=40, size=(16, 16))
    words = words.replace("cached", f"system.cache={tmp_path}/cache")
    files = f"dataset=image_folder dataset.root={tmp_path}/images patch=p4"
    files += " dataset.train_examples=50" + " dataset.image_size=16" * ("image_size" not in words)
    said = faster_input(prepared(*words.replace("files", files).split()))
    advice = said.split("; ") if said else []
    assert len(advice) == len(faster), said
    assert all(itertools.starmap(str.startswith, zip(advice, faster, strict=True))), said
