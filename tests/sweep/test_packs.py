"""Packs of a sweep: who goes with whom, and the launcher around processes that train several runs."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from tests.sweep.test_local import FINISH, Stage
from vitlab.config.errors import ConfigError
from vitlab.report.grouping import own_seconds
from vitlab.storage.run import Run
from vitlab.sweep import local as local_module
from vitlab.sweep import packs
from vitlab.sweep.duration import estimate
from vitlab.sweep.job import Job, Slot
from vitlab.sweep.local import Listed, Local
from vitlab.sweep.packs import describe, grouped, seats
from vitlab.sweep.progress import Progress
from vitlab.sweep.question import Search

FAKE = r"""
import json, os, pathlib, queue, sys, threading, time
root, lines, runs, stopped = pathlib.Path(sys.argv[1]), queue.Queue(), {}, set()
threading.Thread(target=lambda: ([lines.put(json.loads(l)) for l in sys.stdin], lines.put(None)), daemon=True).start()
with open(root / "processes", "a") as file: file.write(json.dumps([os.getpid(), int(sys.argv[2])]) + "\n")
def end(name, status=0, error=""):
    del runs[name]
    print(json.dumps({"ended": name, "status": status, "error": error}), flush=True)
def finish(name, **more):
    (pathlib.Path(name) / "result.json").write_text(json.dumps({"status": "finished", "val/accuracy": 0.5} | more))
    end(name)
more = True
while more or runs:
    time.sleep(0.01)
    while not lines.empty():
        line = lines.get()
        if line is None: more = False
        elif "train" in line:
            pathlib.Path(line["name"]).mkdir(exist_ok=True)
            runs[line["name"]] = line["train"][0]; peers = len(runs)
        else: stopped.add(line["stop"])
    for name, does in [*runs.items()]:
        folder = pathlib.Path(name)
        if name in stopped: end(name, 143)
        else: exec(does)
