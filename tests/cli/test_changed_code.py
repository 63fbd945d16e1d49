"""A run is not taken for one of other code: not by train, sweep, evaluate, probe, predict nor compare."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

import vitlab
from vitlab.__main__ import main
from vitlab.config import source
from vitlab.config.errors import ConfigError, StorageError
from vitlab.config.own import Own, using
from vitlab.data.fingerprint import changed_code
from vitlab.report.comparison import compare
from vitlab.storage.run import Run
from vitlab.storage.runs_table import runs

pytestmark = pytest.mark.usefixtures("no_figures")

SMALL = ["model.width=8", "model.heads=1", "model.depth=1", "fit=debug", "fit.steps=1", "tracking=off"]
SMALL += ["model/position=row"]
OWN = ["--config-dir", "my", "--allow", "mine"]
ROW = """from mine.base import Base

class Row(Base):
    at = "stem"

    def add(self, tokens):
        return tokens + 1.0
"""
CHANGED = "mine/row.py has changed since"


def rewrite(file, old, new):
    """Changes a file of the package, and has it imported anew, as another command does."""
    path = Path("mine") / file
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    forget()


def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]
    shutil.rmtree("mine/__pycache__", ignore_errors=True)  # of the same second and size


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run with a class of mine/row.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    for folder in ("mine", "my/model/position"):
        Path(folder).mkdir(parents=True)
    Path("mine/base.py").write_text("from vitlab.model.position import Position\n\nclass Base(Position): ...\n")
    Path("mine/row.py").write_text(ROW)
    Path("my/model/position/row.yaml").write_text("# Mine.\n_target_: mine.row.Row\n_partial_: true\n")
    forget()
    assert main(["train", *OWN, *SMALL]) == 0
    (found,) = Path("runs").iterdir()
    yield Run(found)
    forget()


@pytest.mark.slow
def test_an_edited_class_of_ones_own_stops_every_command_that_would_take_the_run(run, capsys):
    assert [*json.loads(run.data.read_text())["code"]] == ["mine/base.py", "mine/row.py"]
    train, allow = ["train", *OWN, *SMALL], ["--allow", "mine"]
    Path("sweep.yaml").write_text(f"question: Mine?\nbaseline: {json.dumps(SMALL)}\nseeds: [0, 1]\n")
    sweep = ["sweep", "sweep.yaml", *OWN, "launcher=serial", "system.device=cpu"]
    commands = [["evaluate", str(run.folder)], ["probe", str(run.folder), "--shots", "1"]]
    commands += [["predict", str(run.folder), "image.png"]]
    Image.new("L", (8, 8)).save("image.png")
    rewrite("row.py", "\n", "\r\n")
    assert main(train) == 0
    assert "This run is finished already; " in capsys.readouterr().out
    rewrite("row.py", "1.0", "2.0")
    assert main(train) == 2
    assert f"{CHANGED}: system.retrain=true" in capsys.readouterr().err
    assert main(sweep) == 2
    assert f"1 of the runs are of other images or code, such as {run.folder}" in (error := capsys.readouterr().err)
    assert f"{CHANGED}: system.retrain=true" in error
    for command in commands:
        assert main([*command, *allow]) == 2
        assert f"{CHANGED}: get back the code" in capsys.readouterr().err
        assert main([*command, *allow, "--changed-data"]) == 0
    assert main(["inspect", str(run.folder), *allow]) == 2
    assert f"{CHANGED}: get back the code" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="changed_data=True"):
        vitlab.load(run.folder, allow=["mine"])
    vitlab.load(run.folder, allow=["mine"], changed_data=True)
    assert main([*sweep, "--dry"]) == 0
    assert capsys.readouterr().out.count(f"# was trained with other code: {CHANGED}") == 1
    assert main([*train, "system.changed_data=true"]) == 0
    assert f"finished already, and was trained with other code: {CHANGED}; " in capsys.readouterr().out
    assert main([*train, "seed=1"]) == 0
    noted = "The runs are of several versions of mine/row.py"
    assert [note for note in compare(runs("runs")).notes if noted in note]
    assert main([*sweep, "system.retrain=true"]) == 0
    assert "1 finished already" in capsys.readouterr().out
    assert main(sweep) == 0
    assert "2 finished already" in capsys.readouterr().out
    assert not [note for note in compare(runs("runs")).notes if noted in note]


def test_base_classes_count_and_runs_without_a_record_stay_as_they_are(run):
    node = {
        "position": {"_target_": "mine.row.Row", "_partial_": True},
        "stems": [{"_target_": "vitlab.model.vit.ViT"}],
    }
    assert changed_code(run, node) == ""  # nothing of one's own is imported where it is not allowed
    with using(Own(packages=("mine",))):
        assert changed_code(run, node) == ""
        rewrite("base.py", "...", "'''Other.'''")
        assert changed_code(run, node) == "was trained with other code: mine/base.py has changed since"
        rewrite("row.py", "1.0", "2.0")
        words = "was trained with other code: mine/base.py and mine/row.py have changed since"
        assert changed_code(run, node) == words
        known = json.loads(run.data.read_text())
        run.data.write_text(json.dumps({**known, "code": 1}))
        with pytest.raises(StorageError, match="damaged"):
            changed_code(run, node)
        del known["code"]
        run.data.write_text(json.dumps(known))
        assert changed_code(run, node) == ""
        run.data.unlink()
        assert changed_code(run, node) == ""


def test_the_code_in_memory_counts_and_not_the_file_that_was_edited_after_it(run):
    with using(Own(packages=("mine",))):
        before = source.sources({"_target_": "mine.row.Row"})
        Path("mine/row.py").write_text("")
        assert source.sources({"_target_": "mine.row.Row"}) == before
