"""A search repeats itself, survives being killed anywhere, and never looks at the test set."""

import csv
import json
import math
import subprocess
import sys
from dataclasses import replace

import optuna
import pytest

from tests.sweep.test_packs import PackStage
from vitlab.__main__ import main
from vitlab.config.errors import ConfigError, Locked, VitlabError
from vitlab.report import search_figures
from vitlab.storage.files import read_json
from vitlab.storage.run import Run
from vitlab.sweep import plan as planning
from vitlab.sweep import question, search
from vitlab.sweep.job import Job, Slot
from vitlab.sweep.plan import Plan
from vitlab.sweep.progress import Progress
from vitlab.sweep.reader import read
from vitlab.sweep.search import Trials
from vitlab.sweep.study import load

pytestmark = pytest.mark.usefixtures("no_curves")

TINY = "dataset.train_examples=100, model.width=8, model.depth=1, model.heads=1, fit.epochs=2, tracking=off"
SPACE = "{optimizer.lr: {log: [1e-4, 1e-1]}, loss.label_smoothing: {uniform: [0, 0.5]}}"
STEPS = 100


class Fake:
    """A configuration as `plan.check_cell` gives it, without building anything."""

    def __init__(self, cell, root):
        self.name, self.overrides, self.root = cell.name, cell.overrides, root
        self.identity = "-".join(sorted(w for w in cell.overrides if "tracking" not in w)).replace("/", "_")
        self.baseline = cell.name == question.BASELINE
        self.config = {"system": {"runs": str(root)}}

    def job(self, seed):
        run = Run(self.root / f"{self.identity}-s{seed}")
        return Job(name=self.name, seed=seed, words=(*self.overrides, f"seed={seed}"), run=run, steps=STEPS)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Plans of searches whose cells are fake; `refuses` may raise."""

    def plan(method="random", trials=8, space=SPACE, prune="none", seeds="[3, 4]", refuses=lambda cell: None, more=""):
        file = tmp_path / "mine.yaml"
        file.write_text(
            f"question: What is best?\nbaseline: [{TINY}]\nseeds: {seeds}\n"
            f"search:\n  method: {method}\n  trials: {trials}\n  prune: {prune}\n  space: {space}\n{more}"
        )

        def check(cell, seed, images, files, models, **_):
            refuses(cell)
            return Fake(cell, tmp_path / "runs")

        monkeypatch.setattr(planning, "check_cell", check)
        asked = read(file)
        made = Plan(question=asked, words=(), cells=tuple(Fake(cell, tmp_path / "runs") for cell in asked.cells()))
        made.folder.mkdir(parents=True, exist_ok=True)
        return made

    return plan


def value_of(job, key):
    return next(word.partition("=")[2] for word in job.words if word.startswith(f"{key}="))


def smooth(job):
    """Accuracy that is best at a learning rate of 1e-2 and a smoothing of 0.1."""
    lr, soft = float(value_of(job, "optimizer.lr")), float(value_of(job, "loss.label_smoothing"))
    return 0.9 * math.exp(-((math.log10(lr) + 2) ** 2) - 4 * (soft - 0.1) ** 2)


def answer(job, value, test=0.5, status="finished"):
    job.run.folder.mkdir(parents=True, exist_ok=True)
    job.run.write_result({"status": status, "val/accuracy": value, "test/accuracy": test, "seconds": 1.0})


def trials_of(plan):
    return Trials(plan, Progress(write=lambda line: None))


def drive(plan, score=smooth, most=10_000, test=0.5):
    """Trains at once, one after the other; ends early as a killed process does, with a trial at work."""
    trials, jobs = trials_of(plan), []
    while (job := trials.next()) is not None:
        if len(jobs) == most:
            return trials, jobs
        jobs.append(job)
        answer(job, score(job), test)
        trials.ended(job, "finished")
    return trials, jobs


def lines(trials):
    return [
        {key: line[key] for key in ("number", "params", "value", "state")} for line in trials.record(None)["trials"]
    ]


def anew(plan):
    (plan.folder / "study.log").unlink()


METHODS = ("tpe", "random", "sobol")


@pytest.mark.parametrize("method", METHODS)
def test_a_search_repeats_itself(make, method):
    plan = make(method, trials=14)
    one, _ = drive(plan)
    first = lines(one)
    anew(plan)
    other, _ = drive(plan)
    assert first == lines(other)
    assert len(first) == 14
    assert len({str(line["params"]) for line in first}) == 14


@pytest.mark.usefixtures("no_figures")
def test_a_packed_search_gives_freed_seats_to_its_next_trials(make, tmp_path, monkeypatch):
    many = "if len(runs) == 3 or time.time() > folder.stat().st_mtime + 0.3:"
    does = f"{many} finish(name, together=len(runs), seconds=1.0, **{{'test/accuracy': 0.5}})"
    plain = Fake.job
    monkeypatch.setattr(Fake, "job", lambda cell, seed: replace(plain(cell, seed), words=(does,), pack="a"))
    (tmp_path / "runs").mkdir()
    stage, plan = PackStage(tmp_path, monkeypatch), make(trials=4)
    slot = Slot(name="slot", cores=(0,), environment={"SLOT": "0"})
    outcome = search.run(plan, [slot], Progress(write=lambda line: None), 0, "packed", None, 3)
    assert outcome.status == 0
    assert [trial["state"] for trial in outcome.record["trials"]] == ["finished"] * 4
    assert [size for _, size in stage.processes()] == [3, 3]  # one process for the trials, one for the runs after them
    assert max(Run(path).result()["together"] for path in (tmp_path / "runs").glob("*-s*")) == 3


def test_another_seed_searches_elsewhere(make):
    one = lines(drive(make())[0])
    plan = make(seeds="[5, 6]")
    anew(plan)
    assert one != lines(drive(plan)[0])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("after", [0, 1, 5, 11, 12])
def test_a_search_that_was_killed_ends_as_one_that_was_not(make, method, after):
    plan = make(method, trials=13)
    whole = lines(drive(plan)[0])
    anew(plan)
    drive(plan, most=after)  # its last trial is left running
    assert "running" in [line["state"] for line in lines_on_disk(plan)]
    drive(plan, most=0)  # killed again before anything ended
    assert lines(drive(plan)[0]) == whole


def lines_on_disk(plan):
    study = load(plan)
    return [{"state": trial.state.name.lower(), "params": trial.params} for trial in study.get_trials()]


def test_a_search_that_was_killed_between_any_two_lines_of_its_file_ends_with_as_many_trials(make):
    plan = make("tpe", trials=3)
    drive(plan)
    file = plan.folder / "study.log"
    log = file.read_bytes().splitlines(keepends=True)
    for kept in range(len(log)):
        file.write_bytes(b"".join(log[:kept]) + log[kept][: len(log[kept]) // 2])  # and one cut in two
        found = lines(drive(plan)[0])
        assert [line["state"] for line in found] == ["finished"] * 3, kept
        assert [line["number"] for line in found] == [0, 1, 2]


def test_what_was_at_work_goes_on_in_the_same_folder(make):
    plan = make(trials=4)
    killed = trials_of(plan)
    at_work = {killed.next().run.folder for _ in range(3)}
    again = trials_of(plan)
    assert {again.next().run.folder for _ in range(3)} == at_work


def test_a_finished_search_asks_for_nothing_and_more_trials_go_on_with_it(make):
    first = lines(drive(make(trials=5))[0])
    trials, jobs = drive(make(trials=5))
    assert (jobs, trials.total) == ([], 0)
    more, jobs = drive(make(trials=7))
    assert len(jobs) == 2
    assert lines(more)[:5] == first


def test_failed_trials_count_and_the_search_goes_on(make):
    trials = trials_of(make(trials=4))
    for number in range(4):
        job = trials.next()
        answer(job, 0.5)
        trials.ended(job, "failed" if number == 1 else "finished")
    assert trials.next() is None
    assert [line["state"] for line in lines(trials)] == ["finished", "failed", "finished", "finished"]


def test_test_scores_change_nothing(make):
    plan = make("tpe", trials=14)
    one, _ = drive(plan, test=0.0)
    first, best = lines(one), one.best().overrides
    anew(plan)
    other, _ = drive(plan, test=1.0)
    assert (lines(other), other.best().overrides) == (first, best)
    anew(plan)
    trials = trials_of(plan)
    while (job := trials.next()) is not None:  # nor is one needed
        job.run.folder.mkdir(parents=True, exist_ok=True)
        job.run.write_result({"status": "finished", "val/accuracy": smooth(job), "seconds": 1.0})
        trials.ended(job, "finished")
    assert lines(trials) == first


def curve(trials, job, values):
    """Tells a training's evaluations until it is given up; which one that is."""
    for number, value in enumerate(values, start=1):
        row = {"step": number * STEPS // len(values), "epoch": number, "val/accuracy": value, "test/accuracy": 1.0}
        if trials.stops(job, row):
            return number
    return None


GOOD, BAD = [0.3 + 0.06 * i for i in range(10)], [0.1 + 0.01 * i for i in range(10)]


@pytest.mark.parametrize("rule", ["median", "asha"])
def test_a_bad_curve_is_given_up_and_the_best_never(make, rule):
    trials = trials_of(make(trials=12, prune=rule))
    for _ in range(6):
        job = trials.next()
        if curve(trials, job, [0.9 * v for v in GOOD]) is None:
            answer(job, 0.7)
            trials.ended(job, "finished")
        else:
            answer(job, 0.7, status="pruned")
            trials.ended(job, "pruned")
    bad = trials.next()
    assert curve(trials, bad, BAD) == 2  # none in the first fifth
    answer(bad, 0.11, status="pruned")
    trials.ended(bad, "pruned")
    good = trials.next()
    assert curve(trials, good, GOOD) is None
    answer(good, 0.84)
    trials.ended(good, "finished")
    states = {line["number"]: (line["state"], line["value"]) for line in lines(trials)}
    assert states[6] == ("pruned", 0.11)
    assert states[7] == ("finished", 0.84)


def test_without_a_rule_nothing_is_given_up(make):
    trials = trials_of(make(trials=12))
    for values in (GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, BAD):
        job = trials.next()
        assert curve(trials, job, values) is None
        answer(job, values[-1])
        trials.ended(job, "finished")


def test_what_was_given_up_before_the_kill_is_not_trained_again(make):
    plan = make(trials=2, prune="median")
    killed = trials_of(plan)
    job = killed.next()
    answer(job, 0.2, status="pruned")  # killed before the study was told
    trials = trials_of(plan)
    assert trials.next().run.folder != job.run.folder
    assert lines(trials)[0]["state"] == "pruned"
    assert lines(trials)[0]["value"] == 0.2


def test_evaluations_that_are_told_twice_count_once(make):
    trials = trials_of(make(trials=2, prune="median"))
    job = trials.next()
    curve(trials, job, GOOD)
    curve(trials, job, GOOD)
    answer(job, 0.8)
    trials.ended(job, "finished")
    assert list(trials.study.get_trials()[0].intermediate_values) == list(range(1, 11))


@pytest.mark.slow
def test_tpe_beats_random_on_a_smooth_objective(make):
    means = {}
    for method in ("tpe", "random"):
        tops = []
        for seed in range(3):
            plan = make(method, trials=40, seeds=f"[{seed}, 9]")
            (plan.folder / "study.log").unlink(missing_ok=True)
            values = [line["value"] for line in lines(drive(plan)[0])]
            tops.append(sum(values[20:]) / 20)
        means[method] = sum(tops) / 3
    assert means["tpe"] > means["random"] + 0.1


def test_a_grid_visits_every_combination_once_and_then_ends(make):
    space = "{model.depth: [1, 2, 3], optimizer.lr: [1e-3, 1e-2]}"
    trials, jobs = drive(make("grid", trials=50, space=space), score=lambda job: 0.5)
    assert sorted((value_of(job, "model.depth"), value_of(job, "optimizer.lr")) for job in jobs) == [
        (depth, lr) for depth in "123" for lr in ("1e-2", "1e-3")
    ]
    assert trials.next() is None


def test_the_same_configuration_is_told_without_a_second_training(make):
    space = "{model.depth: [1, 2]}"
    plan = make(trials=6, space=space)
    trials = trials_of(plan)
    at_work = [trials.next(), trials.next()]
    assert trials.next() is None  # all others ask for one of these two
    for job in at_work:
        answer(job, 0.4)
        trials.ended(job, "finished")
    assert [(line["state"], line["value"]) for line in lines(trials)] == [("finished", 0.4)] * 6
    assert trials.total == 2


def no_threes(cell):
    if "model.heads=3" in cell.overrides:
        raise ConfigError("model.width=8 is not a multiple of model.heads=3")


def test_a_refused_trial_is_told_with_its_reason_and_takes_no_place(make):
    said = []
    plan = make("random", trials=6, space="{model.heads: [1, 3], optimizer.lr: {log: [1e-4, 1e-1]}}", refuses=no_threes)
    trials = Trials(plan, Progress(write=said.append))
    count = 0
    while (job := trials.next()) is not None:
        count += 1
        answer(job, 0.3)
        trials.ended(job, "finished")
    states = [line["state"] for line in lines(trials)]
    assert count == states.count("finished") == 6
    assert states.count("refused") == sum("not a multiple" in line for line in said) > 0


def test_a_search_of_which_every_trial_is_refused_ends_with_the_reason(make):
    def refuses(cell):
        if cell.name.startswith("trial"):
            raise ConfigError("that cannot be")

    with pytest.raises(ValueError, match=r"first 10 trials was refused, the last: that cannot be"):
        drive(make(trials=50, refuses=refuses))


def test_an_end_that_cannot_be_is_refused_before_any_trial(make):
    plan = make(space="{model.heads: [1, 3]}", refuses=no_threes)
    with pytest.raises(ValueError, match=r"mine.yaml, line 8, model.heads=3: .*not a multiple"):
        trials_of(plan).check_ends()


def test_an_end_that_goes_with_other_values_of_the_rest_is_not_refused(make):
    def refuses(cell):
        if "model.heads=3" in cell.overrides and "model.width=9" not in cell.overrides:
            raise ConfigError("no")

    trials_of(make(space="{model.heads: [1, 3], model.width: [8, 9]}", refuses=refuses)).check_ends()


@pytest.mark.parametrize(
    ("space", "wrong"),
    [
        ("{model.depth: {uniform: [1, 3]}}", "model.depth"),
        ("{model.heads: {int: [1, 3]}}", "model.heads"),
        ("{optimizer: [adamw, adamww]}", "adamww"),
    ],
)
def test_the_real_check_refuses_ends_too(tmp_path, space, wrong):
    file = tmp_path / "mine.yaml"
    head = f"question: Which?\nbaseline: [{TINY}]\nseeds: [0]\n"
    file.write_text(f"{head}search: {{method: random, trials: 2, space: {space}}}\n")
    plan = planning.plan(read(file), [f"system.runs={tmp_path}/runs"])
    plan.folder.mkdir(parents=True)
    with pytest.raises(ValueError, match=wrong):
        trials_of(plan).check_ends()


@pytest.mark.parametrize("change", [{"space": "{optimizer.lr: {log: [1e-5, 1e-1]}}"}, {"method": "tpe"}])
def test_another_search_is_not_mixed_with_what_is_there(make, change):
    drive(make(trials=2))
    with pytest.raises(ValueError, match=f"holds a search with another {next(iter(change))}"):
        trials_of(make(trials=2, **change))


def test_a_damaged_file_is_refused_in_a_sentence(make):
    plan = make()
    (plan.folder / "study.log").write_text("nonsense\nnonsense\n")
    with pytest.raises(ValueError, match="is damaged"):
        trials_of(plan)


def test_a_lock_that_was_left_holds_nobody_up(make):
    plan = make(trials=2)
    drive(plan, most=1)
    (plan.folder / "study.log.lock").symlink_to(plan.folder / "study.log")  # as Optuna's own would be
    code = "import sys, os, pathlib; from vitlab.storage.lock import Lock; Lock(pathlib.Path(sys.argv[1])).__enter__()"
    subprocess.run([sys.executable, "-c", f"{code}; os.kill(os.getpid(), 9)", plan.folder / "search.lock"], check=False)
    outcome = search.run(plan, [], Progress(write=lambda line: None), 0, "serial", instantly)
    assert outcome.status == 0
    assert len(outcome.record["trials"]) == 2


def test_two_processes_do_not_search_at_once(make):
    plan = make(trials=2)
    code = "import sys, pathlib; from vitlab.storage.lock import Lock; l = Lock(pathlib.Path(sys.argv[1])).__enter__()"
    code += "; print('held', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", code, plan.folder / "search.lock"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Locked, match="is being written by process"):
            search.run(plan, [], Progress(write=lambda line: None), 0, "serial", instantly)
        other.stdin.close()


