"""The device's part of a training step reads nothing on the host, and changes everything in place."""

import copy
import math

import pytest
import torch

from tests.config.test_check import check, compose
from tests.recording import NoReads
from tests.training.test_loop import ALONE, SMALL
from vitlab.config.build import assemble
from vitlab.config.errors import NonFinite
from vitlab.system import graphs
from vitlab.system.distributed import Distributed
from vitlab.training import step as step_of_training
from vitlab.training.batches import train_batches
from vitlab.training.checks import why_not_captured
from vitlab.training.recipe import Recipe
from vitlab.training.recovery import check_finite
from vitlab.training.setup import prepare
from vitlab.training.skip import count_skip, report_skips
from vitlab.training.state import TrainState
from vitlab.training.step import train_step, update

DRAWS = ["model.dropout=0.1", "model.drop_path=0.2"]
FULL = [*DRAWS, "fit.ema_decay=0.9", "fit.clip=0.5", "fit.accumulate=2", "fit.on_nonfinite=skip", "fit.layer_decay=0.8"]
STEM = "model/stem=convolution"  # with batch normalisation
RESNET = "model.stem={blocks: [1, 1], widen: 0.125}"
OPTIMIZERS = ["adam", "adamw", "sgd", "lion", "muon"]
ADAPTIVE = ["optimizer.eps=1e-3"]  # the bias of keys has a gradient of 0, and its rounding would be divided by itself
STEADY = {"adam": ADAPTIVE, "adamw": ADAPTIVE, "muon": ADAPTIVE, "sgd": [], "lion": []}


@pytest.fixture(autouse=True)
def _eagerly(recorder, monkeypatch):
    """Updates that could be captured are not: `test_capture` does that."""
    monkeypatch.setattr(graphs, "WARMUP", 10**9)


def begin(*words, captured=True):
    """The state of a small training, and its batches."""
    node = check(compose([*SMALL, f"system.capture={str(captured).lower()}", *words])[0])
    setup = prepare(**assemble(node), dist=ALONE)
    return TrainState(setup, "test"), train_batches(setup, 0)


def advance(state, batches, steps=1):
    for _ in range(steps):
        state.setup.schedule.set(state.step)
        train_step(state, next(batches))


def addresses(state):
    """Where everything lies that stays from one step to the next."""
    scaler = [state.scaler._scale, state.scaler._growth_tracker] if state.scaler.is_enabled() else []
    own = [state.meter.bad, state.meter.step, state.skips, state.gradient_norm, state.setup.schedule.rates, *scaler]
    rates = [group["lr"] for group in state.setup.optimizer.param_groups]
    weight = [state.ema.weight] if state.ema.average else []
    return [each.data_ptr() for each in [*state.tensors(), *own, *rates, *weight]]


