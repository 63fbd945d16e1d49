"""What a sweep can show, against simulation and the answer's own words."""

import numpy as np
import pytest
from scipy import stats

from tests.report.test_comparison import arms, compared
from tests.report.test_false_claims import claims, holm_claims, sweeps
from vitlab.report.contrasts import Family, Pool
from vitlab.report.max_t import dunnett
from vitlab.report.power import MOST_SEEDS, detectable, seeds_to_show


def family(many):
    return Family(pool=Pool(arms=tuple("abcdefghijklmnop"[:many])), tests=many - 1, test=dunnett, arms=many - 1)


@pytest.mark.parametrize(("many", "seeds"), [(3, 3), (10, 3), (4, 5), (10, 16)])
def test_a_detectable_difference_is_shown_in_8_of_10_sweeps(many, seeds):
    least = detectable(2**0.5, seeds, family=family(many))
    found = claims(sweeps(3000, np.ones(many), seeds, effect=least))[:, 0].mean()
    assert 0.72 < found < 0.83


def test_of_one_arm_it_is_that_of_the_paired_t_test():
    least = detectable(1.0, 6)
    assert stats.nct.sf(stats.t.ppf(0.975, 5), 5, least * 6**0.5) == pytest.approx(0.8, abs=1e-4)
    found = holm_claims(sweeps(4000, np.full(2, 0.5**0.5), 6, effect=least))[:, 0].mean()
    assert found == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("gap", [0.4, 1.0, 3.0])
def test_one_seed_less_than_is_needed_would_not_show_it(gap):
    of = family(5)
    seeds = seeds_to_show(gap, 1.0, 2, family=of)
    assert detectable(1.0, seeds, family=of) <= gap
    assert seeds == 3 or detectable(1.0, seeds - 1, family=of) > gap


def test_more_seeds_than_anybody_would_train_are_not_named():
    assert seeds_to_show(0.01, 1.0, 3) is None
    assert seeds_to_show(0.0, 1.0, 3) is None
    assert seeds_to_show(0.1, 1.0, 3) <= MOST_SEEDS


def test_the_answer_says_what_it_could_show_and_what_would_settle_the_rest():
    scores = arms(a=[0.90, 0.91, 0.92], b=[0.80, 0.812, 0.82], c=[0.905, 0.911, 0.929], d=[0.90, 0.912, 0.918])
    notes = compared(scores).notes
    (said,) = (note for note in notes if "would have been shown" in note)
    assert said.startswith("Differences of 1.7 points would have been shown in 8 of 10 such sweeps. Seeds that would")
    assert "c 9." in said
    assert said.endswith("More than 1,000 would not settle: d.")
    (within,) = (note for note in compared(scores, margin=0.5).notes if "would have been shown" in note)
    assert within.endswith("c 9; d 9.")  # d as equivalent


def test_where_everything_is_settled_no_seeds_are_named():
    (said,) = (n for n in compared(arms(a=[0.9, 0.91, 0.92], b=[0.8, 0.812, 0.82])).notes if "8 of 10" in n)
    assert "settle" not in said
