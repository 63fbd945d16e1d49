"""The process of a pack: each of its runs is a run like any other."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
import yaml

from tests.training.test_resume import TIMES
from vitlab.__main__ import main
from vitlab.cli.pack import Runner, turn
from vitlab.storage import checkpoint
from vitlab.storage.run import Run
from vitlab.sweep.job import Job, Slot
from vitlab.sweep.local import Listed, Local
from vitlab.sweep.progress import Progress
from vitlab.training import pack as packing

pytestmark = pytest.mark.usefixtures("no_figures")

TINY = ["dataset.train_examples=60", "model.width=16", "model.depth=1", "model.heads=2", "patch=p4"]
TINY += ["fit.batch_size=16", "fit.steps=4", "fit.evaluate_every=1", "fit.precision=fp32", "model.dropout=0.1"]
TINY += ["system.log_every=1"]


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains runs as one pack in this process; gives the runners that have ended, whose `run` is their folder."""
    monkeypatch.setattr(sys, "argv", sys.argv)

    def train(*each, common=("tracking=off",), watch=lambda runners: None, root=tmp_path):
        threads = torch.get_num_threads()
        base = [*TINY, f"system.runs={root}", *common]
        runners = [Runner(str(i), [*base, *words.split()], threads) for i, words in enumerate(each)]
        pack = packing.Pack(len(runners))
        while any(runner.update for runner in runners):
            turn(pack, runners)
            watch(runners)
        runs = {yaml.safe_load(path.read_text())["seed"]: path.parent for path in root.glob("*/config.yaml")}
        for runner in runners:
            seed = next((int(word[5:]) for word in reversed(runner.argv) if word.startswith("seed=")), 0)
            runner.run = Run(runs[seed]) if seed in runs else None
        return runners

    yield train
    torch.set_num_threads(1)


def test_a_run_of_a_pack_leaves_all_that_a_run_leaves_and_nothing_of_the_others(train):
    runners = train("seed=0", "seed=1 optimizer.lr=1e-3", "seed=2", common=("tracking=offline",))
    ids = set()
    for runner in runners:
        run, seed = runner.run, runner.argv[-1 if "seed" in runner.argv[-1] else -2]
        assert runner.status == 0
        assert json.loads(run.environment.read_text())["command"] == runner.argv
        assert seed in runner.argv
        text = run.log.read_text()
        assert str(run.folder) in text
        assert not [other.run.folder.name for other in runners if other is not runner and other.run.folder.name in text]
        assert text.count("at its peak") == 1
        assert [row["step"] for row in run.rows()] == [1, 2, 3, 4]
        assert run.result()["packed"] == 3
        assert run.curves.is_file()
        assert run.best.is_file()
        assert run.export.is_file()
        (copy,) = run.folder.glob("wandb/offline-run-*/run-*.wandb")
        name = run.wandb_id.read_text().split()[0]
        assert copy.name == f"run-{name}.wandb"
        assert copy.stat().st_size > 1000
        ids.add(name)
    assert len(ids) == 3


def test_a_run_that_fails_fails_alone_and_says_why(train):
    good, infinite, refused, wrong = train(
        "seed=0", "seed=1 optimizer.lr=1e30", "seed=2 patch=p7", "seed=3 fit.stepps=2"
    )
    assert (good.status, infinite.status, refused.status, wrong.status) == (0, 1, 2, 2)
    assert good.run.result()["status"] == "finished"
    assert infinite.run.result()["status"] == "failed"
    assert "NaN" in infinite.run.log.read_text()
    assert infinite.error == ""
    assert "NaN" not in good.run.log.read_text()
    assert "patch" in refused.error
    assert "stepps" in wrong.error


def test_a_pack_that_does_not_fit_into_memory_is_computed_in_halves_with_the_same_result(train, tmp_path, monkeypatch):
    seeds = [f"seed={i}" for i in range(4)]
    whole = train(*seeds, root=tmp_path / "whole")
    backward, sizes = packing.Pack.backward, []

    def small(self, rows, *rest):
        sizes.append(rows.stop - rows.start)
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("of a test")
        return backward(self, rows, *rest)

    monkeypatch.setattr(packing.Pack, "backward", small)
    halves = train(*seeds, root=tmp_path / "halves")
    assert sizes == [4] + [2, 2] * 4
    for one, other in zip(whole, halves, strict=True):
        assert same(one.run, other.run)
        assert "out of memory: 2 models are computed at once" in other.run.log.read_text()


