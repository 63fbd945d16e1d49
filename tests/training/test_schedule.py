"""Learning rates, update by update."""

import math

import pytest
import torch

from vitlab.training.schedule import Constant, Cosine, Linear, Rsqrt, Step, Wsd

WARMUP = {"warmup_fraction": None, "warmup_epochs": None, "warmup_steps": None}
ONE = {"cycles": 1, "cycle_decay": 1.0}


def cosine(**values):
    return Cosine(**(ONE | values))


def wsd(**values):
    return Wsd(**({"decay_fraction": 0.3, "decay": "1-sqrt"} | values))


def two_cosines(**values):
    return Cosine(cycles=2, cycle_decay=0.5, **values)


def rates(schedule, steps, peak=0.5, steps_per_epoch=10.0):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    started = schedule.start(optimizer, steps, steps_per_epoch)
    found = []
    for update in range(steps):
        started.set(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("kind", [cosine, Linear, wsd, two_cosines])
@pytest.mark.parametrize("warmup", [0, 1, 3, 10])
@pytest.mark.parametrize("steps", [13, 40, 1000])
def test_the_peak_and_the_minimum_are_reached_exactly(kind, warmup, steps):
    found = rates(kind(**(WARMUP | {"warmup_steps": warmup}), min_lr=0.01), steps)
    assert max(found) == 0.5
    assert found.index(0.5) == max(0, warmup - 1)
    assert found[-1] == pytest.approx(0.01, abs=1e-12)
    assert found[0] > 0


def test_warmup_is_a_straight_line_from_the_first_update():
    found = rates(cosine(**(WARMUP | {"warmup_steps": 5}), min_lr=0.0), 50)
    assert found[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_cosine_and_line_are_their_formulas_after_the_warmup():
    for kind, shape in ((cosine, lambda t: 0.5 * (1 + math.cos(math.pi * t))), (Linear, lambda t: 1 - t)):
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
    assert cosine(**(WARMUP | given), min_lr=0.0).warmup(200, 10.0) == updates


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"warmup_steps": 200}, "warmup_steps=200 is a warm-up of 200 steps, and the training has 200"),
        ({"warmup_epochs": 30.0}, "use from 0 to 19.9"),
        ({"warmup_fraction": 1.5}, "use from 0 to 0.995"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"warmup_steps": 5, "warmup_epochs": 1.0}, "warmup_epochs=1.0 and schedule.warmup_steps=5: give one"),
    ],
)
def test_warmups_that_cannot_be_are_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        cosine(**(WARMUP | given), min_lr=0.0).warmup(200, 10.0)


def test_a_negative_minimum_is_refused():
    with pytest.raises(ValueError, match="min_lr=-1"):
        cosine(**WARMUP, min_lr=-1.0)


def test_a_single_step_has_the_peak():
    assert rates(cosine(**(WARMUP | {"warmup_fraction": 0.1}), min_lr=0.0), 1) == [0.5]


def test_several_cosines_restart_at_a_share_of_the_peak():
    found = rates(Cosine(**WARMUP, min_lr=0.0, cycles=3, cycle_decay=0.5), 301)
    assert (found[0], found[100], found[200]) == pytest.approx((0.5, 0.25, 0.125))
    assert found[99] < 0.01
    assert found[300] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("warmup", [0, 1, 20])
def test_steps_fall_at_their_milestones(warmup):
    found = rates(Step(**(WARMUP | {"warmup_steps": warmup}), milestones=(0.5, 0.75), factor=0.1), 200)
    assert found[max(0, warmup - 1) : 100] == [0.5] * (100 - max(0, warmup - 1))
    assert found[100:150] == pytest.approx([0.05] * 50)
    assert found[150:] == pytest.approx([0.005] * 50)


def test_wsd_stays_at_the_peak_and_falls_at_the_end():
    found = rates(Wsd(**(WARMUP | {"warmup_steps": 10}), min_lr=0.0, decay_fraction=0.2, decay="linear"), 100)
    assert found[9:80] == [0.5] * 71
    assert found[89] == pytest.approx(0.25)
    assert found[99] == pytest.approx(0.0, abs=1e-12)


def test_rsqrt_falls_with_the_root_of_the_step():
    values = WARMUP | {"warmup_steps": 10}
    found = rates(Rsqrt(**values, min_lr=0.0, timescale=None, decay_fraction=0.1, decay="linear"), 1000)
    assert found[9] == 0.5
    for update in (19, 99, 800):
        assert found[update] == pytest.approx(0.5 / math.sqrt(1 + (update - 9) / 10))
    assert found[-1] == pytest.approx(0.0, abs=1e-12)


def test_a_scaled_group_follows_at_its_share():
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second], "lr_scale": 0.25}], lr=0.5)
    started = cosine(**(WARMUP | {"warmup_steps": 3}), min_lr=0.0).start(optimizer, 50, 10.0)
    for update in range(50):
        started.set(update)
        one, other = (group["lr"] for group in optimizer.param_groups)
        assert other == pytest.approx(one / 4)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Step(**WARMUP, milestones=(0.5, 0.2), factor=0.1), "must be increasing fractions"),
        (lambda: Step(**WARMUP, milestones=(0.5, 1.0), factor=0.1), "must be increasing fractions"),
        (lambda: Step(**WARMUP, milestones=(0.5,), factor=2.0), "factor=2.0"),
        (lambda: Step(**(WARMUP | {"warmup_steps": 60}), milestones=(0.5,), factor=0.1), "falls into the warm-up"),
        (lambda: cosine(**WARMUP, min_lr=0.0, cycles=0), "cycles=0"),
        (lambda: cosine(**WARMUP, min_lr=0.0, cycles=200), "there are 99 steps after the warm-up"),
        (lambda: cosine(**WARMUP, min_lr=0.0, cycle_decay=0.0), "cycle_decay=0.0"),
        (lambda: wsd(**WARMUP, min_lr=0.0, decay_fraction=0.0), "decay_fraction=0.0"),
        (
            lambda: Rsqrt(**WARMUP, min_lr=0.0, timescale=None, decay_fraction=0.1, decay="linear"),
            "null takes the warm-up's length, which is 0 here",
        ),
    ],
)
def test_shapes_that_cannot_be_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        rates(make(), 100)
