"""The same runs by Hydra's launchers and sweepers: nothing is lost, nothing leaks, and a dead worker is one job."""

import contextlib
import json
import os
import random
import re
import signal
import sys
import threading
import time
import types
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from vitlab.__main__ import main
from vitlab.cli import hydra_launcher, hydra_task
from vitlab.cli.hydra_task import isolated, multirun_folder, read_records, reraise_signal
from vitlab.config.errors import ConfigError
from vitlab.config.overrides import quoted
from vitlab.storage.lock import holder
from vitlab.sweep.plan import plan
from vitlab.sweep.reader import read
from vitlab.system.signals import Signals

pytestmark = pytest.mark.usefixtures("no_curves", "no_figures")

TINY = ["tracking=off", "dataset.train_examples=40", "model.width=8", "model.depth=1", "model.heads=1", "fit.steps=2"]
TINY += ["fit.batch_size=8", "system.device=cpu", "system.workers=0"]
LOST = "fit.clip=null optimizer.lr=1e30 optimizer=sgd"  # a loss that is no number, and so a run that fails


def jobs(tmp_path, arms, *words, seeds="[0]"):
    file = tmp_path / "asked.yaml"
    lines = "".join(f"  {name}: {arm}\n" for name, arm in arms.items())
    file.write_text(f"question: Which?\nseeds: {seeds}\nbaseline: [{', '.join(TINY)}]\narms:\n{lines}")
    found = plan(read(file), [f"system.runs={tmp_path}/runs", *words]).jobs
    return sorted(found, key=lambda job: ["baseline", *arms].index(job.name))


def statuses(jobs):
    return [job.run.result()["status"] for job in jobs]


class Strike(threading.Thread):
    """Sends a signal to the process that trains a job, once it has done some steps."""

    def __init__(self, job, number):
        super().__init__(daemon=True)
        self.job, self.number, self.struck = job, number, None
        self.start()

    def run(self):
        end = time.monotonic() + 100
        while time.monotonic() < end:
            with contextlib.suppress(OSError, TypeError):
                if self.job.run.metrics.exists() and self.job.run.metrics.read_bytes().count(b"\n") > 3:
                    self.struck = holder(self.job.run.lock)["process"]
                    os.kill(self.struck, self.number)
                    return
            time.sleep(0.005)


def stopped(job):
    return int(re.search(r"stopped at step (\d+)", job.run.log.read_text())[1])


def alone(tmp_path, job):
    """The same training, undisturbed in this process."""
    words = [word for word in job.words if not word.startswith("system.runs")]
    assert main(["train", *words, f"system.runs={tmp_path}/alone"]) == 0
    (file,) = (tmp_path / "alone").glob("*/result.json")
    return json.loads(file.read_text())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:A worker stopped:UserWarning")
