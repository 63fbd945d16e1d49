"""Several processes train as one does, hand a run on to any other number, and end together."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from tests.processes import Training, steps, until
from tests.training.test_resume import only
from vitlab.data.loader import PADDING, EvalSampler, TrainSampler, local_indices
from vitlab.storage import checkpoint

SMALL = ["train", "tracking=off", "dataset.train_examples=90", "model.width=16", "model.depth=2", "model.heads=2"]
SMALL += ["fit.batch_size=16", "fit.precision=fp32", "fit.steps=12", "system.log_every=1", "model.dropout=0"]
SMALL += ["augment.mixup=0.4", "augment.cutmix=1.0", "augment.erase=0.5", "fit.ema_decay=0.9"]
SMALL += ["fit.sampling=balanced", "loss.class_weights=[1,2,3,4,5,6,7,8,9,10]"]
SAID = {"capture_output": True, "text": True}
SCORES = [f"val/{name}" for name in ("loss", "accuracy", "balanced_accuracy", "macro_f1", "roc_auc")]


def train(folder, *words, world_size=1, status=0):
    run = Training([*SMALL, f"system.runs={folder}", *words], f"{folder}-{time.monotonic_ns()}.txt", world_size)
    assert set(run.wait()) == {status}, run.said
    return run


def close(one, two, tolerance=1e-6):
    """Two runs have the same rows, results and states, but for the last digits."""
    for a, b in zip([*one.rows(), one.result()], [*two.rows(), two.result()], strict=True):
        for key in ("train/loss", "train/accuracy", "train/gradient_norm", *SCORES, "test/accuracy"):
            one_pair = 1e-4 if key == "val/roc_auc" else 0  # of images whose scores differ in the last digit
            assert b.get(key) == pytest.approx(a.get(key), abs=10 * tolerance + one_pair), (key, a.get("step"))
    states = [checkpoint.load(run.last) for run in (one, two)]
    for name, value in states[0]["model"].items():
        torch.testing.assert_close(states[1]["model"][name], value, atol=tolerance, rtol=10 * tolerance, msg=name)
    for value, other in zip(states[0]["ema"]["average"], states[1]["ema"]["average"], strict=True):
        torch.testing.assert_close(other, value, atol=tolerance, rtol=10 * tolerance)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process, with SGD: the mathematics of AdamW make much of the last digit of a small gradient."""
    folder = tmp_path_factory.mktemp("alone") / "runs"
    train(folder, "optimizer=sgd", "optimizer.lr=0.05")
    return only(folder)


