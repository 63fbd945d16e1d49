"""A sweep is checked whole before it starts, finds its runs, and ends in the same table however often it is stopped."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
import torch

from tests.disk import write_images
from tests.processes import until
from vitlab.__main__ import main
from vitlab.bench import cells
from vitlab.cli.launch import waves
from vitlab.config import identity
from vitlab.config.build import assemble
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError, VitlabError
from vitlab.config.groups import SWEEPS
from vitlab.model import count
from vitlab.sweep import plan as planning
from vitlab.sweep.question import Question
from vitlab.sweep.reader import find, read

pytestmark = pytest.mark.usefixtures("no_figures", "no_curves")

TINY = "dataset.train_examples=60, model.width=8, model.depth=1, model.heads=1, fit.epochs=4, fit.batch_size=8"
FILE = f"""\
question: Does it matter?
baseline: [{TINY}, tracking=off]
arms:
  p2: patch=p2
  p4: patch=p4
seeds: [0, 1]
x: patch.size
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    return path


def planned(file, *words, scale=None, elsewhere=False):
    return planning.plan(read(file, scale), words, elsewhere=elsewhere)


def vitlab(*words, **more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "vitlab", *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        **more,
    )


def tables(root):
    """The answer without what a clock says."""
    (path,) = root.glob("sweeps/*/table.csv")
    lines = [line.split(",") for line in path.read_text().splitlines()]
    timed = {i for i, name in enumerate(lines[0]) if "second" in name or "memory" in name or "time" in name}
    return [[cell for i, cell in enumerate(line) if i not in timed] for line in lines]


def test_the_baseline_is_the_arm_that_is_the_same(file):
    plan = planned(file)
    assert [(cell.name, cell.baseline) for cell in plan.cells] == [("p2", True), ("p4", False)]
    assert [(job.name, job.seed) for job in plan.jobs] == [("p2", 0), ("p4", 0), ("p2", 1), ("p4", 1)]


def test_every_job_is_a_command_that_trains_the_run_it_names(file, tmp_path):
    for job in planned(file, f"system.runs={tmp_path}").jobs:
        assert shlex.split(job.command)[:2] == ["vitlab", "train"]
        node = check(compose(shlex.split(job.command)[2:])[0])
        assert job.run.folder.name.endswith(f"-{identity.identity(node)}")
        assert node["seed"] == job.seed


