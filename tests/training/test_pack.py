"""Trainings in a pack: each is the training that it is alone, whatever is beside it."""

import copy
import functools
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from tests.config.test_check import check, compose
from tests.training.test_loop import ALONE
from vitlab.config.build import assemble
from vitlab.config.groups import menu
from vitlab.data.dataset import read_once
from vitlab.model.position import Position
from vitlab.storage.checkpoint import Checkpoints
from vitlab.storage.run import Run
from vitlab.sweep.packs import pack_key
from vitlab.system import graphs
from vitlab.training import checks
from vitlab.training.batches import train_batches
from vitlab.training.pack import Pack, log
from vitlab.training.recovery import check_finite
from vitlab.training.setup import prepare
from vitlab.training.state import TrainState
from vitlab.training.step import train_step

SMALL = [
    "tracking=off",
    "patch=p4",
    "dataset.train_examples=60",
    "model.width=16",
    "model.depth=1",
    "model.heads=2",
    "fit.batch_size=8",
    "fit.steps=50",
    "fit.precision=fp32",
]
STEPS = 4
DRAWS = ["model.dropout=0.2", "model.drop_path=0.2", "model.attention.dropout=0.2", "model.depth=2"]
OTHERS = ("dataset", "experiment", "system", "tracking")  # groups that change no number, or read other images
GROUPS = {group: list(menu()[group]) for group in menu() if group not in OTHERS}
APART = ("model", "model/stem", "patch")  # groups whose options go with few of another one's


@pytest.fixture(scope="module", autouse=True)
def _once():
    """The images are read once, and the memory is not looked at."""
    with read_once(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "check_memory", lambda *_, **__: None)
        yield


@functools.cache
def composed(*words):
    return compose([*SMALL, *words])[0]


def start(node, seed=0):
    """The state of a training, and its batches."""
    setup = prepare(**assemble(check({**copy.deepcopy(node), "seed": seed})), dist=ALONE)
    return TrainState(setup, "test"), train_batches(setup, 0)


def begin(*words, seed=0):
    return start(composed(*words), seed)


def seeds(*words, of=range(2)):
    return [begin(*words, seed=seed) for seed in of]


def advance(trainings, steps, pack=None, *, together=True):
    """The loss of each training in each step, computed in a pack or alone; `together` as one model, if in a pack."""
    losses = []
    for _ in range(steps):
        pending = [(state, next(batches)) for state, batches in trainings]
        for state, _ in pending:
            state.setup.schedule.set(state.step)
        if pack:
            pack.step(pending)
        else:
            for update in pending:
                train_step(*update)
        for state, _ in pending:
            state.fetch()
            losses.append(state.meter.sums.get("loss", torch.nan) / max(1, state.meter.counted))
            state.meter.clear()
    assert not pack or together == (not pack.separate)
    return torch.tensor(losses).reshape(steps, -1)


def difference(alone, packed, steps=STEPS):
    """The largest difference of a loss."""
    losses = advance(alone, steps)
    assert losses.isfinite().all()
    return float((losses - advance(packed, steps, Pack(8))).abs().max())


def tensors(state):
    """All that a checkpoint holds of a training, but for its time."""
    kept = {key: value for key, value in state.capture().items() if key not in ("seconds", "packed", "wrote")}
    return tree_leaves(kept)