@pytest.mark.parametrize(
    "words",
    [
        *([f"optimizer={name}", STEM, *FULL] for name in OPTIMIZERS),
        *([f"optimizer={name}", "fit.precision=bf16", *DRAWS] for name in OPTIMIZERS),
        *([f"optimizer={name}", "fit.precision=fp16", "fit.clip=1.0"] for name in ("adam", "adamw", "sgd")),
        ["optimizer.momentum=0", "optimizer=sgd", "optimizer.weight_decay=0.1"],
        ["model/objective=masked_patch", *FULL],
        ["model/objective=masked_patch", "model.objective.target=pixels"],
        [*["model=resnet50", "patch=p2", "model.width=16", "model.stem.root=small", "model.stem.project=true"], RESNET],
        ["loss=focal", "loss.class_weights=balanced", "loss.label_smoothing=0.1"],
        ["loss=focal", "loss.class_weights=balanced", "augment.mixup=0.4", "fit.precision=fp16"],
        ["loss=sigmoid_cross_entropy", "loss.class_weights=balanced"],
        ["loss.class_weights=balanced", "augment.cutmix=1.0", "fit.on_nonfinite=rollback", "augment=flip_crop"],
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_an_update_reads_nothing_on_the_host_and_changes_all_in_place(words):
    state, batches = begin(*words)
    advance(state, batches, 2)  # what is made at first is there
    before, weights = addresses(state), [p.detach().clone() for p in state.vit.parameters()]
    state.setup.schedule.set(state.step)
    batch = next(batches)
    with NoReads():
        update(state, batch)
    assert addresses(state) == before
    assert any(not torch.equal(p, was) for p, was in zip(state.vit.parameters(), weights, strict=True))


@pytest.mark.parametrize("name", [*OPTIMIZERS, "schedulefree"])
def test_an_update_that_is_not_captured_reads_nothing_either_unless_it_may_be_skipped(name):
    state, batches = begin(f"optimizer={name}", STEM, "fit.ema_decay=0.9", "fit.clip=0.5", captured=False)
    advance(state, batches)
    state.setup.schedule.set(state.step)
    batch = next(batches)
    with NoReads():
        update(state, batch)


@pytest.mark.parametrize(
    "reads",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.isfinite().all()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.add_(x, alpha=x.sum()),
        lambda x: torch.nn.functional.one_hot(x.long(), 4),
    ],
)
def test_what_the_host_reads_is_found(reads):
    x = torch.ones(3)
    with pytest.raises(AssertionError, match="is read on the host"), NoReads():
        reads(x)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_learning_rates_and_the_averages_weight_in_tensors_give_the_same_weights(name):
    words = [f"optimizer={name}", *STEADY[name], "fit.ema_decay=0.9", "fit.layer_decay=0.8", *DRAWS]
    (numbers, one), (tensors, other) = begin(*words, captured=False), begin(*words)
    for state, batches in ((numbers, one), (tensors, other)):
        advance(state, batches, 5)
    for ours, theirs in (
        (tensors.vit.parameters(), numbers.vit.parameters()),
        (tensors.ema.average, numbers.ema.average),
    ):
        torch.testing.assert_close(list(ours), list(theirs), atol=1e-6, rtol=1e-5)


def test_a_step_is_torchs_step():
    words = ["fit.ema_decay=0.99", "fit.clip=0.5", "model.dropout=0", "loss.label_smoothing=0"]
    state, batches = begin(*words, captured=False)
    model, groups = copy.deepcopy(state.vit), []
    names = {id(p): name for name, p in state.vit.named_parameters()}
    for group in state.setup.optimizer.param_groups:
        own = [model.get_parameter(names[id(p)]) for p in group["params"]]
        groups.append({"params": own, "weight_decay": group["weight_decay"]})
    options = state.setup.optimizer.param_groups[0]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=options["betas"], eps=options["eps"], fused=True)
    average = [p.detach().clone() for p in model.parameters()]
    for step in range(4):
        state.setup.schedule.set(step)
        batch = next(batches)
        images, labels = state.inputs(batch)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group, own in zip(optimizer.param_groups, state.setup.optimizer.param_groups, strict=True):
            group["lr"] = own["lr"]
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(model.parameters()), 1 - (1 + step) / (10 + step))
        train_step(state, batch)
    assert all(map(torch.equal, state.vit.parameters(), model.parameters()))
    assert all(map(torch.equal, state.ema.average, average))


@pytest.mark.parametrize(
    ("name", "captured"), [("schedulefree", False), *((name, way) for name in OPTIMIZERS for way in (False, True))]
)
def test_a_skipped_update_is_one_that_never_was(name, captured, monkeypatch):
    words = [f"optimizer={name}", STEM, "fit.on_nonfinite=skip", "fit.ema_decay=0.9", "system.log_every=4"]
    (plain, one), (poisoned, other) = begin(*words, captured=captured), begin(*words, captured=captured)
    bad, real = {0, 1, 4}, step_of_training.accumulate

    def accumulate(state, images, targets):
        return real(state, images * math.nan if state is poisoned and state.step in bad else images, targets)

    monkeypatch.setattr(step_of_training, "accumulate", accumulate)
    for step in range(6):
        advance(poisoned, other)
        if step in bad:
            next(one)
            plain.step += 1
        else:
            advance(plain, one)
    assert [value.tolist() for value in poisoned.skips] == [3, 0]
    assert int(poisoned.meter.bad) == 0
    assert len(poisoned.tensors()) == len(plain.tensors())
    assert all(map(torch.equal, poisoned.tensors(), plain.tensors()))
    numbers = [{k: v for k, v in group.items() if k != "params"} for group in poisoned.setup.optimizer.param_groups]
    assert numbers == [{k: v for k, v in g.items() if k != "params"} for g in plain.setup.optimizer.param_groups]