def instantly(jobs):
    for job in jobs:
        searched = any(word.startswith("loss.label_smoothing=") for word in job.words)
        answer(job, smooth(job) if searched else 0.2)
    return 0


def test_what_is_found_is_trained_with_every_seed_beside_the_baseline(make):
    plan, said = make("tpe", trials=12), []
    outcome = search.run(plan, [], Progress(write=said.append), 0, "serial", instantly)
    (found,) = outcome.cells
    assert found.name == "best found"
    for cell in (*plan.cells, found):
        assert [cell.job(seed).run.result()["status"] for seed in (3, 4)] == ["finished"] * 2
    record = json.loads(json.dumps(outcome.record))
    top = max(record["trials"], key=lambda trial: trial["value"])
    assert record["best"]["number"] == top["number"]
    assert f"optimizer.lr={top['params']['optimizer.lr']!r}" in found.overrides
    assert set(record["importance"]) == {"optimizer.lr", "loss.label_smoothing"}
    assert record["importance"]["optimizer.lr"] > record["importance"]["loss.label_smoothing"]
    for name in ("history", "importance", "slices"):
        assert all((plan.folder / f"{name}.{kind}").stat().st_size > 1000 for kind in ("png", "svg", "pdf"))
    assert "flatters" in (plan.folder / "search.md").read_text()
    with (plan.folder / "trials.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(line["val/accuracy"]) for line in table] == [trial["value"] for trial in record["trials"]]
    assert any("search.md" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "searched"),
    [("test/macro_f1", "val/macro_f1"), ("test/loss", "val/loss"), ("test/5-shot", "val/accuracy")],
)
def test_a_search_optimizes_the_validation_metric_of_what_is_asked(make, asked, searched):
    def instantly(jobs):
        for job in jobs:
            answer(job, 0.5)
            result = job.run.result()
            job.run.write_result({**result, searched: smooth(job) if "loss.label" in str(job.words) else 0.2})
        return 0

    plan = make(trials=6, more=f"metric: {asked}\n")
    outcome = search.run(plan, [], Progress(write=lambda line: None), 0, "serial", instantly)
    record = json.loads(json.dumps(outcome.record))
    pick = min if searched == "val/loss" else max
    assert record["metric"] == searched
    assert record["best"]["value"] == pick(trial["value"] for trial in record["trials"])
    assert (
        f"best {'validation ' + searched[4:].replace('_f1', ' F1')} of one seed"
        in (plan.folder / "search.md").read_text()
    )
    with (plan.folder / "trials.csv").open() as file:
        assert searched in next(csv.reader(file))
    if searched != "val/accuracy":
        with pytest.raises(VitlabError, match=rf"another metric \({searched}, and now val/accuracy\)"):
            trials_of(make(trials=6))