def test_joblib_a_dead_worker_and_a_failed_run_lose_no_other(tmp_path, capfd):
    arms = {"long": "fit.steps=300", "lost": LOST, "gap": "model/pool=gap", "cls": "model/pool=map"}
    todo = jobs(tmp_path, arms)[1:]
    strike = Strike(todo[0], signal.SIGKILL)
    assert hydra_launcher.run(todo, ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]) == 1
    assert strike.struck not in (None, os.getpid())
    assert statuses(todo) == ["finished", "failed", "finished", "finished"]
    said = capfd.readouterr().err
    assert "lost, seed 0 failed: the loss is NaN or infinite" in said
    assert todo[1].command in said
    assert todo[0].command not in said
    known = json.loads(todo[2].run.environment.read_text())
    assert known["command"][:2] == ["vitlab", "train"]
    assert "model/pool=gap" in known["command"]
    assert hydra_launcher.run([todo[0], todo[2]], ["hydra/launcher=joblib"]) == 0  # they are found finished


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_submitit_a_preempted_job_is_queued_again_and_goes_on_to_the_same_result(tmp_path):
    todo = jobs(tmp_path, {"long": "fit.steps=300", "gap": "model/pool=gap"})[1:]
    strike = Strike(todo[0], signal.SIGUSR2)
    assert hydra_launcher.run(todo, ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=3"]) == 0
    assert strike.struck not in (None, os.getpid())
    assert f"continues from step {stopped(todo[0])} of 300" in todo[0].run.log.read_text()
    assert statuses(todo) == ["finished", "finished"]
    result, undisturbed = todo[0].run.result(), alone(tmp_path, todo[0])
    assert result["test/loss"] == pytest.approx(undisturbed["test/loss"], rel=1e-6)
    steps = [row["step"] for row in todo[0].run.rows()]
    assert steps == sorted(set(steps))


@pytest.mark.skipif(find_spec("hydra_plugins") is None or find_spec("ray") is None, reason="needs vitlab[ray]")
@pytest.mark.filterwarnings("default")
def test_ray_trains_on_the_workers_of_a_cluster(tmp_path, capfd):
    todo = jobs(tmp_path, {"lost": LOST, "long": "fit.steps=300", "gap": "model/pool=gap"})[1:]
    strike = Strike(todo[1], signal.SIGKILL)
    words = ["hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2"]
    try:
        assert hydra_launcher.run(todo, words) == 1
        assert strike.struck not in (None, os.getpid())
        assert statuses(todo) == ["failed", "finished", "finished"]
        assert todo[0].command in capfd.readouterr().err
        assert main(["train", "-m", *TINY, f"system.runs={tmp_path}/many", "seed=0,1", "hydra/launcher=ray"]) == 0
    finally:
        import ray

        ray.shutdown()
    assert len(list((tmp_path / "many").glob("digits-*/result.json"))) == 2


@pytest.mark.slow
def test_the_basic_launcher_is_taken_when_none_is_named_and_leaves_nothing_behind(tmp_path):
    todo = jobs(tmp_path, {"gap": "model/pool=gap", "lost": LOST}, "system.threads=2")
    drawn = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    before, typed, threads = dict(os.environ), sys.argv, torch.get_num_threads()
    assert hydra_launcher.run(todo, []) == 1
    assert statuses(todo) == ["finished", "finished", "failed"]
    assert dict(os.environ) == before
    assert (sys.argv, torch.get_num_threads()) == (typed, threads)
    assert random.getstate() == drawn[0]
    assert np.random.get_state()[1].tolist() == drawn[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), drawn[2])
    assert hydra_launcher.run([], []) == 0


def test_a_job_changes_neither_the_environment_nor_the_random_numbers_of_the_next(monkeypatch):
    def draw():
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002

    def seed():
        for each in (random.seed, np.random.seed, torch.manual_seed):
            each(3)

    monkeypatch.setenv("VITLAB_TEST", "before")
    environment = dict(os.environ)
    seed()
    expected = draw()
    seed()
    with isolated():
        os.environ |= {"VITLAB_TEST": "changed", "VITLAB_TEST_NEW": "1"}
        del os.environ["HOME"]
        draw()
    assert dict(os.environ) == environment
    assert draw() == expected


def test_a_signal_leaves_the_jobs_that_follow_in_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr(hydra_task, "run", lambda *_: 143)
    todo = jobs(tmp_path, {"gap": "model/pool=gap", "map": "model/pool=map"})
    assert hydra_launcher.run(todo, []) == 143
    (folder,) = (tmp_path / "runs" / ".multirun").iterdir()
    assert read_records(folder)[0]["status"] == 143
    assert len(read_records(folder)) == 1


def test_a_signal_goes_on_to_whoever_listened_before_the_training():
    heard = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: heard.append(number))
    try:
        with Signals() as interrupt:
            signal.raise_signal(signal.SIGUSR2)
        assert (interrupt.received, heard) == (signal.SIGUSR2, [])
        reraise_signal(interrupt.received)
        reraise_signal(signal.SIGUSR1)  # nobody listens, and nobody dies
        assert heard == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra/launcher=slurm"], r"no such launcher here .*basic.*vitlab\[slurm\], vitlab\[ray\]"),
        (["hydra/launcher=joblib", "hydra.launcher.jobs=2"], "jobs"),
        (["hydra/launcher=submitit_slurm"], "the launcher has started no run: .*(srun|sbatch|slurm)"),
    ],
)
def test_a_launcher_that_cannot_be_is_one_sentence(tmp_path, words, said):
    todo = jobs(tmp_path, {"gap": "model/pool=gap"})
    with pytest.raises(ConfigError, match=said):
        hydra_launcher.run(todo, words)


class Dies:
    """A launcher whose worker dies with a certain job, and takes with it what the others were at."""

    def __init__(self, deadly, finish, folder):
        self.deadly, self.finish, self.folder, self.batches = deadly, finish, folder, []

    def launch(self, overrides, initial_job_idx):
        batch = [int(words[0]) for words in overrides]
        self.batches.append(batch)
        for start in range(min(2, len(batch)) if self.deadly in batch else len(batch)):
            (self.folder / f"{initial_job_idx + start}.json").write_text('{"status": null}')
        if self.deadly in batch:
            raise RuntimeError("a worker was killed")
        for start, number in enumerate(batch):
            (self.folder / f"{initial_job_idx + start}.json").write_text('{"status": 0}')
            self.finish(number)
        return [None] * len(batch)


