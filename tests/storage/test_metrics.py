"""The table of metrics: whole, its directions, how it prints, and what it refuses."""

import re
from pathlib import Path

import pytest

import vitlab
from tests.storage.test_stored_runs import FINISHED, STORED
from tests.training.test_loop import fit
from vitlab.config.errors import ConfigError
from vitlab.report.comparison import compare
from vitlab.storage.metrics import METRICS, NONE, metric, number
from vitlab.storage.run import Run
from vitlab.storage.runs_table import runs

ROOT = Path(vitlab.__file__).parent


def numbers(rows):
    return {key for row in rows for key, value in row.items() if number(value)} - {"seed"}


def test_every_number_of_a_run_is_in_the_table(tmp_path):
    run, result = fit(tmp_path, "fit.shots=[2]", "fit.on_nonfinite=skip")
    stored = Run(STORED / FINISHED)
    for rows, said in ((run.rows(), result), (stored.rows(), stored.result())):
        assert {"val/accuracy", "train/loss", "lr"} <= numbers(rows)
        assert "row" not in {metric(name).source for name in numbers([said])}
        assert "bench" not in {metric(name).source for name in numbers(rows)}


def test_every_number_of_a_stored_result_can_be_compared():
    table = runs(STORED)
    for name in numbers([Run(STORED / FINISHED).result()]):
        found = compare(table, metric=name)
        assert [row.score.n for row in found.rows] == [1]
        assert found.metric == metric(name)
    with pytest.raises(ConfigError, match="metric=train/loss: no run reports such a number"):
        compare(table, metric="train/loss")


def test_the_directions_are_right():
    higher = {name for name, each in METRICS.items() if each.higher_is_better}
    assert higher == {
        *(f"{split}/accuracy" for split in ("train", "val", "test")),
        *(f"{split}/{name}" for split in ("val", "test") for name in ("balanced_accuracy", "macro_f1", "roc_auc")),
        *("val/K-shot", "test/K-shot", "images_per_second", "inference/images_per_second"),
        "largest_batch",
    }
    assert metric("test/10-shot").higher_is_better
    assert (metric("val/accuracy").sign, metric("val/loss").sign) == (1, -1)


@pytest.mark.parametrize(
    ("name", "value", "printed", "cell", "heading"),
    [
        ("val/accuracy", 0.98765, "98.77%", "98.77", "validation accuracy (%)"),
        ("test/5-shot", 0.5, "50.00%", "50.00", "test 5-shot (%)"),
        ("val/macro_f1", 0.5, "50.00%", "50.00", "validation macro F1 (%)"),
        ("test/roc_auc", 0.98765, "0.9877", "0.9877", "test ROC-AUC"),
        ("test/loss", 0.12345, "0.123", "0.1235", "test loss"),
        ("images_per_second", 13712.6, "13.7 k", "1.371e+04", "images/s"),
        ("seconds", 73, "1 min 13 s", "73", "training time (s)"),
        ("peak_memory_bytes", 2.5e9, "2.50 GB", "2.5e+09", "peak memory (B)"),
        ("parameters", None, NONE, None, "parameters"),
    ],
)
def test_how_a_metric_is_printed(name, value, printed, cell, heading):
    assert metric(name).format(value) == printed
    assert metric(name).heading == heading
    assert value is None or metric(name).cell(value) == cell


def test_what_chooses_is_measured_on_validation_images():
    assert metric("test/5-shot").validation.name == "val/5-shot"
    assert metric("val/loss").validation.name == "val/loss"
    assert {each.validation.source for each in METRICS.values()} == {"validation"}
    assert all(METRICS[each.validation.name] == each.validation for each in METRICS.values())
    assert all(METRICS[each.validation.name] == each.validation for each in METRICS.values())


def test_a_curve_and_a_search_have_the_metric_of_every_evaluation():
    for name in ("test/macro_f1", "test/loss", "test/roc_auc"):
        assert metric(name).per_evaluation.name == f"val/{name[5:]}"
    for name in ("test/5-shot", "test/accuracy", "seconds"):
        assert metric(name).per_evaluation.name == "val/accuracy"


@pytest.mark.parametrize("name", ["test/acuracy", "accuracy", "test/K-shot", "test/0-shot", "test/5-shots", "seed", ""])
def test_an_unknown_metric_is_refused_with_the_known_ones(name):
    with pytest.raises(ConfigError, match=f"^{name}: there is no such metric.*test/accuracy, .*test/5-shot"):
        metric(name)
    if name == "test/acuracy":
        with pytest.raises(ConfigError, match="did you mean test/accuracy"):
            metric(name)


PIECE = r"[\"'][^\"']*(accuracy|loss|-shot|per_second|inference/|ece)[^\"']*[\"']"
CALL = r"(startswith|endswith|find|count|index|match|search|compile)\("
GUESS = re.compile(rf"{CALL}[^\n]*{PIECE}|{PIECE} (not )?in \w*(metric|name|key)")


def test_no_module_guesses_a_metric_by_the_letters_of_its_name():
    for line in (
        '"loss" not in key',
        "'accuracy' in metric",
        'x.endswith(("-shot", "y"))',
        'x.startswith("inference/")',
    ):
        assert GUESS.search(line)
    assert not GUESS.search('metric("test/accuracy").share and "loss" in sums')
    for path in (*ROOT.rglob("*.py"), *ROOT.rglob("*.html")):
        assert not [line for line in path.read_text().split("\n") if GUESS.search(line)], path
