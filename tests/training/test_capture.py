"""Trainings whose steps are captured as CUDA graphs; on a CPU their operations are recorded and done again."""

import pytest
import torch

from tests.training.test_faults import stop  # noqa: F401 (a fixture)
from tests.training.test_loop import fit
from tests.training.test_resume import equal, timeless
from vitlab.storage import checkpoint
from vitlab.system import graphs

CAPTURED = ["system.capture=true", "model.head.zero_init=false", "fit.steps=10"]
RECIPES = {
    "dropout, drop-path, EMA": ["model.dropout=0.1", "model.drop_path=0.2", "fit.ema_decay=0.9"],
    "mixup or CutMix, accumulation": ["augment.mixup=0.4", "augment.cutmix=1.0", "fit.accumulate=2"],
    "crop, flip, erasing": ["augment=flip_crop", "augment.erase=0.5"],
    "policies in workers": ["augment=randaugment", "system.workers=1"],
    "batch normalisation, skip": ["model/stem=convolution", "fit.on_nonfinite=skip"],
    "masked patches": ["model/objective=masked_patch", "fit.best=val/loss"],
    "layer decay, no clipping, WSD": ["fit.layer_decay=0.7", "fit.clip=null", "schedule=wsd"],
    "bf16": ["fit.precision=bf16"],
    "sigmoid loss": ["loss=sigmoid_cross_entropy", "fit.sampling=balanced"],
    **{optimizer: [f"optimizer={optimizer}"] for optimizer in ("adam", "lion", "muon", "sgd")},
}
FULL = torch.OutOfMemoryError("out of memory")


def uncaptured(monkeypatch):
    """No step is captured, and all others are as they are where steps are."""
    monkeypatch.setattr(graphs, "WARMUP", 10**9)


def assert_equal(one, two, exact=True):
    """Two runs have the same states, rows and results."""
    if exact:
        assert equal(checkpoint.load(one.last), checkpoint.load(two.last))
        assert [timeless(row) for row in one.rows()] == [timeless(row) for row in two.rows()]
        assert timeless(one.result()) == timeless(two.result())
        return
    for first, second in zip(one.rows(), two.rows(), strict=True):
        assert second == pytest.approx(
            first | {key: second[key] for key in first if "second" in key}, rel=1e-5, abs=1e-6
        )
    models = (checkpoint.load(run.last)["model"] for run in (one, two))
    for first, second in zip(*(model.values() for model in models), strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_captured_training_is_the_eager_one_to_the_last_bit(tmp_path, monkeypatch, recorder, recipe):
    captured, _ = fit(tmp_path, *CAPTURED, *RECIPES[recipe], name="captured")
    assert sum(entry.startswith("replay") for entry in recorder.log) >= 3
    with monkeypatch.context() as patch:
        uncaptured(patch)
        eager, _ = fit(tmp_path, *CAPTURED, *RECIPES[recipe], name="eager")
    assert_equal(eager, captured)


def test_a_captured_training_is_one_without_capture(tmp_path, recorder):
    """But for rounding: its learning rates lie in tensors of 32 bits."""
    words = [*CAPTURED, "optimizer.eps=1e-3"]  # the bias of keys has a gradient of 0, which is not to be magnified
    captured, _ = fit(tmp_path, *words, name="captured")
    plain, _ = fit(tmp_path, *words, "system.capture=false", name="plain")
    assert_equal(plain, captured, exact=False)


@pytest.mark.parametrize("step", [2, 5])
def test_a_captured_training_that_was_interrupted_goes_on(tmp_path, recorder, stop, step):  # noqa: F811
    words = [*CAPTURED, *RECIPES["dropout, drop-path, EMA"], "augment.mixup=0.4"]
    whole, _ = fit(tmp_path, *words, name="whole")
    stop(tmp_path, step, *words, name="cut")
    cut, _ = fit(tmp_path, *words, name="cut")
    assert_equal(whole, cut)