def test_what_began_with_a_dead_job_goes_on_alone_and_the_rest_together(tmp_path):
    todo = jobs(tmp_path, {f"p{n}": f"model.dropout=0.{n}" for n in range(2, 7)})

    def finish(number):
        todo[number].run.folder.mkdir(parents=True)
        todo[number].run.write_result({"status": "finished"})

    launcher = Dies(1, finish, tmp_path)
    launch = hydra_launcher.Launch(launcher=launcher, overrides=[[str(n)] for n in range(6)], folder=tmp_path)
    lost = hydra_launcher.launch_all(todo, launch)
    assert launcher.batches == [[0, 1, 2, 3, 4, 5], [2, 3, 4, 5], [0], [1]]
    assert list(lost) == [1]
    assert statuses(todo) == ["finished", "interrupted", *["finished"] * 4]


# --- vitlab train -m ----------------------------------------------------------------------------------------------


def many(tmp_path, *words):
    return main(["train", "-m", *TINY, f"system.runs={tmp_path}/runs", *words])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_multirun_in_other_processes_is_compared_and_a_failure_is_its_status(tmp_path, capfd):
    assert many(tmp_path, "seed=0,1", "optimizer.lr=1e-3,1e30", "fit.clip=null", "hydra/launcher=joblib") == 1
    found = sorted(json.loads(file.read_text())["status"] for file in (tmp_path / "runs").glob("*/result.json"))
    assert found == ["failed", "failed", "finished", "finished"]
    (folder,) = (tmp_path / "runs" / ".multirun").iterdir()
    assert sorted(note["status"] for note in read_records(folder).values()) == [0, 0, 1, 1]
    assert (folder / "answer.md").is_file()
    assert f"answer      {folder}/answer.md" in capfd.readouterr().out


@pytest.mark.slow
def test_a_multirun_is_compared_where_two_are_finished(tmp_path, capsys):
    assert many(tmp_path, "seed=0") == 0
    assert "answer" not in capsys.readouterr().out
    assert many(tmp_path, "seed=0", "model/pool=gap,cls") == 0
    assert "answer.md" in capsys.readouterr().out
    import wandb

    assert wandb.run is None


def test_a_sweeper_is_given_the_validation_accuracy(tmp_path, monkeypatch):
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins
    from hydra.plugins.sweeper import Sweeper

    returned = []

    class Climb(Sweeper):
        def __init__(self, trials):
            self.trials = trials

        def setup(self, *, hydra_context, task_function, config):
            self.launcher = Plugins.instance().instantiate_launcher(
                hydra_context=hydra_context, task_function=task_function, config=config
            )

        def sweep(self, arguments):
            fixed = [word for word in arguments if "interval" not in word]
            for number, rate in enumerate((1e-3, 1e30)[: self.trials]):
                (found,) = self.launcher.launch([[*fixed, f"optimizer.lr={rate}"]], initial_job_idx=number)
                returned.append(found.return_value)

    module = types.ModuleType("hydra_plugins.climb")
    Climb.__module__, Climb.__qualname__ = module.__name__, "Climb"
    module.Climb = Climb
    monkeypatch.setitem(sys.modules, module.__name__, module)
    Plugins.instance().register(Climb)
    target = {"_target_": "hydra_plugins.climb.Climb", "trials": 2}
    ConfigStore.instance().store(group="hydra/sweeper", name="climb", node=target, provider="test")
    words = ["hydra/sweeper=climb", "optimizer.lr=interval(1e-4,1e-1)", "fit.clip=null"]
    assert many(tmp_path, *words) == 1
    assert 0 <= returned[0] <= 1
    assert np.isnan(returned[1])


def test_two_multiruns_of_one_second_have_folders_of_their_own(tmp_path):
    folders = [multirun_folder(tmp_path) for _ in range(5)]
    assert len(set(folders)) == 5
    assert all(folder.is_absolute() for folder in folders)


@pytest.mark.parametrize("value", ["/a/b", "/a b/c=d,e", "/it's", "{x}", "[1]", "null"])
def test_any_folder_can_be_quoted_for_hydra(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    found = OverridesParser.create().parse_override(f"hydra.sweep.dir={quoted(f'/runs{value}')}")
    assert found.value() == f"/runs{value}"
    assert not found.is_sweep_override()
