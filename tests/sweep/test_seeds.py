"""What planned seeds could show, and when seeds are added."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests.report.test_false_claims import claims, sweeps
from vitlab.report.contrasts import LEVEL
from vitlab.sweep.seeds import looks, next_look, planned_power


def plan(arms=3, seeds=3, folds=0):
    cells = [
        SimpleNamespace(arm=f"a{i}", identity=f"c{i}", folds=folds, config={"dataset": {"_target_": "x.Digits"}})
        for i in range(arms)
    ]
    return SimpleNamespace(cells=cells, question=SimpleNamespace(seeds=range(seeds), metric="test/accuracy"))


def store(*cells, dataset="Digits"):
    scores = [0.90, 0.91, 0.92]
    lines = [{"cell": cell, "dataset": dataset, "test/accuracy": score} for cell in cells for score in scores]
    return pd.DataFrame(lines)


@pytest.mark.parametrize(
    ("arms", "known", "said"),
    [
        (3, store("c0", "c1", "other"), "3 seeds would show differences of 6.1 points in 8 of 10 such sweeps, with the standard deviation of 2 cells of this sweep in the store, 1 points"),  # noqa: E501
        (3, store("other"), "deviation of 1 cell of Digits in the store"),
        (2, store("c0"), "3 seeds would show differences of 4.6 points"),
        (3, store("other", dataset="Cifar10"), "is not known: the store has no two seeds of such a run"),
        (3, store("c0").iloc[:1], "is not known"),
        (3, None, "is not known"),
    ],
)  # fmt: skip
def test_the_plan_says_what_its_seeds_could_show(arms, known, said):
    assert said in planned_power(plan(arms), known)


@pytest.mark.parametrize("given", [{"arms": 1}, {"seeds": 1}, {"folds": 5}])
def test_where_nothing_is_compared_by_seeds_it_says_nothing(given):
    assert planned_power(plan(**given), store("c0")) == ""


def test_looks_double_the_seeds_up_to_the_most():
    assert looks(3, 20) == (3, 6, 12, 20)
    assert looks(3, 3) == looks(3, 2) == (3,)


@pytest.mark.parametrize(
    ("widths", "seeds", "then"),
    [
        ([0.4, 0.5], 3, None),
        ([0.4, 0.6], 3, 6),
        ([0.4, None], 3, 6),
        ([], 3, None),
        ([0.6], 7, 12),
        ([0.6], 20, None),
    ],
)
def test_seeds_are_added_until_every_interval_is_narrow_or_none_are_left(widths, seeds, then):
    assert next_look(widths, 0.5, seeds, looks(3, 20)) == then


def test_looking_often_claims_no_more_than_5_of_100():
    """A claim at any look counts, whatever made the sweep stop; without the correction it would be more often."""
    planned = looks(4, 16)
    scores = sweeps(2000, np.ones(3), 16, seed_effect=1)

    def ever(at):
        return np.any([claims(scores[:, :, :seeds], at).any(1) for seeds in planned], axis=0).mean()

    assert ever(LEVEL / len(planned)) <= 0.05
    assert ever(0.05) > 0.055
