"""Whole stories, through the commands that users type."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.test_dataset import write_images
from vitlab.__main__ import main

TINY = ["tracking=off", "dataset.train_examples=40", "model.width=8", "model.depth=1", "model.heads=1", "fit.steps=2"]
TINY += ["fit.batch_size=8"]


def train(tmp_path, *words):
    return main(["train", *TINY, f"system.runs={tmp_path}/runs", *words])


def vitlab(*words, **environment):
    environ = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-m", "vitlab", *words], capture_output=True, text=True, env=environ, check=False
    )


@pytest.mark.slow
def test_the_main_job_learns_digits(tmp_path, capsys):
    """The README's first command, end to end: at least 97 % of the test images, and everything on disk."""
    done = vitlab("train", f"system.runs={tmp_path}", WANDB_MODE="offline", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("digits-*")
    result = json.loads((folder / "result.json").read_text())
    assert result["test/accuracy"] >= 0.97
    assert result["status"] == "finished"
    assert "validation 100.0 %" in done.stdout or "validation 9" in done.stdout
    assert f"vitlab evaluate {folder}" in done.stdout
    assert "\r" not in done.stdout
    assert main(["evaluate", str(folder)]) == 0
    again = capsys.readouterr().out
    assert f"{result['test/accuracy']:.6f}" in again
    assert again.count("(as recorded)") == 2


@pytest.mark.slow
def test_the_same_command_finds_the_run_finished_and_retrain_keeps_the_old_one(tmp_path, capsys):
    assert train(tmp_path) == 0
    before = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "runs").glob("*/*")}
    capsys.readouterr()
    assert train(tmp_path) == 0
    said = capsys.readouterr().out
    assert "finished already; system.retrain=true" in said
    assert {f.name: f.stat().st_mtime_ns for f in (tmp_path / "runs").glob("*/*")} == before
    assert train(tmp_path, "system.retrain=true") == 0
    assert "is kept as" in capsys.readouterr().out
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.slow
def test_a_multirun_trains_every_combination_and_leaks_nothing(tmp_path):
    assert train(tmp_path, "-m", "seed=0,1", "model/pool=cls,gap") == 0
    results = {f.parent.name: json.loads(f.read_text()) for f in (tmp_path / "runs").glob("*/result.json")}
    assert len(results) == 4
    alone = tmp_path / "alone"
    assert train(alone, "seed=1", "model/pool=gap") == 0
    (single,) = (alone / "runs").glob("*/result.json")
    for key in ("test/loss", "val/loss"):
        assert results[single.parent.name][key] == json.loads(single.read_text())[key]


def test_one_bad_cell_stops_a_multirun_before_its_first_run(tmp_path, capsys):
    assert train(tmp_path, "-m", "model.heads=1,3") == 2
    assert "heads=3 does not divide width=8" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["model=tyni"],
        ["optimizer.lrr=1"],
        ["model.depth=abc"],
        ["model.depth=[1,2]"],
        ["patch=p7"],
        ["model.heads=3"],
        ["schedule.warmup_steps=99"],
        ["dataset=mnist", "dataset.root=nowhere"],
        ["dataset=image_folder", "dataset.root=nowhere"],
        ["fit.batch_size=41"],
        ["system.device=cuda:9"],
        ["system.runs=/proc/no"],
        ["a=b=c=d", "model.width"],
        ["patch=p1,p2"],
        ["model.width={}"],
        ["seed=null"],
        ["model=null"],
        ["~model"],
        ["dataset=[digits]"],
    ],
)
def test_bad_input_is_one_sentence_and_exit_status_2(tmp_path, capsys, words):
    assert train(tmp_path, *words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("vitlab: ")
    assert said.err.count("\n") == 1, said.err
    assert not list(tmp_path.glob("runs/*"))


def test_a_loss_that_is_no_number_is_a_failed_run_with_a_sentence(tmp_path, capsys):
    words = ["optimizer=sgd", "optimizer.lr=1e20", "fit.clip=null", "fit.steps=20"]
    assert train(tmp_path, *words) == 1
    assert "vitlab: the loss is NaN or infinite at step" in capsys.readouterr().out
    (file,) = (tmp_path / "runs").glob("*/result.json")
    assert json.loads(file.read_text())["status"] == "failed"


def test_a_few_steps_show_that_everything_works(tmp_path):
    assert main(["train", "fit=debug", "tracking=off", f"system.runs={tmp_path}/runs"]) == 0
    (file,) = (tmp_path / "runs").glob("*/result.json")
    assert json.loads(file.read_text())["steps"] == 6


@pytest.mark.slow
def test_a_folder_of_ones_own_images_trains(tmp_path):
    write_images(tmp_path / "images", n=30)
    words = ["dataset=image_folder", f"dataset.root={tmp_path}/images", "dataset.image_size=16", "patch=p4"]
    assert train(tmp_path, *words, "augment=randaugment", "dataset.train_examples=30") == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert main(["evaluate", str(folder)]) == 0


def test_an_image_that_cannot_be_read_is_named_and_nothing_is_written(tmp_path, capsys):
    write_images(tmp_path / "images", n=30)
    (tmp_path / "images" / "cat" / "bad.jpg").write_bytes(b"no image")
    words = ["dataset=image_folder", f"dataset.root={tmp_path}/images", "dataset.image_size=16", "patch=p4"]
    assert train(tmp_path, *words) == 2
    assert "cat/bad.jpg is not a readable image" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_help_is_the_menu():
    done = vitlab("train", "--help")
    assert done.returncode == 0
    for word in ("model/position=", "rope", "dataset=", "fashion_mnist", "+experiment="):
        assert word in done.stdout


def test_the_composition_can_be_looked_at_without_training(tmp_path):
    done = vitlab("train", "--cfg", "job", "patch=p4", "fit.steps=3")
    assert done.returncode == 0, done.stderr
    assert "  patch: 4" in done.stdout
    assert "epochs: null" in done.stdout


@pytest.mark.parametrize(("words", "status"), [([], 0), (["--help"], 0), (["--version"], 0), (["trian"], 2)])
def test_the_bare_command_lists_the_commands(words, status, capsys):
    assert main(words) == status
    said = capsys.readouterr()
    assert "train" in said.out or words == ["--version"] or "did you mean train" in said.err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vitlab tr", "train"),
        ("vitlab train patch=", "patch=p16"),
        ("vitlab data dataset=ci", "dataset=cifar10"),
        ("vitlab train model/pos", "model/position="),
    ],
)
def test_the_tab_key_completes(line, expected):
    done = vitlab("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


def test_every_command_of_the_sweeps_page_composes():
    from vitlab.config.check import check
    from vitlab.config.compose import compose

    page = (Path(__file__).parent.parent / "sweeps" / "README.md").read_text()
    commands = re.findall(r"^vitlab train (.*)$", page, flags=re.MULTILINE)
    assert commands
    for line in commands:
        words = [word for word in line.partition("#")[0].split() if word != "-m"]
        check(compose([re.sub(r"=([^,\[]*),.*", r"=\1", word) for word in words])[0])


def test_the_main_job_on_a_gpu(tmp_path, accelerator):
    assert main(["train", "tracking=off", f"system.runs={tmp_path}", f"system.device={accelerator.type}"]) == 0
    (result,) = tmp_path.glob("digits*/result.json")
    assert json.loads(result.read_text())["peak_memory_bytes"] > 0
