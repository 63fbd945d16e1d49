"""What a comparison may say: intervals from tables and from simulation, and no claim that the runs do not bear."""

import math
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vitlab.config.errors import ConfigError
from vitlab.report.answer import table_tex, table_text
from vitlab.report.comparison import compare
from vitlab.report.statistics import estimate, holm, wilson


def line(cell, seed, accuracy=None, status="finished", **more):
    known = {
        "name": f"digits-s{seed}-{crc32(f'{cell}{seed}'.encode()):08x}",
        "cell": cell,
        "seed": seed,
        "status": status,
    }
    scores = {} if accuracy is None else {"test/accuracy": accuracy, "val/accuracy": accuracy}
    return known | scores | {"run": f"runs/{cell}-{seed}"} | more


def table(lines):
    keys = dict.fromkeys(key for one in lines for key in one)
    values = {key: [one.get(key, math.nan) for one in lines] for key in keys}
    return pd.DataFrame({key: pd.Series(v, dtype=object if None in v else None) for key, v in values.items()})


def arms(**scores):
    """A table of arms with these accuracies, the seeds from 0."""
    return table([line(name, seed, score) for name, found in scores.items() for seed, score in enumerate(found)])


def compared(lines, **more):
    lines = lines if isinstance(lines, pd.DataFrame) else table(lines)
    cells = {cell: cell for cell in lines["cell"].dropna().unique()}
    return compare(lines, **{"cells": cells, **more})


def rows(comparison):
    return {row.name: row for row in comparison.rows}


# --- numbers ------------------------------------------------------------------------------------------------------


def test_the_interval_of_three_seeds_is_that_of_the_t_table():
    """t = 4.303 with 2 degrees of freedom, 2.776 with 4: 0.4, 0.5, 0.6 have the standard deviation 0.1."""
    (row,) = compared(arms(a=[0.4, 0.5, 0.6])).rows
    assert (row.score.n, row.score.mean, row.score.sd) == (3, pytest.approx(0.5), pytest.approx(0.1))
    assert row.score.high - row.score.mean == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=2e-4)
    assert row.score.mean - row.score.low == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=2e-4)
    (row,) = compared(arms(a=[0.8, 0.9, 1.0])).rows
    assert row.score.high == 1.0  # of a share, which cannot be more
    five = estimate(pd.Series([1.0, 2, 3, 4, 5]))
    assert five.high - 3 == pytest.approx(2.776 * math.sqrt(2.5 / 5), rel=2e-4)


def test_one_seed_has_a_mean_and_no_interval():
    first, second = compared(arms(a=[0.5], b=[0.75])).rows
    assert (first.score.mean, first.score.sd, first.score.low, first.score.high) == (0.5, None, None, None)
    assert (second.difference.mean, second.difference.low, second.p) == (0.25, None, None)
    assert second.verdict == "one seed: no interval (+25)"


def test_the_interval_holds_the_truth_in_95_of_100_experiments():
    draw = np.random.default_rng(0).normal(0.9, 0.01, size=(4000, 3))
    found = [estimate(pd.Series(seeds)) for seeds in draw]
    covered = np.mean([one.low <= 0.9 <= one.high for one in found])
    assert covered == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 4000))


def test_arms_that_do_not_differ_are_seldom_told_apart():
    """With Holm's correction for 4 tests, of 400 comparisons about 20 say a difference; without, about 60."""
    draw = np.random.default_rng(1).normal(0.9, 0.01, size=(400, 5, 4))
    alarms = 0
    for scores in draw:
        differences = [stats.ttest_rel(scores[0], other).pvalue for other in scores[1:]]
        alarms += min(holm(differences)) < 0.05
    assert alarms < 400 * (0.05 + 3 * math.sqrt(0.05 * 0.95 / 400))


def test_p_is_that_of_scipys_paired_test_and_pairs_share_a_seed():
    base, other = [0.90, 0.92, 0.91, 0.95], [0.91, 0.925, 0.93, 0.951]
    mixed = arms(a=base, b=other).sample(frac=1, random_state=0)
    row = rows(compared(mixed, baseline="a"))["b"]
    expected = stats.ttest_rel(other, base)
    assert row.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval()
    assert (row.difference.low, row.difference.high) == pytest.approx((interval.low, interval.high))