def test_two_sweeps_that_share_a_baseline_share_its_runs(file, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(FILE.replace("p4: patch=p4", "gap: model/pool=gap"))
    shared = {job.run.folder for job in planned(file).jobs} & {job.run.folder for job in planned(other).jobs}
    assert len(shared) == 2


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("model.heads=3", "heads=3 does not divide width=8"),
        ("patch=p3", "there is no such option"),
        ("patch=p7", "patch=7 does not divide"),
        ("optimizer.lrr=1", "did you mean optimizer.lr"),
        ("optimizer.lr=fast", "expected a number"),
        ("optimizer.lr=-1", "must be from 0 to 1e+30"),
        ("fit.batch_size=61", "there are 60 training images"),
        ("schedule.warmup_steps=1000", "a warm-up of 1000 steps"),
        ("dataset=mnist", "is not there"),
        ("dataset.train_examples=10000", "there are 1294"),
        ("model.width=1000000", "1000000"),
    ],
)
def test_a_bad_arm_stops_the_sweep_before_anything_is_written(file, tmp_path, capsys, words, why):
    file.write_text(FILE.replace("  p4: patch=p4", f"  last: {words}"))
    assert main(["sweep", str(file), f"system.runs={tmp_path}/runs"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{file}, line 5, last: " in said
    assert why in said
    assert not (tmp_path / "runs").exists()


def test_arms_that_are_the_same_training_are_refused(file):
    file.write_text(FILE.replace("  p4: patch=p4", "  p4: patch=p4\n  four: patch.size=4"))
    with pytest.raises(ConfigError, match="line 6: four and p4 are the same training"):
        planned(file)


def test_dry_lists_every_run_with_its_cost_and_writes_nothing(file, tmp_path, capsys):
    assert main(["sweep", str(file), "--dry", f"system.runs={tmp_path}/runs"]) == 0
    said = capsys.readouterr().out
    assert said.count("\nvitlab train ") == 4
    assert "# p2 (baseline): " in said
    assert "time (unknown: no run in the store)" in said
    assert "4 runs of 2 cells" in said
    assert not (tmp_path / "runs").exists()


ALL = [
    (file.stem, scale)
    for file in sorted(SWEEPS.rglob("*.yaml"))
    for scale in re.findall(r"^  (\w+):", file.read_text().partition("\nscale:")[2], flags=re.MULTILINE)
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scale"), ALL)
def test_every_sweep_that_ships_can_be_asked_at_every_scale(name, scale, monkeypatch):
    monkeypatch.setattr(planning, "flops", lambda make, shape, frozen=False: (1, 2))  # takes seconds; has its own tests
    question = read(find(name), scale)
    if scale != "quick":  # its arms are those of the quick scale, or like them
        every = Question.cells

        def some(*of):
            cells = every(*of)
            return [cells[0], *cells[1 :: max(1, len(cells) // 2)]]

        monkeypatch.setattr(Question, "cells", some)
    words = ["dataset.root=nowhere"] if scale == "imagenet" and question.trains else []  # synthetic ones lie nowhere
    plan = planning.plan(question, words, elsewhere=True)
    assert plan.question.question.endswith("?")
    assert plan.question.duration
    assert plan.question.expect.finding
    trained = len({cell.identity for cell in (*plan.pretrain, *plan.cells)})
    assert len(plan.jobs) == trained * len(plan.question.seeds) == len({job.run.folder for job in plan.jobs})
    assert len({cell.arm for cell in plan.cells if cell.baseline}) == 1


def test_the_flops_of_any_depth_follow_from_two(file):
    file.write_text(FILE.replace("  p4: patch=p4", "  deep: [model.depth=7, model/position=rope, model/pool=map]"))
    for cell in planned(file).cells:
        parts = assemble(cell.config)
        model = parts["model"](image_size=(8, 8), channels=1, classes=10)
        assert cell.flops_per_image == count.flops(model, (1, 8, 8))
        assert cell.parameters == count.parameters(model)


def test_words_and_seeds_of_the_command_line_are_every_runs(file, tmp_path, capsys):
    words = ["sweep", str(file), "--dry", "fit.epochs=9", "seeds=5,7..7,9", f"system.runs={tmp_path}"]
    assert main(words) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("vitlab train")]
    assert len(lines) == 6
    assert all("fit.epochs=9" in line and "fit.epochs=4" not in line for line in lines)
    assert {line.rpartition("seed=")[2] for line in lines} == {"5", "7", "9"}


@pytest.mark.parametrize(
    "words",
    [
        ["launcher=slurm"],
        ["slots=0"],
        ["seeds=0,0"],
        ["seeds=x"],
        ["seeds=3..1"],
        ["seeds=0..3,2"],
        ["seeds=0..1000000000"],
        ["scale=tiny"],
        ["patch=p1"],
        ["fit.epochz=3"],
        ["x=y=z"],
    ],
)
def test_a_wrong_word_is_refused_in_one_sentence(file, tmp_path, capsys, words):
    assert main(["sweep", str(file), f"system.runs={tmp_path}/runs", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_sweep_that_is_killed_again_and_again_ends_in_the_same_table(file, tmp_path):
    """Killed in the middle, in processes of its own; beside one that nobody disturbs, one run after the other."""
    torch.set_num_threads(1)
    words = ["sweep", str(file), f"system.runs={tmp_path}/calm", "launcher=serial", "seeds=0"]
    assert main(words) == 0
    words = [sys.executable, "-m", "vitlab", "sweep", str(file), f"system.runs={tmp_path}/wild", "slots=2", "seeds=0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "said.txt").open("a") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out, env=environment)
    until(lambda: any(tmp_path.glob("wild/*/last.pt")) or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tables(tmp_path / "wild") == tables(tmp_path / "calm")
    before = (
        (tmp_path / "wild").stat().st_mtime_ns,
        sorted(p.stat().st_mtime_ns for p in tmp_path.glob("wild/*/last.pt")),
    )
    assert main(words[3:]) == 0  # nothing is trained again
    assert before[1] == sorted(p.stat().st_mtime_ns for p in tmp_path.glob("wild/*/last.pt"))


@pytest.mark.slow
def test_a_failed_arm_is_in_the_table_and_among_the_failures(file, tmp_path, capsys):
    bad = "[optimizer=sgd, optimizer.lr=1e20, fit.clip=null, schedule=constant]"
    file.write_text(FILE.replace("  p4: patch=p4", f"  bad: {bad}").replace("seeds: [0, 1]", "seeds: [0]"))
    assert main(["sweep", str(file), f"system.runs={tmp_path}/runs", "slots=2", "launcher=local"]) == 1
    said = capsys.readouterr()
    assert "bad, seed 0 failed: exit status 1" in said.err
    assert "the loss is NaN or infinite" in said.err
    assert re.search(r"^  vitlab train .*optimizer=sgd.* seed=0$", said.err, flags=re.MULTILINE)
    assert "1 failed" in said.out
    (answer,) = tmp_path.glob("runs/sweeps/*/answer.md")
    assert "1 failed" in answer.read_text()


@pytest.mark.slow
def test_an_answer_is_made_anew_from_what_is_kept(file, tmp_path, capsys):
    assert main(["sweep", str(file), f"system.runs={tmp_path}/runs", "launcher=serial"]) == 0
    (folder,) = tmp_path.glob("runs/sweeps/*")
    text = (folder / "answer.md").read_text()
    (folder / "answer.md").write_text(text.replace("<!-- finding -->\n", "<!-- finding -->\nIt does not.\n", 1))
    capsys.readouterr()
    for what in (folder, "mine"):
        assert main(["compare", str(what), "--runs", f"{tmp_path}/runs"]) == 0
        assert "It does not." in (folder / "answer.md").read_text()
        assert "p4" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "runs")]) == 0
    assert "model.patch=4" in capsys.readouterr().out
    assert (tmp_path / "runs" / "comparison" / "answer.md").is_file()
    runs = sorted(str(path.parent) for path in tmp_path.glob("runs/*/config.yaml"))
    assert main(["compare", *runs[:2], "--out", f"{tmp_path}/out", "--metric", "val/loss"]) == 0
    assert (tmp_path / "out" / "answer.html").is_file()
    record = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps(record | {"cells": [3]}))
    assert main(["compare", str(folder)]) == 2
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["nothing_of_that_name", "no/such/folder"])
def test_comparing_what_is_not_there_is_one_sentence(tmp_path, capsys, what):
    assert main(["compare", what, "--runs", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# --- what is trained first, and values that validation chooses ------------------------------------------------------

STAGED = f"""\
question: What does a start from other images give?
baseline: [{TINY}, tracking=off, patch=p4, init=pretrain/large, init.head=new]
pretrain:
  large: [dataset.image_size=16, fit.epochs=2]
arms:
  large: init=pretrain/large
  bicubic: init.positions=bicubic
  chance: [init=chance, "optimizer.lr=1e-3,2e-3"]
seeds: [0, 1]
"""


def test_each_seed_starts_from_the_run_of_its_own_seed_and_they_are_one_cell(file, tmp_path):
    file.write_text(STAGED)
    plan = planned(file, f"system.runs={tmp_path}")
    (first,) = plan.pretrain
    before = {job.seed: job.run.folder for job in plan.jobs if job.name == "pretrain/large"}
    starts = [job for job in plan.jobs if job.after]
    assert len(starts) == 4
    for job in starts:
        assert job.after.folder == before[job.seed]
        assert f"init={before[job.seed]}" in job.words
        assert f"init.origin={first.identity}" in job.words
        node = check(compose(job.words)[0])
        assert job.run.folder.name.endswith(f"-{identity.identity(node)}")
        assert identity.cell_identity(node) in {cell.identity for cell in plan.cells}
    elsewhere = planned(file, f"system.runs={tmp_path}/other")
    assert [cell.identity for cell in elsewhere.cells] == [cell.identity for cell in plan.cells]
    assert [job.name for job in plan.jobs[:1]] == ["pretrain/large"]
    assert [[job.after is None for job in wave] for wave in waves(plan.jobs)] == [[True] * 6, [False] * 4]


@pytest.mark.slow
def test_a_sweep_trains_what_its_arms_start_from_and_compares_the_rest(file, tmp_path, capsys):
    file.write_text(STAGED)
    assert main(["sweep", str(file), "launcher=serial", f"system.runs={tmp_path}/runs"]) == 0
    said = capsys.readouterr().out
    assert "10 runs of 4 cells" in said
    assert "resized: positions.0.table 17x8 to 5x8" in said
    (answer,) = tmp_path.glob("runs/sweeps/*/answer.md")
    text = answer.read_text()
    names = [line.split("|")[1].strip(" *") for line in text.split("\n") if line.startswith("| ")]
    assert names[2:4] == ["large (baseline)", "bicubic"]
    assert names[4].startswith("chance, lr=")
    assert "## What was tried" in text
    assert "**command of pretrain/large, trained before:**" in text
    assert "in 10 runs" in text
    assert main(["sweep", str(file), "launcher=serial", f"system.runs={tmp_path}/runs"]) == 0
    assert "10 finished already" in capsys.readouterr().out
    assert answer.read_text() == text


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("init=pretrain/large]", "init=pretrain/larg]", "there is no pretrain.larg; there is large"),
        ("dataset.image_size=16,", "model.width=16,", "tensors do not fit"),
        ("fit.epochs=2]", "'optimizer.lr=1e-3,2e-3']", "several values for one run"),
        ("arms:", "metric: inference/images_per_second\narms:", "nothing is trained for it"),
        ("arms:", "search: {method: grid, trials: 1, space: {seed: [1]}}\narms:", "search"),
    ],
)
def test_what_cannot_be_trained_first_is_refused_before_anything_is_trained(file, tmp_path, capsys, old, new, why):
    file.write_text(STAGED.replace(", init.head=new]", "]").replace(old, new, 1))
    assert main(["sweep", str(file), f"system.runs={tmp_path}/runs"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{file}, line " in said
    assert why in said
    assert not (tmp_path / "runs").exists()


def test_what_a_cell_starts_from_only_its_sweep_can_train(file, capsys):
    file.write_text(STAGED)
    assert main(["train", f"cell={file}/bicubic"]) == 2
    assert "starts from pretrain/large, which the sweep trains before it" in capsys.readouterr().err
    assert main(["sweep", "export", str(file), "--wandb"]) == 2
    assert "which W&B would not train first" in capsys.readouterr().err


# --- what is measured instead ---------------------------------------------------------------------------------------

COST = """\
question: How fast?
metric: inference/images_per_second
baseline: [dataset=synthetic, dataset.examples=40, dataset.image_size=8, fit.batch_size=16, patch=p4, tracking=off]
arms: {small: model=micro, deep: model.depth=4}
x: model.depth
seeds: [0, 1]
"""


@pytest.mark.slow
def test_a_sweep_of_speed_measures_its_cells_and_trains_nothing(file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cells, "BATCHES", (1, 4))
    monkeypatch.setattr(cells, "peak_bytes", lambda work: 2**20 * (100 + work.batch))
    file.write_text(COST)
    assert main(["sweep", str(file), "--dry"]) == 0
    assert capsys.readouterr().out.count("\nvitlab bench ") == 2
    assert main(["sweep", str(file), f"system.runs={tmp_path}/runs"]) == 0
    said = capsys.readouterr().out
    assert "2 cells in 2 rounds" in said
    assert "the largest 16,284" in said.replace("the largest 16284", "the largest 16,284")  # 16 GiB less 100 MiB
    (folder,) = tmp_path.glob("runs/sweeps/*")
    lines = json.loads((folder / "measured.json").read_text())["lines"]
    assert len(lines) == 4
    assert all(line["inference/images_per_second"] > 0 for line in lines)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["sweeps"]
    answer = (folder / "answer.md").read_text()
    assert main(["compare", str(folder)]) == 0
    assert (folder / "answer.md").read_text() == answer
    assert "largest batch" in answer
    assert "of measuring in 4 runs" in answer


# --- folds --------------------------------------------------------------------------------------------------------


def folded(file, more="folds: 3", old="seeds: [0, 1]", new="seeds: [0, 1]"):
    file.write_text(FILE.replace(old, new) + f"{more}\n")
    return file


def test_every_fold_is_trained_with_every_seed_and_they_are_one_cell(file, tmp_path):
    plan = planned(folded(file), f"system.runs={tmp_path}")
    first = [(job.name, job.fold, job.seed) for job in plan.jobs[:4]]
    assert first == [("p2", 0, 0), ("p4", 0, 0), ("p2", 1, 0), ("p4", 1, 0)]
    assert len({job.run.folder for job in plan.jobs}) == 2 * 3 * 2
    for job in plan.jobs:
        node = check(compose(job.words)[0])
        assert (node["dataset"]["folds"], node["dataset"]["fold"], node["seed"]) == (3, job.fold, job.seed)
        assert job.run.folder.name.endswith(f"-{identity.identity(node)}")
        assert identity.cell_identity(node) == plan.cells[job.name == "p4"].identity
    assert str(plan.jobs[2]) == "p2, fold 1, seed 0"
    assert {cell["folds"] for cell in plan.record()["cells"].values()} == {3}


@pytest.mark.parametrize(
    ("more", "words", "folds"),
    [
        ("axes: {dataset.fold: [0, 1, 2]}", ["dataset.folds=3"], {0, 1, 2}),
        ("axes: {dataset.fold: [2, 0]}", ["dataset.folds=3"], {0, 2}),
        ("", ["dataset.folds=3"], {0, 1, 2}),
        ("folds: 3", ["dataset.fold=1"], {None}),
        ("", [], {None}),
    ],
)
def test_folds_are_those_of_the_dataset_or_of_an_axis(file, more, words, folds):
    jobs = planned(folded(file, more), *words).jobs
    assert {job.fold for job in jobs} == folds
    assert len(jobs) == 4 * len(folds)
    assert {compose(job.words)[0]["dataset"]["fold"] for job in jobs} == (
        {1} if "dataset.fold=1" in words else {f or 0 for f in folds}
    )


@pytest.mark.parametrize(
    ("more", "old", "new", "why"),
    [
        ("axes: {dataset.fold: [0, 1]}", "", "", r"line 8: dataset.fold=0, 1: \w+ has dataset.folds=null: give `folds"),
        ("folds: 1", "", "", "dataset.folds=1: must be at least 2"),
        ("folds: few", "", "", "line 8: folds=few: expected a whole number"),
        ("folds: 3", "p4: patch=p4", "p4: [patch=p4, 'optimizer.lr=1e-3,1e-2']", "chooses values by validation images"),
        (
            "folds: 3\nsearch: {method: random, trials: 2, space: {optimizer.lr: [1e-3, 1e-2]}}",
            "",
            "",
            "other folds test",
        ),
        ("folds: 3", "x: patch.size", "metric: inference/images_per_second", "nothing is trained for it"),
    ],
)
def test_folds_that_cannot_be_asked_are_refused(file, more, old, new, why):
    with pytest.raises(VitlabError, match=why):
        planned(folded(file, more, old or "seeds", new or "seeds"))


def test_each_fold_starts_from_a_training_that_has_not_seen_its_test_images(file, tmp_path):
    pretrain = "folds: 2\npretrain: {before: model/objective=masked_patch}"
    folded(file, pretrain, "p4: patch=p4", "p4: init=pretrain/before")
    jobs = planned(file, f"system.runs={tmp_path}").jobs
    after = {job.run.folder: job for job in jobs}
    started = [job for job in jobs if job.after]
    assert len(started) == 4
    for job in started:
        assert jobs.index(after[job.after.folder]) < jobs.index(job)
        assert (after[job.after.folder].fold, after[job.after.folder].seed) == (job.fold, job.seed)


@pytest.mark.slow
def test_a_sweep_over_folds_says_over_what_its_means_are(file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folded(file, "folds: 2", TINY, TINY.replace("fit.epochs=4", "fit.steps=1"))
    words = ["sweep", str(file), "seeds=0", "launcher=serial"]
    assert main([*words, "--dry"]) == 0
    assert capsys.readouterr().out.count(" seed=0 dataset.fold=1\n") == 2
    assert main(words) == 0
    text = next(tmp_path.glob("runs/sweeps/*/answer.md")).read_text()
    assert len(re.findall(r"\| +\**2 folds\** \|", text)) == 2
    assert "over n folds" in text
    assert "paired by fold" in text
    assert "Nadeau and Bengio" in text
    page = next(tmp_path.glob("runs/sweeps/*/answer.html")).read_text()
    assert '"fold":"fold 1, "' in page
    capsys.readouterr()
    assert main(["compare", "runs"]) == 0
    assert capsys.readouterr().out.count(" 2 folds ") == 2


def test_what_is_passed_over_is_said_once_a_dataset(tmp_path, capsys):
    for name, n in (("cat", 24), ("dog", 18), ("fish", 4)):
        write_images(tmp_path / "pets", [name], n=n)
    (tmp_path / "pets" / "cat" / "x.heic").touch()
    words = f"dataset=image_folder, dataset.root={tmp_path}/pets, dataset.image_size=16, patch=p8, fit.batch_size=8"
    (tmp_path / "q.yaml").write_text(
        f"question: Which?\nbaseline: [{words}, system.runs={tmp_path}]\narms: {{a: optimizer.lr=0.1}}\nseeds: [0, 1]\n"
    )
    assert main(["sweep", str(tmp_path / "q.yaml"), "--dry"]) == 0
    said = capsys.readouterr().out
    assert said.count("passed over 1 file that is no image Pillow reads (.heic)") == 1
    assert said.count("files       the validation images have none of fish: give dataset.validation_fraction=0.35") == 1
