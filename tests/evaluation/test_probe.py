"""What a frozen representation is worth: the paper's few-shot protocol, held to scikit-learn; and the command."""

import json
import math
import shutil
import time

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from tests.processes import Training
from tests.training.test_loop import ALONE, SMALL, fit
from tests.training.test_resume import only
from vitlab.__main__ import main
from vitlab.cli.probe import Probing
from vitlab.config.errors import ConfigError, SweepFileError
from vitlab.evaluation import probe
from vitlab.evaluation.load import load
from vitlab.evaluation.reevaluate import eval_inputs, training_dataset
from vitlab.model.objective import TrainingModel
from vitlab.report.comparison import compare
from vitlab.storage import runs_table
from vitlab.storage.metrics import metric
from vitlab.sweep import plan as planning
from vitlab.sweep import reader

pytestmark = pytest.mark.usefixtures("no_curves", "no_figures")

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [9, 7, 12, 8]))


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    run, _ = fit(tmp_path_factory.mktemp("runs"), "fit.steps=30", "optimizer.lr=0.02", "dataset.train_examples=200")
    return run.folder


@pytest.fixture
def run(trained_once, tmp_path):
    """A copy of its own for each test."""
    return shutil.copytree(trained_once, tmp_path / "run")


def cloud(classes, each, width, seed=0):
    """Features in noisy clusters."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    values = (centres[labels] + draw.normal(size=(len(labels), width))) * 3 + 7
    return probe.Features(values=values.astype(np.float32), labels=labels)


# --- the protocol -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", [2, 20], ids=["fewer images than channels", "more"])
@pytest.mark.parametrize("l2", [1.0, probe.L2])
def test_the_closed_form_is_scikit_learns_ridge(each, l2):
    support, test = cloud(3, each, 24), cloud(3, 50, 24, seed=1)
    x, targets = probe.whitened(support.values, support.values), 2.0 * np.eye(3)[support.labels] - 1
    assert (len(x) >= x.shape[1]) == (each == 20)
    found = probe.least_squares(x, targets, l2)
    known = Ridge(alpha=l2, fit_intercept=False, solver="svd").fit(x, targets)
    np.testing.assert_allclose(found, known.coef_.T, atol=1e-10)
    asked = probe.whitened(test.values, support.values)
    answers = known.predict(asked).argmax(axis=1)
    assert ((asked @ found).argmax(axis=1) == answers).all()
    by_class = support.values.reshape(1, 3, each, 24)
    assert probe.few_shot(by_class, test, [each], l2) == {each: [(answers == test.labels).mean()]}


def test_features_are_whitened_by_the_support_set_alone():
    support, other = cloud(3, 4, 5).values, cloud(3, 9, 5, seed=1).values
    white = probe.whitened(support, support)
    assert white.dtype == np.float64
    np.testing.assert_allclose(white[:, :-1].mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(white[:, :-1].std(axis=0), 1, atol=1e-4)
    assert (white[:, -1] == 100).all()
    expected = (other - support.astype(float).mean(axis=0)) / (support.astype(float).std(axis=0) + 1e-5)
    np.testing.assert_allclose(probe.whitened(other, support)[:, :-1], expected)
    still = np.ones((6, 2), dtype=np.float32)  # a channel that says nothing divides by no zero
    assert (probe.whitened(still, still)[:, :-1] == 0).all()


def test_every_class_gives_as_many_images_and_the_draw_is_its_number_alone():
    drawn = probe.draw(LABELS, 4, 7, 5)
    assert drawn.shape == (5, 4, 7)
    assert (LABELS[drawn] == np.arange(4)[:, None]).all()
    assert all(len(set(each.ravel())) == 28 for each in drawn)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 (what must not matter)
    assert (probe.draw(LABELS, 4, 7, 5) == drawn).all()
    assert (probe.draw(LABELS, 4, 7, 2) == drawn[:2]).all()
    assert (probe.draw(LABELS, 4, 3, 5) == drawn[:, :, :3]).all()  # fewer shots are the first ones
    assert not (drawn[0] == drawn[1]).all()


def test_the_draws_are_those_of_the_authors_code():
    generator = np.random.default_rng(3)  # as there: one generator a seed, the classes in their order
    expected = [generator.permutation(np.where(c == LABELS)[0])[:5] for c in range(4)]
    assert (probe.draw(LABELS, 4, 5, 4)[3] == expected).all()


def test_fewer_shots_use_the_first_images_of_each_class():
    pool, test = cloud(3, 6, 5), cloud(3, 30, 5, seed=1)
    drawn = probe.draw(pool.labels, 3, 6, 4)
    support = pool.values[drawn]
    assert probe.few_shot(support, test, [2, 6])[2] == probe.few_shot(support[:, :, :2], test, [2])[2]


@pytest.mark.parametrize("method", [probe.linear, probe.neighbours])
def test_the_hyperparameter_is_chosen_on_validation(method, monkeypatch):
    train, validation, test = cloud(3, 30, 5), cloud(3, 20, 5, seed=1), cloud(3, 40, 5, seed=2)
    heard = []

    def choose(values, candidate, held, plain=probe.choose):
        heard.append(held)
        return plain(values, candidate, held)

    monkeypatch.setattr(probe, "choose", choose)
    chosen = method(train, validation)
    assert heard == [validation]
    assert chosen.validation == chosen.accuracy(validation)
    noise = np.random.default_rng(0)
    shuffled = probe.Features(values=test.values, labels=noise.permutation(test.labels))
    assert chosen.accuracy(test) > 0.6 > chosen.accuracy(shuffled)
    lost = probe.Features(values=validation.values, labels=noise.permutation(validation.labels))
    assert method(train, lost).validation < chosen.validation


def test_of_equal_candidates_the_first_is_chosen():
    class Answer:
        def __init__(self, right):
            self.right = right

        def predict(self, values):
            return np.arange(len(values)) % 2 if self.right else np.zeros(len(values))

    held = probe.Features(values=np.zeros((4, 1), dtype=np.float32), labels=np.array([0, 1, 0, 1]))
    found = probe.choose([3, 1, 2], lambda value: Answer(value < 3), held)
    assert (found.value, found.validation) == (1, 1.0)


# --- the features -------------------------------------------------------------------------------------------------


def test_features_are_what_stands_before_the_last_layer_of_every_image_once(tmp_path):
    run, _ = fit(tmp_path, "model/head=tanh_mlp", "fit.evaluation_batch_size=100")
    model, dataset = load(run.folder), training_dataset(run.folder)
    source = eval_inputs(run.folder, model, dataset)
    examples = source.splits["test"]
    found = probe.features(TrainingModel(model.model), source.batches(examples), ALONE, "fp32")
    assert found.values.shape == (359, 16)
    assert found.values.dtype == np.float32
    assert (found.labels == examples.labels).all()
    images = torch.stack([model.preprocess(examples.image(i)) for i in (0, 100, 358)])
    with torch.no_grad():
        logits, seen = model(images, intermediates=True)
        np.testing.assert_allclose(found.values[[0, 100, 358]], seen["pre_logits"].numpy(), atol=1e-5)
        answered = model.model.head(torch.from_numpy(found.values[[0, 100, 358]]))
    torch.testing.assert_close(answered, logits, atol=1e-5, rtol=1e-5)
    assert not model.model.training


# --- the command --------------------------------------------------------------------------------------------------


def test_the_table_and_the_file_say_the_same(run, capsys):
    assert main(["probe", str(run), "--shots", "1,5", "--linear", "--knn"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["test", "1-shot", "5-shot", "linear", "k-NN", "time", "file", "next"]
    assert said[-1] == f"next        vitlab evaluate {run}"
    table = json.loads((run / "probe.json").read_text())
    for line, row in zip(said[1:3], table["few_shot"], strict=True):
        assert len(row["draws"]) == 5
        assert row["accuracy"] == pytest.approx(np.mean(row["draws"]))
        assert row["std"] == pytest.approx(np.std(row["draws"], ddof=1))
        assert f"{100 * row['accuracy']:.2f} ± {100 * row['std']:.2f} %" in line
    for line, key in zip(said[3:5], ("linear", "knn"), strict=True):
        assert f"{100 * table[key]['accuracy']:.2f} %" in line
        assert f"={table[key]['value']:g}, chosen on validation, {table[key]['validation']:.2%} there" in line
    assert 0.1 < table["few_shot"][0]["accuracy"] < table["few_shot"][1]["accuracy"] < table["linear"]["accuracy"]
    assert (table["images"], table["training_images"], table["classes"], table["width"]) == (359, 200, 10, 16)


def test_without_all_training_images_the_same_few_are_read(run, capsys):
    """The support set's images alone, or all features and those of the support set among them."""
    found = []
    for words in ([], ["--knn"]):
        assert main(["probe", "--json", str(run), "--shots=3", "--seeds=2", *words]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["few_shot"] == found[1]["few_shot"]
    assert len(found[0]["few_shot"][0]["draws"]) == 2


def test_the_test_images_are_not_touched_where_validation_is_asked_for(run, capsys, monkeypatch):
    read = []
    plain = Probing.features
    monkeypatch.setattr(Probing, "features", lambda self, part: read.append(len(part)) or plain(self, part))
    assert main(["probe", str(run), "--shots=1", "--split=validation", "--linear"]) == 0
    assert read == [144, 200]  # each once
    assert "chosen here" in capsys.readouterr().out
    assert (run / "probe-validation.json").is_file()
    assert not (run / "probe.json").exists()


def test_each_split_is_read_once_and_test_labels_choose_nothing(run, capsys, monkeypatch):
    found = []
    for turn in range(2):
        read = []

        def features(self, part, plain=Probing.features, read=read, turn=turn):
            read.append(len(part))
            got = plain(self, part)
            right = turn == 0 or len(part) != 359
            return got if right else probe.Features(values=got.values, labels=(got.labels + 1) % 10)

        with monkeypatch.context() as patch:
            patch.setattr(Probing, "features", features)
            assert main(["probe", "--json", str(run), "--shots=1", "--linear", "--knn"]) == 0
        assert sorted(read) == [144, 200, 359]
        found.append(json.loads(capsys.readouterr().out))
    for key in ("linear", "knn"):
        right, wrong = (each[key] for each in found)
        assert (right["value"], right["validation"]) == (wrong["value"], wrong["validation"])
        assert right["accuracy"] > 3 * wrong["accuracy"]


def test_another_dataset_may_have_other_classes(run, tmp_path, capsys):
    from tests.data.test_dataset import write_images

    write_images(tmp_path / "images", classes=["cat", "dog"], n=10, size=(30, 44))
    assert main(["probe", str(run), "dataset=image_folder", f"dataset.root={tmp_path}/images", "--shots=2"]) == 0
    table = json.loads((run / "probe-image_folder-images.json").read_text())
    assert table["classes"] == 2
    assert table["dataset"][0] == "dataset=image_folder"
    assert "--linear --knn" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--shots", "1,500"], "--shots 1,500: class "),
        (["--shots", "0"], "0 images a class cannot be drawn"),
        (["--shots", "5,5"], "a number is given twice"),
        (["--shots", "five"], "expected whole numbers with commas"),
        (["--seeds", "0"], "--seeds 0: must be at least 1"),
        (["--l2", "0"], "--l2 0.0: must be above 0"),
        (["--l2", "nan"], "--l2 nan: must be above 0"),
        (["--workers", "-1"], "--workers -1"),
        (["--device", "gpu"], "no such device"),
        (["patch=p4"], "only the dataset of a trained run can be another"),
        (["dataset=digits", "--root", "x"], "--root x is for the run's own dataset"),
    ],
)
def test_what_cannot_be_probed_is_one_sentence_and_exit_status_2(run, capsys, words, sentence):
    assert main(["probe", str(run), *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert sentence in said.err
    assert not (run / "probe.json").exists()


def test_too_many_shots_are_refused_with_what_is_possible(run, capsys):
    least, name = probe.fewest(training_dataset(run).splits()["train"].labels, tuple("0123456789"))
    assert main(["probe", str(run), "--shots", f"1,{least + 1}"]) == 2
    assert f"class {name} has {least} training images: use at most {least}" in capsys.readouterr().err
    assert main(["probe", str(run), "--shots", f"1,{least}"]) == 0


def test_a_run_without_weights_and_a_damaged_one_are_refused_as_by_evaluate(run, capsys):
    (run / "best.pt").write_bytes((run / "best.pt").read_bytes()[:-50])
    said = []
    for command in ("evaluate", "probe"):
        assert main([command, str(run)]) == 2
        said.append(capsys.readouterr().err)
    (run / "best.pt").unlink()
    for command in ("evaluate", "probe"):
        assert main([command, str(run)]) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert said[2] == said[3]
    assert "has no weights yet" in said[3]


def test_a_folder_that_cannot_be_written_still_gives_the_numbers(run, capsys):
    (run / "probe.json").mkdir()
    assert main(["probe", str(run), "--shots=1"]) == 1
    said = capsys.readouterr()
    assert "1-shot" in said.out
    assert "cannot be written" in said.err
    assert not list(run.glob(".*.part"))


# --- in a training and a sweep ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_reports_what_the_command_finds(tmp_path, capsys):
    run, result = fit(tmp_path, "fit.shots=[2,3]", "dataset.train_examples=120", "fit.steps=20", "optimizer.lr=0.02")
    _, without = fit(tmp_path, "dataset.train_examples=120", "fit.steps=20", "optimizer.lr=0.02", name="plain")
    timed = {"seconds", "images_per_second", "data_wait", "peak_memory_bytes", "cell"}
    assert {k: v for k, v in result.items() if k in without and k not in timed} == {
        k: v for k, v in without.items() if k not in timed
    }
    for split in ("val", "test"):
        assert 0.1 < result[f"{split}/2-shot"] < 1
        assert 0 < result[f"{split}/2-shot_std"] < 0.3
    for split, words in (("test", []), ("val", ["--split=validation"])):
        assert main(["probe", "--json", str(run.folder), "--shots=2,3", *words]) == 0
        rows = json.loads(capsys.readouterr().out)["few_shot"]
        assert [row["accuracy"] for row in rows] == [result[f"{split}/2-shot"], result[f"{split}/3-shot"]]
        assert [row["std"] for row in rows] == [result[f"{split}/2-shot_std"], result[f"{split}/3-shot_std"]]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fit.shots=[60]"], r"fit.shots=\[60\]: one of the classes has 6 training images: use at most 6"),
        (["fit.shots=[0]"], "0 images a class cannot be drawn"),
        (["fit.shots=[2,2]"], "a number is given twice"),
        (["fit.shots=[2]", "fit=overfit"], "fit.one_batch=true"),
        (["fit.shots=5"], "fit.shots=5: expected a list of whole numbers"),
    ],
)
def test_shots_that_cannot_be_drawn_are_refused_before_the_training(tmp_path, words, sentence):
    with pytest.raises(ValueError, match=sentence):
        fit(tmp_path, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_several_processes_report_what_one_does(tmp_path):
    words = [*SMALL, "fit.shots=[2]", "optimizer=sgd", "optimizer.lr=0.05"]
    found = []
    for world, how in ((1, "none"), (2, "ddp"), (2, "fsdp")):
        folder = tmp_path / how
        more = [f"system.parallel={how}"] if world > 1 else []
        process = Training(
            ["train", *words, f"system.runs={folder}", *more], f"{folder}-{time.monotonic_ns()}.txt", world
        )
        assert set(process.wait()) == {0}, process.said
        assert "few shots   2-shot " in process.said
        found.append(only(folder).result())
    for key in ("val/2-shot", "test/2-shot"):
        assert [result[key] for result in found] == pytest.approx([found[0][key]] * 3, abs=0.01)


SWEEP = """\
question: Which patch has the better features?
baseline: [{small}, "fit.shots=[2]"]
arms: {{p2: patch=p2, p4: patch=p4}}
seeds: 2
metric: test/2-shot
"""


@pytest.mark.slow
def test_a_sweep_may_ask_for_few_shots(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(SWEEP.format(small=", ".join(SMALL)))
    plan = planning.plan(reader.read(file))
    assert plan.question.metric == "test/2-shot"
    assert main(["sweep", str(file), f"system.runs={tmp_path}/runs", "launcher=serial"]) == 0
    assert "test 2-shot (%)" in capsys.readouterr().out
    table = runs_table.runs(tmp_path / "runs")
    found = compare(table, metric="test/2-shot")
    assert found.metric.higher_is_better
    for row in found.rows:
        assert row.score.mean == pytest.approx(row.runs["test/2-shot"].mean())
        assert row.validation.mean == pytest.approx(row.runs["val/2-shot"].mean())
        assert 0 <= row.score.low < row.score.high <= 1


def test_a_sweep_whose_runs_would_not_report_its_metric_is_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(SWEEP.format(small=", ".join(SMALL)).replace("fit.shots=[2]", "fit.shots=[1]"))
    with pytest.raises(ConfigError, match=r"line 5: metric: test/2-shot: .* add \"fit.shots=\[2\]\" to the baseline"):
        planning.plan(reader.read(file))
    file.write_text(SWEEP.format(small=", ".join(SMALL)).replace("2-shot", "two-shot"))
    with pytest.raises(SweepFileError, match=r"line 5: metric: .*test/5-shot"):
        reader.read(file)


def test_few_shot_accuracies_are_accuracies():
    assert metric("test/5-shot").higher_is_better
    assert metric("test/5-shot").validation.name == "val/5-shot"
    assert metric("test/5-shot").share
    assert metric("val/10-shot").heading == "validation 10-shot (%)"


def test_the_spread_of_one_draw_is_not_known():
    assert probe.standard_deviation([0.5]) is None
    assert probe.standard_deviation([0.4, 0.6]) == pytest.approx(math.sqrt(0.02))
