"""Weights & Biases' own environment variables, heard where tracking's values leave something open."""

import os
import subprocess
import sys

import pytest

from tests.tracking.test_tracker import offline_records
from tests.training.test_loop import fit
from vitlab.__main__ import main
from vitlab.cli.run import with_names
from vitlab.config.build import assemble
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError
from vitlab.config.identity import slug
from vitlab.storage.run import Run
from vitlab.tracking import options
from vitlab.tracking.wandb_mirror import Mirror

pytestmark = pytest.mark.usefixtures("no_curves", "no_figures")

KEY = "0123456789012345678901234567890123456789"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_") and name not in ("WANDB_DATA_DIR",)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")


def tracking(*overrides):
    node, choices = compose(list(overrides))
    node = check(node)
    return with_names(assemble(node)["tracking"], slug(node, choices), node, choices)


@pytest.mark.parametrize(
    ("variable", "value", "option", "heard"),
    [
        ("WANDB_PROJECT", "ours", "project", "ours"),
        ("WANDB_ENTITY", "team", "entity", "team"),
        ("WANDB_NAME", "one", "name", "one"),
        ("WANDB_RUN_GROUP", "many", "group", "many"),
        ("WANDB_NOTES", "a try", "notes", "a try"),
        ("WANDB_TAGS", "a, b,", "tags", ("a", "b")),
        ("WANDB_MODE", "offline", "mode", "offline"),
        ("WANDB_MODE", "dryrun", "mode", "offline"),
        ("WANDB_MODE", "disabled", "mode", "off"),
        ("WANDB_DISABLED", "true", "mode", "off"),
        ("WANDB_DISABLED", "false", "mode", "auto"),
    ],
)
def test_a_variable_is_heard_unless_an_option_says_otherwise(monkeypatch, variable, value, option, heard):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    before = getattr(tracking(), option)
    monkeypatch.setenv(variable, value)
    assert getattr(tracking(), option) == heard
    assert before != heard or variable == "WANDB_DISABLED"
    given = {"tags": "tracking.tags=[mine]", "mode": "tracking=online"}.get(option, f"tracking.{option}=mine")
    mine = {"tags": ("mine",), "mode": "online"}.get(option, "mine")
    assert getattr(tracking(given), option) == mine


