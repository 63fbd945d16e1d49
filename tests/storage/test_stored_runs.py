"""Runs that an earlier vitlab trained are found, measured, continued and compared; so are classes that moved since.

tests/stored holds two of them, trained by version 0.1.0 before its modules were sorted into packages: seed 0 finished,
seed 1 stopped at step 21 of 40.
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml

import vitlab
from vitlab.__main__ import main
from vitlab.cli.run import find_run
from vitlab.config import moved
from vitlab.config.check import check, locate
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError
from vitlab.config.identity import identity, names

STORED = Path(__file__).parent / "stored"
FINISHED, INTERRUPTED = "digits-micro-p2-s0-15e2de69", "digits-micro-p2-s1-7517f002"
COMMAND = [
    *("model.width=8", "model.heads=1", "model.depth=1", "optimizer=muon", "schedule=wsd", "augment=flip_crop"),
    *("loss.label_smoothing=0", "fit.steps=40", "fit.batch_size=64", "fit.precision=fp32", "fit.ema_decay=0.9"),
    *("tracking=off", "system.log_every=1"),
]
PHOTOS = ["dataset=image_folder", "dataset.root=photos", "patch=p16", "model=tiny", "init=some/run"]


@pytest.fixture
def stored(tmp_path, monkeypatch):
    shutil.copytree(STORED, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "cebb32de"),
        (COMMAND, "15e2de69"),
        ([*COMMAND, "seed=1"], "7517f002"),
        (["dataset=fashion_mnist", "patch=p4", "model=reference"], "429d9e90"),
        ([*PHOTOS, "dataset.background=null", "dataset.range=null"], "44f3b57d"),  # as pixels were decoded then
    ],
)
def test_a_run_has_the_name_that_it_always_had(overrides, name):
    assert identity(check(compose(overrides)[0])) == name


SPELLINGS = {
    "image_folder": ("root", "photos", ["./photos", "photos/", "a/../photos", "{here}/photos"]),
    "image_csv": ("root", "photos", ["./photos", "{here}/photos/"]),
    "hf": ("path", "owner/name", ["./owner/name", "{here}/owner/name"]),
    "webdataset": ("train", "x-{0..3}.tar::y.tar", ["./x-{0..3}.tar::y.tar", "{here}/x-{0..3}.tar::./y.tar"]),
}


@pytest.mark.parametrize("option", SPELLINGS)
def test_a_path_is_one_however_it_is_written(tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    key, first, others = SPELLINGS[option]
    required = [] if key != "root" else ["dataset.image_size=8"]

    def found(path, **more):
        node = check(compose([f"dataset={option}", *required, f"dataset.{key}={json.dumps(path)}"])[0])
        return identity(node, **more)

    assert len({found(path.replace("{here}", str(tmp_path))) for path in (first, *others)}) == 1
    assert found(first) == found(first, as_written=True)  # the name that it always had
    for elsewhere in ("../photos", f"{tmp_path.parent}/photos", "other", "https://host/x.tar"):
        assert found(elsewhere) != found(first)
    assert (
        found("../photos") == found(f"{tmp_path.parent}/photos") == found(f"{tmp_path.parent}/photos", as_written=True)
    )
    assert found("s3://bucket/../x.tar") == found("s3://bucket/../x.tar", as_written=True)


def test_a_run_that_was_named_by_its_path_as_it_is_written_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["dataset=image_folder", f"dataset.root={tmp_path}/photos"]
    node, choices = compose(words)
    now, earlier = names(check(node), choices)
    assert now != earlier
    assert find_run(check(node), choices).folder.name == now
    (tmp_path / "runs" / earlier).mkdir(parents=True)
    assert find_run(check(node), choices).folder.name == earlier


def test_a_class_that_moves_leaves_the_names_of_runs_as_they_are(monkeypatch):
    config = check(compose()[0])
    before = identity(config)
    assert config["model"]["pool"]["_target_"] == "vitlab.model.pool.Cls"
    monkeypatch.setitem(moved.MOVED, "vitlab.released.Pool", "vitlab.model.pool.Cls")
    config["model"]["pool"]["_target_"] = "vitlab.released.Pool"
    first = identity(config)
    assert check(config)["model"]["pool"]["_target_"] == "vitlab.model.pool.Cls"
    assert identity(check(config)) == first != before
    assert locate("vitlab.released.Pool").__name__ == "Cls"


def test_a_stored_configuration_gets_the_keys_of_today_and_keeps_its_name():
    config = yaml.safe_load((STORED / FINISHED / "config.yaml").read_text())
    upgraded = moved.upgrade(config)
    assert config["patch"] == {"size": 2}
    assert upgraded["model"]["patch"] == 2
    assert "patch" not in upgraded
    assert moved.upgrade(upgraded) == upgraded
    assert identity(config) == identity(upgraded) == identity(check(upgraded)) == "15e2de69"
    for odd in (None, [], {"patch": 3}, {"patch": {"size": 2}}, {"patch": {"size": 2}, "model": 3}):
        assert moved.upgrade(odd) == odd


def test_an_option_that_came_later_leaves_the_names_of_runs_as_they_are(monkeypatch):
    config = yaml.safe_load((STORED / FINISHED / "config.yaml").read_text())
    later = {"loss": {"focus": None}, "vitlab.data.datasets.digits.Digits": {"margin": 0}}
    later["vitlab.model.stem.Patches"] = {"overlap": 0}
    monkeypatch.setattr(moved, "ADDED", later)
    upgraded = moved.upgrade(config)
    assert upgraded["loss"]["focus"] is None
    assert upgraded["dataset"]["margin"] == 0
    assert upgraded["model"]["stem"]["overlap"] == 0
    assert identity(config) == identity(upgraded) == "15e2de69"
    for group, key in (("loss", "focus"), ("dataset", "margin")):
        assert identity({**upgraded, group: {**upgraded[group], key: 2}}) != "15e2de69"
    upgraded["model"]["stem"]["overlap"] = 1
    assert identity(upgraded) != "15e2de69"


def test_modules_and_classes_are_renamed_by_their_longest_known_name(monkeypatch):
    table = {"vitlab.a": "vitlab.b", "vitlab.a.One": "vitlab.c.Uno"}
    monkeypatch.setattr(moved, "MOVED", table)
    for first, now in {
        "vitlab.a.One": "vitlab.c.Uno",
        "vitlab.a.Two": "vitlab.b.Two",
        "vitlab.ab": "vitlab.ab",
    }.items():
        assert moved.current_name(first) == now
        assert moved.first_name(now) == first


def test_an_earlier_name_opens_nothing_that_its_present_one_does_not(monkeypatch):
    monkeypatch.setitem(moved.MOVED, "vitlab.model.released", "vitlab.storage")
    with pytest.raises(ConfigError, match="is refused"):
        locate("vitlab.model.released.Run", allowed=("vitlab.model.",))


def test_stored_runs_are_found_and_compared(stored, capsys):
    table = vitlab.runs(stored)
    assert list(table["name"]) == [FINISHED, INTERRUPTED]
    assert list(table["status"]) == ["finished", "interrupted"]
    assert set(table["cell"]) == {"15e2de69"}
    assert set(table["optimizer"]) == {"muon"}
    assert set(table["schedule"]) == {"wsd"}
    assert set(table["dataset"]) == {"digits"}
    assert set(table["model.patch"]) == {2}
    assert "patch.size" not in table
    assert main(["compare", "runs", "--x", "patch.size"]) == 0
    assert "17.55" in capsys.readouterr().out


def test_a_stored_run_is_evaluated_to_the_accuracy_it_had(stored, capsys):
    recorded = json.loads((stored / FINISHED / "result.json").read_text())
    assert main(["evaluate", f"runs/{FINISHED}"]) == 0
    printed = capsys.readouterr().out
    assert f"{recorded['test/accuracy']:.6f}" in printed
    assert printed.count("(as recorded)") == 2


def test_a_stored_run_is_known_to_be_finished(stored, capsys):
    assert main(["train", *COMMAND]) == 0
    assert f"runs/{FINISHED}" in capsys.readouterr().out
    assert sorted(path.name for path in stored.iterdir()) == [FINISHED, INTERRUPTED]


def test_a_stored_interrupted_run_continues_to_the_end_it_would_have_had(stored, capsys):
    before = (stored / INTERRUPTED / "metrics.jsonl").read_text()
    assert main(["train", *COMMAND, "seed=1"]) == 0
    result = json.loads((stored / INTERRUPTED / "result.json").read_text())
    rows = (stored / INTERRUPTED / "metrics.jsonl").read_text()
    assert rows.startswith(before)
    assert [json.loads(row)["step"] for row in rows.splitlines()] == list(range(1, 41))
    assert result["status"] == "finished"
    # as the same vitlab trained it without an interruption
    assert result["val/loss"] == pytest.approx(2.2711343318223953, rel=1e-4)
    assert result["test/loss"] == pytest.approx(2.277836969635945, rel=1e-4)
    config = yaml.safe_load((stored / INTERRUPTED / "config.yaml").read_text())
    assert identity(check(config)) == "7517f002"