def equal(one, other):
    """Whether two states are equal to the last bit."""
    pairs = zip(tensors(one), tensors(other), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


# --- the numbers of a run are those that it has alone ------------------------------------------------------------

LARGE = ["dataset.image_size=32", "fit.batch_size=4"]
NARROW = [*LARGE, "model.stem.widen=0.125", "model.stem.blocks=[1,1]", "patch=p8"]
NEEDS = {
    **{("model", name): [*NARROW, "model.width=64"] for name in ("resnet26", "resnet50", "resnet101", "resnet152")},
    ("model", "resnet_small"): ["model.stem.widen=0.125", "model.width=128"],
    **{("model/stem", name): NARROW for name in ("resnet26", "resnet50", "resnet50_16")},
    ("model/stem", "resnet_small"): ["model.stem.widen=0.125"],
    ("model/attention", "axial"): ["model/pool=gap", "model/position=learned_1d"],
    **{("patch", name): LARGE for name in ("p16", "p32")},
    **{("patch", name): ["dataset.image_size=14"] for name in ("p7", "p14")},
}
# Options of several groups at once: each composition has the next one of every group.
TOGETHER = [
    {group: options[turn % len(options)] for group, options in GROUPS.items() if group not in APART}
    for turn in range(max(len(options) for group, options in GROUPS.items() if group not in APART))
]
CHOICES = [*TOGETHER, *({group: option} for group in APART for option in GROUPS[group])]
VALUES = [
    ["fit.sampling=balanced", "fit.accumulate=2", "model.registers=2", "model.layer_scale=0.1", *DRAWS],
    ["fit.ema_decay=0.9", "fit.clip=null", "model.attention.qk_norm=true", "model.attention.qkv_bias=false"],
    ["fit.clip=0.1", "fit.on_nonfinite=skip", "loss.class_weights=balanced", "augment.mixup=0.4"],
    ["fit.on_nonfinite=rollback", "fit.layer_decay=0.7", "model.position.at=every_block", "model.depth=2"],
    ["model/stem=convolution", "fit.accumulate=2", "fit.on_nonfinite=skip", "optimizer=muon", "fit.layer_decay=0.7"],
    ["model/objective=masked_patch", "model.objective.target=pixels", "model.dropout=0.1", "model.final_norm=false"],
    ["fit.precision=bf16", "model/position=rope", *DRAWS],
    ["fit.precision=fp16", "optimizer=sgd", "optimizer.nesterov=true"],
    ["model.attention.kernel=fused", "model.attention.dropout=0.2"],
    ["model.attention.kernel=fused", "model/position=relative"],
    ["model.attention.kernel=fused", "optimizer=sgd", "optimizer.momentum=0"],
    ["model.attention.kernel=explicit", "patch=p1", "optimizer=schedulefree", "fit.layer_decay=0.7"],
]


@functools.cache  # many options are the same model once it is small
def difference_of(node):
    alone, packed = ([start(json.loads(node), seed) for seed in range(2)] for _ in range(2))
    return difference(alone, packed)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: " ".join(f"{g}={o}" for g, o in choice.items()))
def test_losses_of_every_option_are_those_of_the_runs_alone(choice):
    needed = {word.partition("=")[0]: word for option in choice.items() for word in NEEDS.get(option, [])}
    chosen = {group: f"{group}={option}" for group, option in choice.items()}
    assert difference_of(json.dumps(composed(*(chosen | needed).values()))) < 1e-5


@pytest.mark.parametrize("words", VALUES, ids=" ".join)
def test_losses_of_other_values_are_those_of_the_runs_alone(words):
    bound = {"bf16": 2e-2, "fp16": 2e-3}.get(composed(*words)["fit"]["precision"], 1e-5)
    assert difference(seeds(*words), seeds(*words)) < bound


@pytest.mark.slow
@pytest.mark.parametrize("words", [DRAWS, ["optimizer=muon", "model/stem=convolution"]], ids=" ".join)
def test_losses_are_those_of_the_runs_alone_over_50_steps(words):
    assert difference(seeds(*words), seeds(*words), steps=50) < 1e-5


BASE = ("model.layer_scale=0.5", "model.drop_path=0.1", "model.dropout=0.1", "model.depth=2", "fit.ema_decay=0.9")
DIFFERENT = [
    *(["optimizer.lr=1e-3"], ["optimizer.weight_decay=0.1"], ["optimizer.betas=[0.8,0.9]"], ["optimizer.eps=1e-4"]),
    *([f"optimizer={name}"] for name in menu()["optimizer"]),
    *([f"schedule={name}"] for name in menu()["schedule"]),
    *([f"loss={name}"] for name in menu()["loss"]),
    *(["schedule.warmup_steps=2"], ["schedule.min_lr=1e-3"], ["optimizer=sgd", "optimizer.momentum=0.5"]),
    *(["loss.label_smoothing=0"], ["loss.class_weights=balanced"], ["augment.mixup=0.8"], ["augment.cutmix=1.0"]),
    *(["model.dropout=0"], ["model.drop_path=0"], ["model.layer_scale=1e-4"], ["augment.erase=0.5"]),
    *(["model/init=reference"], ["model.head.zero_init=false"], ["model.init.position_std=0.5"]),
    *(["fit.ema_decay=0"], ["fit.ema_decay=0.99"], ["fit.clip=null"], ["fit.clip=0.01"], ["fit.layer_decay=0.5"]),
    *(
        ["dataset.train_examples=null", "dataset.train_fraction=0.1"],
        ["fit.steps=null", "fit.epochs=3"],
        ["fit.sampling=balanced"],
        ["augment=flip_crop"],
    ),
    *(["fit.on_nonfinite=skip"], ["fit.on_nonfinite=rollback"]),
]


