"""`~` in paths: a run stores them as they were given, and what is built has the home folder."""

import numpy as np
import pytest
from PIL import Image

from vitlab import load, runs
from vitlab.__main__ import flag, main
from vitlab.cli.run import find_run
from vitlab.config.build import assemble
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError, DatasetMissing, VitlabError
from vitlab.config.identity import identity
from vitlab.evaluation.predict import find
from vitlab.evaluation.reevaluate import dataset_from_overrides
from vitlab.storage.run import Run
from vitlab.sweep.plan import plan
from vitlab.sweep.reader import read

FOLDER = ["dataset=image_folder", "dataset.image_size=32", "patch=p8", "tracking=off"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home with pictures of two classes, and another folder to work in."""
    home, work = tmp_path / "home", tmp_path / "work"
    draw = np.random.default_rng(0)
    for name in ("apple", "pear"):
        for number in range(10):
            path = home / "My Pics (1)" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    yield home
    assert not list(work.iterdir())


@pytest.mark.parametrize("word", ["dataset.root=~/My Pics (1)", "dataset.root='~/My Pics (1)'"])
def test_images_are_read_from_the_home_folder(home, word):
    config = check(compose([*FOLDER, word])[0])
    data = assemble(config)["dataset"]
    assert data.root == f"{home}/My Pics (1)"
    assert data.classes == ("apple", "pear")
    assert config["dataset"]["root"] == "~/My Pics (1)"
    assert dataset_from_overrides([*FOLDER[:2], word])[0].classes == ("apple", "pear")


@pytest.mark.parametrize(
    ("words", "looked"),
    [
        (["dataset=cifar10", "dataset.root=~/x"], "x/cifar-10-batches-py"),
        (["dataset=imagenet", "dataset.root=~/x"], "x/train"),
        (["dataset=tiny_imagenet", "dataset.root=~/x"], "x/wnids.txt"),
        (["dataset=mnist", "dataset.root=~/x"], "x"),
        (["dataset=image_folder", "dataset.root=~/x"], "x"),
        (["dataset=hf", "dataset.path=~/x.parquet"], "x.parquet"),
        (["dataset=webdataset", "dataset.train=~/x.tar"], "x.tar"),
        (["dataset=webdataset", "dataset.train=y.tar::~/x.tar"], "y.tar"),
        (["dataset=webdataset", "dataset.train=~/x-{0..3}.tar"], "x-0.tar"),
    ],
)
def test_every_dataset_looks_in_the_home_folder(home, words, looked):
    with pytest.raises(DatasetMissing) as caught:
        assemble(check(compose([*words, "dataset.image_size=32", "patch=p8"])[0]))["dataset"].splits()
    assert f"looked for {home}/{looked}" in str(caught.value).replace("looked for y.tar", f"looked for {home}/y.tar")


def test_weights_and_folders_of_the_system_are_in_the_home_folder(home):
    parts = assemble(check(compose(["init=~/runs/x", "system.runs=~/runs", "system.cache=~/cache"])[0]))
    assert parts["init"].weights == f"{home}/runs/x"
    assert (parts["system"].runs, parts["system"].cache) == (f"{home}/runs", f"{home}/cache")


def test_runs_and_sweeps_lie_in_the_home_folder(home, tmp_path):
    node, choices = compose(["system.runs=~/runs", "tracking=off"])
    assert find_run(check(node), choices).folder.parent == home / "runs"
    file = tmp_path / "mine.yaml"
    file.write_text(
        "question: q?\nbaseline: dataset=image_folder dataset.root=~/My Pics (1) dataset.image_size=32 patch=p8\n"
        "axes: {dataset.root: ['~/My Pics (1)', '~/a, b']}\n"
    )
    (home / "a, b").symlink_to(home / "My Pics (1)")
    found = plan(read(file), ["system.runs=~/R&D", "tracking=off", "fit=debug"])
    assert found.folder.parent == home / "R&D" / "sweeps"
    assert [cell.config["dataset"]["root"] for cell in found.cells] == ["~/My Pics (1)", "~/a, b"]
    assert all(job.run.folder.parent == home / "R&D" for job in found.jobs)


def test_a_run_is_the_same_whatever_the_home_folder_is(home, monkeypatch):
    words = ["dataset=webdataset", "dataset.train=~/x.tar", "init=~/runs/x", "system.runs=~/runs"]
    before = check(compose(words)[0])
    monkeypatch.setenv("HOME", "/elsewhere")
    after = check(compose(words)[0])
    assert identity(before) == identity(after)
    assert before["dataset"]["train"] == "~/x.tar"


def test_the_python_api_knows_the_home_folder(home):
    (home / "runs" / "x").mkdir(parents=True)
    assert len(runs("~/runs")) == 0
    assert Run((home / "runs" / "x").relative_to(home)).folder.parts == ("runs", "x")
    with pytest.raises(VitlabError, match=f"{home}/runs/x is not a run"):
        load("~/runs/x")
    assert len(find(["~/My Pics (1)/apple/*.png"])[0]) == 10


def test_a_folder_of_a_user_who_is_not_there_is_refused():
    for key in ("runs", "cache"):
        with pytest.raises(ConfigError, match=f"system.{key}=~nobody-is-this/x: there is no such user"):
            assemble(check(compose([f"system.{key}=~nobody-is-this/x"])[0]))
    assert compose(["tracking.notes=~3 % better"])[0]["tracking"]["notes"] == "~3 % better"


def test_a_flag_with_an_equals_sign_knows_the_home_folder(home):
    assert flag("--save=~/x.png") == f"--save={home}/x.png"
    assert [flag(word) for word in ("--save=", "--x=fit.epochs", "dataset.root=~/x")] == [
        "--save=",
        "--x=fit.epochs",
        "dataset.root=~/x",
    ]


@pytest.mark.parametrize("word", ["--optimizer.lr=0.1", "--seed=1", "--patch=p2", "--model/pool=gap", "--fit.lrr=1"])
def test_an_override_with_hyphens_names_what_wandb_has_for_it(word):
    with pytest.raises(ConfigError, match=r"has no hyphens: \w.*args_no_hyphens"):
        flag(word)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "--lr", "1e-3"], "--lr: an override has no hyphens: optimizer.lr=1e-3"),
        (["train", "--lr=1e-3"], "--lr=1e-3: an override has no hyphens: optimizer.lr=1e-3"),
        (["train", "--batch-size", "8"], "--batch-size: an override has no hyphens: fit.batch_size=8"),
        (["train", "--patch", "p4"], "--patch: an override has no hyphens: patch=p4"),
        (["bench", "--width", "--peers"], "--width: an override has no hyphens: model.width=VALUE"),
        (["schedule", "--epochs", "seed=1"], "--epochs: an override has no hyphens: fit.epochs=VALUE"),
        (["train", "--foo", "3"], "unrecognized arguments: --foo: see vitlab train --help"),
        (["train", "dataset=photos"], "for a folder of images dataset=image_folder dataset.root=photos, with a CSV"),
        (["train", "dataset={here}/photos"], "dataset=image_folder dataset.root={here}/photos"),
        (["version"], "did you mean --version?"),
        (["sweep", "patch_size", "slot=4"], "slot: a sweep has no such word; did you mean slots?"),
        (["sweep", "patch_size", "stepz=4"], "stepz=4: there is no stepz"),
    ],
)
def test_what_is_meant_is_named_in_one_sentence(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert main([word.format(here=tmp_path) for word in words]) == 2
    error = capsys.readouterr().err
    assert sentence.format(here=tmp_path) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["train", "data", "schedule", "bench", "sweep", "evaluate"])
def test_every_command_refuses_an_override_with_hyphens(command, capsys):
    assert main([command, "x", "--optimizer.lr=0.1"]) == 2
    assert "args_no_hyphens" in capsys.readouterr().err