def test_holms_correction_is_that_of_a_worked_example():
    """By hand: the smallest times 4, the next times 3, ... and none below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_difference_that_only_stands_alone_does_not_stand_among_many():
    base = np.array([0.90, 0.91, 0.92, 0.93])
    slight = base + np.array([0.010, 0.012, 0.004, 0.010])
    alone = compared(arms(a=base, b=slight))
    assert alone.rows[1].verdict == "better by 0.9 ± 0.6"
    assert alone.rows[1].p == pytest.approx(stats.ttest_rel(slight, base).pvalue)
    others = {f"c{i}": base + np.array([0.01, -0.01, 0.01, -0.012]) for i in range(5)}
    many = rows(compared(arms(a=base, b=slight, **others)))
    assert many["b"].p > 4 * alone.rows[1].p
    assert many["b"].verdict == "no difference shown (+0.9 ± 1.6)"
    uneven = [base + np.array(gap) for gap in ([0.02, 0, 0, 0], [0, 0.2, 0, -0.2], [2e-6, 0, 1e-6, 0])]
    unlike = compared(arms(a=base, b=slight, c=uneven[0], d=uneven[1], e=uneven[2]))
    assert unlike.rows[1].p == pytest.approx(4 * alone.rows[1].p)
    assert unlike.rows[1].verdict == "no difference shown after Holm's correction (+0.9 ± 0.6)"
    assert "paired t tests, corrected for all of them (Holm), for the spread differs" in " ".join(unlike.notes)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=6))
def test_swapping_two_arms_changes_the_sign_of_their_difference(scores):
    found = arms(a=[one for one, _ in scores], b=[other for _, other in scores])
    there, back = (rows(compared(found, baseline=name)) for name in "ab")
    one, other = there["b"].difference, back["a"].difference
    assert one.mean == pytest.approx(-other.mean)
    if len(scores) > 1:
        assert (one.low, one.high, one.sd) == pytest.approx((-other.high, -other.low, other.sd))
    assert (there["b"].p is None) == (back["a"].p is None)
    assert there["b"].p is None or there["b"].p == pytest.approx(back["a"].p)
    said = {there["b"].verdict.split(" by ")[0], back["a"].verdict.split(" by ")[0]}
    assert said == {"better", "worse"} or not said & {"better", "worse"}


# --- folds --------------------------------------------------------------------------------------------------------


def folded(cell, scores, folds=5, **more):
    """Runs of a cell: a list of scores, one a seed, for each fold."""
    return [
        line(cell, seed, score, run=f"{cell}-{fold}-{seed}", **{"dataset.folds": folds, "dataset.fold": fold}, **more)
        for fold, found in enumerate(scores)
        for seed, score in enumerate(found)
    ]


def test_the_interval_over_folds_is_that_of_nadeau_and_bengio():
    """By hand: mean 0.92, sd = sqrt((0.02² + 0.01² + 0.03²) / 4) = 0.018708; t = 2.776; 1/5 + 1/4 = 0.45."""
    (row,) = compared(folded("a", [[0.90], [0.92], [0.91], [0.95], [0.92]])).rows
    assert (row.score.n, row.score.of, row.n) == (5, "fold", "5 folds")
    assert (row.score.mean, row.score.sd) == (pytest.approx(0.92), pytest.approx(0.018708, rel=1e-4))
    assert row.score.high - row.score.mean == pytest.approx(2.776 * 0.018708 * math.sqrt(0.45), rel=2e-4)


def test_seeds_of_a_fold_are_averaged_and_are_no_further_folds():
    single = [[0.90], [0.92], [0.91], [0.95], [0.92]]
    spread = [[mean - 0.04, mean, mean + 0.04] for (mean,) in single]
    one, three = (compared(folded("a", scores)).rows[0] for scores in (single, spread))
    assert (three.n, three.seeds, three.folds) == ("5 folds x 3 seeds", (0, 1, 2), 5)
    assert three.score.n == one.score.n == 5
    assert (three.score.low, three.score.high) == (pytest.approx(one.score.low), pytest.approx(one.score.high))


def test_differences_are_paired_by_fold_and_tested_with_the_same_correction():
    """By hand: differences 1, 2, 3, 4 points, mean 2.5, sd 1.29099; t = 2.5 / (1.29099 sqrt(1/4 + 1/3)) = 2.5355."""
    base = [[0.90, 0.80], [0.70, 0.60], [0.50, 0.60], [0.80, 0.70]]
    other = [[score + 0.01 * (fold + 1) for score in found] for fold, found in enumerate(base)]
    lines = folded("a", base, folds=4) + folded("b", other, folds=4)
    row = rows(compared(table(lines).sample(frac=1, random_state=0), baseline="a"))["b"]
    assert (row.difference.n, row.difference.mean) == (4, pytest.approx(0.025))
    assert row.p == pytest.approx(2 * stats.t.sf(2.5355, 3), rel=1e-4)
    assert row.difference.high - 0.025 == pytest.approx(3.1824 * 0.0129099 * math.sqrt(1 / 4 + 1 / 3), rel=1e-4)
    assert row.verdict.startswith("no difference shown (+")


def test_what_is_missing_of_folds_is_seen():
    lines = folded("a", [[0.9], [0.8], [0.7]]) + folded("b", [[0.9, 0.8]] * 5)[:-1]
    found = compared(lines, cells={"a": "a", "b": "b", "c": "c"}, folds={"c": 5}, planned=[0, 1])
    assert [row.n for row in found.rows] == ["3/5 folds x 2 seeds", "5 folds x 2 seeds", "0/5 folds x 2 seeds"]
    assert [row.state for row in found.rows] == ["7 missing", "1 missing", "10 missing"]
    assert compared(lines).rows[0].state == "2 missing"
    assert found.rows[1].difference.n == 3


def test_folds_of_another_number_or_none_are_no_pair():
    lines = folded("a", [[0.9], [0.8], [0.7], [0.8], [0.9]]) + folded("b", [[0.9], [0.8]], folds=2)
    found = compared(lines + [line("c", seed, 0.9) for seed in (0, 1)])
    assert [row.verdict for row in found.rows[1:]] == ["no pair of folds"] * 2
    assert found.unit("s") == "seeds or folds"


def test_runs_that_differ_in_their_fold_are_one_arm_named_by_the_rest():
    lines = folded("a", [[0.9], [0.8]], folds=2, **{"model.patch": 2})[:1]
    lines += folded("b", [[0.9], [0.8]], folds=2, **{"model.patch": 4})[1:]
    assert [row.name for row in compare(table(lines)).rows] == ["model.patch=2", "model.patch=4"]
    (row,) = compare(table(folded("a", [[0.9]] * 5, name="digits-micro-p2-f3-s0-01234567"))).rows
    assert row.name == "digits-micro-p2"


@pytest.mark.parametrize(
    ("base", "other", "said"),
    [
        ([[0.9], [0.8]], [[0.9], [0.8]], "the same in every fold"),
        ([[0.1], [0.2]], [[0.3], [0.4]], "better by 20 in every fold: no spread to test"),
        ([[0.5, 0.4]], [[0.75, 0.65]], "one fold: no interval (+25)"),
    ],
)
def test_a_verdict_over_folds_says_so(base, other, said):
    found = compared(folded("a", base, folds=2) + folded("b", other, folds=2))
    assert found.rows[1].verdict == said
    notes = " ".join(found.notes)
    assert "Fewer than 3 folds: all" in notes
    assert ("over the folds" in notes) == ("one fold" not in said)
    assert "the choice of test images" not in notes


def test_how_many_folds_would_tell_a_difference_is_not_named():
    lines = folded("a", [[0.9], [0.8], [0.7]], folds=3) + folded("b", [[0.91], [0.79], [0.72]], folds=3)
    (pair,) = compared(lines, expect={"finding": "", "setting": "", "numbers": {"a": 1, "b": 2}}).agreement.pairs
    assert (pair.verdict, pair.seeds) == ("cannot tell", None)
    found = compared(lines, expect={"numbers": {"a": 1, "b": 2}}).agreement.words
    assert "cannot be told with 3 folds." in found


# --- words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "other", "said"),
    [
        ([0.9, 0.8, 0.7], [0.9, 0.8, 0.7], "the same in every seed"),
        ([0.1, 0.2, 0.3], [0.3, 0.4, 0.5], "better by 20 in every seed: no spread to test"),
        ([0.5, 0.5], [0.25, 0.25], "worse by 25 in every seed: no spread to test"),
        ([0.90, 0.91, 0.92], [0.80, 0.812, 0.82], "worse by 9.93 ± 0.29"),
        ([0.90, 0.91], [], "nothing finished"),
        ([], [0.90, 0.91], "the baseline has not finished"),
    ],
)
def test_a_verdict_says_no_more_than_the_seeds_do(base, other, said):
    lines = [line("a", seed, score) for seed, score in enumerate(base)]
    lines += [line("b", seed, score) for seed, score in enumerate(other)]
    assert compared(lines, cells={"a": "a", "b": "b"}).rows[1].verdict == said


def test_the_same_difference_in_every_seed_has_no_p_but_can_be_drawn():
    row = compared(arms(a=[0.1, 0.2, 0.3], b=[0.3, 0.4, 0.5])).rows[1]
    assert (row.p, row.difference.sd) == (None, 0)
    assert row.difference.low == row.difference.high == pytest.approx(0.2)


def test_arms_without_a_common_seed_are_not_compared():
    assert compared([line("a", 0, 0.5), line("b", 1, 0.6)]).rows[1].verdict == "no pair of seeds"


@pytest.mark.parametrize("metric", ["test/loss", "seconds"])
def test_of_losses_and_times_less_is_better(metric):
    lines = [line("a", s, **{metric: 2.0 + s}) for s in range(3)]
    lines += [line("b", s, **{metric: 1.5 + s + s / 50}) for s in range(3)]
    found = compared(lines, metric=metric)
    assert not found.metric.higher_is_better
    assert found.rows[1].verdict == "better by 0.48 ± 0.05"


def test_what_is_missing_is_seen():
    lines = [
        line("a", 0, 0.9),
        line("a", 1, status="failed"),
        line("a", 2, status="pruned"),
        line("a", 3, status="damaged"),
        line("a", 4, status="running"),
        line("a", 5, status="interrupted"),
        line("a", 6),
    ]
    (row,) = compared(lines, planned=range(9)).rows
    assert row.state == ("1 failed, 1 pruned, 1 interrupted, 1 running, 1 damaged, 1 without test/accuracy, 2 missing")
    assert row.seeds == tuple(range(9))
    assert row.runs["status"].tolist()[:3] == ["finished", "failed", "pruned"]
    assert (row.score.n, row.runs.index.name) == (1, "seed")


def test_an_arm_that_was_never_trained_is_a_row():
    found = compare(arms(a=[0.9]), cells={"one": "a", "two": "b"}, planned=[0, 1])
    assert [row.state for row in found.rows] == ["1 missing", "2 missing"]
    assert found.rows[1].score is None
    assert found.frame()["n"].tolist() == [1, 0]


def test_before_anything_has_finished_there_is_a_table_too():
    from vitlab.storage.runs_table import FIRST

    empty = compare(pd.DataFrame(columns=list(FIRST)), cells={"one": "a"}, planned=[0], x="model.patch")
    assert empty.rows[0].state == "1 missing"
    assert empty.frame()["n"].tolist() == [0]
    for metric in ("seconds", "val/loss"):
        assert compare(table([line("a", 0, status="running")]), metric=metric).rows[0].score is None
    failed = compare(table([line("a", 0, status="failed")]), expect={"numbers": {"a": 1}})
    assert (failed.rows[0].state, failed.rows[0].best) == ("1 failed", False)


def test_of_two_runs_of_a_cell_and_seed_the_newest_finished_one_counts():
    lines = [
        line("a", 0, 0.1, written="2026-01-01", run="1"),
        line("a", 0, 0.2, written="2026-01-02", run="0"),
        line("a", 0, status="failed", written="2026-01-03", run="2"),
    ]
    found = compared(lines)
    assert found.rows[0].score.mean == 0.2
    assert "2 more of a cell and seed" in " ".join(found.notes)


def test_seeds_that_were_not_asked_for_do_not_count():
    found = compared(arms(a=[0.1, 0.2, 0.9]), planned=[0, 1])
    assert found.rows[0].score.mean == pytest.approx(0.15)
    assert "1 run of other seeds than were asked for left out" in " ".join(found.notes)
    by_arm = compared(arms(a=[0.1, 0.2], b=[0.3, 0.4]), planned={"a": [0], "b": [0, 1]})
    assert [row.score.n for row in by_arm.rows] == [1, 2]


# --- arms ---------------------------------------------------------------------------------------------------------


def test_without_names_arms_are_named_by_what_differs_in_its_own_order():
    lines = [
        line(
            f"c{size}", seed, 0.5, **{"model.patch": size, "optimizer.lr": 0.1, "model": "ViT", "system.workers": seed}
        )
        for size in (16, 2, 4)
        for seed in (0, 1)
    ]
    found = compare(table(lines), x="patch.size")  # as it was called first
    assert [row.name for row in found.rows] == ["model.patch=2", "model.patch=4", "model.patch=16"]
    assert [row.differs for row in found.rows] == [{"model.patch": 2}, {"model.patch": 4}, {"model.patch": 16}]
    assert [row.x for row in found.rows] == [2, 4, 16]
    assert found.rows[0].baseline
    assert found.frame()["model.patch"].tolist() == [2, 4, 16]


def test_a_key_that_only_some_classes_have_names_an_arm_only_where_it_varies():
    rope = {"model.position": "Rope", "model.layer_scale": None}
    lines = [
        line("none", 0, 0.5, **{"model.position": "Position", "model.layer_scale": 0.1}),
        line("near", 0, 0.5, **rope, **{"model.position.base": 10.0, "model.position.at": "block"}),
        line("far", 0, 0.5, **rope, **{"model.position.base": 100.0, "model.position.at": "block"}),
    ]
    assert [row.name for row in compare(table(lines)).rows] == [
        "model.position=Position, model.layer_scale=0.1",
        "model.position=Rope, model.layer_scale=null, model.position.base=10",
        "model.position=Rope, model.layer_scale=null, model.position.base=100",
    ]


def test_what_varies_within_a_cell_is_no_difference_and_one_arm_has_the_name_of_its_runs():
    lines = [line("a", s, 0.5, name=f"digits-micro-p2-s{s}-0000000{s}", **{"dataset.root": f"/{s}"}) for s in (0, 1)]
    (row,) = compare(table(lines)).rows
    assert (row.name, row.differs) == ("digits-micro-p2", {})


def test_cells_that_differ_in_nothing_that_is_known_keep_names_apart():
    assert [row.name for row in compare(table([line("a", 0, 1), line("b", 0, 1)])).rows] == ["digits (a)", "digits (b)"]


def test_of_names_of_one_cell_the_first_is_shown_and_any_may_be_the_baseline():
    found = compare(
        arms(a=[0.8, 0.9], b=[0.7, 0.9]),
        cells={"other": "b", "one": "a", "same": "a"},
        baseline="same",
        expect={"finding": "", "setting": "", "numbers": {"same": 80, "other": 70, "one": 80}},
    )
    assert [(row.name, row.baseline) for row in found.rows] == [("other", False), ("one", True)]
    assert [(pair.first, pair.second) for pair in found.agreement.pairs] == [("other", "one"), ("other", "same")]
    assert compare(arms(a=[0.8], b=[0.9]), cells={"x": "a", "y": "b"}, baseline="b").rows[1].baseline


def test_validation_chooses_among_the_complete_arms_and_the_test_images_do_not():
    lines = [line("a", s, **{"test/accuracy": 0.9, "val/accuracy": 0.7, "val/loss": 0.1}) for s in (0, 1)]
    lines += [line("b", s, **{"test/accuracy": 0.8, "val/accuracy": 0.8, "val/loss": 0.2}) for s in (0, 1)]
    lines += [line("c", 0, **{"test/accuracy": 0.7, "val/accuracy": 0.9, "test/loss": 1.0})]
    assert [row.best for row in compared(lines, planned=[0, 1]).rows] == [False, True, False]
    assert [row.best for row in compared(lines, planned=[0, 1, 2]).rows] == [False, False, True]
    assert [row.best for row in compared(lines, metric="test/loss").rows] == [True, False, False]


def test_costs_are_medians_of_what_finished():
    lines = [line("a", s, 0.5, seconds=float(t), parameters=7) for s, t in enumerate((1, 2, 90))]
    lines += [line("a", 3, status="failed", seconds=1000.0)]
    (row,) = compared(lines, x="seconds").rows
    assert row.cost == {"seconds": 2, "parameters": 7}
    assert row.x == 2


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"metric": "test/acuracy"}, "metric=test/acuracy: there is no such metric; did you mean test/accuracy"),
        ({"metric": "device"}, "metric=device: there is no such metric .there are .*test/accuracy"),
        ({"metric": "test/5-shot", "cells": None}, "no run reports such a number; there are .*test/accuracy"),
        ({"baseline": "c"}, "there is no such arm; there are a; b"),
        ({"x": "patches.size"}, "there is no such key; there are .*model.patch"),
        ({"x": "patch.sise", "cells": None}, "there is no such key; there are .*model.patch"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(more, sentence):
    lines = [line(cell, 0, 0.5, device="CPU", **{"model.patch": 2}) for cell in "ab"]
    with pytest.raises(ValueError, match=sentence):
        compared(lines, **more)


def test_nothing_at_all_is_refused():
    with pytest.raises(ValueError, match="no run to compare"):
        compare(table([line("a", 0, 1)]).iloc[:0])


def test_the_order_of_the_table_changes_no_byte():
    draw = np.random.default_rng(0)
    lines = [
        line(f"c{w}", s, draw.random(), seconds=draw.random(), **{"model.width": w, "model.position": None})
        for w in (48, 96, 192)
        for s in range(5)
    ]
    whole = table([*lines, line("c48", 2, 0.5, run="again"), line(None, math.nan, status="damaged")])
    first = compare(whole)
    for seed in range(5):
        again = compare(whole.sample(frac=1, random_state=seed))
        assert again.frame().to_csv() == first.frame().to_csv()
        assert (again.frame().dtypes == first.frame().dtypes).all()
        assert again.notes == first.notes


def test_the_frame_has_a_line_a_row():
    frame = compared(arms(a=[0.8, 0.9, 1.0], b=[0.7, 0.85, 0.9])).frame()
    assert list(frame.columns[:12]) == [
        *("arm", "n", "mean", "sd", "low", "high", "validation"),
        *("difference", "difference_low", "difference_high", "p", "verdict"),
    ]
    assert frame["mean"].tolist() == pytest.approx([0.9, 2.45 / 3])
    assert frame["difference"].isna().tolist() == [True, False]
    assert frame.dtypes[["n", "p", "seconds"]].astype(str).tolist() == ["int64", "float64", "float64"]


def test_values_that_are_no_numbers_do_not_count_and_do_not_crash():
    odd = [math.inf, 1e300, 10**400, "high", True, None, math.nan]
    lines = [line("a", s, **{"test/accuracy": value, "seconds": value}) for s, value in enumerate(odd)]
    (row,) = compared([*lines, line("a", 99, 0.5)]).rows
    assert (row.score.n, row.cost, row.state) == (1, {}, "7 without test/accuracy")


# --- notes --------------------------------------------------------------------------------------------------------


def test_a_table_of_unlike_runs_says_so():
    one = {"commit": "a" * 40, "dirty": True, "vitlab": "0.1", "torch": "2.1", "device": "CPU", "precision": "fp32"}
    two = {"commit": "b" * 40, "dirty": False, "vitlab": "0.2", "torch": "2.2", "device": "H200", "precision": "bf16"}
    lines = [line("a", 0, 0.5, dataset="Digits", **one), line("b", 0, 0.5, dataset="Cifar", **two)]
    said = " ".join(compared(lines).notes)
    for word in ("2 commits of the code (aaaaaaa; bbbbbbb)", "versions of vitlab", "versions of torch", "2 precisions"):
        assert word in said
    assert "2 devices (CPU; H200): times, speeds and memory are not comparable" in said
    assert "1 of 2 runs were of code with changes that were not committed" in said
    assert "2 datasets" in said
    assert "Fewer than 3 seeds: all" in said
    alike = compared([line(c, s, 0.5 + s / 9, **two, test_images=360) for c in "ab" for s in range(3)])
    assert alike.notes == (
        "Intervals are 95 %, Student's t over the seeds: they hold the randomness of training, not that of the choice"
        " of test images (one is 0.28 points).",
        "As a measure of other images of the kind, 61.1 % on 360 test images holds to 56.0 … 66.0 % (Wilson), which no"
        " number of seeds narrows; of a difference, measured on the same images, less is open.",
    )


def test_of_arms_with_different_numbers_of_test_images_no_interval_over_them_is_given():
    lines = [line(c, s, 0.5 + s / 9, test_images=n) for c, n in (("a", 360), ("b", 3)) for s in range(3)]
    assert "Wilson" not in " ".join(compared(lines).notes)


@pytest.mark.parametrize(("correct", "images"), [(350, 360), (0, 10), (10, 10), (9312, 10000)])
def test_the_interval_over_test_images_is_wilsons(correct, images):
    expected = stats.binomtest(correct, images).proportion_ci(method="wilson")
    assert wilson(correct / images, images) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_reader_is_told_of_corrections_flattery_and_runs_that_cannot_be_read():
    lines = [line(c, s, 0.5 + (s * i) / 99) for i, c in enumerate("abc", start=1) for s in range(3)]
    lines += [line(None, math.nan, status="damaged", name="broken-00000000")]
    said = " ".join(compared(lines, metric="val/accuracy").notes)
    assert "2 differences to the baseline are tested" in said
    assert "validation scores flatter" in said
    assert "1 cannot be read, and belong to no arm: broken-00000000" in said


# --- agreement ----------------------------------------------------------------------------------------------------

CLEAR = {"a": [0.50, 0.51, 0.52], "b": [0.60, 0.612, 0.62], "c": [0.70, 0.712, 0.722], "d": [0.70, 0.713, 0.71]}


def test_what_is_found_is_held_against_what_is_reported():
    numbers = {"a": 70.0, "b": 80.0, "c": 75.0, "e": 1.0}
    expect = SimpleNamespace(finding="b is best", setting="top-1", numbers=numbers)
    found = compared(arms(**{k: CLEAR[k] for k in "abc"}), expect=expect)
    agreement = found.agreement
    assert [(p.first, p.second, p.reported, p.verdict) for p in agreement.pairs] == [
        ("a", "b", 10, "agrees"),
        ("a", "c", 5, "agrees"),
        ("b", "c", -5, "disagrees"),
    ]
    assert agreement.pairs[2].found.mean == pytest.approx((0.70 + 0.712 + 0.722 - 0.60 - 0.612 - 0.62) / 3)
    assert agreement.order == pytest.approx(1 / 3)
    assert agreement.words == (
        "Of 3 differences that the source reports, 2 are found here with the same sign, 1 with the other, and 0 cannot"
        " be told. They are tested together, with intervals that all hold at 95 % (Tukey's test, paired by seed). The"
        " order is not the same (tau 0.33)."
    )
    assert (agreement.finding, agreement.setting, agreement.numbers) == ("b is best", "top-1", numbers)
    assert found.notes[-1] == "Reported, but no arm here: e."


def test_where_it_cannot_be_told_the_seeds_that_it_would_take_are_named():
    """The differences are 0, 0.1, -1.2 points: mean -0.367; over all arms a difference deviates by 0.577.

    (2.34 + 0.84)^2 (0.577 / 0.367)^2 is 25 for ever so many degrees of freedom: 2.34 is Tukey's limit, 0.84 that of a
    power of 80 %.
    """
    numbers = {"a": 1.0, "c": 3.0, "d": 2.0}
    found = compared(arms(**{k: CLEAR[k] for k in "acd"}), expect={"finding": "", "setting": "", "numbers": numbers})
    assert [(p.verdict, p.seeds) for p in found.agreement.pairs] == [
        ("agrees", None),
        ("agrees", None),
        ("cannot tell", 27),
    ]
    assert "and 1 cannot be told with 3 seeds." in found.agreement.words
    assert "To tell it, about 27 seeds would be needed." in found.agreement.words
    assert found.agreement.words.endswith("The order is the same (tau 1.0).")


def test_a_loss_agrees_with_an_accuracy_when_it_goes_the_other_way():
    lines = [line("a", s, **{"test/loss": 2.0 + s}) for s in range(3)]
    lines += [line("b", s, **{"test/loss": 1.5 + s + s / 50}) for s in range(3)]
    more = {"metric": "test/loss", "expect": {"numbers": {"a": 70, "b": 75}}}
    assert compared(lines, **more).agreement.pairs[0].verdict == "agrees"
    assert compared(lines, **more).agreement.order == pytest.approx(1)
    more["expect"] = {"numbers": {"a": 75, "b": 70}}
    assert compared(lines, **more).agreement.pairs[0].verdict == "disagrees"


@pytest.mark.parametrize(("a", "b"), [([0.5], [0.6]), ([0.5, 0.5], [0.6, 0.6]), ([0.5, 0.6], [0.5, 0.6])])
def test_without_a_spread_nothing_is_told(a, b):
    agreement = compared(arms(a=a, b=b), expect={"numbers": {"a": 1, "b": 2}}).agreement
    assert (agreement.pairs[0].verdict, agreement.pairs[0].seeds) == ("cannot tell", None)


def test_a_source_without_numbers_has_words_alone_and_equal_numbers_are_no_difference():
    agreement = compared(arms(a=[0.5]), expect={"says": "it helps", "of": "", "numbers": {}}).agreement
    assert (agreement.finding, agreement.words, agreement.pairs, agreement.order) == ("it helps", "", (), None)
    assert compared(arms(a=[0.5]), expect=SimpleNamespace(finding="", setting="", numbers={})).agreement is None
    equal = compared(arms(a=[0.5, 0.6], b=[0.6, 0.8]), expect={"numbers": {"a": 5, "b": 5}}).agreement
    assert (equal.pairs, equal.order) == ((), None)
    assert equal.words == "There are no two arms yet of which a difference is reported."


# --- values that validation chooses -------------------------------------------------------------------------------


def tuned(validation, test, **more):
    """Arms a and b with two cells each; scores by cell, one a seed."""
    lines = [
        line(cell, seed, score) | {"val/accuracy": validation[cell][seed]}
        for cell, scores in test.items()
        for seed, score in enumerate(scores)
    ]
    given = {"cells": {name: name for name in test}, "arms": {name: name[0] for name in test}, "baseline": "a"}
    return compare(table(lines), **given | more)


VALIDATION = {"a1": [0.5, 0.6], "a2": [0.7, 0.8], "b1": [0.9, 0.8], "b2": [0.7, 0.7]}
TEST = {"a1": [0.95, 0.95], "a2": [0.6, 0.7], "b1": [0.5, 0.6], "b2": [0.99, 0.98]}


def test_validation_chooses_a_value_for_each_arm_and_the_test_images_choose_none():
    found = tuned(VALIDATION, TEST, expect={"numbers": {"a": 80, "b": 90}})
    assert [(row.name, row.baseline) for row in found.rows] == [("a2", True), ("b1", False)]
    assert rows(found)["b1"].difference.mean == pytest.approx(-0.1)
    assert [(row.name, row.best) for row in found.tried.rows] == [
        ("a1", False), ("a2", True), ("b1", True), ("b2", False),
    ]  # fmt: skip
    assert found.agreement.numbers == {"a2": 80, "b1": 90}
    assert found.notes[0].startswith("2 of 2 arms have several values")
    assert sum("differences to the baseline" in note for note in found.notes) == 0  # one test, of what was chosen


def test_the_baseline_is_an_arm_or_the_cell_that_stands_for_it():
    for name in ("b", "b1"):
        assert [(row.name, row.baseline) for row in tuned(VALIDATION, TEST, baseline=name).rows] == [
            ("a2", False), ("b1", True),
        ]  # fmt: skip
    for name in ("b2", "c"):
        with pytest.raises(ConfigError, match=f"baseline={name}: there is no such arm; there are a2; b1"):
            tuned(VALIDATION, TEST, baseline=name)


def test_an_arm_of_one_cell_stands_for_itself_beside_one_that_is_chosen():
    found = tuned(VALIDATION, {key: TEST[key] for key in ("a1", "a2", "b1")})
    assert [row.name for row in found.rows] == ["a2", "b1"]
    assert found.notes[0].startswith("1 of 2 arms")


def test_without_validation_an_arm_shows_its_first_value():
    lines = [line(cell, 0) for cell in VALIDATION]
    given = {"cells": {name: name for name in VALIDATION}, "arms": {name: name[0] for name in VALIDATION}}
    assert [row.name for row in compare(table(lines), **given).rows] == ["a1", "b1"]


@pytest.mark.parametrize(
    ("packed", "said"),
    [
        (
            (4, 4),
            "Up to 4 runs were trained together: times and speeds are each one's part",
        ),
        (
            (4, 16),
            "in packs of different sizes (4; 16): times and speeds are each one's part, less in a larger pack",
        ),
        ((math.nan, 4), "in packs of different sizes (1; 4)"),  # an earlier version's were all alone
        ((1, 1), ""),
        ((math.nan, math.nan), ""),
    ],
)
def test_the_costs_of_runs_that_were_trained_together_are_told_from_others(packed, said):
    notes = compared([line("a", seed, 0.5, packed=size) for seed, size in enumerate(packed)]).notes
    assert [said in note for note in notes if "packs" in note or "together" in note] == [True] * bool(said)


def test_of_a_pack_each_run_has_its_part_of_the_time():
    lines = [line("a", 0, 0.5, packed=4, seconds=100, images_per_second=50.0, peak_memory_bytes=8)]
    lines += [line("b", 0, 0.5, seconds=40, images_per_second=300.0, peak_memory_bytes=2)]
    a, b = compared(lines).rows
    assert (a.cost["seconds"], a.cost["images_per_second"], a.cost["peak_memory_bytes"]) == (25, 200, 8)
    assert (b.cost["seconds"], b.cost["images_per_second"], b.cost["peak_memory_bytes"]) == (40, 300, 2)


@pytest.mark.parametrize(
    ("cells", "roots", "data", "mixed"),
    [
        ("aa", "xx", ["1", "1"], False),
        ("aa", "xx", ["1", "2"], True),  # two seeds of a cell
        ("ab", "xx", ["1", "2"], True),  # two arms on one dataset
        ("ab", "xy", ["1", "2"], False),  # on two
        ("ab", "xx", ["1", math.nan], False),  # of an earlier version it is not known
    ],
)
def test_runs_of_one_dataset_that_saw_different_images_are_said(cells, roots, data, mixed):
    lines = [
        line(cell, seed, 0.5, **{"dataset": "image_folder", "dataset.root": root, "data": images})
        for seed, (cell, root, images) in enumerate(zip(cells, roots, data, strict=True))
    ]
    said = [note for note in compared(lines).notes if "were trained on different images (1; 2 in data.json)" in note]
    assert len(said) == mixed


@pytest.mark.parametrize(
    ("base", "other", "apart"),
    [
        ({"dataset": "digits"}, {"dataset": "cifar10"}, True),
        ({"dataset": "image_folder", "data": "1"}, {"dataset": "image_folder", "data": "2"}, True),
        ({"dataset": "digits", "test_images": 359}, {"dataset": "digits", "test_images": 180}, True),
        ({"dataset": "digits", "data": "1", "test_images": 359}, {"dataset": "digits", "data": "1"}, False),
        ({"dataset": "digits", "data": "1"}, {"dataset": "digits", "data": math.nan}, False),
        ({}, {}, False),
    ],
)
def test_runs_of_other_images_are_not_compared(base, other, apart):
    """There is no difference to them, none of them is chosen, and the table begins with a warning."""
    lines = [line("a", seed, 0.1 + seed / 100, **base) for seed in range(3)]
    lines += [line("b", seed, 0.9 + seed / 90, **other) for seed in range(3)]
    found = compared(lines)
    first, second = found.rows
    assert (second.difference is None, second.p is None) == (apart, apart)
    assert (first.best, second.best) == (apart, not apart)
    assert (second.verdict == "other images: not compared") == apart
    for style in ("plain", "markdown"):
        top = table_text(found, style).splitlines()[0]
        assert ("warning: 1 of 2 arms is tested on other images than the baseline" in top) == apart
    assert ("warning: 1 of 2" in table_tex(found)) == apart


def test_costs_of_other_images_may_be_measured_side_by_side():
    lines = [line(cell, 0, largest_batch=8.0 * i, dataset=cell) for i, cell in enumerate("ab", start=1)]
    assert compared(lines, metric="largest_batch").rows[1].difference.mean == 8


def test_the_reports_agreement_is_not_sought_across_datasets():
    lines = [line(cell, seed, 0.5 + i / 9, dataset=cell) for i, cell in enumerate("ab") for seed in range(3)]
    expect = {"finding": "b is better", "setting": "", "numbers": {"a": 50.0, "b": 60.0}}
    assert compared(lines, expect=expect).agreement.pairs == ()


def test_long_names_are_cut_in_the_terminal_alone_and_stay_different():
    key = "model.head.zero_init=true, " * 12
    names = [f"dataset.root=a, {key}end", f"dataset.root=b, {key}end", f"c {key}1{key}", f"c {key}2{key}"]
    found = compared([line(name, 0, 0.5) for name in names])
    plain = table_text(found).splitlines()
    assert all(name in table_text(found, "markdown").replace("\\", "") for name in names[:2])
    assert plain[2].startswith("* dataset.root=a, ")  # the baseline; the last two differ in the middle alone
    two = compared([line(name, 0, 0.5) for name in names[:2]])
    first, second = table_text(two).splitlines()[2:4]
    assert "…" in first
    assert len(first.partition("end")[0]) < 65
    assert first.split(",")[0] != second.split(",")[0]