def test_runs_of_one_pack_may_differ_in_all_but_the_shape():
    nodes = [composed(*BASE, *words) for words in DIFFERENT]
    assert len({pack_key(node, {}) for node in nodes}) == 1
    alone, packed = ([start(node, seed) for seed, node in enumerate(nodes)] for _ in range(2))
    assert difference(alone, packed) < 1e-5
    for (one, _), (other, _) in zip(alone, packed, strict=True):
        assert one.gradient_norm.allclose(other.gradient_norm, rtol=1e-3)
        with one.eval_weights(), other.eval_weights():
            assert one.vit.head.output.weight.allclose(other.vit.head.output.weight, atol=1e-5)


def test_attention_dropout_differs_among_the_runs_of_a_pack_that_have_some():
    rates = [f"model.attention.dropout={rate}" for rate in (0.1, 0.4)]
    assert difference([begin(rate) for rate in rates], [begin(rate) for rate in rates]) < 1e-5
    keys = [pack_key(composed(f"model.attention.dropout={rate}"), {}) for rate in (0, 0.1, 0.4)]
    assert keys[0] != keys[1] == keys[2]  # without, other kernels may be used


# --- and do not depend on what is beside it ----------------------------------------------------------------------

MANY = [
    [*DRAWS, "augment.mixup=0.5", "fit.ema_decay=0.9", "fit.accumulate=2", "optimizer=muon"],
    ["model/stem=convolution", "fit.on_nonfinite=skip"],
    ["model/stem=resnet_small", "model.stem.widen=0.125", "optimizer=sgd"],
    ["model/position=relative", "patch=p2", "model/pool=map", "optimizer=lion", "fit.clip=0.1"],
]


@pytest.mark.parametrize("words", MANY, ids=" ".join)
def test_bits_of_a_run_do_not_depend_on_the_other_runs(words):
    def run(order, at_once):
        trainings = seeds(*words, of=order)
        advance(trainings, 3, Pack(at_once))
        return trainings[order.index(0)][0]

    first = run([0, 1], 8)
    for order, at_once in ([0, 1], 8), ([1, 0], 8), ([0], 8), ([2, 3, 0], 8), ([3, 4, 1, 0, 2], 2):
        assert equal(first, run(order, at_once)), order


def spoil(state):
    with torch.no_grad():
        state.vit.head.output.weight[0] = torch.nan


@pytest.mark.parametrize("words", MANY[:2], ids=" ".join)
@pytest.mark.parametrize("ill", ["optimizer.lr=1e30", "model.dropout=0.9", "nan"])
def test_what_happens_to_a_run_leaves_the_others_as_they_are(words, ill):
    healthy = seeds(*words, of=range(3))
    advance(healthy, 4, Pack(8))
    others = [*seeds(*words, of=[0]), begin(*words, *([ill] if "=" in ill else []), seed=1), *seeds(*words, of=[2])]
    if ill == "nan":
        spoil(others[1][0])
    advance(others, 4, Pack(8))
    assert equal(healthy[0][0], others[0][0])
    assert equal(healthy[2][0], others[2][0])
    assert not equal(healthy[1][0], others[1][0])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_rollback_is_that_run_s_alone(optimizer, tmp_path):
    """It takes back weights, average and optimizer as they were, and the others notice nothing."""
    words = [f"optimizer={optimizer}", "fit.on_nonfinite=rollback", "fit.ema_decay=0.9", "fit.clip=0.1"]
    run = Run(tmp_path / "run")
    run.create()
    with Checkpoints(run, on=True, minutes=9) as checkpoints:
        healthy, others, pack = seeds(*words, of=range(3)), seeds(*words, of=range(3)), Pack(8)
        advance(healthy, 4, Pack(8))
        state = others[1][0]
        advance(others, 2, pack)
        checkpoints.save(state.capture(), None, keep=False, ready=lambda: None)
        checkpoints.wait()
        spoil(state)
        advance(others, 1, pack)
        state.meter.bad.fill_(2)
        assert check_finite(state, checkpoints) == {"train/rolled_back_to": 2}
        advance(others, 1, pack)
    fresh = seeds(*words, of=range(3))
    advance(fresh, 2, again := Pack(8))
    for _, batches in fresh:
        next(batches)
    for each, _ in fresh:
        each.step = 3
    advance(fresh, 1, again)
    assert all(a.equal(b) for a, b in zip(fresh[1][0].tensors()[:-2], state.tensors()[:-2], strict=True))
    for row in (0, 2):
        assert equal(healthy[row][0], others[row][0])