def torchrun(folder, *words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vitlab"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *SMALL, f"system.runs={folder}", *words], env=environment, check=False, **SAID)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("how", "world_size"), [("torchrun", 2), ("fsdp", 2), ("ddp", 4)])
def test_several_processes_train_as_one(how, world_size, alone, tmp_path):
    """The same global batch, mixed and erased alike: the same losses and weights; every image is evaluated once."""
    words = ["optimizer=sgd", "optimizer.lr=0.05"]
    if how == "torchrun":  # as users start it
        torchrun(tmp_path / "runs", *words)
    else:
        train(tmp_path / "runs", *words, f"system.parallel={how}", world_size=world_size)
    found = only(tmp_path / "runs")
    close(alone, found)
    assert found.folder.name == alone.folder.name
    assert found.result()["processes"] == world_size


@pytest.mark.slow
def test_accumulating_in_several_processes_is_the_same_batch_too(alone, tmp_path):
    words = ["optimizer=sgd", "optimizer.lr=0.05", "fit.accumulate=2", "system.activation_checkpointing=true"]
    train(tmp_path / "runs", *words, "system.parallel=fsdp", world_size=2)
    close(alone, only(tmp_path / "runs"))


@pytest.mark.slow
def test_a_run_is_handed_from_one_number_of_processes_to_another(tmp_path):
    """Sharded by two, alone, by four, sharded by two again: as one that was never interrupted."""
    words = ["optimizer=adamw", "optimizer.eps=1e-3", "fit.steps=48", "model.depth=4"]
    train(tmp_path / "calm", *words)
    folder = tmp_path / "handed"
    for how, world_size in (("fsdp", 2), ("none", 1), ("ddp", 4), ("fsdp", 2)):
        before = steps(folder)
        run = Training(
            [*SMALL, f"system.runs={folder}", *words, f"system.parallel={how}"], f"{folder}-{before}.txt", world_size
        )
        until(lambda: steps(folder) > before + 2 or run.members[0].exitcode is not None)  # noqa: B023 (called here)
        run.send(signal.SIGTERM, rank=world_size - 1)  # one of them is told, and all leave after the same step
        assert set(run.wait()) == {128 + signal.SIGTERM}, run.said
        assert only(folder).result()["status"] == "interrupted"
        last = run.said.strip().splitlines()[-1]
        prefix = "vitlab train " if world_size == 1 else f"torchrun --nproc-per-node={world_size} -m vitlab train "
        assert last.startswith(prefix), last
        assert f"system.parallel={how}" in last
    train(folder, *words)
    close(only(tmp_path / "calm"), only(folder), tolerance=1e-5)


@pytest.mark.slow
def test_when_one_process_dies_the_others_end_and_say_so(tmp_path):
    folder = tmp_path / "runs"
    run = Training([*SMALL, f"system.runs={folder}", "fit.steps=100000"], tmp_path / "out.txt", 2)
    until(lambda: steps(folder) > 2)
    run.send(signal.SIGKILL, rank=0)
    assert run.wait(30)[1] == 1
    assert "another of the 2 processes has ended" in run.said
    assert "goes on from the last checkpoint:\ntorchrun" in run.said
    assert only(folder).result()["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "schedulefree"])
def test_optimizers_train_sharded_weights(optimizer, tmp_path):
    words = [f"optimizer={optimizer}", "optimizer.lr=1e-3", "fit.steps=4"]
    train(tmp_path / "one", *words)
    train(tmp_path / "two", *words, "system.parallel=fsdp", world_size=2)
    rows = [[row["train/loss"] for row in only(tmp_path / name).rows()] for name in ("one", "two")]
    assert rows[1] == pytest.approx(rows[0], abs=1e-4)
    one, two = (checkpoint.load(only(tmp_path / name).last) for name in ("one", "two"))
    for kept, other in zip(one["optimizer"]["state"].values(), two["optimizer"]["state"].values(), strict=True):
        assert {k: getattr(v, "shape", None) for k, v in kept.items()} == {
            k: getattr(v, "shape", None) for k, v in other.items()
        }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["system.parallel=fsdp", "fit.precision=fp16"], "fp16 needs ddp"),
        (["system.parallel=fsdp", "tracking=offline", "tracking.histograms=true"], "use ddp"),
        (["fit.auto_accumulate=true"], "give fit.accumulate instead"),
        (["fit.batch_size=18", "model.depth=1"], "use a multiple of 4"),
        (["system.parallel=none"], "use system.parallel=auto"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_in_one_sentence(words, sentence, tmp_path):
    run = train(tmp_path / "runs", *words, world_size=2, status=2)
    assert sentence in run.said
    assert run.said.count("vitlab: ") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_places_and_their_mirror_images_are_in_one_process(world_size):
    mine = [local_indices(24, rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(mine)) == list(range(24))
    for part in mine:
        assert (part + part[::-1] == 23).all()


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("world_size", [2, 3])
def test_all_processes_together_see_the_global_batch(world_size, repeats):
    def keys(rank=0, world_size=1):
        return list(
            TrainSampler(
                examples=30, batch=12, start=3, stop=6, seed=1, repeats=repeats, rank=rank, world_size=world_size
            )
        )

    parts = [keys(rank, world_size) for rank in range(world_size)]
    for step, whole in enumerate(keys()):
        assert sorted(key for part in parts for key in part[step]) == sorted(whole)


@pytest.mark.parametrize(("examples", "world_size"), [(10, 1), (10, 3), (11, 4), (2, 4)])
def test_every_example_counts_once_in_batches_of_the_same_sizes(examples, world_size):
    ranks = [
        list(EvalSampler(examples=examples, batch=2, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    assert len({tuple(len(batch) for batch in batches) for batches in ranks}) == 1
    counted = [index for batches in ranks for batch in batches for turn, index in batch if turn != PADDING]
    assert sorted(counted) == list(range(examples))


def test_full_batches_repeat_what_does_not_count():
    batches = list(EvalSampler(examples=7, batch=3, full=True, rank=1, world_size=2))
    assert batches == [[(0, 1), (0, 3), (0, 5)], [(PADDING, 0), (PADDING, 0), (PADDING, 0)]][: len(batches)]
    ranks = [list(EvalSampler(examples=7, batch=3, full=True, rank=rank, world_size=2)) for rank in range(2)]
    assert {len(batch) for batches in ranks for batch in batches} == {3}
    assert len(ranks[0]) == len(ranks[1]) == 2
