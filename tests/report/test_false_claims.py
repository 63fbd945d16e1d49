"""How often a sweep without any effect claims a difference, and how often one that is there is found, by simulation.

The whole table, 10,000 sweeps a line, takes three minutes: `python -m tests.report.test_false_claims`.
"""

import math
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import special

from vitlab.report.contrasts import LEVEL, MOST_LEFT_OUT, against
from vitlab.report.max_t import critical, dunnett

# Standard deviations of the arms, the baseline's first, by how they differ; of `arms` arms.
SPREADS = {
    "equal": lambda arms: np.ones(arms),
    "one arm 3 times": lambda arms: np.where(np.arange(arms) == 1, 3.0, 1.0),
    "one arm 10 times": lambda arms: np.where(np.arange(arms) == 1, 10.0, 1.0),
    "two arms 10 times": lambda arms: np.where(np.isin(np.arange(arms), (1, 2)), 10.0, 1.0),
    "three arms 3 times": lambda arms: np.where(np.isin(np.arange(arms), (1, 2, 3)), 3.0, 1.0),
    "every other 3 times": lambda arms: np.where(np.arange(arms) % 2, 3.0, 1.0),
    "every other constant": lambda arms: np.where(np.arange(arms) % 2, 0.01, 1.0),
    "baseline 3 times": lambda arms: np.where(np.arange(arms) == 0, 3.0, 1.0),
    "baseline 10 times": lambda arms: np.where(np.arange(arms) == 0, 10.0, 1.0),
    "growing from 1 to 4": lambda arms: np.geomspace(1, 4, arms),
    "falling from 4 to 1": lambda arms: np.geomspace(4, 1, arms),
}
EFFECT = {3: 4.0, 5: 2.8, 16: 1.4}  # of the second arm, in standard deviations, by number of seeds


def sweeps(number, spread, seeds, *, seed_effect=0.0, effect=0.0, draw=0):
    """Scores of simulated sweeps, an array (sweep, arm, seed)."""
    random = np.random.default_rng(draw)
    scores = random.normal(size=(number, len(spread), seeds)) * spread[:, None]
    scores += seed_effect * random.normal(size=(number, 1, seeds))
    scores[:, 1] += effect
    return scores


def holm_claims(scores, level=LEVEL):
    """Which arms are said to differ by paired t tests with Holm's correction, an array (sweep, arm less baseline)."""
    p = paired_p(scores)
    order = np.argsort(p, axis=1)
    steps = np.take_along_axis(p, order, 1) * np.arange(p.shape[1], 0, -1)
    found = np.empty(p.shape, bool)
    np.put_along_axis(found, order, np.maximum.accumulate(steps, axis=1) < level, 1)
    return found


def paired_p(scores):
    gaps = scores[:, 1:] - scores[:, :1]
    t = gaps.mean(2) / gaps.std(2, ddof=1) * math.sqrt(scores.shape[2])
    return 2 * special.stdtr(scores.shape[2] - 1, -np.abs(t))


def claims(scores, level=LEVEL):
    """The same by `contrasts.against`, for many sweeps at once; a test holds the two together."""
    number, arms, seeds = scores.shape
    within = np.ones((number, arms), bool)
    running = np.ones(number, bool)
    while running.any():
        many = within.sum(1, keepdims=True)
        squares = residual_squares(scores, within)
        total, apart = squares.sum(1, keepdims=True), squares * many / (many - 1)
        rest = np.maximum((many - 2) * (seeds - 1), 1)
        below = special.fdtr(seeds - 1, rest, apart / (seeds - 1) / np.maximum((total - apart) / rest, 1e-300))
        p = np.where(within, 2 * np.minimum(below, 1 - below) * many, 1)
        least = p.argmin(1)
        running &= (p.min(1) < LEVEL) & within[:, 0] & (many[:, 0] > 2)
        within[running, least[running]] = False
    many = within.sum(1)
    pooled = within[:, 0] & (many > 2) & (arms - many <= MOST_LEFT_OUT * arms)
    gaps = scores[:, 1:] - scores[:, :1]
    df = np.maximum((many - 1) * (seeds - 1), 1)
    shared = 2 * residual_squares(scores, within).sum(1) / df
    own = np.where(within[:, 1:], gaps.var(2, ddof=1), 0).sum(1) / np.maximum(many - 1, 1)
    t = np.abs(gaps.mean(2)) * math.sqrt(seeds) / np.sqrt(np.maximum(shared, own))[:, None]
    limits = np.array([critical(dunnett, level, arms - 1, max(1, n - 1) * (seeds - 1.0)) for n in range(arms + 1)])
    p = paired_p(scores)
    together = (t > limits[many][:, None]) & (p * math.sqrt(arms) < level)
    apart = p * (arms - 1) < level
    return np.where(pooled[:, None], np.where(within[:, 1:], together, apart), holm_claims(scores, level))