def test_a_skip_is_that_run_s_alone():
    words = ["fit.on_nonfinite=skip", "model/stem=convolution", "fit.ema_decay=0.9"]
    healthy, others, pack = seeds(*words, of=range(3)), seeds(*words, of=range(3)), Pack(8)
    advance(healthy, 3, Pack(8))
    weight = others[1][0].vit.head.output.weight
    for step in range(3):
        kept, before = weight[0].detach().clone(), [each.clone() for each in others[1][0].vit.buffers()]
        if step == 1:
            spoil(others[1][0])
        advance(others, 1, pack)
        if step == 1:
            assert others[1][0].skips.tolist() == [1, 1]
            assert all(map(torch.equal, before, others[1][0].vit.buffers()))
            with torch.no_grad():
                weight[0] = kept
    assert others[1][0].vit.head.output.weight.isfinite().all()
    for row in (0, 2):
        assert equal(healthy[row][0], others[row][0])


# --- runs come and go ----------------------------------------------------------------------------------------------


def resumed(state, *words, seed):
    """A training that goes on from a checkpoint of another one."""
    other, _ = begin(*words, seed=seed)
    other.restore(copy.deepcopy(state.capture()))
    return other, train_batches(other.setup, other.step)


@pytest.mark.parametrize("optimizer", menu()["optimizer"])
def test_a_pack_of_resumed_runs_is_the_undisturbed_one_and_each_goes_on_alone_as_well(optimizer):
    words = (f"optimizer={optimizer}", "model/stem=convolution", "fit.ema_decay=0.9", *DRAWS)
    undisturbed, stopped = seeds(*words, of=range(3)), seeds(*words, of=range(3))
    losses = advance(undisturbed, 6, Pack(8))
    advance(stopped, 3, Pack(8))
    again = [resumed(state, *words, seed=seed) for seed, (state, _) in enumerate(stopped)]
    alone = [resumed(state, *words, seed=seed) for seed, (state, _) in enumerate(stopped)]
    assert torch.equal(advance(again, 3, Pack(2)), losses[3:])
    assert all(equal(one, other) for (one, _), (other, _) in zip(undisturbed, again, strict=True))
    assert float((advance(alone, 3) - losses[3:]).abs().max()) < 1e-5


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_runs_join_and_leave_a_pack_at_any_step(optimizer):
    words = (f"optimizer={optimizer}", "fit.ema_decay=0.9", "fit.on_nonfinite=skip")
    together, pack = seeds(*words, of=range(4)), Pack(3)
    whole = seeds(*words, of=range(4))
    for members in ([0], [0, 1], [2, 0, 1], [2, 3, 1], [3, 0]):
        advance([together[i] for i in members], 1, pack)
    for state, batches in whole:
        steps = together[state.setup.seed][0].step
        advance([(state, batches)], steps, Pack(8))
        assert equal(state, together[state.setup.seed][0])


# --- parts of one's own --------------------------------------------------------------------------------------------


class Own(Position):
    """A position of one's own."""

    def __init__(self, *, width, head_width, grid):
        super().__init__(width=width, head_width=head_width, grid=grid)
        self.unused = nn.Parameter(torch.ones(width, width))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def init_parameters(self, init):
        """Keeps them."""

    def add(self, tokens):
        self.calls = self.calls + 1
        return self.change(tokens)

    at = "stem"


def reads(self, tokens):
    return tokens * (1 + tokens.mean().item())


def draws(self, tokens):
    return tokens + 0.1 * torch.randn_like(tokens)


