"""Metrics of classes: equal to scikit-learn's, in an evaluation of any batches and processes."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

from tests.training.test_loop import ALONE, fit
from vitlab.evaluation import class_metrics, evaluate
from vitlab.evaluation.classification import ClassificationReport
from vitlab.model.objective import Classify
from vitlab.storage.run import Run

EXACT = {"rel": 0, "abs": 1e-12}


def drawn(seed, n, k, skew=0.0, levels=None):
    """Logits and labels that go together a little; with `levels` the probabilities have many ties."""
    draw = np.random.default_rng(seed)
    share = np.exp(-skew * np.arange(k))
    labels = draw.choice(k, n, p=share / share.sum())
    logits = draw.normal(size=(n, k)) + 1.5 * np.eye(k)[labels]
    logits = logits if levels is None else np.round(logits * levels) / levels
    return torch.from_numpy(logits).float(), torch.from_numpy(labels)


CASES = {
    "even": drawn(0, 400, 5),
    "two classes": drawn(1, 100, 2, skew=2.0),
    "imbalanced": drawn(2, 3000, 10, skew=0.5),
    "classes without images": drawn(3, 60, 30, skew=0.3),
    "ties": drawn(4, 500, 4, levels=1),
    "one image": drawn(5, 1, 3),
    "always one class": (torch.eye(3)[torch.zeros(20, dtype=torch.long)], torch.arange(20) % 3),
}


def scored(logits, labels, size=7):
    class Given(nn.Module):
        def forward(self, images):
            return images

    objective = Classify.__new__(Classify)
    nn.Module.__init__(objective)
    batches = zip(logits.split(size), labels.split(size), strict=True)
    return evaluate.evaluate(Given(), batches, ALONE, "fp32", objective)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_scores_of_an_evaluation_are_scikit_learns(case):
    logits, labels = CASES[case]
    y, predicted, k = labels.numpy(), logits.argmax(1).numpy(), logits.shape[1]
    found = scored(logits, labels)
    known = {"labels": np.arange(k), "average": None, "zero_division": 0}
    assert found["precision"] == pytest.approx(metrics.precision_score(y, predicted, **known), **EXACT)
    assert found["recall"] == pytest.approx(metrics.recall_score(y, predicted, **known), **EXACT)
    assert found["f1"] == pytest.approx(metrics.f1_score(y, predicted, **known), **EXACT)
    assert found["accuracy"] == metrics.accuracy_score(y, predicted)
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(y, predicted), **EXACT)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(y, predicted, average="macro"), **EXACT)


@pytest.mark.parametrize("case", CASES)
def test_the_roc_auc_is_scikit_learns(case):
    logits, labels = CASES[case]
    p, y = logits.softmax(-1), labels.numpy()
    there = [c for c in range(p.shape[1]) if 0 < (y == c).sum() < len(y)]
    expected = [metrics.roc_auc_score(y == c, p[:, c].numpy()) for c in there]
    each, found = class_metrics.roc_auc(p, labels), scored(logits, labels)["roc_auc"]
    assert each[there] == pytest.approx(expected, **EXACT)
    assert np.isnan(np.delete(each, there)).all()
    if not there:
        assert found is None
        return
    assert found == pytest.approx(np.mean(expected), **EXACT)
    if len(there) == p.shape[1] > 2:
        double = p.double() / p.double().sum(1, keepdim=True)  # scikit-learn wants rows that sum to 1
        macro = metrics.roc_auc_score(y, double.numpy(), multi_class="ovr", average="macro")
        assert class_metrics.macro(class_metrics.roc_auc(double, labels)) == pytest.approx(macro, **EXACT)


def test_batches_padding_order_and_parts_of_the_classes_change_nothing(monkeypatch):
    logits, labels = CASES["imbalanced"]
    expected = scored(logits, labels, size=3000)
    mixed = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    padded = torch.cat((logits, torch.full((5, 10), 9.0))), torch.cat((labels, torch.full((5,), -1)))
    monkeypatch.setattr(class_metrics, "AT_ONCE", 7000)  # two classes at a time
    for other in ((logits, labels), (logits[mixed], labels[mixed]), padded):
        found = scored(*other, size=100)
        assert found.pop("loss") == pytest.approx(expected["loss"], rel=1e-12)
        assert found == {key: value for key, value in expected.items() if key != "loss"}


def test_too_many_probabilities_leave_the_roc_auc_open(monkeypatch):
    monkeypatch.setattr(evaluate, "MOST", 1999)
    assert scored(*CASES["even"])["roc_auc"] is None
    assert scored(*CASES["two classes"])["roc_auc"] is not None


@pytest.mark.parametrize("case", CASES)
def test_a_report_has_the_scores_of_the_evaluation(case):
    logits, labels = CASES[case]
    classes = tuple(map(str, range(logits.shape[1])))
    report, found = ClassificationReport.of(logits.softmax(-1), labels, classes), scored(logits, labels)
    assert report.averages == {key: found[key] for key in ("balanced_accuracy", "macro_f1", "roc_auc")}
    table = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert table["macro_f1"] == found["macro_f1"]
    for key in ("precision", "recall", "f1"):
        expected = [value if row["images"] else None for value, row in zip(found[key], table["classes"], strict=True)]
        assert [row[key] for row in table["classes"]] == expected
    for row in table["classes"]:
        assert (row["accuracy"] is None) == (row["images"] == 0)
        assert (row["roc_auc"] is None) == (row["images"] in (0, len(labels)))


def test_the_scores_of_20000_classes_are_stored_and_read(tmp_path):
    run = Run(tmp_path)
    scores = np.random.default_rng(0).random((6, 20_000))
    result = {"status": "finished", "seed": 0, "cell": "x"} | {
        f"test/{i}": each.tolist() for i, each in enumerate(scores)
    }
    run.write_result(result)
    assert run.result() == result
    assert (tmp_path / "result.json").read_text().count("\n") == 11


def test_a_training_reports_the_scores_of_classes(tmp_path):
    run, result = fit(tmp_path, "fit.steps=2")
    rows = [row for row in run.rows() if "val/accuracy" in row]
    for name in ("balanced_accuracy", "macro_f1", "roc_auc"):
        assert all(0 <= row[f"val/{name}"] <= 1 for row in rows)
        assert result[f"val/{name}"] in {row[f"val/{name}"] for row in rows}
        assert 0 <= result[f"test/{name}"] <= 1
    assert all(isinstance(value, int | float) for row in run.rows() for value in row.values())
    stored = json.loads((run.folder / "result.json").read_text())
    for key in ("precision", "recall", "f1"):
        assert len(stored[f"test/{key}"]) == 10
    assert math.isclose(np.mean(stored["test/f1"]), stored["test/macro_f1"])
