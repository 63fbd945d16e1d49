"""The local launcher: every job ends once, whatever happens to its process."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vitlab.storage.lock import Lock
from vitlab.storage.run import Run
from vitlab.sweep import local as local_module
from vitlab.sweep import progress
from vitlab.sweep.job import Child, Job, Slot
from vitlab.sweep.local import Listed, Local, fresh
from vitlab.sweep.progress import Progress

FINISH = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1]); folder.mkdir(parents=True, exist_ok=True)
def finish(**more):
    (folder / "result.json").write_text(json.dumps({"status": "finished", "val/accuracy": 0.5, "seconds": 1.0} | more))
def count():
    tries = folder / "tries"; tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
    return len(tries.read_text())
def row(**values):
    with (folder / "metrics.jsonl").open("a") as file: file.write(json.dumps(values) + "\\n")
"""


class Stage:
    """Jobs whose trainings are short scripts, and what the launcher made of them."""

    def __init__(self, tmp_path, monkeypatch):
        self.root, self.scripts, self.lines = tmp_path, {}, []
        monkeypatch.setattr(local_module, "start", self.start)
        monkeypatch.setattr(local_module, "READ", 0.02)
        monkeypatch.setattr(local_module, "WATCH", 0.01)

    def job(self, name, script):
        self.scripts[name] = FINISH + script
        return Job(name=name, seed=0, words=(f"patch={name}", "seed=0"), run=Run(self.root / name), steps=10)

    def start(self, job, slot, out, attempt):
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", self.scripts[job.name], str(job.run.folder)],
                stdout=file,
                stderr=file,
                env={**os.environ, **slot.environment},
                start_new_session=True,
            )
        return Child(job=job, slot=slot, process=process, out=out, attempt=attempt)

    def local(self, slots=2, retries=0):
        parts = [Slot(name=f"slot {i}", cores=(i,), environment={"SLOT": str(i)}) for i in range(slots)]
        return Local(parts, self.root / "logs", Progress(write=self.lines.append), retries)


@pytest.fixture
def stage(tmp_path, monkeypatch):
    return Stage(tmp_path, monkeypatch)


def test_as_many_run_at_once_as_there_are_slots_and_each_has_its_own(stage):
    script = (
        "count(); row(step=1, slot=os.environ['SLOT'], began=time.time()); time.sleep(0.3); finish(ended=time.time())"
    )
    jobs = [stage.job(f"j{i}", script) for i in range(5)]
    local = stage.local(slots=2)
    assert local.run(Listed(jobs)) == 0
    spans = []
    for job in jobs:
        (row,) = job.run.rows()
        spans.append((row["began"], job.run.result()["ended"], row["slot"]))
    for began, ended, slot in spans:
        others = [s for b, e, s in spans if b < ended and e > began and (b, e, s) != (began, ended, slot)]
        assert len(others) <= 2
        assert sum(b < began < e for b, e, _ in spans) <= 1
        assert all(s != slot for b, e, s in spans if b < began < e)
    assert sum(line.startswith("finished") for line in stage.lines) == 5


def test_a_failed_training_stops_no_other_and_is_told_with_its_last_words(stage):
    bad = stage.job("bad", "print('so it begins'); raise SystemExit('out of luck')")
    jobs = [stage.job("a", "finish()"), bad, stage.job("b", "finish()")]
    local = stage.local()
    assert local.run(Listed(jobs)) == 1
    (failure,) = local.failures
    assert failure.job is bad
    assert failure.reason == "exit status 1"
    assert failure.tail == "so it begins\nout of luck"
    assert failure.job.command == "vitlab train patch=bad seed=0"
    assert all(job.run.result()["status"] == "finished" for job in jobs if job is not bad)


def test_a_killed_training_is_told_from_one_that_failed(stage):
    job = stage.job("killed", "os.kill(os.getpid(), 9)")
    local = stage.local()
    assert local.run(Listed([job])) == 1
    assert "SIGKILL, perhaps out of memory" in local.failures[0].reason


def test_what_fails_is_tried_again_as_often_as_asked(stage):
    job = stage.job("third", "sys.exit(1) if count() < 3 else finish()")
    assert stage.local(retries=1).run(Listed([job])) == 1
    (job.run.folder / "tries").unlink()
    local = stage.local(retries=2)
    assert local.run(Listed([job])) == 0
    assert (job.run.folder / "tries").read_text() == "xxx"
    assert any("retried (2 of 2)" in line for line in stage.lines)


