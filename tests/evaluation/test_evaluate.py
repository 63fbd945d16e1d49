"""A trained run measured again."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.datasets.test_webdataset import write_shards
from tests.disk import hub_table, own_cache, write_images
from tests.training.test_loop import ALONE, fit
from vitlab.__main__ import main
from vitlab.data.augment import eval_transform
from vitlab.data.loader import EvalSampler, loader, to_device
from vitlab.data.preprocess import Normalize
from vitlab.evaluation import reevaluate
from vitlab.evaluation.evaluate import evaluate
from vitlab.evaluation.load import load
from vitlab.evaluation.reevaluate import Measured, measure
from vitlab.storage import predictions
from vitlab.storage.run import Run

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    run, _ = fit(tmp_path_factory.mktemp("runs"), "fit.steps=30", "optimizer.lr=0.02")
    return run.folder


@pytest.fixture
def run(trained_once, tmp_path):
    """A copy of its own for each test."""
    return shutil.copytree(trained_once, tmp_path / "run")


def as_folder(run, root, per_class=12):
    """Test digits as class folders."""
    test = reevaluate.training_dataset(run).splits()["test"]
    for label in range(10):
        (root / str(label)).mkdir(parents=True)
        for i in np.flatnonzero(test.labels == label)[:per_class]:
            test.image(int(i)).save(root / str(label) / f"{i}.png")
    return root


def test_the_numbers_are_those_of_training(run):
    model, dataset = load(run), reevaluate.training_dataset(run)
    found = measure(run, model, dataset, ("validation", "test"))
    for split, part in found.items():
        once = EvalSampler(examples=len(part.examples), batch=512)
        pixels = loader(part.examples, eval_transform(dataset), once)
        batches = to_device(pixels, Normalize(dataset.mean, dataset.std), ALONE.device)
        assert evaluate(model.model, batches, ALONE, "fp32", model.model.objective) == part.scores
        assert part.report.accuracy == part.scores["accuracy"]
        if split == "test":
            kept = predictions.read(Run(run), len(part.examples), part.scores["accuracy"])
            assert (kept == (part.report.predicted == part.report.labels)).all()
        assert -np.log(part.report.true_probability).mean() == pytest.approx(part.scores["loss"], rel=1e-5)
        result = json.loads((run / "result.json").read_text())
        assert part.scores["loss"] == result[f"{'val' if split == 'validation' else split}/loss"]


def test_the_terminal_is_compact_and_the_folder_has_the_rest(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads((run / "result.json").read_text())
    for line, split, name in ((lines[0], "val", "validation "), (lines[1], "test", "test       ")):
        accuracy, loss = result[f"{split}/accuracy"], result[f"{split}/loss"]
        assert line == f"{name} accuracy {accuracy:.6f}  loss {loss:.6f}  (as recorded)"
    assert [line.partition(" ")[0] for line in lines[3:]] == [
        "interval", "top-5", "by", "ECE", "confused", "", "class", *sorted_digits(run), "", "files",
    ]  # fmt: skip
    averages = [f"{result[f'test/{name}']:.2%}" for name in ("balanced_accuracy", "macro_f1")]
    assert lines[5] == "by class    balanced accuracy {}, macro F1 {}, ROC-AUC {:.4f}".format(
        *averages, result["test/roc_auc"]
    )
    folder = run / "evaluation"
    names = {"test.json", "confusion.csv", "confusion.png", "calibration.png", "mistakes.png"}
    assert {file.name for file in folder.iterdir()} == names
    for name in names:
        if name.endswith("png"):
            with Image.open(folder / name) as image:
                assert image.format == "PNG"
    table = json.loads((folder / "test.json").read_text())
    assert table["accuracy"] == result["test/accuracy"]
    assert table["images"] == np.sum(table["confusion"]) == sum(entry["images"] for entry in table["classes"]) == 359
    assert table["accuracy_interval_95"][0] < table["accuracy"] < table["accuracy_interval_95"][1]
    assert sum(entry["images"] for entry in table["calibration"]) == 359
    with (folder / "confusion.csv").open(newline="") as file:
        first, *rows = csv.reader(file)
    assert first[1:] == [row[0] for row in rows] == list("0123456789")
    assert [[int(count) for count in row[1:]] for row in rows] == table["confusion"]


def sorted_digits(run):
    """The classes with the most test images first."""
    counts = np.bincount(reevaluate.training_dataset(run).splits()["test"].labels)
    return [str(label) for label in np.argsort(-counts, kind="stable")]


def test_programs_get_one_json_document(run, capsys):
    assert main(["evaluate", "--json", str(run), "--split", "validation"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["validation"]["images"] == 144
    assert "test" not in said
    assert (run / "evaluation" / "validation" / "validation.json").is_file()


@pytest.mark.slow
def test_another_dataset_is_mapped_by_the_names_of_its_classes(run, tmp_path, capsys):
    """The same test digits as files are judged the same, and in another order of the classes too."""
    words = ["dataset=image_folder", "dataset.channels=1", "dataset.mean=[0.5]", "dataset.std=[0.5]"]
    root = as_folder(run, tmp_path / "pictures" / "test")
    shutil.copytree(root, tmp_path / "pictures" / "train")
    model = load(run)
    other, name = reevaluate.dataset_from_overrides([*words, f"dataset.root={tmp_path}/pictures"])
    assert name == "image_folder-pictures"
    one = measure(run, model, other, ["test"], external=True)["test"]
    own = measure(run, model, reevaluate.training_dataset(run), ["test"])["test"]
    same = {tuple(np.ravel(own.examples.image(i))): own.report.confidence[i] for i in range(len(own.examples))}
    for i, sure in enumerate(one.report.confidence):
        assert sure == pytest.approx(same[tuple(np.ravel(one.examples.image(i)))], abs=1e-6)
    assert len(one.examples) == 120

    other.classes = tuple(reversed(other.classes))
    turned = dict(enumerate(reversed(range(10))))
    read = other.splits

    def splits(decoding):
        parts = read(decoding)
        parts["test"].labels = np.array([turned[label] for label in parts["test"].labels])
        return parts

    other.splits = splits
    two = measure(run, model, other, ["test"], external=True)["test"]
    assert (two.report.predicted == one.report.predicted).all()
    assert (two.report.labels == one.report.labels).all()
    # Two forward passes: their last bits may differ, as they do with another number of threads.
    assert two.report.true_probability == pytest.approx(one.report.true_probability, abs=1e-6)
    assert two.report.confidence == pytest.approx(one.report.confidence, abs=1e-6)
    for key, value in one.scores.items():
        assert two.scores[key] == pytest.approx(value, abs=1e-6), key

    next((tmp_path / "pictures").rglob("*.png")).with_suffix(".heic").touch()
    assert main(["evaluate", str(run), *words, "--device", "cpu", f"dataset.root={tmp_path}/pictures"]) == 0
    said, err = capsys.readouterr()
    assert err == "vitlab: passed over 1 file that is no image Pillow reads (.heic)\n"
    assert "recorded" not in said
    assert "validation" not in said
    assert (run / "evaluation" / name / "test.json").is_file()
    assert json.loads((run / "evaluation" / name / "test.json").read_text())["dataset"][0] == words[0]


def test_images_of_another_size_and_mode_go_through_the_runs_preprocessing(run, tmp_path):
    write_images(tmp_path / "images", classes="0123456789", n=10, size=(30, 44))
    other, _ = reevaluate.dataset_from_overrides(["dataset=image_folder", f"dataset.root={tmp_path}/images"])
    model = load(run)
    part = measure(run, model, other, external=True, workers=1)["all"]
    image = part.examples.image(0)
    expected = model(model.preprocess(image)[None]).softmax(dim=-1).max().item()
    assert part.report.confidence[0] == pytest.approx(expected, abs=1e-6)


def test_a_dataset_of_other_classes_is_refused_with_what_differs(run, tmp_path, capsys):
    write_images(tmp_path / "images", classes=["0", "1", "cat", "dog"])
    assert main(["evaluate", str(run), "dataset=image_folder", f"dataset.root={tmp_path}/images"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "has classes that the run lacks (cat, dog): give one of its 10 classes" in said
    assert not (run / "evaluation").exists()


GREY = ["dataset=image_folder", "dataset.channels=1", "dataset.mean=[0.5]", "dataset.std=[0.5]"]
LAYOUTS = {  # where the images go: which split is measured, and how many images of the three that are written there
    "flat": ({"": 12}, "all", 36),
    "train alone": ({"train": 12}, "all", 36),
    "test alone": ({"test": 5}, "test", 15),
    "validation alone": ({"val": 5}, "all", 15),
    "train and validation": ({"train": 7, "val": 5}, "all", 36),
    "train and test": ({"train": 7, "test": 4}, "test", 12),
    "all three": ({"train": 7, "val": 5, "test": 4}, "test", 12),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_new_images_of_some_classes_are_all_measured(run, tmp_path, capsys, layout):
    """Or those of the test split where there is one; `train/` need not be there."""
    folders, split, images = LAYOUTS[layout]
    for name, each in folders.items():
        write_images(tmp_path / "new" / name, classes=("3", "1", "7"), n=each, size=(8, 8))
    words = ["evaluate", str(run), *GREY, f"dataset.root={tmp_path}/new"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    total = 3 * sum(folders.values())
    more = f" of {total} (--split all measures all)" if total > images else ""
    which = "all images" if split == "all" else "the test split"
    assert lines[0].startswith(f"{split:<11} accuracy")
    assert lines[2] == f"images      {which}: {images}{more}; 3 of the run's 10 classes are in it (1, 3, 7)"
    assert f"from {images} " in lines[3]
    table = json.loads((run / "evaluation" / "image_folder-new" / f"{split}.json").read_text())
    assert table["images"] == images == np.sum(table["confusion"])
    classes = {row["class"]: row for row in table["classes"]}
    assert {name for name, row in classes.items() if row["images"]} == {"1", "3", "7"}
    assert set(classes["0"].values()) == {"0", 0, None}  # no figure of a class without images
    if total > images:
        assert main([*words, "--split", "all"]) == 0
        assert f"images      all images: {total}; 3 of the run's" in capsys.readouterr().out
        assert json.loads((run / "evaluation" / "image_folder-new-2" / "all.json").read_text())["images"] == total
    right = sum(row["accuracy"] * row["images"] for row in classes.values() if row["images"])
    assert right / images == pytest.approx(table["accuracy"])
    if split == "all" and layout != "train and validation":
        assert main([*words, "--split", "test"]) == 2
        assert "--split test: the dataset has no such split" in capsys.readouterr().err


def test_one_class_is_enough_and_an_unknown_one_is_not(run, tmp_path, capsys):
    write_images(tmp_path / "new", classes=("4",), n=3)
    words = ["evaluate", str(run), *GREY, f"dataset.root={tmp_path}/new"]
    assert main(words) == 0
    assert "3; 1 of the run's 10 classes is in it (4)" in capsys.readouterr().out
    write_images(tmp_path / "new", classes=("four",), n=3)
    assert main(words) == 2
    assert "has classes that the run lacks (four)" in capsys.readouterr().err


def test_classes_of_a_training_folder_that_is_not_measured_may_be_others(run, tmp_path):
    write_images(tmp_path / "new" / "train", classes=("1", "cat"), n=3)
    write_images(tmp_path / "new" / "test", classes=("1",), n=3)
    other, _ = reevaluate.dataset_from_overrides([*GREY, f"dataset.root={tmp_path}/new"])
    (part,) = measure(run, load(run), other, external=True).values()
    assert part.report.labels.tolist() == [1, 1, 1]


def test_all_images_are_those_of_every_split_in_order(run, tmp_path):
    for split, classes in (("train", "12"), ("val", "23")):
        write_images(tmp_path / "new" / split, classes=classes, n=6, size=(8, 8))
    other, _ = reevaluate.dataset_from_overrides([*GREY, f"dataset.root={tmp_path}/new"])
    model = load(run)
    (part,) = measure(run, model, other, external=True).values()
    assert part.report.labels.tolist() == [1] * 6 + [2] * 6 + [2] * 6 + [3] * 6
    for i in (0, 11, 12, 23):
        expected = model(model.preprocess(part.examples.image(i))[None]).softmax(dim=-1).max().item()
        assert part.report.confidence[i] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_tables_and_shards_without_a_test_split_are_measured_whole(run, tmp_path, capsys, monkeypatch):
    own_cache(tmp_path, monkeypatch)
    for name, count in (("train", 8), ("validation", 4)):
        hub_table(count, classes=("3", "5")).to_parquet(tmp_path / "table" / f"{name}.parquet")
    grey = ["dataset.channels=1", "dataset.mean=[0.5]", "dataset.std=[0.5]"]
    table = ["dataset=hf", f"dataset.path={tmp_path}/table", *grey, "dataset.validation_split=validation"]
    assert main(["evaluate", str(run), *table, "dataset.test_split=null"]) == 0
    assert "all images: 12; 2 of the run's 10 classes are in it (3, 5)" in capsys.readouterr().out
    assert main(["evaluate", str(run), *table, "dataset.test_split=validation", "dataset.train_split=none"]) == 0
    assert "the test split: 4 of 8 (--split all measures all); 2 of the run's 10 classes" in capsys.readouterr().out
    pattern = write_shards(tmp_path / "shards", 2)
    tars = ["dataset=webdataset", f'dataset.train="{pattern}"', f"dataset.cache={tmp_path}/cache", *grey]
    assert main(["evaluate", str(run), *tars]) == 0
    assert "all images: 20; 4 of the run's 10 classes are in it (0, 1, 2, 3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["patch=p4"], "only the dataset of a trained run can be another"),
        (["dataset.root=x"], "--root x: the dataset of"),
        (["dataset.path=x", "dataset.root=x"], "the dataset is missing"),
        (["tests"], "tests: which dataset is it? dataset=image_folder dataset.root=tests"),
        (["--split", "all"], "was trained on most of its own"),
        (["dataset=digits", "--root", "x"], "--root x is for the run's own dataset"),
        (["dataset=nothing"], "nothing"),
        (["dataset=digits", "dataset.image_sise=3"], "image_sise"),
        (["--root", "x"], "has no folder of its own: leave it out"),
        (["--workers", "-1"], "--workers -1"),
        (["--device", "gpu"], "no such device"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence_and_exit_status_2(run, capsys, words, sentence):
    assert main(["evaluate", str(run), *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert sentence in said.err


def test_a_strangers_run_still_names_nothing_but_models_and_datasets(run, capsys):
    config = run / "config.yaml"
    good = config.read_text()
    for text in (
        good.replace("vitlab.data.datasets.digits.Digits", "vitlab.tracking.options.Tracking"),
        good.replace("vitlab.data.datasets.digits.Digits", "os.system"),
        good.replace("vitlab.model.mlp.Mlp", "subprocess.Popen"),
    ):
        config.write_text(text)
        assert main(["evaluate", str(run)]) == 2
        assert "is refused" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_still_gives_the_numbers(run, capsys):
    (run / "evaluation").write_text("a file in the way")
    assert main(["evaluate", str(run)]) == 1
    said = capsys.readouterr()
    assert said.out.count("as recorded") == 2
    assert "cannot be written" in said.err


def test_no_mistakes_leave_no_picture_of_mistakes(run):
    from vitlab.cli.evaluate import write
    from vitlab.evaluation.classification import ClassificationReport

    part = measure(run, load(run), reevaluate.training_dataset(run), ["test"])["test"]
    labels = part.report.labels
    perfect = ClassificationReport.of(np.eye(10)[labels], labels, part.report.classes)
    folder = run / "evaluation"
    folder.mkdir()
    (folder / "mistakes.png").write_text("of other weights")
    better = Measured(total=1, examples=part.examples, scores=part.scores, report=perfect)
    assert "mistakes.png" not in write(folder, "test", better, {"run": "run", **perfect.as_dict()})
    assert not (folder / "mistakes.png").exists()