def test_skips_above_the_limit_are_told_wherever_they_are_read():
    state, _ = begin("fit.on_nonfinite=skip")
    for state.step in range(1, 201):
        count_skip(state, torch.tensor(5 <= state.step - 1 < 106 or state.step == 3))
    assert state.skips[0] == 102
    with pytest.raises(NonFinite, match="at step 105 of 8, after 100 such steps in a row"):
        report_skips(state, 2, *state.fetch())


@pytest.mark.parametrize("words", [[], ["fit.on_nonfinite=skip"], ["model/objective=masked_patch"]], ids=str)
def test_a_row_and_a_checkpoint_read_the_device_once(words, monkeypatch):
    state, batches = begin(*words, captured=False)
    advance(state, batches, 2)
    reads, sums, norm = [], state.meter.totals.tolist(), float(state.gradient_norm)
    for name in ("tolist", "item", "numpy", "__int__", "__float__", "__bool__", "__index__"):
        real = getattr(torch.Tensor, name)
        count = lambda tensor, *rest, name=name, real=real: reads.append(name) or real(tensor, *rest)  # noqa: E731
        monkeypatch.setattr(torch.Tensor, name, count)
    assert check_finite(state, None) == {}
    assert state.meter.state_dict() == {"sums": dict(zip(state.meter.names, sums, strict=True)), "images": 32}
    row = state.row()
    assert reads == ["tolist"]
    assert (row["train/loss"], row["train/accuracy"]) == (sums[0] / 32, sums[1] / 32)
    assert row["train/gradient_norm"] == norm
    assert state.row().keys() & {"train/loss", "train/accuracy"} == set()  # nothing was added since


def test_sgd_starts_from_no_momentum_where_fp16_skips_the_first_update():
    state, batches = begin("optimizer=sgd", "fit.precision=fp16", captured=False)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    advance(state, batches)
    momenta = [own["momentum_buffer"] for own in state.setup.optimizer.state.values()]
    assert state.scaler.get_scale() < 1e38
    assert momenta
    assert not any(momentum.any() for momentum in momenta)


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_captured_training_goes_on_from_another_and_the_other_way_round(name, before, after):
    words = [f"optimizer={name}", *STEADY[name], "fit.ema_decay=0.9"]
    whole, batches = begin(*words, captured=before)
    advance(whole, batches, 2)
    saved = whole.capture()
    advance(whole, batches, 2)
    other, _ = begin(*words, captured=after)
    other.restore(saved)
    assert {group.get("capturable", after) for group in other.setup.optimizer.param_groups} == {after}
    advance(other, train_batches(other.setup, 2), 2)
    torch.testing.assert_close(list(other.vit.parameters()), list(whole.vit.parameters()), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], ""),
        (["optimizer=muon", "fit.precision=bf16"], ""),
        (["optimizer=lion", "fit.on_nonfinite=skip"], ""),
        (["optimizer=sgd", "fit.precision=fp16", "system.compile=true"], ""),
        (["optimizer=schedulefree"], "AdamWScheduleFree may keep numbers on the CPU"),
        (["optimizer=muon", "fit.precision=fp16"], "with fit.precision=fp16 Muon waits for the GPU"),
        (
            ["tracking=offline", "tracking.histograms=true"],
            "tracking.histograms=true reads the gradients after the step",
        ),
        (["system.activation_checkpointing=true"], "system.activation_checkpointing=true sets random generators back"),
    ],
)
def test_why_a_step_is_not_captured_is_said(words, reason):
    recipe = Recipe(**assemble(check(compose([*SMALL, *words])[0])))
    assert why_not_captured(recipe, ALONE, recipe.fit.precision) == reason
    recipe.system.compile = "graphs"
    assert why_not_captured(recipe, ALONE, recipe.fit.precision) == "system.compile=graphs captures the model by itself"
    assert why_not_captured(recipe, Distributed(0, 2, ALONE.device), "fp32") == "2 processes train together"