def test_what_was_refused_is_not_tried_again(stage):
    job = stage.job("refused", "count(); sys.exit(2)")
    assert stage.local(retries=5).run(Listed([job])) == 1
    assert (job.run.folder / "tries").read_text() == "x"


def test_a_run_that_another_process_trains_is_waited_for_and_not_trained_again(stage):
    job, other = stage.job("held", "count(); finish()"), stage.job("other", "finish()")
    job.run.folder.mkdir()
    Path(job.run.folder / "result.json").write_text('{"status": "interrupted"}')
    held = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"{FINISH}\nfrom vitlab.storage.lock import Lock\nwith Lock(folder / 'lock'):\n"
            " print('held', flush=True); sys.stdin.read(); finish()",
            str(job.run.folder),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert held.stdout.readline() == b"held\n"
    threading.Timer(0.5, held.stdin.close).start()
    assert stage.local(slots=1).run(Listed([job, other])) == 0
    assert not (job.run.folder / "tries").exists()
    assert any("another process trains it" in line for line in stage.lines)
    held.wait()
    held.stdout.close()


def test_a_run_that_another_process_left_is_taken_over(stage):
    job = stage.job("left", "count(); finish()")
    job.run.folder.mkdir()
    Path(job.run.folder / "result.json").write_text('{"status": "interrupted"}')
    with Lock(job.run.lock):
        local = stage.local(slots=1)
        thread = threading.Thread(target=local.run, args=(Listed([job]),))
        thread.start()
        time.sleep(0.3)
        assert not (job.run.folder / "tries").exists()
    thread.join(20)
    assert (job.run.folder / "tries").read_text() == "x"


def test_ctrl_c_asks_every_training_to_save_and_starts_no_other(stage):
    polite = "import signal; signal.signal(15, lambda *_: (row(step=7), sys.exit(143))); row(step=1); time.sleep(60)"
    jobs = [stage.job(f"j{i}", polite) for i in range(4)]
    threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
    local = stage.local(slots=2)
    assert local.run(Listed(jobs)) == 128 + signal.SIGINT
    assert local.failures == []
    assert [len(job.run.rows()) for job in jobs] == [2, 2, 0, 0]


def test_ctrl_c_twice_ends_them_at_once(stage):
    deaf = "import signal; signal.signal(15, signal.SIG_IGN); row(step=1); time.sleep(60)"
    job = stage.job("deaf", deaf)
    for wait in (0.6, 1.0):
        threading.Timer(wait, os.kill, (os.getpid(), signal.SIGINT)).start()
    local, began = stage.local(), time.monotonic()
    assert local.run(Listed([job])) == 128 + signal.SIGINT
    assert time.monotonic() - began < 30
    assert local.running[0].process.returncode == -signal.SIGKILL


def test_a_training_that_its_source_stops_is_marked_as_pruned(stage):
    class Strict(Listed):
        told = ()

        def stops(self, job, row):
            return row["val/accuracy"] < 0.4

        def ended(self, job, status):
            self.told += ((job.name, status),)

    script = "import signal; signal.signal(15, lambda *_: sys.exit(143)); row(step=3, **{'val/accuracy': ACC})"
    script += "; time.sleep(T); finish()"
    jobs = [stage.job("good", script.replace("ACC", "0.5").replace("T)", "0.3)"))]
    jobs.append(stage.job("bad", script.replace("ACC", "0.3").replace("T)", "60)")))
    source = Strict(jobs)
    assert stage.local().run(source) == 0
    assert sorted(source.told) == [("bad", "pruned"), ("good", "finished")]
    result = jobs[1].run.result()
    assert (result["status"], result["val/accuracy"], result["steps"]) == ("pruned", 0.3, 3)
    assert "test/accuracy" not in result


def test_no_training_starts_where_the_memory_would_not_hold_it(stage, monkeypatch):
    monkeypatch.setattr(local_module, "resident", lambda process: 10**18)
    script = "row(step=1, began=time.time()); time.sleep(0.2); finish(ended=time.time())"
    jobs = [stage.job(f"j{i}", script) for i in range(3)]
    assert stage.local(slots=3).run(Listed(jobs)) == 0
    times = sorted((job.run.rows()[0]["began"], job.run.result()["ended"]) for job in jobs)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(times))