def draws_from_numpy(self, tokens):
    return tokens * np.random.rand()  # noqa: NPY002


def decides(self, tokens):
    return tokens if tokens.sum() > 0 else 2 * tokens


def own(node, change, monkeypatch):
    monkeypatch.setattr(Own, "change", change, raising=False)
    parts = [assemble(check({**copy.deepcopy(node), "seed": seed})) for seed in range(3)]
    for part in parts:
        part["model"] = functools.partial(part["model"], position=Own)
    states = [TrainState(prepare(**part, dist=ALONE), "test") for part in parts]
    return [(state, train_batches(state.setup, 0)) for state in states]


@pytest.mark.parametrize("change", [reads, draws, draws_from_numpy, decides])
def test_models_that_cannot_be_one_are_trained_one_after_the_other(change, monkeypatch, caplog):
    node = composed("model/stem=convolution", "fit.ema_decay=0.9", *DRAWS)
    alone, packed = own(node, change, monkeypatch), own(node, change, monkeypatch)
    advance(alone, 3)
    monkeypatch.setattr(log, "propagate", True)
    pack = Pack(8)
    advance(packed, 3, pack, together=False)
    assert all(equal(one, other) for (one, _), (other, _) in zip(alone, packed, strict=True))
    assert len([line for line in caplog.messages if "one after the other" in line]) == 1
    assert [state.packed for state, _ in packed] == [0, 0, 0]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "schedulefree"])
def test_parameters_without_gradient_do_not_decay_and_buffers_that_are_set_anew_are_kept(optimizer, monkeypatch):
    node = composed(f"optimizer={optimizer}", "fit.ema_decay=0.9")
    alone, packed = (own(node, lambda self, tokens: tokens, monkeypatch) for _ in range(2))
    losses, pack = advance(alone, 5), Pack(8)
    found = [advance(packed, 2, pack)]
    others = own(node, lambda self, tokens: tokens, monkeypatch)
    for (other, _), (state, _) in zip(others, packed, strict=True):
        other.restore(copy.deepcopy(state.capture()))
    found.append(
        advance([(other, batches) for (other, _), (_, batches) in zip(others, packed, strict=True)], 3, Pack(8))
    )
    assert float((losses - torch.cat(found)).abs().max()) < 1e-5
    for (state, _), (single, _) in zip(others, alone, strict=True):
        part = state.vit.positions[0]
        assert part.unused.equal(torch.ones_like(part.unused))
        assert part.calls.equal(single.vit.positions[0].calls)


# --- captured as a CUDA graph, which a CPU records and repeats -----------------------------------------------------

CAPTURED = {
    "dropout, drop-path, EMA": [*DRAWS, "fit.ema_decay=0.9"],
    "mixup, erasing, accumulation": ["augment.mixup=0.4", "augment.erase=0.5", "fit.accumulate=2"],
    "batch normalisation, skip": ["model/stem=convolution", "fit.on_nonfinite=skip"],
    "masked patches": ["model/objective=masked_patch"],
    "muon": ["optimizer=muon"],
    "lion": ["optimizer=lion"],
}


@pytest.mark.parametrize("recipe", CAPTURED)
def test_a_captured_pack_is_the_eager_one(recipe, recorder, monkeypatch):
    words = [*CAPTURED[recipe], "system.capture=true"]
    eager, captured = seeds(*words), seeds(*words)
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "WARMUP", 10**9)
        advance(eager, 8, Pack(8))
    assert not any("replay" in line for line in recorder.log)
    advance(captured, 8, Pack(8))
    assert any("replay" in line for line in recorder.log)
    assert all(equal(one, other) for (one, _), (other, _) in zip(eager, captured, strict=True))


def test_a_captured_pack_goes_on_with_other_members(recorder):
    """What was captured for those before is not repeated for those that follow."""
    words = ["model.dropout=0.1", "system.capture=true"]
    trainings, alone, pack = seeds(*words), seeds(*words), Pack(8)
    advance(trainings, 6, pack)
    advance(trainings[1:], 6, pack)
    other = Pack(8)
    advance(alone, 6, other)
    advance(alone[1:], 6, Pack(2))
    assert all(equal(one, other) for (one, _), (other, _) in zip(trainings, alone, strict=True))