"""


class PackStage(Stage):
    """Jobs of which a fake process trains several: what each does is a line of Python, which is run again and again."""

    def __init__(self, tmp_path, monkeypatch):
        super().__init__(tmp_path, monkeypatch)
        popen = subprocess.Popen

        def fake(command, **more):
            if "vitlab.cli.pack" in command:
                command = [sys.executable, "-c", FAKE, str(tmp_path), command[-1]]
            return popen(command, **more)

        monkeypatch.setattr(packs.subprocess, "Popen", fake)

    def job(self, name, does, pack="a"):
        self.scripts[name] = FINISH + does
        return Job(name=name, seed=0, words=(does,), run=Run(self.root / name), steps=10, pack=pack)

    def local(self, slots=1, retries=0, seats=8):
        parts = [Slot(name=f"slot {i}", cores=(i % 2,), environment={"SLOT": str(i)}) for i in range(slots)]
        return Local(parts, self.root / "logs", Progress(write=self.lines.append), retries, seats)

    def processes(self):
        return [json.loads(line) for line in (self.root / "processes").read_text().splitlines()]


@pytest.fixture
def stage(tmp_path, monkeypatch):
    return PackStage(tmp_path, monkeypatch)


TOGETHER = "finish(name, together=len(runs), slot=os.environ['SLOT'], process=os.getpid())"


def test_the_runs_of_a_slot_share_a_process_and_a_freed_seat_is_taken(stage):
    wait = "if peers == 3: " + TOGETHER
    jobs = [stage.job(f"j{i}", wait) for i in range(6)]
    local = stage.local(slots=2, seats=3)
    assert local.run(Listed(jobs)) == 0
    assert [size for _, size in stage.processes()] == [3, 3]
    of_slot = {result["slot"]: result["process"] for job in jobs if (result := job.run.result())}
    assert sorted(of_slot) == ["0", "1"]
    assert len(set(of_slot.values())) == 2
    more = [stage.job(f"k{i}", TOGETHER) for i in range(5)]
    assert stage.local(slots=1, seats=2).run(Listed(more)) == 0
    assert max(job.run.result()["together"] for job in more) == 2
    assert len(stage.processes()) == 3


def test_runs_of_other_shapes_wait_for_a_slot_and_what_is_in_no_pack_has_a_process_of_its_own(stage):
    jobs = [stage.job("a", TOGETHER), stage.job("b", TOGETHER, "b"), stage.job("c", "finish()", None)]
    jobs += [stage.job("a2", TOGETHER)]
    assert stage.local(seats=4).run(Listed(grouped(jobs))) == 0
    results = [job.run.result() for job in jobs]
    assert results[0]["process"] == results[3]["process"]
    assert results[1]["together"] == 1
    assert "process" not in results[2]


def test_a_run_fails_alone_and_its_message_is_told_wherever_it_stands(stage):
    logged = "(folder / 'log.txt').write_text('the loss is NaN'); end(name, 1)"
    jobs = [stage.job("good", TOGETHER), stage.job("logged", logged)]
    jobs += [stage.job("refused", "end(name, 2, 'vitlab: no such patch')")]
    local = stage.local(retries=1)
    assert local.run(Listed(jobs)) == 1
    told = {failure.job.name: (failure.reason, failure.tail) for failure in local.failures}
    assert told == {"logged": ("exit status 1", "the loss is NaN"),
                    "refused": ("exit status 2", "vitlab: no such patch")}  # fmt: skip
    assert jobs[0].run.result()["status"] == "finished"
    assert sum("retried (1 of 1)" in line for line in stage.lines) == 1  # what was refused is not


def test_of_a_process_that_ends_by_itself_its_own_last_words_are_told(stage):
    local = stage.local()
    assert local.run(Listed([stage.job("a", "raise ValueError('a bug')"), stage.job("b", "pass")])) == 1
    assert [failure.tail.splitlines()[-1] for failure in local.failures] == ["ValueError: a bug"] * 2


def test_a_pack_that_is_killed_goes_on_with_half_as_many_and_in_the_end_alone(stage):
    """As the system does where memory does not suffice; a run that is killed alone has failed."""
    hungry = "os.kill(os.getpid(), 9) if peers > 1 else finish(name)"
    jobs = [stage.job(f"j{i}", hungry) for i in range(4)]
    local = stage.local()
    assert local.run(Listed(jobs)) == 0
    assert [size for _, size in stage.processes()] == [8, 2, 1]
    assert [line[:40] for line in stage.lines if "killed" in line] == [
        "a pack of 4 was killed by SIGKILL, perha",
        "a pack of 2 was killed by SIGKILL, perha",
    ]
    local = stage.local()
    assert local.run(Listed([stage.job("bad", "os.kill(os.getpid(), 9)")])) == 1
    assert "SIGKILL, perhaps out of memory" in local.failures[0].reason


def test_ctrl_c_asks_every_run_of_a_pack_to_save(stage):
    jobs = [stage.job(f"j{i}", "(folder / 'there').touch()") for i in range(3)]

    def interrupt():
        while not all((job.run.folder / "there").exists() for job in jobs):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    local = stage.local()
    assert local.run(Listed(jobs)) == 128 + signal.SIGINT
    thread.join()
    assert not local.failures
    assert all(pack.process.returncode == 0 for pack in local.packs.values())  # they were asked, not killed


def test_a_pruned_run_leaves_its_seat_and_keeps_its_status(stage):
    row = """
if not (folder / "metrics.jsonl").exists():
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 3, "val/accuracy": 0.3}) + chr(10))
"""

    class Strict(Listed):
        def stops(self, job, row):
            return row["val/accuracy"] < 0.4

    bad, good = stage.job("bad", row), stage.job("good", "if 'bad' not in str([*runs]): " + TOGETHER)
    source = Strict([bad, good, stage.job("next", TOGETHER)])
    assert stage.local(seats=2).run(source) == 0
    assert (bad.run.result()["status"], bad.run.result()["steps"]) == ("pruned", 3)
    assert good.run.result()["status"] == "finished"
    assert len(stage.processes()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="the fake process takes the lock as Unix does")
def test_a_run_that_another_sweep_has_just_begun_is_waited_for(stage):
    held = """