def test_without_variables_the_project_is_vitlab():
    assert tracking().project == "vitlab"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("WANDB_MODE", "onlin", "WANDB_MODE=onlin: must be online, offline or disabled"),
        ("WANDB_MODE", "online", "WANDB_MODE=online needs a Weights & Biases key"),
        ("WANDB_PROJECT", "team/mine", "takes no / in a project's name"),
        ("WANDB_PROJECT", "p" * 129, "has 129 characters: Weights & Biases takes at most 128"),
        ("WANDB_TAGS", "short," + "t" * 65, "has 65 characters: Weights & Biases takes tags of 1 to 64"),
        ("WANDB_RUN_ID", "a:b", "WANDB_RUN_ID=a:b"),
        ("WANDB_RESUME", "yes", "WANDB_RESUME=yes: must be allow, must, never or auto"),
        ("WANDB_DIR", f"{__file__}/w", "/w cannot be written"),
    ],
)
def test_what_wandb_would_refuse_is_refused_before_the_training(monkeypatch, variable, value, words):
    monkeypatch.setattr(options, "logged_in", lambda: False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as error:
        tracking()
    assert words in str(error.value)
    assert tracking("tracking=off").mode == "off"


@pytest.mark.parametrize(
    "override", ["tracking.project='a b?'", f"tracking.tags=[{'t' * 65}]", "tracking.tags=['']", "tracking.project=a:b"]
)
def test_options_that_wandb_would_refuse_are_refused_too(override):
    with pytest.raises(ConfigError, match="Weights & Biases takes"):
        tracking(override)


def test_wandb_refuses_what_we_refuse():
    import wandb

    for refused in ({"project": "a/b"}, {"project": "p" * 129}, {"run_tags": ("t" * 65,)}, {"run_id": "a:b"}):
        with pytest.raises((wandb.Error, ValueError)):
            wandb.Settings(**refused)
    wandb.Settings(project="p" * 128, run_tags=("t" * 64,), run_id="a_b")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_offline_with_a_key_is_offline_in_the_folder_and_under_the_name_that_were_asked_for(
    tmp_path, monkeypatch, capsys
):
    scratch = tmp_path / "scratch"
    for name, value in {
        "MODE": "offline",
        "API_KEY": KEY,
        "DIR": str(scratch),
        "RUN_ID": "mine",
        "JOB_TYPE": "night",
        "PROJECT": "ours",
        "ENTITY": "team",
        "TAGS": "x,y",
    }.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    run, result = fit(tmp_path / "runs", "tracking=auto", "fit.steps=2")
    assert result["status"] == "finished"
    (folder,) = scratch.glob("wandb/offline-run-*-mine")
    (header,) = [r.run for r in offline_records(scratch) if r.WhichOneof("record_type") == "run"]
    assert (header.run_id, header.project, header.entity, header.job_type) == ("mine", "ours", "team", "night")
    assert list(header.tags) == ["x", "y"]
    monkeypatch.delenv("WANDB_DIR")
    assert run.offline_copies() == [folder]
    assert main(["sync", str(run.folder), "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith(f"wandb sync {folder}\n")


def test_a_run_keeps_its_name_in_wandb_and_several_runs_do_not_share_one(tmp_path, monkeypatch, caplog, capsys):
    mirror = Mirror.__new__(Mirror)
    mirror.run = Run(tmp_path)
    monkeypatch.setattr(options.log, "propagate", True)
    monkeypatch.setenv("WANDB_RUN_ID", "first")
    assert mirror.identity() == "first"
    monkeypatch.setenv("WANDB_RUN_ID", "second")
    assert mirror.identity() == "first"
    assert "WANDB_RUN_ID=second is not used: this run is first there already" in caplog.text
    options.ignore_run_id()
    assert "WANDB_RUN_ID=second is not used: these are several runs" in capsys.readouterr().out
    mirror.run = Run(tmp_path / "other")
    mirror.run.folder.mkdir()
    assert mirror.identity() not in ("first", "second")


@pytest.mark.parametrize("words", [["train", "-m", "seed=0"], ["sweep", "{sweep}", "launcher=serial"]])
def test_commands_that_train_several_runs_leave_the_run_id_out(tmp_path, monkeypatch, capsys, words):
    sweep = tmp_path / "q.yaml"
    sweep.write_text("question: Q?\nbaseline: [patch=p4]\narms: {a: patch=p2}\nseeds: [0]\n")
    monkeypatch.setenv("WANDB_RUN_ID", "one")
    tiny = ["fit.steps=1", "tracking=off", f"system.runs={tmp_path / 'runs'}"]
    assert main([word.format(sweep=sweep) for word in words] + tiny) == 0
    assert "WANDB_RUN_ID=one is not used" in capsys.readouterr().out


@pytest.mark.slow
def test_a_host_out_of_reach_leaves_an_offline_copy(tmp_path):
    wandb = {"API_KEY": KEY, "BASE_URL": "http://127.0.0.1:9", "INIT_TIMEOUT": "1"}
    command = [sys.executable, "-m", "vitlab", "train", "fit.steps=2", "patch=p4", f"system.runs={tmp_path}"]
    environment = os.environ | {f"WANDB_{name}": value for name, value in wandb.items()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert "out of reach" in done.stdout
    assert "Weights & Biases failed" not in done.stdout
    (run,) = map(Run, tmp_path.glob("digits*"))
    rows = [r for r in offline_records(run.folder) if r.WhichOneof("record_type") == "history"]
    assert len(rows) >= len(list(run.rows())) > 0
