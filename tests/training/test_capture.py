"""Trainings whose steps are captured as CUDA graphs; on a CPU their operations are recorded and done again."""

import math
from functools import partial

import pytest
import torch

from tests.training.test_faults import memory, said, stop  # noqa: F401 (fixtures)
from tests.training.test_loop import fit
from tests.training.test_resume import equal, timeless
from vitlab.config.errors import ConfigError, OutOfMemory
from vitlab.model.objective import Classify
from vitlab.storage import checkpoint
from vitlab.system import graphs
from vitlab.system.distributed import Distributed
from vitlab.training import step as step_of_training

pytestmark = pytest.mark.usefixtures("no_curves")

CAPTURED = ["system.capture=true", "model.head.zero_init=false", "fit.steps=10", "optimizer.eps=1e-3"]
CAPTURED += ["fit.evaluate_every=2.5"]  # the bias of keys has a gradient of 0, which an eps of 1e-8 would magnify
OTHER = [word for word in CAPTURED if "eps" not in word]
RECIPES = {
    "dropout, drop-path, EMA": [*CAPTURED, "model.dropout=0.1", "model.drop_path=0.2", "fit.ema_decay=0.9"],
    "mixup or CutMix, accumulation": [*CAPTURED, "augment.mixup=0.4", "augment.cutmix=1.0", "fit.accumulate=2"],
    "crop, flip, erasing": [*CAPTURED, "augment=flip_crop", "augment.erase=0.5"],
    "policies in workers": [*CAPTURED, "augment=randaugment", "system.workers=1"],
    "batch normalisation, skip": [*CAPTURED, "model/stem=convolution", "fit.on_nonfinite=skip"],
    "masked patches": [*CAPTURED, "model/objective=masked_patch", "fit.best=val/loss"],
    "layer decay, no clipping, WSD": [*CAPTURED, "fit.layer_decay=0.7", "fit.clip=null", "schedule=wsd"],
    "bf16": [*CAPTURED, "fit.precision=bf16"],
    "sigmoid loss": [*CAPTURED, "loss=sigmoid_cross_entropy", "fit.sampling=balanced"],
    "muon": [*CAPTURED, "optimizer=muon"],
    "adam": [*CAPTURED, "optimizer=adam"],
    "lion": [*OTHER, "optimizer=lion"],
    "sgd": [*OTHER, "optimizer=sgd"],
}
DRAWS = [*RECIPES["dropout, drop-path, EMA"], "augment.mixup=0.4"]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def dist(request):
    """The device of a captured training."""
    if request.param == "cpu":
        request.getfixturevalue("recorder")
    return Distributed(0, 1, torch.device(request.param))


@pytest.fixture
def captures(dist, monkeypatch):
    """The kinds of batches whose training steps were captured so far."""
    kinds, capture = [], graphs.capture

    def counted(function, batch, *generators):
        kinds.extend([batch.kind] * isinstance(function, partial))  # evaluations' are methods
        return capture(function, batch, *generators)

    monkeypatch.setattr(graphs, "capture", counted)
    return kinds


def eagerly(monkeypatch, *arguments, **options):
    """A training as a captured one, in which nothing is captured."""
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "WARMUP", 10**9)
        return fit(*arguments, **options)[0]


def assert_equal(one, two, dist, exact=True):
    """Two runs have the same states, rows and results: on a CPU to the last bit."""
    if exact and dist.device.type == "cpu":
        assert equal(checkpoint.load(one.last), checkpoint.load(two.last))
        assert [timeless(row) for row in one.rows()] == [timeless(row) for row in two.rows()]
        assert timeless(one.result()) == timeless(two.result())
        return
    (first, second) = ([timeless(row) for row in run.rows()] for run in (one, two))
    for before, now in zip(first, second, strict=True):
        assert now.keys() == before.keys()
        for name in before:
            near = {"abs": 2e-6} if name.endswith("loss") else {"rel": 1e-3, "abs": 1e-6}
            assert now[name] == pytest.approx(before[name], **near), name


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=[pytest.mark.slow] * (i > 2)) for i, name in enumerate(RECIPES)]
)
def test_a_captured_training_is_the_eager_one(tmp_path, monkeypatch, dist, captures, recipe):
    captured, _ = fit(tmp_path, *RECIPES[recipe], name="captured", dist=dist)
    assert captures
    eager = eagerly(monkeypatch, tmp_path, *RECIPES[recipe], name="eager", dist=dist)
    assert_equal(eager, captured, dist, exact=True if recipe != "bf16" else dist.device.type == "cpu")


def test_a_captured_training_is_one_without_capture(tmp_path, dist):
    """But for rounding: its learning rates lie in tensors of 32 bits."""
    captured, _ = fit(tmp_path, *CAPTURED, name="captured", dist=dist)
    plain, _ = fit(tmp_path, *CAPTURED, "system.capture=false", name="plain", dist=dist)
    assert_equal(plain, captured, dist, exact=False)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecates
