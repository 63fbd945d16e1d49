"""What goes wrong in the night: damaged files, full disks, signals, full memory, numbers that are none."""

import errno
import json
import math
import os
import random
import re
import resource
import signal
import threading
import zipfile

import pytest
import torch
from safetensors import safe_open

from tests.processes import Training, steps, until
from tests.training.test_loop import Evil, fit
from tests.training.test_resume import assert_same, equal, only
from vitlab.__main__ import main
from vitlab.config.errors import CheckpointError, Interrupted, Locked, NonFinite, OutOfMemory, StorageError
from vitlab.evaluation.evaluate import Evaluator
from vitlab.model.vit import ViT
from vitlab.storage import checkpoint
from vitlab.storage.checkpoint import Checkpoints
from vitlab.storage.jsonl import Journal
from vitlab.storage.lock import Lock, holder
from vitlab.storage.run import Run
from vitlab.system.signals import Signals
from vitlab.training import loop
from vitlab.training import step as step_of_training
from vitlab.training.loop import log

SMALL = ["train", "tracking=off", "dataset.train_examples=60", "model.width=16", "model.depth=2", "model.heads=2"]
SMALL += ["fit.batch_size=16", "fit.precision=fp32", "system.log_every=1", "fit.evaluate_every=1"]


@pytest.fixture
def said(monkeypatch, caplog):
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level("INFO", "vitlab")
    return caplog


class Stopping(loop.Signals):
    """A signal that comes in a step."""

    at = 0
    count = 0
    received = property(lambda self: self.reached(), lambda self, _: None)

    def reached(self):
        self.count += 1
        return signal.SIGTERM if self.count > self.at else 0


@pytest.fixture
def stop(monkeypatch):
    """Trains up to a step, as a signal would have it."""

    def stop(tmp_path, step, *words, **more):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "Signals", type("Soon", (Stopping,), {"at": step - 1}))
            with pytest.raises(Interrupted):
                fit(tmp_path, *words, **more)
        return Run(tmp_path / more.get("name", "run"))

    return stop


# --- checkpoints --------------------------------------------------------------------------------------------------


