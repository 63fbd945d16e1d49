"""`--until` adds seeds until every difference is known well enough, and goes on where it was stopped."""

import json
from functools import partial

import numpy as np
import pytest

from vitlab.__main__ import main
from vitlab.cli.launch import Launcher
from vitlab.report import answer as answers

pytestmark = pytest.mark.usefixtures("no_curves", "no_figures")

TINY = "dataset.train_examples=60, model.width=8, model.depth=1, model.heads=1, fit.steps=2, fit.batch_size=8"
FILE = f"""\
question: Does it matter?
baseline: [{TINY}, tracking=off]
arms:
  p2: patch=p2
  p4: patch=p4
  p8: patch=p8
seeds: [0, 1, 4]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(answers, "write", partial(answers.write, pictures=False))


@pytest.fixture
def trained(monkeypatch):
    """The numbers of seeds that were trained; scores are made up, with a deviation of 1 point."""
    numbers, stops = [], {}

    def train(self, plan):
        numbers.append(len(plan.question.seeds))
        for place, cell in enumerate(plan.cells):
            for job in plan.jobs_of(cell):
                job.run.folder.mkdir(parents=True, exist_ok=True)
                job.run.config.write_text(f"seed: {job.seed}\n")
                score = 0.8 + 0.01 * np.random.default_rng([0, place, job.seed]).normal()
                scores = {"test/accuracy": score, "val/accuracy": score, "seconds": 1.0}
                job.run.write_result({"status": "finished", "cell": cell.identity, "seed": job.seed, **scores})
        return stops.pop(numbers[-1], 0)

    monkeypatch.setattr(Launcher, "train", train)
    return numbers, stops


def sweep(file, *words):
    return main(["sweep", str(file), f"system.runs={file.parent}/runs", *map(str, words)])


def answer(file):
    (folder,) = file.parent.glob("runs/sweeps/*")
    return json.loads((folder / "sweep.json").read_text()), (folder / "answer.md").read_text()


@pytest.mark.parametrize(
    ("until", "most", "seeds", "said"),
    [
        (6, 12, [3], "3 seeds: the widest interval of a difference is ± 5.3 points, narrow enough"),
        (2, 12, [3, 6, 12], "12 seeds: the widest interval of a difference is ± 1.7 points, narrow enough"),
        (1, 8, [3, 6, 8], "8 seeds: the widest interval of a difference is ± 2.1 points, and no more seeds are planned: give --most-seeds N"),  # noqa: E501
    ],
)  # fmt: skip
def test_seeds_are_added_until_every_interval_is_narrow_or_the_most_are_trained(
    file, trained, capsys, until, most, seeds, said
):
    assert sweep(file, "--until", until, "--most-seeds", most) == 0
    assert trained[0] == seeds
    out = capsys.readouterr().out
    assert said in out
    assert out.count("; trains up to ") == len(seeds) - 1
    record, text = answer(file)
    assert record["seeds"] == [0, 1, 4, 2, 3, 5, 6, 7, 8, 9, 10, 11][: seeds[-1]]
    assert f"of 3 planned looks, at 3, 6, {most} seeds, {len(seeds)} w" in text
    assert "at 98.33 % each (Bonferroni over the planned looks)" in text
    assert f"--until {until} --most-seeds {most}" in text
    assert main(["compare", "mine", "--runs", f"{file.parent}/runs"]) == 0
    assert answer(file)[1] == text


def test_the_same_command_goes_on_where_a_sweep_was_stopped(file, trained, capsys):
    numbers, stops = trained
    stops[6] = 130
    assert sweep(file, "--until", 2, "--most-seeds", 12) == 130
    assert "The same command continues" in capsys.readouterr().out
    assert sweep(file, "--until", 2, "--most-seeds", 12) == 0
    assert numbers == [3, 6, 3, 6, 12]
    assert answer(file)[0]["looks"] == [3, 6, 12]


def test_after_a_failed_training_no_seeds_are_added(file, trained, capsys):
    numbers, stops = trained
    stops[6] = 1
    assert sweep(file, "--until", 0.1, "--most-seeds", 12) == 1
    assert numbers == [3, 6]
    assert "a training has failed: no seeds are added" in capsys.readouterr().out
    assert "2 were made" in answer(file)[1]


def test_dry_says_what_it_would_do(file, trained, capsys):
    assert sweep(file, "--dry", "--until", 2, "--most-seeds", 12) == 0
    said = capsys.readouterr().out
    assert said.count("\nvitlab train ") == 9
    assert "known to ± 2 points, at most 12 (36 runs): looks at 3, 6, 12 seeds, intervals at 98.33 % each" in said
    assert "how many it will take is not known" in said
    assert not trained[0]
    assert sweep(file) == 0
    capsys.readouterr()
    assert sweep(file, "--dry", "--until", 2, "--most-seeds", 12) == 0
    assert "it will take about 12, with the standard deviation of 3 cells of this sweep" in capsys.readouterr().out
    assert sweep(file, "--dry", "--until", 0.1, "--most-seeds", 12) == 0
    assert "it will take more than that (± " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words", "why"),
    [
        ("", ["--most-seeds", 12], "--most-seeds 12: no seeds are added: give --until POINTS as well"),
        ("", ["--until", 0], "0 is no width: give points above 0"),
        ("", ["--until", "nan"], "nan is no width"),
        ("", ["--until", 1, "--most-seeds", 3], "it has 3 seeds, and --most-seeds 3 adds none: give more"),
        ("folds: 3\n", ["--until", 1], "mine has folds, whose interval seeds do not narrow: give more folds"),
        ("metric: inference/images_per_second\n", ["--until", 1], "mine trains nothing, its rounds are measured"),
        ("search: {method: random, trials: 2, space: {optimizer.lr: {log: [1e-4, 1e-2]}}}\n", ["--until", 1], "mine searches, and what it finds is chosen by one seed"),  # noqa: E501
    ],
)  # fmt: skip
def test_where_seeds_narrow_nothing_it_is_refused(file, capsys, text, words, why):
    file.write_text(FILE + text)
    assert sweep(file, *words) == 2
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1
    assert not (file.parent / "runs").exists()


def test_a_sweep_of_one_arm_is_refused(file, capsys):
    file.write_text(FILE.replace("arms:\n  p2: patch=p2\n  p4: patch=p4\n  p8: patch=p8\n", ""))
    assert sweep(file, "--until", 1) == 2
    assert "mine has one arm, and no difference to know" in capsys.readouterr().err


def test_real_runs_are_added_and_kept(file):
    """Two steps of training each: no interval is narrow."""
    words = ["seeds=3", "--until", 1e-6, "--most-seeds", 2, "launcher=serial"]
    file.write_text(FILE.replace("  p8: patch=p8\n", ""))
    assert sweep(file, *words) == 0
    record, text = answer(file)
    assert (record["seeds"], record["looks"]) == ([3, 0], [1, 2])
    assert "seeds=3 " in text
    assert "--until 1e-06 --most-seeds 2" in text
    results = {path: path.stat().st_mtime_ns for path in file.parent.glob("runs/*/result.json")}
    assert len(results) == 4
    assert sweep(file, *words) == 0
    assert results == {path: path.stat().st_mtime_ns for path in file.parent.glob("runs/*/result.json")}