def test_a_run_of_a_pack_that_goes_on_by_itself_ends_as_in_the_pack(train, tmp_path, capsys):
    def stop(runners):
        for runner in runners:
            runner.signals.received = signal.SIGTERM

    whole = train("seed=0", "seed=1", root=tmp_path / "whole")
    begun = train("seed=0", "seed=1", root=tmp_path / "begun", watch=stop)
    assert [runner.status for runner in begun] == [143, 143]
    for one, other in zip(whole, begun, strict=True):
        assert f"vitlab {' '.join(other.argv[1:])}" in other.run.log.read_text()  # what continues it
        assert main(other.argv[1:]) == 0
        assert "2 runs together" in capsys.readouterr().out
        assert same(one.run, other.run)


def test_the_threads_of_a_run_are_not_those_that_another_one_leaves(train):
    seen = []
    words = ("seed=0 fit.steps=1 system.threads=2", "seed=1 system.threads=2")
    _, _longer = train(*words, watch=lambda runners: seen.append([runner.threads for runner in runners]))
    assert [threads for _, threads in seen] == [2, 2, 2, 1]  # it sets them back at its end


def same(one, other):
    """Whether two runs are equal to the last bit, but for times."""
    a, b = checkpoint.load(one.best), checkpoint.load(other.best)
    rows = [[{k: v for k, v in row.items() if k not in TIMES} for row in run.rows()] for run in (one, other)]
    results = [{k: v for k, v in run.result().items() if k not in (*TIMES, "packed")} for run in (one, other)]
    weights = all(torch.equal(value, b["model"][name]) for name, value in a["model"].items())
    return weights and rows[0] == rows[1] and results[0] == results[1]


SWEEP = """
import sys, time
from pathlib import Path
from vitlab.storage.run import Run
from vitlab.sweep.job import Job, Slot
from vitlab.sweep.local import settings_of
from vitlab.sweep.packs import PackProcess
slot = Slot(name="slot", cores=(0,), environment={"OMP_NUM_THREADS": "1"})
pack = PackProcess(slot, 2, Path(sys.argv[1]) / "pack.txt", settings_of(slot))
for seed in ("0", "1"):
    run = Run(Path(sys.argv[1]) / seed)
    pack.train(Job(name="a", seed=0, words=(*sys.argv[2:], f"seed={seed}"), run=run, steps=1, pack="a"))
print(pack.process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a sweep's death is told to its children on Linux")
def test_a_pack_whose_sweep_is_killed_and_that_is_killed_itself_ends_as_an_undisturbed_one(train, tmp_path):
    long = ["tracking=off", "fit.steps=70", "fit.evaluate_every=2"]
    whole = train("seed=0", "seed=1", common=long, root=tmp_path / "whole")
    root = tmp_path / "disturbed"
    words = [*TINY, f"system.runs={root}", *long]

    def reached(step):
        until = time.monotonic() + 120
        runs = [root / runner.run.folder.name for runner in whole]
        while not all((Run(path).rows() or [{"step": 0}])[-1]["step"] >= step for path in runs):
            assert time.monotonic() < until
            time.sleep(0.02)

    sweep = subprocess.Popen([sys.executable, "-c", SWEEP, str(tmp_path), *words], stdout=subprocess.PIPE)
    with sweep.stdout as lines:
        process = psutil.Process(int(lines.readline()))
    reached(9)
    sweep.kill()
    sweep.wait()
    psutil.wait_procs([process], timeout=60)
    assert not process.is_running()
    for runner in whole:
        run = Run(root / runner.run.folder.name)
        assert run.result()["status"] == "interrupted"
        assert run.last.is_file()
        assert f"vitlab {' '.join(runner.argv[1:])}".replace("whole", "disturbed") in run.log.read_text()

    lines = []
    jobs = []
    for i, runner in enumerate(whole):
        run = Run(root / runner.run.folder.name)
        jobs.append(Job(name="a", seed=i, words=(*words, f"seed={i}"), run=run, steps=70, pack="a"))
    slot = Slot(name="slot", cores=(0,), environment={"OMP_NUM_THREADS": "1"})
    local = Local([slot], tmp_path / "logs", Progress(write=lines.append), seats=2)
    killed = []

    class Killing(Listed):
        def stops(self, job, row):
            if row["step"] > 30 and not killed:
                killed.append(local.packs["slot"].process.pid)
                os.kill(killed[0], signal.SIGKILL)
            return False

    assert local.run(Killing(jobs)) == 0
    assert any("a pack of 2 was killed by SIGKILL" in line for line in lines)
    for runner, job in zip(whole, jobs, strict=True):
        assert same(runner.run, job.run)
