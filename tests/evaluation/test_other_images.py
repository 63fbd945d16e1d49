"""A run of own images: measured where they have moved, on folders without images, and on several others."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.data.datasets.test_webdataset import write_tar
from tests.disk import draw_image, hub_table, own_cache, write_images, write_labelled_images
from tests.training.test_loop import fit
from vitlab.__main__ import main
from vitlab.config.compose import compose
from vitlab.config.errors import DataError
from vitlab.evaluation.reevaluate import training_dataset

pytestmark = pytest.mark.usefixtures("no_curves")

FOLDER = "dataset=image_folder"


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    home = tmp_path_factory.mktemp("own")
    for name, n in (("cat", 24), ("dog", 18), ("fish", 6)):
        write_images(home / "pets", [name], n=n)
    small = ["dataset.image_size=16", "patch=p8", "fit.batch_size=8", "fit.steps=2"]
    run, _ = fit(home, FOLDER, f"dataset.root={home}/pets", "dataset.train_examples=null", *small)
    return run.folder


@pytest.fixture
def run(trained_once, tmp_path):
    return shutil.copytree(trained_once, tmp_path / "run")


def refused(capsys, *words):
    """The one sentence that a command is refused with."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def loose(root):
    for i in range(3):
        draw_image(root / f"{i}.png")
    return [FOLDER, f"dataset.root={root}"]


def empty(root):
    root.mkdir()
    return [FOLDER, f"dataset.root={root}"]


def empty_classes(root):
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
    return [FOLDER, f"dataset.root={root}"]


def unlabelled_rows(root):
    draw_image(root / "0.png")
    draw_image(root / "1.png")
    (root / "test.csv").write_text("file,label\n0.png,\n1.png,\n")
    return ["dataset=image_csv", f"dataset.root={root}"]


def no_rows(root):
    draw_image(root / "0.png")
    (root / "train.csv").write_text("file,label\n")
    return ["dataset=image_csv", f"dataset.root={root}"]


def empty_table(root):
    hub_table(0).save_to_disk(root)
    return ["dataset=hf", f"dataset.path={root}", "dataset.test_split=null"]


def empty_shard(root):
    write_tar(root / "x.tar", {})
    return ["dataset=webdataset", f"dataset.train={root}/x.tar", f"dataset.cache={root}/cache"]


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (loose, "new has no class folders with images: sort the images into folders named as the classes"),
        (loose, "passed over 3 images outside of the class folders (0.png, 1.png, 2.png)"),
        (empty, "new has no class folders with images"),
        (empty_classes, "passed over 2 folders without images (cat, dog)"),
        (unlabelled_rows, "there is no image with a class to evaluate: test.csv has no labels"),
        (no_rows, "no column names the images"),
        (empty_table, "new cannot be read"),
        (empty_shard, "x.tar"),
    ],
)
def test_a_dataset_without_images_is_refused(run, tmp_path, capsys, monkeypatch, write, sentence):
    own_cache(tmp_path, monkeypatch)
    assert sentence in refused(capsys, "evaluate", run, *write(tmp_path / "new"))


def test_an_empty_test_split_is_not_measured_and_not_trained_with(run, tmp_path, capsys):
    write_labelled_images(tmp_path / "new")
    draw_image(tmp_path / "new" / "x.png")
    (tmp_path / "new" / "test.csv").write_text("file,label\nx.png,\n")
    words = ["dataset=image_csv", f"dataset.root={tmp_path}/new", "dataset.test=test.csv"]
    assert main(["evaluate", str(run), *words]) == 0
    assert "images      all images: 24; 2 of the run's 3 classes" in capsys.readouterr().out
    small = ["dataset.image_size=16", "patch=p8", "tracking=off", f"system.runs={tmp_path}"]
    assert "the test split has no images" in refused(capsys, "train", *words, *small)


def test_images_that_have_moved_are_found_by_their_new_folder(run, tmp_path, capsys):
    """`--root` and `dataset.root=` mean the same; without them the sentence names `--root`."""
    config = run / "config.yaml"
    pets = Path(yaml.safe_load(config.read_text())["dataset"]["root"])
    shutil.copytree(pets, tmp_path / "Moved")
    config.write_text(config.read_text().replace(str(pets), str(tmp_path / "pets")))
    for command in ("evaluate", "probe"):
        said = refused(capsys, command, run)
        assert f"{tmp_path}/pets. If they have moved, --root PATH\n" in said
        assert "dataset.root" not in said
        for where in (["--root", str(tmp_path / "Moved")], [f"dataset.root={tmp_path}/Moved"]):
            assert main([command, str(run), *where]) == 0
            out = capsys.readouterr().out
            assert command == "probe" or out.count("(as recorded)") == 2
    assert sorted(path.name for path in run.glob("probe*")) == ["probe.json"]


