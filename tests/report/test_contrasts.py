"""Differences tested together: the pool, its exceptions, missing seeds, equivalence."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.report.test_comparison import arms, compared, folded, line, rows
from vitlab.config.errors import ConfigError
from vitlab.report.contrasts import against, pairwise, pool
from vitlab.report.max_t import dunnett, tukey

# Three machines by four days, made up: seeds differ by more than arms.
TABLE = {"a": [50.0, 52.1, 54.2, 49.9], "b": [51.2, 52.9, 55.1, 50.6], "c": [53.9, 56.3, 57.9, 54.1]}


def series(table):
    return {name: pd.Series(values, dtype=float).dropna() for name, values in table.items()}


def residual_variance(table):
    """Of a two-way layout, by the text book."""
    values = np.array([*table.values()])
    left = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    return (left**2).sum() / (values.shape[0] - 1) / (values.shape[1] - 1)


def test_the_variance_is_the_residual_one_of_arms_by_seeds():
    found = pool(series(TABLE), "a")
    assert (found.arms, found.left_out, found.df) == (("a", "b", "c"), (), pytest.approx(6))
    assert found.variance == pytest.approx(residual_variance(TABLE))
    shifted = {name: np.add(values, [0, 7, -3, 20]) for name, values in TABLE.items()}
    assert pool(series(shifted), "a").variance == pytest.approx(found.variance)


def test_a_difference_holds_by_dunnetts_test_and_by_its_own():
    found, _ = against("a", series(TABLE))
    together = pool(series(TABLE), "a")
    for name in "bc":
        gap = np.array(TABLE[name]) - TABLE["a"]
        shared = dunnett(gap.mean() / np.sqrt(together.difference / 4), 2, 6)
        own = stats.ttest_1samp(gap, 0).pvalue * np.sqrt(3)
        assert found[name].p == pytest.approx(max(shared, own))
        inside = found[name].difference.low <= 0 <= found[name].difference.high
        assert inside == (found[name].p >= 0.05)


def test_all_pairs_are_tested_by_tukeys_test():
    found, _ = pairwise(series(TABLE))
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    gap = np.array(TABLE["c"]) - TABLE["b"]
    shared = tukey(gap.mean() / np.sqrt(2 * residual_variance(TABLE) / 4), 3, 6)
    own = stats.ttest_1samp(gap, 0).pvalue * np.sqrt(3)
    assert found["b", "c"].p == pytest.approx(max(shared, own))


@pytest.mark.parametrize("seed", range(20))
def test_the_interval_excludes_zero_exactly_where_p_is_below_5_of_100(seed):
    draw = np.random.default_rng(seed)
    scores = draw.normal(size=(5, 4)) * draw.choice([1, 1, 1, 6], size=(5, 1)) + draw.normal(size=(5, 1)) * 2
    for contrasts, _ in (against("0", table := series({str(i): one for i, one in enumerate(scores)})), pairwise(table)):
        for one in contrasts.values():
            if one.alone is None:
                assert (one.difference.sign != 0) == (one.p < 0.05)


@pytest.mark.parametrize("table", [TABLE, {name: TABLE[name] for name in "ab"}])
@pytest.mark.parametrize("all_pairs", [False, True])
def test_with_several_looks_each_is_at_its_part_of_the_level(table, all_pairs):
    """Pooled and not: p values times the looks, and intervals that exclude zero where that is below 5 %."""

    def tested(scores, looks):
        return (pairwise(scores, looks) if all_pairs else against("a", scores, margin=2.0, looks=looks))[0]

    once, often = tested(series(table), 1), tested(series(table), 4)
    for name, one in once.items():
        assert often[name].p == pytest.approx(min(1, 4 * one.p))
        assert often[name].difference.half > 1.2 * one.difference.half
        if one.margin_p:
            assert often[name].margin_p == pytest.approx([min(1, 4 * p) for p in one.margin_p])
    for shift in np.linspace(0, 8, 40):
        moved = tested(series({**table, "b": np.add(table["b"], shift)}), 4)
        for one in moved.values():
            assert (one.difference.sign != 0) == (one.p < 0.05)


def test_missing_seeds_leave_least_squares_and_pairs():
    """The layout without one run is that of the two seeds' table with a free value for it."""
    whole = {name: values[:3] for name, values in TABLE.items()}
    lost = {**whole, "c": [53.9, np.nan, 57.9]}
    found = pool(series(lost), "a")
    free = min(residual_variance({**lost, "c": [53.9, value, 57.9]}) * 4 for value in np.linspace(54, 57, 3001))
    assert (found.df, found.variance * 3) == (pytest.approx(3), pytest.approx(free, rel=1e-5))
    contrast = against("a", series(lost))[0]["c"]
    assert (contrast.difference.n, contrast.difference.mean) == (2, pytest.approx((3.9 + 3.7) / 2))
    assert contrast.p > against("a", series(whole))[0]["c"].p


