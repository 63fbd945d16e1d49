"""Which evaluation is the best one: `fit.best`."""

import pytest

from tests.training.test_loop import ALONE, fit
from vitlab.cli.run import summary
from vitlab.config.build import assemble
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError
from vitlab.config.identity import identity
from vitlab.storage.metrics import metric, rank
from vitlab.training.setup import prepare

pytestmark = pytest.mark.usefixtures("no_curves")

CHOICES = ("val/accuracy", "val/loss", "val/macro_f1", "val/balanced_accuracy")


def test_an_evaluation_is_ranked_by_the_metric_and_then_by_its_loss():
    one = {"accuracy": 0.9, "loss": 0.5, "macro_f1": 0.3, "balanced_accuracy": 0.4, "precision": [0.1, 0.2]}
    for by in CHOICES:
        short = by.removeprefix("val/")
        better = {**one, short: one[short] + (0.1 if metric(by).higher_is_better else -0.1)}
        assert rank(better, by) > rank(one, by)
        assert rank({**one, "loss": 0.4}, by) > rank(one, by)
        assert rank(dict(one), by) == rank(one, by)
    assert rank(one) == rank(one, "val/accuracy") == (0.9, -0.5)


@pytest.mark.parametrize("by", CHOICES)
def test_the_best_weights_are_those_of_the_chosen_metric(by, tmp_path):
    run, result = fit(tmp_path, f"fit.best={by}", "fit.steps=24", "optimizer.lr=0.03", "dataset.split_seed=1")
    rows = [row for row in run.rows() if "val/accuracy" in row]
    best = max(rows, key=lambda row: (metric(by).sign * row[by], -row["val/loss"]))
    assert (result["best_by"], result["best_step"], result[by]) == (by, best["step"], best[by])
    said = summary(run, result)
    if by == "val/accuracy":
        assert f"{result[by]:.2%} (best, at step {best['step']} of 24)" in said
    else:
        words = {"val/loss": "loss", "val/macro_f1": "macro F1", "val/balanced_accuracy": "balanced accuracy"}[by]
        assert f"(best, at step {best['step']} of 24, by {words} {metric(by).format(result[by])})" in said


def test_patience_waits_for_the_chosen_metric(tmp_path, monkeypatch):
    scores = iter([(0.5, 0.1), (0.6, 0.1), (0.7, 0.1), (0.8, 0.1)])

    def given(*_):
        accuracy, macro = next(scores, (0.9, 0.1))
        return {"loss": 1.0, "accuracy": accuracy, "balanced_accuracy": accuracy, "macro_f1": macro, "roc_auc": None}

    monkeypatch.setattr("vitlab.evaluation.evaluate.Evaluator.__call__", given)
    _, result = fit(tmp_path, "fit.best=val/macro_f1", "fit.patience=2", "fit.steps=60")
    assert (result["best_step"], result["steps"]) == (4, 11)
    assert result["val/roc_auc"] is None


def test_a_run_that_is_chosen_by_another_metric_is_another_run():
    assert len({identity(check(compose([f"fit.best={by}"])[0])) for by in CHOICES}) == 4
    assert identity(check(compose(["fit.best=val/accuracy"])[0])) == "cebb32de"
    assert identity(check(compose(["fit.sampling=balanced"])[0])) != "cebb32de"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fit.best=f1"], "expected one of val/accuracy, val/loss, val/macro_f1, val/balanced_accuracy"),
        (["fit.best=val/macro_f1", "model/objective=masked_patch"], "fit.best=val/macro_f1: .*predicts patches and no"),
        (["fit.sampling=weighted"], "expected one of uniform, balanced"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        prepare(**assemble(check(compose(words)[0])), dist=ALONE)
