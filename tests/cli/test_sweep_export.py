"""A sweep in Weights & Biases: its agents train the runs that `vitlab sweep` would; its table is a run there."""

import shlex

import pytest
import yaml

from tests.processes import until
from vitlab.__main__ import main
from vitlab.cli import train
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.identity import identity
from vitlab.config.overrides import complete
from vitlab.report import comparison, wandb_report
from vitlab.storage import runs_table
from vitlab.sweep.plan import plan
from vitlab.sweep.reader import read

SCHEMA = {"name", "description", "project", "method", "metric", "command", "parameters", "run_cap", "early_terminate"}
TINY = "dataset.train_examples=40, model.width=8, model.depth=1, model.heads=1, fit.steps=2, fit.batch_size=8"
STAR = f"question: q?\nbaseline: [{TINY}, patch=p2]\narms:\n  p2: patch=p2\n  p4: patch=p4\nseeds: [0, 1]\n"
GRID = f"question: q?\nbaseline: [{TINY}]\naxes:\n  optimizer.lr: [5e-3, 1e-3]\n  fit.patience: [null, 3]\nseeds: [4]\n"
MIXED = f"question: q?\nbaseline: [{TINY}]\nseeds: [0]\n"
MIXED += "arms:\n  a, b=c: [model/pool=gap, augment.erase=0.1]\n  d: patch=p1\n"


def exported(tmp_path, text, *words):
    file, out = tmp_path / "mine.yaml", tmp_path / "wandb.yaml"
    file.write_text(text)
    assert main(["sweep", "export", str(file), "--wandb", "--out", str(out), *words]) == 0
    return file, yaml.safe_load(out.read_text())


def commands(written):
    """What W&B's agent would start for every combination, by its own functions."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    cells = [{}]
    for name, of in written["parameters"].items():
        cells = [{**cell, name: {"value": value}} for cell in cells for value in of["values"]]
    for cell in cells:
        line = create_sweep_command([*written["command"]])
        args = create_sweep_command_args({"args": cell})
        words = []
        for word in line:
            words += (
                args["args_no_hyphens"] if word == "${args_no_hyphens}" else ["env"] if word == "${env}" else [word]
            )
        assert words[:3] == ["env", "vitlab", "train"]
        yield words[3:]


def identities(lines):
    found = set()
    for words in lines:
        node, _ = compose(complete(train.unfold(list(words))))
        assert node["tracking"]["sweep"] == "mine"
        found.add(identity(check(node)))
    return found


@pytest.mark.parametrize("text", [STAR, GRID, MIXED, f"{STAR}folds: 2\n", f"{MIXED}folds: 2\n"])
def test_the_agents_train_the_runs_of_the_sweep(tmp_path, text):
    file, written = exported(tmp_path, text)
    assert set(written) <= SCHEMA
    ours = {job.run.folder.name.rpartition("-")[2] for job in plan(read(file)).jobs}
    assert identities(commands(written)) == ours


def test_a_grid_has_a_parameter_a_key_and_a_star_of_many_keys_one_of_names(tmp_path):
    _, star = exported(tmp_path, STAR)
    assert set(star["parameters"]) == {"patch", "seed"}
    _, grid = exported(tmp_path, GRID)
    assert grid["parameters"]["optimizer.lr"] == {"values": [5e-3, 1e-3]}
    assert grid["parameters"]["fit.patience"] == {"values": ["null", 3]}
    _, mixed = exported(tmp_path, MIXED)
    assert set(mixed["parameters"]) == {"cell", "seed"}
    assert not any(set(value.rpartition("/")[2]) & set("=, ") for value in mixed["parameters"]["cell"]["values"])


def test_a_search_keeps_its_distributions(tmp_path):
    text = f"question: q?\nbaseline: [{TINY}]\nseeds: [0]\nsearch:\n  method: tpe\n  trials: 7\n  space:\n"
    text += "    optimizer.lr: {log: [1e-4, 1e-2]}\n    model.depth: {int: [1, 3]}\n    model/pool: [cls, gap]\n"
    _, written = exported(tmp_path, text)
    assert (written["method"], written["run_cap"]) == ("bayes", 7)
    assert written["metric"] == {"name": "val/accuracy", "goal": "maximize"}
    assert written["parameters"]["optimizer.lr"] == {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}
    assert written["parameters"]["model.depth"] == {"distribution": "int_uniform", "min": 1, "max": 3}
    assert written["parameters"]["model/pool"] == {"values": ["cls", "gap"]}


@pytest.mark.slow
def test_the_exported_command_lines_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, written = exported(tmp_path, MIXED, "tracking=off", "fit.steps=1")
    lines = list(commands(written))
    assert len(lines) == 3
    for words in lines:
        assert main(["train", *words]) == 0, shlex.join(words)
    assert len(list(tmp_path.glob("runs/*/best.safetensors"))) == 3


@pytest.mark.parametrize(
    "words", [["nothing", "--wandb"], ["patch_size", "--wandb", "scale=none"], ["patch_size", "--wandb", "x=1"]]
)
def test_what_cannot_be_exported_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "export", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("said", ["patch_size", "patch_size/p9", "nothing/p1", "patch_size/none/p1"])
def test_a_cell_that_is_not_there_is_refused_in_one_sentence(tmp_path, capsys, said):
    assert main(["train", f"cell={said}", "seed=0", f"system.runs={tmp_path}/runs"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_comparison_is_a_run_of_its_own_and_its_failure_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = ["tracking=off", f"system.runs={tmp_path}/runs", *TINY.split(", ")]
    assert main(["train", *words]) == 0
    found = comparison.compare(runs_table.runs(tmp_path / "runs"))
    wandb_report.send({"name": "mine"}, found, tmp_path)
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    (file,) = folder.glob("*.wandb")
    until(lambda: b"comparison" in file.read_bytes())  # W&B's own process writes it
    data = file.read_bytes()
    assert b"sweep=mine" in data
    assert list(folder.glob("files/media/table/comparison*.table.json"))
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb_report, "logged_in", lambda: (_ for _ in ()).throw(RuntimeError("no network")))
    wandb_report.send({"name": "mine"}, found, tmp_path)
    assert "Weights & Biases failed (no network)" in capsys.readouterr().out