import fcntl
(folder / "result.json").write_text(json.dumps({"status": "interrupted"}))
lock = open(folder / "lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
def later():
    (folder / "part").write_text(json.dumps({"status": "finished", "val/accuracy": 0.5, "seconds": 1.0}))
    (folder / "part").replace(folder / "result.json")  # whole, as a run writes it
    lock.close()
threading.Timer(0.5, later).start()
end(name, 2, "vitlab: another process writes it")
"""
    local, jobs = stage.local(), [stage.job("held", held), stage.job("other", TOGETHER)]
    assert local.run(Listed(jobs)) == 0
    assert not local.failures
    assert sum(line.startswith("finished") for line in stage.lines) == 2


def test_seats_of_a_process_that_runs_need_no_room_for_another_process(stage, monkeypatch):
    monkeypatch.setattr(local_module, "resident", lambda process: 10**18)
    jobs = [stage.job(f"j{i}", "if peers == 3: " + TOGETHER) for i in range(3)]
    assert stage.local(slots=2).run(Listed(jobs)) == 0
    assert len(stage.processes()) == 1


def job(name, pack="a", alone="", memory=10**6, seed=0):
    return Job(
        name=name, seed=seed, words=(), run=Run(Path(f"{name}{seed}")), steps=1, pack=pack, alone=alone, memory=memory
    )


TPE, RANDOM = (Search(method=method, trials=40, space=(), prune="none") for method in ("tpe", "random"))


@pytest.mark.parametrize(
    ("jobs", "slots", "launcher", "asked", "search", "expected"),
    [
        (5, 2, "auto", None, None, 3),
        (2, 2, "auto", None, None, 1),  # there is a slot for each
        (2, 2, "packed", None, None, 2),
        (90, 2, "auto", None, None, 16),
        (5, 2, "auto", 3, None, 3),
        (5, 2, "auto", 1, None, 1),
        (5, 2, "local", None, None, 1),
        (5, 2, "serial", None, None, 1),
        (1, 2, "auto", None, RANDOM, 16),
        (1, 2, "auto", None, TPE, 1),  # it learns from each trial before the next
        (1, 2, "packed", None, TPE, 5),  # a quarter of 40, in two slots
        (1, 2, "auto", 4, TPE, 4),
    ],
)
def test_as_many_go_together_as_are_worth_it(jobs, slots, launcher, asked, search, expected):
    assert seats([job("a", seed=i) for i in range(jobs)], slots, "cpu", launcher, asked, search) == expected


@pytest.mark.parametrize(
    ("jobs", "asked", "search", "words"),
    [
        ([job("a"), job("b", "b")], None, None, "no two runs have models of one shape"),
        ([job("a", None, "it is large"), job("b", None, "it is large")], None, None, "it is large"),
        ([job("a"), job("b")], 1, None, "pack=1 packs nothing"),
        ([job("a", memory=10**18), job("b")], None, None, "two runs take about"),
        ([job("a")], 6, TPE, "tries at most 1 of 4 of its 40 trials"),
    ],
)
def test_what_cannot_be_packed_is_refused_with_the_reason(jobs, asked, search, words):
    with pytest.raises(ConfigError, match=words):
        seats(jobs, 2, "cpu", "packed", asked, search)


def test_the_packs_are_described_with_what_is_in_none():
    jobs = [*(job("a", seed=i) for i in range(5)), job("low"), job("big", None, "it fills the machine")]
    assert describe(jobs, 2, 16).splitlines() == [
        "trained together, in 2 processes at once:",
        "  6 runs of a, low: up to 3 in each",
        "  alone, 1 run of big: it fills the machine",
    ]
    assert describe(jobs, 2, 1) == ""
    assert "  30 trials: up to 8 in each" in describe(jobs, 2, 8, trials=30)


def test_of_the_time_of_a_pack_each_run_has_its_part():
    known = pd.DataFrame({"cell": ["a", "a", "b"], "seconds": [40.0, 40.0, 10.0], "packed": [4, 4, None],
                          "images": 100, "flops_per_image": [10.0, 10.0, 10.0]})  # fmt: skip
    assert [*own_seconds(known)] == [10, 10, 10]
    assert estimate(SimpleNamespace(identity="a"), known).seconds == 10
    assert [*own_seconds(known.drop(columns="packed"))] == [40, 40, 10]