@pytest.mark.parametrize("dist", ["cuda"], indirect=True)
def test_a_compiled_step_is_captured_as_well(tmp_path, captures, dist):
    words = [*CAPTURED, "model.dropout=0"]
    both, _ = fit(tmp_path, *words, "system.compile=true", name="both", dist=dist)
    assert captures
    plain, _ = fit(tmp_path, *words, "system.capture=false", name="plain", dist=dist)
    losses = [[row["train/loss"] for row in run.rows()] for run in (plain, both)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


@pytest.mark.parametrize("step", [2, 6])
def test_a_captured_training_that_was_interrupted_goes_on(tmp_path, dist, captures, stop, step):  # noqa: F811
    whole, _ = fit(tmp_path, *DRAWS, name="whole", dist=dist)
    stop(tmp_path, step, *DRAWS, name="cut", dist=dist)
    cut, _ = fit(tmp_path, *DRAWS, name="cut", dist=dist)
    assert captures
    assert_equal(whole, cut, dist)


@pytest.mark.parametrize(("answer", "captured"), [("skip", 1), ("rollback", 2)])
def test_a_nonfinite_loss_in_a_replay_is_skipped_or_rolled_back(
    tmp_path, monkeypatch, dist, captures, answer, captured
):
    """After a rollback the optimizer's state lies elsewhere, so the step is captured anew."""
    losses, seed, added = Classify.losses, step_of_training.seed_step, torch.zeros((), device=dist.device)

    def poisoned(self, *arguments):
        mean, metrics = losses(self, *arguments)
        return mean + added, metrics

    def poison(state):
        seed(state)
        added.fill_(math.nan if state.step == 5 else 0.0)

    monkeypatch.setattr(Classify, "losses", poisoned)
    monkeypatch.setattr(step_of_training, "seed_step", poison)
    words = [*CAPTURED, f"fit.on_nonfinite={answer}", "model/stem=convolution", "fit.ema_decay=0.9"]
    run, result = fit(tmp_path, *words, name="captured", dist=dist)
    assert (result["skipped"], result["rollbacks"]) == ((1, 0) if answer == "skip" else (0, 1))
    assert captures == ["plain"] * captured
    assert_equal(eagerly(monkeypatch, tmp_path, *words, name="eager", dist=dist), run, dist)


@pytest.mark.slow
def test_two_models_and_batches_of_two_sizes_are_captured_in_one_process(tmp_path, monkeypatch, dist, captures):
    for name, words in {"one": [], "two": ["fit.batch_size=12", "model.width=24"]}.items():
        captured, _ = fit(tmp_path, *CAPTURED, *words, name=name, dist=dist)
        eager = eagerly(monkeypatch, tmp_path, *CAPTURED, *words, name=f"eager {name}", dist=dist)
        assert_equal(eager, captured, dist)
    assert captures == ["plain", "plain"]


def full(monkeypatch):
    """The first capture of a training step finds no memory."""
    capture, captures = graphs.capture, []

    def once(function, batch):
        captures.append(batch)
        if isinstance(function, partial) and len(captures) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return capture(function, batch)

    monkeypatch.setattr(graphs, "capture", once)
    return captures


def test_a_capture_without_memory_is_answered_as_a_step_without_it(tmp_path, monkeypatch, dist):
    full(monkeypatch)
    with pytest.raises(OutOfMemory, match=r"at step 3 with 16 images.*fit.accumulate=2 is the same batch"):
        fit(tmp_path, *CAPTURED, dist=dist)


def test_after_a_capture_without_memory_the_batch_is_computed_in_parts(tmp_path, monkeypatch, dist, said):  # noqa: F811
    words = [*CAPTURED, "model.dropout=0", "fit.auto_accumulate=true"]
    whole = eagerly(monkeypatch, tmp_path, *words, name="whole", dist=dist)
    captures = full(monkeypatch)
    parts, result = fit(tmp_path, *words, name="parts", dist=dist)
    assert result["accumulate"] == 2
    assert "out of memory: a batch is computed in 2 parts of 8" in said.text
    assert len(captures) > 1
    assert_equal(whole, parts, dist, exact=False)


def test_a_warm_up_without_memory_is_computed_in_parts_and_then_captured(tmp_path, dist, captures, memory):  # noqa: F811
    words = [*CAPTURED, "model/stem=convolution", "model.dropout=0.1", "fit.auto_accumulate=true"]
    parts, _ = fit(tmp_path, *words, "fit.accumulate=4", name="parts", dist=dist)
    memory(4, torch.OutOfMemoryError("CUDA"))
    halved, _ = fit(tmp_path, *words, name="halved", dist=dist)
    assert captures == ["plain", "plain"]
    assert [row["train/loss"] for row in halved.rows()] == pytest.approx([row["train/loss"] for row in parts.rows()])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["system.capture=true"], "each step is captured as a CUDA graph"),
        ([], "steps are not captured as CUDA graphs: that was not tested on a GPU yet (system.capture=true tries it)"),
        (["system.capture=false"], "steps are not captured as CUDA graphs: system.capture=false"),
    ],
)
def test_the_log_says_whether_steps_are_captured_or_why_not(tmp_path, recorder, said, words, sentence):  # noqa: F811
    fit(tmp_path, *words, "fit.steps=1")
    assert sentence in said.text


def test_where_steps_are_captured_by_themselves_the_log_says_what_hinders(tmp_path, recorder, said, monkeypatch):  # noqa: F811
    monkeypatch.setattr(graphs, "AUTOMATIC", ("cpu",))
    fit(tmp_path, "fit.steps=1", "system.activation_checkpointing=true")
    assert "not captured as CUDA graphs: system.activation_checkpointing=true sets random generators" in said.text
    fit(tmp_path, "fit.steps=1", name="captured")
    assert "each step is captured as a CUDA graph" in said.text


def test_a_capture_that_was_asked_for_and_cannot_be_is_refused(tmp_path, recorder):
    with pytest.raises(ConfigError, match=r"system.capture=true: AdamWScheduleFree may keep numbers on the CPU"):
        fit(tmp_path / "new", "system.capture=true", "optimizer=schedulefree")
    assert not (tmp_path / "new").exists()


def test_a_device_without_cuda_graphs_captures_nothing(tmp_path, said):  # noqa: F811
    with pytest.raises(ConfigError, match=r"system.capture=true: CUDA graphs need a GPU: use system.capture=auto"):
        fit(tmp_path, "system.capture=true", "system.device=cpu")
    fit(tmp_path, "fit.steps=1")
    assert "CUDA" not in said.text