def test_an_arm_of_another_spread_is_left_out_and_costs_the_others_nothing():
    draw = np.random.default_rng(0)
    alike = {str(i): draw.normal(size=4) + (i == 2) * 3 for i in range(5)}
    alone, _ = against("0", series(alike))
    noisy, family = against("0", series({**alike, "noisy": draw.normal(size=4) * 60}))
    assert family.pool.left_out == ("noisy",)
    assert noisy["2"].p < 0.05
    assert noisy["2"].difference.half == pytest.approx(alone["2"].difference.half, rel=0.2)
    lines = compared(arms(**{name: values / 100 + 0.9 for name, values in {**alike, "noisy": alike["0"] * 60}.items()}))
    assert "Of noisy the spread differs (F test)" in " ".join(lines.notes)


@pytest.mark.parametrize(
    ("spread", "reason"),
    [((40, 1, 1, 1, 1), "the baseline's spread"), ((1, 1e2, 1e3, 1e5, 1e7), "from arm to arm")],
)
def test_where_the_baseline_or_many_arms_differ_nothing_is_pooled(spread, reason):
    draw = np.random.default_rng(1)
    scores = {str(i): draw.normal(size=6) * size for i, size in enumerate(spread)}
    found, family = against("0", series(scores))
    assert reason in family.pool.reason
    p = [stats.ttest_rel(scores[name], scores["0"]).pvalue for name in "1234"]
    assert min(one.p for one in found.values()) == pytest.approx(min(1, 4 * min(p)))


def test_folds_are_not_pooled():
    draw = np.random.default_rng(0)
    lines = [one for name in "abc" for one in folded(name, draw.normal(size=(5, 1)) / 99 + 0.9)]
    assert "(Holm), for folds share training images" in " ".join(compared(lines).notes)


def test_an_arm_with_the_same_difference_in_every_seed_is_tested_by_the_spread_of_the_others():
    found = rows(compared(arms(a=[0.90, 0.92, 0.91], b=[0.80, 0.82, 0.81], c=[0.91, 0.91, 0.92], d=[0.9, 0.91, 0.91])))
    assert found["b"].p < 0.05
    assert found["b"].verdict.startswith("worse by 10.0 ± ")


@pytest.mark.parametrize(
    ("other", "margin", "said"),
    [
        ([0.901, 0.911, 0.922], 1, "equivalent within 1 (+0.13 ± 0.14)"),
        ([0.901, 0.911, 0.922], 0.1, "not worse by 0.1 (+0.13 ± 0.14)"),
        ([0.904, 0.915, 0.924], 0.6, "better by 0.43 ± 0.14, equivalent within 0.6"),
        ([0.93, 0.942, 0.953], 1, "better by 3.2 ± 0.4"),
        ([0.89, 0.925, 0.92], 1, "no difference shown (+0 ± 3)"),
    ],
)
def test_equivalence_is_a_verdict_of_its_own(other, margin, said):
    assert compared(arms(a=[0.9, 0.91, 0.92], b=other), margin=margin).rows[1].verdict == said


def test_equivalence_is_two_one_sided_tests():
    base, other = np.array([0.9, 0.91, 0.92, 0.93]), np.array([0.902, 0.909, 0.923, 0.931])
    found, _ = against("a", series({"a": base, "b": other}), 0.01)
    below = stats.ttest_rel(other + 0.01, base, alternative="greater").pvalue
    above = stats.ttest_rel(other - 0.01, base, alternative="less").pvalue
    assert found["b"].margin_p == pytest.approx((below, above))


def test_of_a_loss_lower_is_not_worse():
    lines = [line(name, seed, **{"test/loss": 1 + seed / 9 - gap + seed * gap / 99}) for name, gap in (("a", 0), ("b", 0.5)) for seed in range(3)]  # fmt: skip # noqa: E501
    assert compared(lines, metric="test/loss", margin=0.1).rows[1].verdict == "better by 0.495 ± 0.013"


@pytest.mark.parametrize("margin", [0, -1, float("nan")])
def test_a_margin_is_above_zero(margin):
    with pytest.raises(ConfigError, match="expected a number above 0"):
        compared(arms(a=[0.5, 0.6], b=[0.5, 0.7]), margin=margin)


def test_two_hundred_runs_are_compared_in_well_under_a_second():
    draw = np.random.default_rng(0)
    scores = arms(**{f"arm{i}": draw.normal(0.9, 0.01, size=10) for i in range(20)})
    compared(scores)
    start = time.perf_counter()
    compared(scores)
    assert time.perf_counter() - start < 1.5