def test_where_a_signal_asked_to_leave_nothing_more_is_trained(make):
    plan = make(trials=3)
    outcome = search.run(plan, [], Progress(write=lambda line: None), 0, "serial", lambda jobs: 143)
    assert outcome.status == 143
    assert not plan.cells[0].job(3).run.folder.exists()


def test_figures_of_a_search_with_nothing_finished_can_be_drawn(make):
    trials = trials_of(make(trials=3))
    trials.ended(trials.next(), "failed")
    record = trials.record(trials.best())
    assert trials.best() is None
    assert search_figures.history(record) is not None
    assert search_figures.importance(record) is None
    assert search_figures.slices(record) is None


def test_a_cluster_does_not_search(make):
    with pytest.raises(ValueError, match="launcher=local"):
        search.run(make(), [], Progress(), 0, "hydra", None)


def test_without_optuna_the_extra_is_named(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match="uv sync --extra optuna"):
        search.run(make(), [], Progress(), 0, "local", None)


def test_optuna_is_left_as_loud_as_it_was(make):
    before = optuna.logging.get_verbosity()
    search.run(make(trials=1), [], Progress(write=lambda line: None), 0, "serial", instantly)
    assert optuna.logging.get_verbosity() == before


@pytest.mark.slow
def test_a_real_search_from_the_command_line(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"question: Which learning rate?\nbaseline: [{TINY}]\nseeds: [0]\n"
        "search: {method: tpe, trials: 2, prune: median, space: {optimizer.lr: {log: [1e-4, 1e-1]}}}\n"
    )
    assert main(["sweep", str(file), "slots=2", f"system.runs={tmp_path}/runs", "system.device=cpu"]) == 0
    folder = tmp_path / "runs" / "sweeps" / "mine"
    record = read_json(folder / "sweep.json")
    assert set(record["cells"]) == {"baseline", "best found"}
    assert [trial["state"] for trial in record["search"]["trials"]] == ["finished"] * 2
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 3
    assert "best found" in (folder / "answer.md").read_text()


def test_dry_says_how_many_trials_and_of_what(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "question: q?\nseeds: 2\nsearch: {method: random, trials: 7, space: {optimizer.lr: {log: [1e-4, 1e-2]}}}\n"
    )
    assert main(["sweep", str(file), "--dry", f"system.runs={tmp_path}/runs"]) == 0
    said = capsys.readouterr().out
    assert "# 7 trials of one seed (random: optimizer.lr log 1e-4, 1e-2)" in said
    assert "of 10 runs" not in said
    assert said.count("\nvitlab train ") == 2
    assert not (tmp_path / "runs").exists()