def test_slots_share_the_cores_and_do_not_depend_on_what_is_left(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(local_module, "visible_gpus", list)
    four = local_module.slots(4, 100)
    assert [part.cores for part in four] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert {part.environment["OMP_NUM_THREADS"] for part in four} == {"2"}
    assert len(local_module.slots(None, 100)) == 8
    assert len(local_module.slots(None, 3)) == 3
    assert [len(part.cores) for part in local_module.slots(None, 3)] == [2, 2, 2]
    assert [part.cores for part in local_module.slots(16, 100)][8] == (0,)


def test_each_training_gets_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(local_module, "visible_gpus", lambda: ["2", "5"])
    assert [part.environment["CUDA_VISIBLE_DEVICES"] for part in local_module.slots(None, 9)] == ["2", "5"]
    assert [part.environment["CUDA_VISIBLE_DEVICES"] for part in local_module.slots(4, 9)] == ["2", "5", "2", "5"]
    assert [part.environment["CUDA_VISIBLE_DEVICES"] for part in local_module.slots(None, 9, "cuda:1")] == ["5"]
    assert "CUDA_VISIBLE_DEVICES" not in local_module.slots(1, 9, "cpu")[0].environment


def test_rows_are_read_once_and_a_half_written_one_is_awaited(tmp_path):
    run = Run(tmp_path)
    job = Job(name="a", seed=0, words=(), run=run, steps=10)
    child = Child(job=job, slot=Slot(name="", cores=(), environment={}), process=None, out=tmp_path, attempt=0)
    run.metrics.write_text('{"step": 1}\n{"step": 2, "val/acc')
    assert [row["step"] for row in fresh(child)] == [1]
    run.metrics.write_text('{"step": 1}\n{"step": 2, "val/accuracy": 0.5}\n')
    assert [row["step"] for row in fresh(child)] == [2]
    assert fresh(child) == []
    run.metrics.write_text(json.dumps({"step": 1}) + "\n")  # it went on from its checkpoint
    assert [row["step"] for row in fresh(child)] == [1]
    assert child.share == 0.2


def test_the_table_of_a_terminal_shows_progress_and_what_is_left(tmp_path):
    from rich.console import Console

    job = Job(name="[b]x[/b]", seed=3, words=(), run=Run(tmp_path), steps=10)
    child = Child(job=job, slot=Slot(name="cores 0", cores=(), environment={}), process=None, out=tmp_path, attempt=0)
    child.step, child.first, child.row = 5, 1, {"val/accuracy": 0.5}
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(Progress().table("1 of 2 done", [child]))
    said = console.export_text()
    assert "[b]x[/b]" in said
    assert "50.00%" in said
    assert "cores 0" in said


def test_a_line_of_progress_stays_short_where_packs_train_many(tmp_path):
    jobs = [Job(name=f"j{i}", seed=0, words=(), run=Run(tmp_path), steps=100) for i in range(16)]
    slots = [Slot(name=f"GPU {i}", cores=(), environment={}) for i in range(2)]
    running = []
    for i, job in enumerate(jobs):
        running.append(Child(job=job, slot=slots[i % 2], process=None, out=tmp_path, attempt=0))
        running[-1].step = 20 + i // 8 * (i % 2)
    assert progress.where(running) == "8 on GPU 0 20% to 20%; 8 on GPU 1 20% to 21%"
    assert progress.where(running[:2]) == "j0, seed 0 20%; j1, seed 0 20%"


@pytest.mark.parametrize(
    ("seconds", "words"), [(42, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (273600, "3 days 4 h")]
)
def test_durations_are_said_as_a_person_says_them(seconds, words):
    assert progress.span(seconds) == words


def test_what_starts_from_anothers_weights_waits_for_them(tmp_path):
    before, other = Run(tmp_path / "before"), Run(tmp_path / "other")
    first = Job(name="first", seed=0, words=(), run=before, steps=1)
    after = Job(name="after", seed=0, words=(), run=other, steps=1, after=before)
    free = Job(name="free", seed=0, words=(), run=Run(tmp_path / "free"), steps=1)
    source = Listed([after, first, free])
    assert [source.next(), source.next(), source.next()] == [first, free, None]
    before.create()
    before.write_result({"status": "finished"})
    assert [source.next(), source.next()] == [after, None]


def test_what_waits_for_a_training_that_failed_is_started_and_says_so(tmp_path):
    before = Run(tmp_path / "before")
    first = Job(name="first", seed=0, words=(), run=before, steps=1)
    after = Job(name="after", seed=0, words=(), run=Run(tmp_path / "after"), steps=1, after=before)
    source = Listed([first, after])
    assert source.next() == first
    source.ended(first, "failed")
    assert source.next() == after