def damage(kind, path):
    data = bytearray(path.read_bytes())
    if kind == "empty":
        data = b""
    elif kind == "truncated":
        data = data[: len(data) * 2 // 3]
    elif kind == "flipped":
        largest = max(zipfile.ZipFile(path).infolist(), key=lambda record: record.file_size)
        data[largest.header_offset + largest.file_size // 2] ^= 1
    elif kind == "not a zip":
        data = b"hello"
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["empty", "truncated", "flipped", "not a zip"])
def test_a_damaged_checkpoint_is_noticed_by_name_and_the_one_before_is_taken(kind, tmp_path, stop, said):
    whole, _ = fit(tmp_path, "fit.steps=12", name="whole")
    run = stop(tmp_path, 10, "fit.steps=12", name="cut")  # saved at 4, 8 and 10
    damage(kind, run.last)
    said.clear()
    fit(tmp_path, "fit.steps=12", name="cut")
    warnings = [record.getMessage() for record in said.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert str(run.last) in warnings[0]
    assert "continues from step 8 of 12" in said.text
    (run.folder / "last.pt.damaged").unlink()
    assert_same(whole, run)


def test_where_every_checkpoint_is_damaged_the_run_starts_anew_and_keeps_them(tmp_path, stop, said):
    whole, _ = fit(tmp_path, "fit.steps=12", name="whole")
    run = stop(tmp_path, 10, "fit.steps=12", name="cut")
    damage("flipped", run.last)
    damage("truncated", run.previous)
    fit(tmp_path, "fit.steps=12", name="cut")
    for name in ("last", "previous"):
        (run.folder / f"{name}.pt.damaged").unlink()
    assert_same(whole, run)


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    """Every bit of the tensors is under a checksum: a flipped one is refused, or lies where nothing is stored."""
    path, state = tmp_path / "x.pt", {"step": 3, "model": {"w": torch.randn(50, 7)}, "best": {"loss": 0.5}, "wrote": {}}
    checkpoint.save(path, state)
    data, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(400):
        flipped = bytearray(data)
        flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            found = checkpoint.load(path)
        except CheckpointError:
            refused += 1
        else:
            assert equal(found, state)
    assert refused > 200


def test_best_weights_belong_to_the_checkpoint_that_is_taken(tmp_path, stop):
    """best.pt may be of an evaluation that the checkpoint knows nothing of: what the run ends with is its own."""
    run = stop(tmp_path, 10, "fit.steps=12")
    torch.save({"step": 99, "model": {}, "facts": {}}, run.best)
    _, result = fit(tmp_path, "fit.steps=12")
    assert checkpoint.load(run.best)["step"] == result["best_step"] <= 12


@pytest.mark.parametrize(
    ("recipe", "one"), [("optimizer=adamw", True), ("fit.ema_decay=0.9", False), ("optimizer=schedulefree", False)]
)
def test_the_best_weights_are_copied_once_where_they_are_those_that_are_trained(recipe, one, tmp_path):
    run, _ = fit(tmp_path, recipe, "fit.steps=4", "fit.evaluate_every=1000")
    saved = checkpoint.load(run.last)
    assert saved["step"] == saved["best"]["step"] == 4
    assert (saved["model"] is saved["weights"]) == one == equal(saved["model"], saved["weights"])
    assert equal(saved["weights"], checkpoint.load(run.best)["model"])


def test_best_weights_are_exported_as_safetensors(tmp_path):
    run, _ = fit(tmp_path)
    best = checkpoint.load(run.best)
    with safe_open(run.export, "pt") as file:
        assert {key: file.get_tensor(key).tolist() for key in file.keys()} == {  # noqa: SIM118 (no dictionary)
            key: value.tolist() for key, value in best["model"].items()
        }
        facts = json.loads(file.metadata()["vitlab"])
    assert facts["facts"] == best["facts"]
    assert facts["model"]["width"] == 16
    assert set(best["wrote"]) == {"vitlab", "torch", "run"}


def test_milestones_are_kept_and_continue_a_run_too(tmp_path):
    run, _ = fit(tmp_path, "system.keep_every=0.8", "fit.steps=12", name="kept")  # an epoch is 3.75 steps
    assert [path.name for path in run.checkpoints()] == [
        "last.pt", "previous.pt", "step-12.pt", "step-9.pt", "step-6.pt", "step-3.pt"
    ]  # fmt: skip
    whole, _ = fit(tmp_path, "fit.steps=12", name="whole")
    for path in run.checkpoints()[:4]:
        path.unlink()
    fit(tmp_path, "fit.steps=12", name="kept")
    assert equal(checkpoint.load(whole.last), checkpoint.load(run.last))


def test_a_checkpoint_of_another_run_is_refused(tmp_path, stop):
    run = stop(tmp_path, 5, "fit.steps=12")
    with pytest.raises(CheckpointError, match="is of another run"):
        fit(tmp_path, "fit.steps=12", "seed=1")
    assert checkpoint.load(run.last)["step"] == 5


def test_a_checkpoint_that_would_run_code_is_set_aside(tmp_path, stop, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = stop(tmp_path, 5, "fit.steps=12")
    torch.save({"step": 5, "evil": Evil()}, run.last)
    fit(tmp_path, "fit.steps=12")
    assert not (tmp_path / "hacked").exists()
    assert (run.folder / "last.pt.damaged").exists()


# --- disks --------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_for_a_while_ends_no_training(tmp_path, said, monkeypatch):
    whole, _ = fit(tmp_path, "fit.steps=24", name="whole")
    real, failed = checkpoint.save, []

    def save(path, state, before=None):
        if path.name == "last.pt" and state["step"] in (8, 11):
            failed.append(checkpoint.load(path)["step"])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, state, before)

    monkeypatch.setattr(checkpoint, "save", save)
    run, _ = fit(tmp_path, "fit.steps=24", name="full")
    assert failed == [4, 4]  # what was there stayed
    assert "no checkpoint of step 8: No space left on device; that of step 4 stands" in said.text
    assert_same(whole, run)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_slow_disk_holds_up_no_evaluation_but_one_whose_workers_are_forked(workers, tmp_path, monkeypatch):
    order, entered, written = [], threading.Event(), checkpoint.save

    def save(path, state, before=None):
        if (path.name, state["step"]) == ("last.pt", 1):
            order.append("writes" if entered.wait(1 if workers else 60) else "waited for")
        written(path, state, before)

    def evaluate(*words):
        entered.set() if order else order.append("first evaluation")
        return real(*words)

    real = Evaluator.__call__
    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(Evaluator, "__call__", evaluate)
    fit(tmp_path, "fit.steps=2", "fit.evaluate_every=0.25", f"system.workers={workers}")
    assert order == ["first evaluation", "waited for" if workers else "writes"]


@pytest.mark.slow
def test_a_run_ends_well_where_only_its_checkpoints_find_no_room(tmp_path):
    run = Training([*SMALL, "fit.steps=8", f"system.runs={tmp_path}/runs"], tmp_path / "out.txt", largest=50_000)
    assert run.wait() == [0], run.said
    assert re.search(r"no checkpoint of step 4: .*last\.pt cannot be written \(File too large\)", run.said)
    found = only(tmp_path / "runs")
    assert found.result()["status"] == "finished"
    assert not found.last.exists()
    assert main(["evaluate", str(found.folder)]) == 0


def test_a_run_whose_best_weights_find_no_room_has_failed_and_says_so(tmp_path):
    run = Training([*SMALL, "fit.steps=8", f"system.runs={tmp_path}/runs"], tmp_path / "out.txt", largest=6_000)
    assert run.wait() == [1], run.said
    assert "vitlab: " in run.said
    assert "File too large" in run.said
    assert "Traceback" not in run.said
    assert only(tmp_path / "runs").result()["status"] == "failed"


def test_rows_wait_for_room_and_are_never_cut(tmp_path):
    journal = Journal(tmp_path / "rows.jsonl")
    journal.add({"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        for step in (2, 3):
            with pytest.raises(OSError, match=r"No space|too large"):
                journal.add({"step": step})
            assert (tmp_path / "rows.jsonl").read_text() == '{"step": 1}\n'
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.add({"step": 4})
    journal.sync()
    journal.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


# --- signals and locks ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_saves_leaves_and_says_how_to_go_on(number, tmp_path):
    folder, words = tmp_path / "runs", [*SMALL, "fit.steps=100000", f"system.runs={tmp_path}/runs"]
    run = Training(words, tmp_path / "out.txt")
    until(lambda: steps(folder) > 2)
    assert only(folder).result()["status"] == "running"
    run.send(number)
    assert run.wait() == [128 + number], run.said
    assert run.said.strip().splitlines()[-1] == "vitlab " + " ".join(words)
    assert only(folder).result()["status"] == "interrupted"
    assert json.loads((only(folder).folder / "result.json").read_text())["status"] == "interrupted"
    assert checkpoint.load(only(folder).last)["step"] >= 3


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    slow = ["patch=p1", "model.width=128", "model.depth=6", "fit.batch_size=60", "fit.steps=1000"]
    run = Training([*SMALL, *slow, f"system.runs={tmp_path}/runs"], tmp_path / "out.txt")
    until(lambda: steps(tmp_path / "runs") > 0)
    run.send(signal.SIGINT)
    until(lambda: "saves at the next step" in run.said)
    run.send(signal.SIGINT)
    assert run.wait() == [128 + signal.SIGINT], run.said
    assert "left at once" in run.said
    assert run.said.strip().splitlines()[-1].startswith("vitlab train ")
    assert "Traceback" not in run.said


def test_ctrl_c_while_a_checkpoint_is_being_written_shows_no_traceback_of_its_thread(tmp_path, monkeypatch, said):
    closed, errors = threading.Event(), []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    run, journal = Run(tmp_path), Journal(tmp_path / "metrics.jsonl")
    checkpoints = Checkpoints(run, on=True, minutes=None)

    def rows():
        closed.wait()
        journal.sync()

    checkpoints.save({"step": 1}, None, keep=False, ready=rows)
    with pytest.raises(KeyboardInterrupt), checkpoints:
        raise KeyboardInterrupt
    journal.close()
    closed.set()
    checkpoints.wait()
    assert not errors
    assert not said.text
    assert not run.last.exists()  # its rows might not be on disk


def test_the_second_interrupt_is_one_and_a_second_sigterm_is_none():
    with Signals() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.slow
def test_two_processes_on_one_run_are_refused_and_a_dead_one_holds_nothing(tmp_path):
    words = [*SMALL, "fit.steps=100000", f"system.runs={tmp_path}/runs"]
    first = Training([*words, "augment=flip_crop", "system.workers=2"], tmp_path / "first.txt")
    until(lambda: steps(tmp_path / "runs") > 2)
    second = Training([*words, "augment=flip_crop"], tmp_path / "second.txt")
    assert second.wait() == [2]
    folder = only(tmp_path / "runs")
    assert f"vitlab: {folder.folder} is being written by process {first.members[0].pid}" in second.said
    assert second.said.count("\n") == 1
    os.kill(first.members[0].pid, signal.SIGKILL)  # its workers live on for a moment
    first.members[0].join()
    assert folder.result()["status"] == "interrupted"
    before = steps(tmp_path / "runs")
    third = Training([*words, "augment=flip_crop"], tmp_path / "third.txt")
    until(lambda: steps(tmp_path / "runs") > before)
    third.send(signal.SIGTERM)
    assert third.wait() == [128 + signal.SIGTERM], third.said
    first.send(signal.SIGKILL)


def test_a_lock_says_who_holds_it(tmp_path):
    with Lock(tmp_path / "lock"):
        assert holder(tmp_path / "lock")["process"] == os.getpid()
        with pytest.raises(Locked, match=f"by process {os.getpid()}"), Lock(tmp_path / "lock"):
            pass
    assert holder(tmp_path / "lock") is None
    assert holder(tmp_path / "none") is None


def test_a_run_folder_with_links_is_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.txt").symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError, match=r"symbolic link, log.txt"):
        Run(folder).create()
    assert (tmp_path / "precious").read_text() == "mine"


# --- numbers that are none ------------------------------------------------------------------------------------------


@pytest.fixture
def poison(monkeypatch):
    """Some steps whose images are no numbers."""
    real = step_of_training.accumulate

    def poison(*bad):
        def backward(state, images, targets):
            return real(state, images * math.nan if state.step in bad else images, targets)

        monkeypatch.setattr(step_of_training, "accumulate", backward)

    return poison


STEM = ["model/stem=convolution", "fit.steps=12"]  # its running means see what goes through


def test_a_nonfinite_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path, poison):
    poison(6)
    with pytest.raises(NonFinite, match=r"at step 6 of 12.*fit.on_nonfinite=skip"):
        fit(tmp_path, *STEM)
    state = checkpoint.load(Run(tmp_path / "run").last)
    assert state["step"] == 4
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_nonfinite_update_can_be_skipped(tmp_path, poison):
    poison(2, 3, 7)
    run, result = fit(tmp_path, *STEM, "fit.on_nonfinite=skip", "fit.ema_decay=0.9")
    assert result["skipped"] == 3
    assert [row["train/skipped"] for row in run.rows()] == [0, 0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3]
    assert [row["step"] for row in run.rows() if "train/loss" not in row] == [3, 4, 8]
    state = checkpoint.load(run.last)
    assert all(value.isfinite().all() for value in state["model"].values())
    assert {int(kept["step"]) for kept in state["optimizer"]["state"].values()} == {9}


def test_skipping_goes_on_after_a_resume_as_it_would_have(tmp_path, poison, stop):
    poison(2, 3, 7)
    words = [*STEM, "fit.on_nonfinite=skip", "fit.ema_decay=0.9", "model.dropout=0.2"]
    whole, _ = fit(tmp_path, *words, name="whole")
    stop(tmp_path, 3, *words, name="cut")
    stop(tmp_path, 5, *words, name="cut")
    cut, _ = fit(tmp_path, *words, name="cut")
    assert_same(whole, cut)


@pytest.mark.parametrize("every", [1, 40])
def test_too_many_skipped_updates_end_the_training(every, tmp_path, poison, said):
    """At the next row, however many steps a row is of, and even if a finite step came before it."""
    poison(*range(5, 106))
    words = ["fit.steps=300", "fit.evaluate_every=50", f"system.log_every={every}", "fit.on_nonfinite=skip"]
    with pytest.raises(NonFinite, match="at step 105 of 300, after 100 such steps in a row"):
        fit(tmp_path, *words)
    assert said.text.count("the loss is NaN or infinite at step 5: such updates are skipped") == 1


@pytest.mark.slow
def test_a_nonfinite_loss_can_be_answered_with_the_last_good_weights(tmp_path, poison, said, stop):
    poison(2, 6)
    words = [*STEM, "fit.on_nonfinite=rollback", "fit.ema_decay=0.9"]
    run, result = fit(tmp_path, *words)
    assert result["rollbacks"] == 2
    assert {row["step"]: row["train/rolled_back_to"] for row in run.rows() if "train/rolled_back_to" in row} == {
        3: 0, 7: 4
    }  # fmt: skip
    assert "at step 6: continues from there with the weights of step 4" in said.text
    assert [row["step"] for row in run.rows()] == list(range(1, 13))
    assert all(value.isfinite().all() for value in checkpoint.load(run.last)["model"].values())
    stop(tmp_path, 8, *words, name="cut")
    cut, _ = fit(tmp_path, *words, name="cut")
    assert_same(run, cut)


def test_rollbacks_have_an_end(tmp_path, poison):
    poison(*range(5, 40))
    with pytest.raises(NonFinite, match="after 10 rollbacks"):
        fit(tmp_path, "fit.steps=40", "fit.on_nonfinite=rollback")


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def memory(monkeypatch):
    """A machine that has room for so many images at once."""
    real = ViT.forward

    def memory(images, error):
        def forward(self, x, **asked):
            if self.training and len(x) > images:  # not where its cost is counted
                real(self, x, **asked).sum().backward()
                raise error
            return real(self, x, **asked)

        monkeypatch.setattr(ViT, "forward", forward)

    return memory


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_full_memory_is_answered_with_the_same_batch_in_parts(error, tmp_path, memory):
    memory(4, error)
    with pytest.raises(OutOfMemory, match=r"16 images of 17 tokens at once: fit.batch_size=16 fit.accumulate=2 is the"):
        fit(tmp_path)
    with pytest.raises(OutOfMemory, match=r"fit.accumulate=4 is the same batch in parts of 4"):
        fit(tmp_path, "fit.accumulate=2")


def test_a_full_memory_can_be_answered_by_itself(tmp_path, memory, said):
    words = ["model/stem=convolution", "fit.auto_accumulate=true"]
    parts, _ = fit(tmp_path, *words, "fit.accumulate=4", name="parts")
    memory(4, torch.OutOfMemoryError("CUDA"))
    halved, result = fit(tmp_path, *words, name="halved")
    assert result["accumulate"] == 4
    assert "a batch is computed in 4 parts of 4" in said.text
    assert equal(checkpoint.load(parts.last)["model"], checkpoint.load(halved.last)["model"])
    assert [row["train/loss"] for row in parts.rows()] == [row["train/loss"] for row in halved.rows()]


def test_where_one_image_is_too_much_other_ways_are_named(tmp_path, memory):
    memory(0, torch.OutOfMemoryError("CUDA"))
    with pytest.raises(OutOfMemory, match="with 1 images of 17 tokens at once: use a larger patch"):
        fit(tmp_path, "fit.auto_accumulate=true")


def test_computing_activations_again_changes_nothing(tmp_path):
    words = ["model.dropout=0.1", "model.drop_path=0.2"]
    kept, _ = fit(tmp_path, *words, name="kept")
    again, _ = fit(tmp_path, *words, "system.activation_checkpointing=true", name="again")
    assert equal(checkpoint.load(kept.last), checkpoint.load(again.last))


@pytest.mark.slow
def test_a_longer_training_is_another_run(tmp_path, capsys):
    words = [*SMALL, f"system.runs={tmp_path}"]
    assert main([*words, "fit.steps=2"]) == 0
    assert main([*words, "fit.steps=3"]) == 0
    assert sorted(Run(path).result()["steps"] for path in tmp_path.iterdir()) == [2, 3]


def test_weights_and_biases_goes_on_with_the_same_run(tmp_path, stop):
    words = ["tracking=offline", "tracking.system=false", "fit.steps=8"]
    stop(tmp_path, 5, *words)
    run, _ = fit(tmp_path, *words)
    identity = (run.folder / "wandb-id.txt").read_text().strip()
    folders = list(run.folder.glob("wandb/offline-run-*"))  # W&B numbers those of one second
    assert len(folders) == 2
    assert all(identity in folder.name for folder in folders)
