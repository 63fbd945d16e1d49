"""Learning rates, update by update."""

import math

import pytest
import torch

from vitlab.schedule import Constant, Cosine, Linear

WARMUP = {"warmup_fraction": None, "warmup_epochs": None, "warmup_steps": None}


def rates(schedule, steps, peak=0.5, steps_per_epoch=10.0):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    started = schedule.start(optimizer, steps, steps_per_epoch)
    found = []
    for update in range(steps):
        started.set(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("kind", [Cosine, Linear])
@pytest.mark.parametrize("warmup", [0, 1, 3, 10])
@pytest.mark.parametrize("steps", [11, 40, 1000])
def test_the_peak_and_the_minimum_are_reached_exactly(kind, warmup, steps):
    found = rates(kind(**(WARMUP | {"warmup_steps": warmup}), min_lr=0.01), steps)
    assert max(found) == 0.5
    assert found.index(0.5) == max(0, warmup - 1)
    assert found[-1] == pytest.approx(0.01, abs=1e-12)
    assert found[0] > 0


def test_warmup_is_a_straight_line_from_the_first_update():
    found = rates(Cosine(**(WARMUP | {"warmup_steps": 5}), min_lr=0.0), 50)
    assert found[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_cosine_and_line_are_their_formulas_after_the_warmup():
    for kind, shape in ((Cosine, lambda t: 0.5 * (1 + math.cos(math.pi * t))), (Linear, lambda t: 1 - t)):
        found = rates(kind(**(WARMUP | {"warmup_steps": 4}), min_lr=0.1), 30)
        expected = [0.1 + 0.4 * shape(t / 26) for t in range(27)]
        assert found[3:] == pytest.approx(expected)


def test_constant_stays_at_the_peak():
    found = rates(Constant(**(WARMUP | {"warmup_steps": 3})), 20)
    assert found[2:] == [0.5] * 18


@pytest.mark.parametrize(
    ("given", "updates"),
    [({"warmup_fraction": 0.1}, 20), ({"warmup_epochs": 2.5}, 25), ({"warmup_steps": 7}, 7), ({}, 0)],
)
def test_warmup_is_given_in_steps_epochs_or_a_fraction(given, updates):
    assert Cosine(**(WARMUP | given), min_lr=0.0).warmup(200, 10.0) == updates


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"warmup_steps": 200}, "warmup_steps=200 is a warm-up of 200 steps, and the whole training has 200"),
        ({"warmup_epochs": 30.0}, "use from 0 to 19.9"),
        ({"warmup_fraction": 1.5}, "use from 0 to 0.995"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"warmup_steps": 5, "warmup_epochs": 1.0}, "warmup_epochs=1.0 and schedule.warmup_steps=5: give one"),
    ],
)
def test_warmups_that_cannot_be_are_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        Cosine(**(WARMUP | given), min_lr=0.0).warmup(200, 10.0)


def test_a_negative_minimum_is_refused():
    with pytest.raises(ValueError, match="min_lr=-1"):
        Cosine(**WARMUP, min_lr=-1.0)


def test_a_single_step_has_the_peak():
    assert rates(Cosine(**(WARMUP | {"warmup_fraction": 0.1}), min_lr=0.0), 1) == [0.5]
