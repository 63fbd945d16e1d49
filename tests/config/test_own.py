"""Options of a user's own are as good as ours, and classes of a user's own are only built where the user says so."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

import vitlab
from vitlab.__main__ import main
from vitlab.config.check import check, locate
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError
from vitlab.config.groups import menu, roots
from vitlab.config.own import Own, command, take, using

pytestmark = pytest.mark.usefixtures("no_curves", "no_figures")
TINY = ["model.width=8", "model.heads=1", "model.depth=1", "fit=debug", "fit.steps=1", "tracking=off"]
PART = '''
from subprocess import Popen
from vitlab.model.position import Position

class Shift(Position):
    """Adds a number."""

    at = "stem"

    def __init__(self, *, width, head_width, grid, by: float):
        super().__init__(width=width, head_width=head_width, grid=grid)
        self.by = by

    def add(self, tokens):
        return tokens + self.by

class NoPosition:
    def __init__(self, *, width, head_width, grid): ...
'''
SHIFT = "# Adds a number.\n_target_: mypackage.parts.Shift\n_partial_: true\nby: 0.5\n"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with options, a package with a part, and the working directory that holds both."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    for name in [name for name in sys.modules if name.startswith("mypackage")]:
        monkeypatch.delitem(sys.modules, name)
    write("mypackage/__init__.py", "")
    write("mypackage/parts.py", PART)
    write("my/model/position/shift.yaml", SHIFT)
    adamw = (
        "_target_: torch.optim.AdamW\n_partial_: true\nlr: 0.002\nbetas: [0.9, 0.9]\neps: 1.0e-8\nweight_decay: 0.1\n"
    )
    write("my/optimizer/mine.yaml", f"# Mine.\n{adamw}")
    write("my/experiment/mine.yaml", "# @package _global_\n# A recipe.\nfit:\n  batch_size: 16\n")
    return tmp_path


def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def stored(folder="runs"):
    (found,) = Path(folder).glob("*/config.yaml")
    return yaml.safe_load(found.read_text()), found.parent


@pytest.mark.parametrize(
    "flags",
    [
        ["--config-dir", "my"],
        ["--config-dir=my"],
        ["-cd", "my"],
        ["hydra.searchpath=[file://my]"],
        ["hydra.searchpath=['file://my']"],
        ["hydra.searchpath=[my]"],
    ],
)
def test_an_own_option_is_composed_and_checked_as_ours(own, flags):
    added, rest = take([*flags, "optimizer=mine", "+experiment=mine", "optimizer.lr=0.5"])
    with using(added):
        config, choices = compose(rest)
        assert check(config)["optimizer"]["lr"] == 0.5
        assert config["fit"]["batch_size"] == 16
        assert choices["optimizer"] == "mine"
        assert menu()["optimizer"]["mine"] == "Mine."
        with pytest.raises(ConfigError, match="did you mean mine"):
            compose(["optimizer=minee"])
        with pytest.raises(ConfigError, match="did you mean optimizer"):
            compose(["optimizer=mine", "optimizer.beta=0.5"])
    assert "mine" not in menu()["optimizer"]
    with pytest.raises(ConfigError, match="there is no such option"):
        compose(["optimizer=mine"])


def test_an_own_option_trains_is_listed_and_needed_no_more_for_a_stored_run(own, capfd):
    assert main(["train", "--config-dir", "my", "optimizer=mine", *TINY]) == 0
    config, run = stored()
    assert config["optimizer"]["betas"] == [0.9, 0.9]
    assert main(["train", "--help", "--config-dir=my"]) == 0
    assert "  mine           Mine." in capfd.readouterr().out
    shutil.rmtree("my")
    assert main(["evaluate", str(run)]) == 0


@pytest.mark.slow
def test_an_own_option_trains_in_a_multirun(own):
    assert main(["train", "-m", "--config-dir", "my", "optimizer=mine,adamw", *TINY]) == 0
    assert len(list(Path("runs").glob("*/result.json"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--config-dir", "my"], []])
def test_an_own_option_trains_in_a_sweep(own, flags, capfd):
    key = "" if flags else "config_dir: ../my\n"
    baseline = json.dumps([*TINY, "optimizer=mine"])
    write(
        "sweep/mine.yaml", f"question: Mine?\n{key}baseline: {baseline}\narms: {{other: optimizer=adamw}}\nseeds: [0]\n"
    )
    assert main(["sweep", "sweep/mine.yaml", *flags, "slots=1"]) == 0
    assert len(list(Path("runs").glob("*/result.json"))) == 2
    assert main(["sweep", "sweep/mine.yaml", *flags, "--dry"]) == 0
    assert f"vitlab train --config-dir {own / 'my'}" in capfd.readouterr().out


@pytest.mark.parametrize("command", ["data", "schedule"])
def test_other_commands_know_own_options(own, command, capfd):
    assert main([command, "--config-dir", "my", "optimizer=mine"]) == 0


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("vitlab train --config-dir my optimizer=mi", "optimizer=mine"),
        ("vitlab bench --packed 1,4 --config-dir my --rounds=3 optimizer=mi", "optimizer=mine"),
        ("vitlab bench optimizer=adamw --pack", "--packed"),
        ("vitlab data --", "--help --save"),
    ],
)
def test_the_shell_completes_own_options_and_flags(own, monkeypatch, capfd, line, completed):
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setattr(sys, "argv", ["vitlab", "-sc", "query=bash"])
    assert main(["-sc", "query=bash"]) == 0
    assert capfd.readouterr().out.strip() == completed


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--config-dir", "nowhere"], "there is no such folder"),
        (["--config-dir"], "needs a value"),
        (["--config-dir", "--allow", "mypackage"], "needs a value"),
        (["hydra.searchpath=[pkg://nowhere.conf]"], "there is no such package"),
        (["hydra.searchpath=[http://my]"], "expected file://PATH or pkg://PACKAGE"),
        (["--allow"], "needs a value"),
        (["--allow", "os"], "a package of your own"),
        (["--allow", "subprocess.x"], "a package of your own"),
        (["--allow", "builtins"], "a package of your own"),
        (["--allow", "mypackage/../os"], "a package of your own"),
        (["--allow", ""], "needs a value"),
        (["--allow", "vitlab"], "a package of your own"),
        (["--allow", "torch"], "a package of your own"),
        (["--allow", "nowhere.parts"], "there is no package nowhere"),
    ],
)
def test_what_cannot_be_added_is_refused(own, flags, reason, capfd):
    assert main(["train", *TINY, *flags]) == 2
    assert reason in capfd.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("optimizer/adamw.yaml", "lr: 1.0\n", "there is an option optimizer=adamw already"),
        ("optimizer/x.yaml", "hydra: {run: {dir: /}}\n", "nothing outside vitlab's groups"),
        ("optimizer/x.yaml", '{"\\x68ydra": {job_logging: {}}}\n', "nothing outside vitlab's groups"),
        ("optimizer/x.yaml", "# @package hydra.job_logging\nlr: 1.0\n", "nothing outside vitlab's groups"),
        ("optimizer/x.yaml", "defaults: [/optimizer@hydra.job_logging: adamw]\n", "nothing outside vitlab's groups"),
        ("optimizer/x.yaml", "  #@package hydra.callbacks.x\nlr: 1.0\n", "nothing outside vitlab's groups"),
        ("optimizer/x.yaml", "# a\n\f# @package hydra.callbacks.x\nlr: 1.0\n", "cannot be read"),
        ("optimizer/x.yaml", "defaults: [/other/x]\n", "defaults: /other/x: there is no such option"),
        ("optimizer/x.yaml", "defaults: [../other/x]\n", "there is no such option"),
        ("optimizer/x.yaml", "defaults: [/optimizer: '${fit}']\n", "there is no such option"),
        ("optimizer/x.yaml", "a: [", "cannot be read"),
        ("../empty/optimiser/x.yaml", "lr: 1.0", "did you mean optimizer"),
        ("hydra/job_logging/x.yaml", "{}", "options of Hydra itself"),
    ],
)
def test_an_own_option_that_would_do_something_else_is_refused(own, file, text, reason, capfd):
    write(f"my/{file}", text)
    assert main(["train", "--config-dir", "empty" if "empty" in file else "my", *TINY]) == 2
    assert reason in capfd.readouterr().err


@pytest.mark.slow
def test_an_own_class_is_built_where_the_user_says_so(own, capfd):
    words = ["train", "--config-dir", "my", "model/position=shift", *TINY]
    assert main(words) == 2
    assert "if you trust the package mypackage, add --allow mypackage" in capfd.readouterr().err
    assert main([*words, "--allow", "mypackage"]) == 0
    config, run = stored()
    assert config["model"]["position"] == {"_target_": "mypackage.parts.Shift", "_partial_": True, "by": 0.5}
    assert main([*words, "--allow", "mypackage"]) == 0
    assert "finished" in capfd.readouterr().out
    for words in (["evaluate", str(run)], ["probe", str(run), "--shots", "1"]):
        assert main(words) == 2
        assert "add --allow mypackage" in capfd.readouterr().err
        assert main([*words, "--allow", "mypackage"]) == 0
    with pytest.raises(ConfigError, match="add --allow mypackage"):
        vitlab.load(run)
    loaded = vitlab.load(run, allow=["mypackage"])
    assert [part.by for part in loaded.modules() if type(part).__name__ == "Shift"] == [0.5]
    with pytest.raises(ConfigError, match="add --allow mypackage"):
        vitlab.load(run)


def test_an_own_class_trains_in_the_processes_of_a_sweep(own):
    baseline = json.dumps([*TINY, "model/position=shift"])
    write("mine.yaml", f"question: Mine?\nconfig_dir: my\nbaseline: {baseline}\nseeds: [0, 1]\n")
    assert main(["sweep", "mine.yaml", "slots=1"]) == 2
    assert main(["sweep", "mine.yaml", "slots=1", "--allow", "mypackage"]) == 0
    assert len(list(Path("runs").glob("*/result.json"))) == 2


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "mypackage.parts.Popen",
        "mypackageevil.parts.Shift",
        "mypackage.parts.os.system",
        "vitlab.model.vit.torch.load",
        "mypackage",
        "mypackage.parts",
        "mypackage...os.system",
        "mypackage.broken.Shift",
    ],
)
def test_nothing_else_is_built_by_an_allowed_name(own, target):
    write("mypackageevil/parts.py", "raise SystemExit('was run')")
    write("mypackage/broken.py", "raise RuntimeError('of its own')")
    refusals = r"is refused|does not exist|importing mypackage.broken failed: RuntimeError: of its own"
    with using(Own(packages=("mypackage",))), pytest.raises(ConfigError, match=refusals):
        locate(target)


def test_an_own_class_must_be_of_its_slot(own, capfd):
    write("my/model/position/shift.yaml", SHIFT.replace("Shift", "NoPosition").replace("by: 0.5\n", ""))
    assert main(["train", "--config-dir", "my", "--allow", "mypackage", "model/position=shift", *TINY]) == 2
    assert "model.position" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["VITLAB_ALLOW", "ALLOW"])
def test_neither_a_file_nor_the_environment_can_allow(own, monkeypatch, capfd, name):
    monkeypatch.setenv(name, "mypackage")
    write("my/experiment/mine.yaml", "# @package _global_\nallow: mypackage\n")
    write("mine.yaml", "question: Mine?\nallow: mypackage\nbaseline: []\nseeds: [0, 1]\n")
    assert main(["train", "--config-dir", "my", "+experiment=mine", "model/position=shift", *TINY]) == 2
    assert main(["sweep", "mine.yaml"]) == 2
    assert "allow: there is no such key" in capfd.readouterr().err


def test_what_was_added_ends_with_the_command(own):
    before, path = roots(), list(sys.path)
    main(["train", "--config-dir", "my", "--allow", "mypackage", "--help"])
    assert roots() == before
    assert sys.path == path


@pytest.mark.parametrize(
    "line",
    [
        "baseline: [+hydra.callbacks.x._target_=evil.Evil]",
        "baseline: [optimizer@hydra.callbacks.x=adamw]",
        "axes: {hydra.callbacks.x._target_: [evil.Evil]}",
        "search: {method: grid, trials: 1, space: {model/x@hydra.callbacks.x: [a]}}",
    ],
)
def test_a_sweep_file_cannot_set_what_hydra_runs(own, line, capfd):
    write("evil.py", "raise SystemExit('was run')")
    write("mine.yaml", f"question: Mine?\n{line}\nseeds: [0, 1]\n")
    assert main(["sweep", "mine.yaml", "--dry"]) == 2
    assert "mine.yaml, line 2" in (error := capfd.readouterr().err)
    assert "options of Hydra itself" in error


def test_several_folders_go_with_flags_of_hydras(own, capfd):
    shutil.copytree("my/optimizer", "yours/optimizer")
    Path("yours/optimizer/mine.yaml").rename("yours/optimizer/yours.yaml")
    assert main(["train", "-cd", "my", "-cd", "yours", "optimizer=yours", "--cfg", "job"]) == 0
    assert yaml.safe_load(capfd.readouterr().out)["optimizer"]["lr"] == 0.002


def test_a_package_in_the_search_path_is_not_imported(own, monkeypatch):
    monkeypatch.syspath_prepend(str(own))
    shutil.copytree("my", "mypackage/conf")
    Path("mypackage/__init__.py").write_text("raise SystemExit('was run')")
    with using(take(["hydra.searchpath=[pkg://mypackage.conf]"])[0]):
        assert "mine" in menu()["optimizer"]
    assert "mypackage" not in sys.modules


@pytest.mark.slow
def test_the_commands_that_follow_name_what_was_added(own, capfd):
    flags = ["--config-dir", str(own / "my"), "--allow", "mypackage"]
    assert main(["train", *flags, *TINY, "model/position=shift"]) == 0
    _, run = stored()
    assert f"vitlab evaluate {run} --allow mypackage" in capfd.readouterr().out
    assert main(["schedule", *flags, *TINY, "optimizer=mine"]) == 0
    shown = "--config-dir my --allow mypackage"
    assert f"vitlab train {shown} {' '.join(TINY)} optimizer=mine" in capfd.readouterr().out
    assert main(["probe", str(run), "--shots", "1", "--linear", *flags]) == 0
    assert f"next        vitlab probe {run} --knn --allow mypackage\n" in capfd.readouterr().out
    write("mine.yaml", f"question: Mine?\nbaseline: {json.dumps([*TINY, 'model/position=shift'])}\nseeds: [0, 1]\n")
    assert main(["sweep", "mine.yaml", "launcher=serial", *flags]) == 0
    assert main(["compare", "mine"]) == 0  # which knows of no flag
    assert f"vitlab sweep {shown} mine.yaml" in Path("runs/sweeps/mine/answer.md").read_text()
    question = f"vitlab train {shown} -m seed=0,1 model/position=shift"
    assert main(["train", *flags, "-m", "seed=0,1", "model/position=shift", *TINY]) == 0
    assert question in next(Path("runs/.multirun").glob("*/answer.md")).read_text()


def test_every_command_that_is_printed_carries_what_was_added(own):
    assert command("train", "a=[1, 2]") == "vitlab train 'a=[1, 2]'"
    with using(Own(folders=(own / "my",), packages=("mypackage",))):
        assert command("sweep", "mine.yaml") == "vitlab sweep --config-dir my --allow mypackage mine.yaml"
        assert command("predict", "runs/x", "IMAGE...") == "vitlab predict runs/x IMAGE... --allow mypackage"
    places = {file for file in Path(vitlab.__file__).parent.rglob("*.py") if "flags()" in file.read_text()}
    assert {file.name for file in places} == {
        *("own.py", "job.py", "pack.py", "packs.py"),
        *("hydra_task.py", "sweep_export.py", "plan.py"),
    }