def residual_squares(scores, within):
    """Of each arm in the pool, with the effects of arms and seeds taken away."""
    weights = within[:, :, None].astype(float)
    centred = scores - scores.mean(2, keepdims=True)
    mean = (centred * weights).sum(1, keepdims=True) / np.maximum(weights.sum(1, keepdims=True), 1)
    return (((centred - mean) * weights) ** 2).sum(2)


@pytest.mark.parametrize("spread", ["equal", "one arm 10 times", "growing from 1 to 4", "baseline 3 times"])
@pytest.mark.parametrize(("arms", "seeds"), [(3, 4), (5, 3), (6, 16)])
def test_the_simulated_rule_is_that_of_an_answer(arms, seeds, spread):
    scores = sweeps(15, SPREADS[spread](arms), seeds, seed_effect=1, effect=EFFECT[3])
    for sweep, said in zip(scores, claims(scores), strict=True):
        table = {str(arm): pd.Series(values) for arm, values in enumerate(sweep)}
        found, _ = against("0", table)
        assert [found[str(arm)].p < LEVEL for arm in range(1, arms)] == said.tolist()


@pytest.mark.parametrize(("arms", "seeds"), [(10, 3), (4, 5), (10, 16)])
@pytest.mark.parametrize("spread", SPREADS)
def test_at_most_5_of_100_sweeps_without_any_effect_claim_one(spread, arms, seeds):
    """2,000 sweeps: 5 %, and two standard errors of the simulation."""
    scores = sweeps(2000, SPREADS[spread](arms), seeds, seed_effect=1)
    assert claims(scores).any(1).mean() <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize(("seeds", "today", "now"), [(3, 0.13, 0.32), (5, 0.39, 0.64), (16, 0.74, 0.84)])
def test_more_of_the_effects_that_are_there_are_found_than_by_paired_tests_alone(seeds, today, now):
    scores = sweeps(2000, SPREADS["equal"](10), seeds, seed_effect=1, effect=EFFECT[seeds])
    assert holm_claims(scores)[:, 0].mean() == pytest.approx(today, abs=0.03)
    assert claims(scores)[:, 0].mean() == pytest.approx(now, abs=0.03)


def whole_table(number=10_000):
    """Prints false claims and power of both methods for every spread, number of arms and seeds."""
    print("| arms | seeds | spread | seed effect | false claims: Holm | now | power: Holm | now |")
    print("|--|--|--|--|--|--|--|--|")
    for arms in (3, 4, 10, 20):
        for seeds, effect in EFFECT.items():
            for spread, of in SPREADS.items():
                for seed_effect in (0, 1) if spread in ("equal", "baseline 3 times") else (1,):
                    null = sweeps(number, of(arms), seeds, seed_effect=seed_effect)
                    real = sweeps(number, of(arms), seeds, seed_effect=seed_effect, effect=effect, draw=1)
                    found = [rule(null).any(1).mean() for rule in (holm_claims, claims)]
                    found += [rule(real)[:, 0].mean() for rule in (holm_claims, claims)]
                    line = [arms, seeds, spread, seed_effect, *(f"{100 * value:.1f} %" for value in found)]
                    print(f"| {' | '.join(map(str, line))} |", flush=True)


if __name__ == "__main__":
    whole_table(*map(int, sys.argv[1:]))
