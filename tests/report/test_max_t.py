"""Dunnett's and Tukey's tests against published tables and SciPy."""

import math

import numpy as np
import pytest
from scipy import stats

from vitlab.report.max_t import critical, dunnett, tukey

# Dunnett 1964, two-sided 5 % points at correlation 1/2, by degrees of freedom: 1, 2, ... arms beside the baseline.
DUNNETT = {
    5: [2.57, 3.03, 3.29, 3.48, 3.62, 3.73, 3.82, 3.90, 3.97],
    10: [2.23, 2.57, 2.76, 2.89, 2.99, 3.07, 3.14, 3.19, 3.24],
    20: [2.09, 2.38, 2.54, 2.65, 2.73, 2.80, 2.86, 2.90, 2.95],
    60: [2.00, 2.27, 2.41, 2.51, 2.58, 2.64, 2.69, 2.73, 2.77],
}
# Dunnett 1955, one-sided 5 % points.
ONE_SIDED = {5: [2.02, 2.44, 2.68, 2.85, 2.98], 10: [1.81, 2.15, 2.34, 2.47, 2.56], 20: [1.72, 2.03, 2.19, 2.30, 2.39]}
# 5 % points of the studentized range (Harter 1960), of 2, 3, 4, 5, 10 arms.
RANGE = {
    5: [3.64, 4.60, 5.22, 5.67, 6.99],
    10: [3.15, 3.88, 4.33, 4.65, 5.60],
    20: [2.95, 3.58, 3.96, 4.23, 5.01],
    120: [2.80, 3.36, 3.68, 3.92, 4.56],
}


@pytest.mark.parametrize("df", DUNNETT)
def test_dunnetts_critical_values_are_those_of_his_tables(df):
    found = [critical(dunnett, 0.05, arms, df) for arms in range(1, 10)]
    assert found == pytest.approx(DUNNETT[df], abs=0.006)
    found = [critical(dunnett, 0.05, arms, df, sides=1) for arms in range(1, 6)]
    assert found == pytest.approx(ONE_SIDED.get(df, found), abs=0.006)


@pytest.mark.parametrize("df", RANGE)
def test_tukeys_critical_values_are_those_of_the_studentized_range(df):
    found = [critical(tukey, 0.05, arms, df) * math.sqrt(2) for arms in (2, 3, 4, 5, 10)]
    assert found == pytest.approx(RANGE[df], abs=0.006)


@pytest.mark.parametrize(("t", "arms", "df"), [(0.5, 3, 4), (2.5, 4, 8), (4.0, 8, 14), (9.0, 3, 2), (2.2, 5, 900)])
def test_p_values_are_scipys(t, arms, df):
    assert tukey(t, arms, df) == pytest.approx(stats.studentized_range.sf(t * math.sqrt(2), arms, df), rel=1e-4)
    equal = np.full((arms, arms), 0.5) + 0.5 * np.eye(arms)
    within = stats.multivariate_t(np.zeros(arms), equal, df, seed=0)
    assert dunnett(t, arms, df) == pytest.approx(
        1 - within.cdf(np.full(arms, t), lower_limit=np.full(arms, -t)), abs=3e-4
    )
    assert dunnett(t, arms, df, sides=1) == pytest.approx(1 - within.cdf(np.full(arms, t)), abs=3e-4)


@pytest.mark.parametrize("df", [1, 2, 3, 15, 100, 1e5])
@pytest.mark.parametrize("t", [0.0, 1.0, 4.0, 50.0])
def test_of_one_arm_it_is_students_test(t, df):
    assert dunnett(t, 1, df) == pytest.approx(2 * stats.t.sf(t, df), rel=1e-4, abs=1e-12)
    assert tukey(t, 2, df) == pytest.approx(2 * stats.t.sf(t, df), rel=1e-4, abs=1e-12)


def test_scipys_dunnett_of_one_way_samples_is_this_one_with_their_variance():
    """SciPy's has no blocks: its degrees of freedom are those of all samples."""
    draw = np.random.default_rng(3)
    control, *samples = draw.normal(size=(4, 6)) + np.array([[0], [0.4], [1.1], [1.9]])
    found = stats.dunnett(*samples, control=control, random_state=0)
    variance = np.mean([sample.var(ddof=1) for sample in (control, *samples)])
    t = [(sample.mean() - control.mean()) / math.sqrt(variance / 3) for sample in samples]
    assert found.statistic == pytest.approx(t)
    assert [dunnett(abs(each), 3, 20) for each in t] == pytest.approx(found.pvalue, abs=1e-3)