def test_a_table_that_has_moved_is_found_by_its_new_path(run, tmp_path, monkeypatch):
    own_cache(tmp_path, monkeypatch)
    hub_table(20).save_to_disk(tmp_path / "Moved")
    words = ["dataset=hf", f"dataset.path={tmp_path}/old", "dataset.test_split=null"]
    (run / "data.json").unlink()
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"dataset": compose(words)[0]["dataset"]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(DataError, match=r"old\. If they have moved, --root PATH"):
        training_dataset(run)
    assert len(training_dataset(run, root=str(tmp_path / "Moved")).splits()["train"]) > 0


@pytest.mark.slow
def test_two_datasets_of_one_name_are_kept_apart(run, tmp_path, monkeypatch):
    for number, n in ((1, 6), (2, 7)):
        write_images(tmp_path / f"d{number}" / "new", ("cat", "dog", "fish"), n=n)
    monkeypatch.chdir(tmp_path)
    for command, names in (
        ("evaluate", ("evaluation/image_folder-new/all.json", "evaluation/image_folder-new-2/all.json")),
        ("probe", ("probe-image_folder-new.json", "probe-image_folder-new-2.json")),
    ):
        for root in ("d1/new", "d2/new", "./d1/new", tmp_path / "d2" / "new"):  # the last two are there already
            assert main([command, str(run), FOLDER, f"dataset.root={root}"]) == 0
        found = [json.loads((run / name).read_text()) for name in names]
        assert [table["dataset"][1] for table in found] == [f"dataset.root={tmp_path}/d{i}/new" for i in (1, 2)]
        assert not (run / names[1].replace("-2", "-3")).exists()
    assert [table["training_images"] for table in found] == [13, 15]  # the last are of the probe


def test_probe_takes_the_usual_shots_that_every_class_allows(run, capsys):
    """A number that was typed stays refused."""
    assert main(["probe", str(run)]) == 0
    out, err = capsys.readouterr()
    assert err == "vitlab: --shots 1 of 1,5,10,25: class fish has 4 training images\n"
    assert [line.split()[0] for line in out.splitlines() if "-shot" in line] == ["1-shot"]
    assert "--shots 1,5: class fish has 4 training images" in refused(capsys, "probe", run, "--shots", "1,5")


def test_each_class_has_a_line_of_scores(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("class "))
    assert lines[first].split() == ["class", "images", "precision", "recall", "F1"]
    rows = {row["class"]: row for row in json.loads((run / "evaluation" / "test.json").read_text())["classes"]}
    assert [line.split()[0] for line in lines[first + 1 : first + 4]] == ["cat", "dog", "fish"]
    for line in lines[first + 1 : first + 4]:
        name, images, *scores = line.split()
        assert int(images) == rows[name]["images"]
        assert scores == [f"{rows[name][key]:.2%}" for key in ("precision", "recall", "f1")]


def test_what_is_no_run_is_refused_with_what_to_give(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path)
    for words, sentence in (
        (["evaluate", "run", "new"], "new: which dataset is it? dataset=image_folder dataset.root=new"),
        (["evaluate", "new", "run"], "new is not a run: it has no config.yaml: give the folder of one, runs/NAME"),
        (["predict", "new", "run"], "the run comes first: vitlab predict RUN IMAGE..."),
        (["evaluate", "."], ". is not a run: it has no config.yaml: give a run in it, such as run"),
        (["probe", "run/best.pt"], "run/best.pt is not a run: give the run's folder: run"),
        (["evaluate", "gone"], "gone is not a run: there is no such folder: give the folder of one, runs/NAME"),
        (["compare", "nothing"], "nor a sweep that was run: give runs, or a folder of runs"),
        (["compare", "patch_size"], "nor a sweep that was run: run it: vitlab sweep patch_size"),
    ):
        assert sentence in refused(capsys, *words)
    with pytest.raises(SystemExit):
        main(["evaluate"])
    assert "are required: run\n" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["data", "schedule", "predict", "export"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(run, tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    draw_image(tmp_path / "0.png")
    words = {
        "data": ["data", "dataset=mnist", "--save"],  # its files are not there: that would be said next
        "schedule": ["schedule", "dataset=mnist", "--save"],
        "predict": ["predict", "run", "0.png", "--save"],
        "export": ["sweep", "export", "patch_size", "--wandb", "--out"],
    }[command]
    assert "gone/x.png: there is no folder gone: make it first" in refused(capsys, *words, "gone/x.png")
    if command != "export":
        assert "it will be a PNG: give a name that ends in .png, such as x.png" in refused(capsys, *words, "x.jpg")
