"""A run is not taken for one of other images: not by train, sweep, evaluate, probe nor compare."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.disk import write_images
from vitlab.__main__ import main
from vitlab.report.comparison import compare
from vitlab.storage import checkpoint
from vitlab.storage.run import Run
from vitlab.storage.runs_table import runs

pytestmark = pytest.mark.usefixtures("no_figures", "no_curves")

SMALL = ["dataset=image_folder", "dataset.root=photos", "dataset.image_size=8", "patch=p4", "model.width=8"]
SMALL += ["model.depth=1", "model.heads=1", "fit.steps=2", "fit.batch_size=8", "fit.precision=fp32", "tracking=off"]


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("trained"), Path.cwd()
    os.chdir(folder)
    write_images(folder / "photos", n=20)
    assert main(["train", *SMALL]) == 0
    os.chdir(before)
    return folder


@pytest.fixture
def run(trained_once, tmp_path, monkeypatch):
    """A finished run, and its images in photos/, which nothing else uses."""
    shutil.copytree(trained_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (found,) = Path("runs").iterdir()
    return Run(found)


def interrupt(run):
    run.write_result({"status": "interrupted", "seed": 0})


def more(root="photos"):
    write_images(Path(root) / "cat" / "more", classes=("",), n=20)


def rename(root="photos"):
    (Path(root) / "cat").rename(Path(root) / "zebra")


def test_a_run_whose_images_are_those_of_before_is_finished(run, capsys):
    assert json.loads(run.data.read_text())["splits"]["train"]["images"] == {"cat": 20, "dog": 20}
    assert main(["train", *SMALL]) == 0
    assert capsys.readouterr().out.startswith("This run is finished already; ")


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [(more, "since then 20 images more"), (rename, "since then class cat is now called zebra")],
)
def test_a_run_of_other_images_is_neither_finished_nor_continued(run, capsys, change, words, stopped):
    if stopped:
        interrupt(run)
    change()
    before = run.last.read_bytes()
    assert main(["train", *SMALL]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "system.retrain=true" in error
    assert error.count("\n") == 1
    assert run.last.read_bytes() == before
    assert main(["train", *SMALL, "system.retrain=true"]) == 0
    assert "run is kept as runs/" in capsys.readouterr().out
    assert len([*Path("runs").iterdir()]) == 2
    assert run.result()["status"] == "finished"
    assert main(["train", *SMALL]) == 0
    assert "finished already" in capsys.readouterr().out


def test_who_asks_for_it_goes_on_with_other_images(run, capsys):
    more()
    before = run.data.read_text()
    assert main(["train", *SMALL, "system.changed_data=true"]) == 0
    assert "finished already, and was trained on other images; since then 20 images more; " in capsys.readouterr().out
    interrupt(run)
    assert main(["train", *SMALL, "system.changed_data=true"]) == 0
    said = capsys.readouterr()
    assert "the run was trained on other images; since then 20 images more" in said.out + said.err
    assert run.result()["status"] == "finished"
    assert run.data.read_text() == before


@pytest.mark.parametrize("earlier", [False, True])
def test_labels_are_never_exchanged(run, capsys, earlier):
    """Not where it was asked for, and not in a run of a version that kept no fingerprint."""
    rename()
    interrupt(run)
    if earlier:
        run.data.unlink()
        state = checkpoint.load(run.last)
        del state["classes"]
        checkpoint.save(run.last, state)
    words = [] if earlier else ["system.changed_data=true"]
    assert main(["train", *SMALL, *words]) != 0
    said = capsys.readouterr()
    assert "cat is now dog, dog is now zebra" in said.out + said.err


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on_as_before(run, capsys):
    run.data.unlink()
    more()
    assert main(["train", *SMALL]) == 0
    assert "finished already; " in capsys.readouterr().out
    interrupt(run)
    assert main(["train", *SMALL]) == 0
    assert run.result()["status"] == "finished"
    assert not run.data.exists()
    assert main(["evaluate", str(run.folder)]) == 0


def test_a_run_without_a_checkpoint_begins_with_the_images_of_today(run):
    interrupt(run)
    for path in run.checkpoints():
        path.unlink()
    more()
    assert main(["train", *SMALL]) == 0
    assert json.loads(run.data.read_text())["splits"]["train"]["images"] == {"cat": 40, "dog": 20}


@pytest.mark.parametrize("command", ["evaluate", "probe"])
def test_what_was_trained_on_is_not_tested_on(run, capsys, command):
    words = ["--shots", "1"] if command == "probe" else []
    shutil.copytree("photos", "disk/copy")
    more()
    assert main([command, str(run.folder), *words]) == 2
    error = capsys.readouterr().err
    assert "since then 20 images more" in error
    assert "--changed-data" in error
    assert main([command, str(run.folder), *words, "--changed-data"]) == 0
    assert main([command, str(run.folder), *words, "--root", "disk/copy"]) == 0  # the same images elsewhere


SWEEP = """question: Does the seed matter?
baseline: [{words}]
arms: {{wide: model.width=16}}
seeds: [0]
"""


@pytest.mark.slow
def test_a_sweep_does_not_reuse_runs_of_other_images(run, capsys):
    Path("mine.yaml").write_text(SWEEP.format(words=", ".join(SMALL)))
    sweep = ["sweep", "mine.yaml", "launcher=serial", "system.device=cpu"]
    assert main(sweep) == 0
    assert "2 runs of 2 cells; 1 finished already" in capsys.readouterr().out
    listed = {json.loads(path.read_text())["hash"] for path in Path("runs").glob("*/data.json")}
    assert len(listed) == 1
    more()
    assert main(sweep) == 2
    error = capsys.readouterr().err
    assert "2 of the runs are of other images or code" in error
    assert "since then 20 images more: system.retrain=true" in error
    assert main([*sweep, "--dry"]) == 0
    assert capsys.readouterr().out.count("# was trained on other images; since then 20 images more") == 2
    assert main([*sweep, "system.changed_data=true"]) == 0
    assert "2 finished already" in capsys.readouterr().out
    assert main([*sweep, "system.retrain=true"]) == 0
    assert "0 finished already" in capsys.readouterr().out
    assert main(sweep) == 0
    assert "2 finished already" in capsys.readouterr().out
    assert len([*Path("runs").glob("*.20*")]) == 2


@pytest.mark.slow
def test_a_comparison_says_that_it_mixes_images(run, capsys):
    assert main(["train", *SMALL, "seed=1"]) == 0
    table = runs("runs")
    assert len(set(table["data"])) == 1
    assert not [note for note in compare(table).notes if "different images" in note]
    more()
    assert main(["train", *SMALL, "seed=2"]) == 0
    assert len([note for note in compare(runs("runs")).notes if "trained on different images" in note]) == 1
    assert main(["compare", "runs"]) == 0
