"""Evaluations batch by batch: without a wait for the device, and captured as CUDA graphs."""

import pytest
import torch

from tests.config.test_check import check, compose
from tests.recording import NoReads
from tests.training.test_loop import ALONE, SMALL
from vitlab.config.build import assemble
from vitlab.data.batch import Batch
from vitlab.evaluation.evaluate import Evaluator, evaluate
from vitlab.system.distributed import Distributed
from vitlab.training.batches import eval_batches
from vitlab.training.setup import prepare

MASKED = ["model/objective=masked_patch", "fit.best=val/loss"]
CASES = {
    "classes": [],
    "bf16": ["fit.precision=bf16"],
    "masked patches, drawn at random": MASKED,
    "pixels of masked patches": [*MASKED, "model.objective.target=pixels"],
}


def prepared(*overrides, dist=ALONE):
    words = [*SMALL, "model.head.zero_init=false", "fit.evaluation_batch_size=30", *overrides]
    return prepare(**assemble(check(compose(words)[0])), dist=dist)


def evaluator(setup, captured):
    return Evaluator(setup.model, setup.dist, setup.precision, setup.vit.objective, captured=captured)


def assert_captured_is_plain(setup, exact=True):
    """Over a split with a smaller last batch, and again with other weights at the same addresses."""
    plain, captured = evaluator(setup, False), evaluator(setup, True)
    for split in ("validation", "test", "validation"):
        one, two = (each(eval_batches(setup, split)) for each in (plain, captured))
        assert one == (two if exact else pytest.approx(two, rel=1e-5))
        with torch.no_grad():
            for parameter in setup.vit.parameters():
                parameter.mul_(1.05)
    return captured


@pytest.mark.parametrize("case", CASES)
def test_a_captured_evaluation_is_the_plain_one(recorder, case):
    assert_captured_is_plain(prepared(*CASES[case]))
    assert {entry.split()[0] for entry in recorder.log} == {"warm-up", "capture", "replay"}


@pytest.mark.cuda
@pytest.mark.parametrize("case", CASES)
def test_a_captured_evaluation_is_the_plain_one_on_a_gpu(case):
    captured = assert_captured_is_plain(prepared(*CASES[case], dist=Distributed(0, 1, torch.device("cuda"))), False)
    assert any(shape.replay for shape in captured.graphs.shapes.values())
    captured.graphs.release()


@pytest.mark.parametrize("case", CASES)
def test_a_batch_reads_nothing_from_the_device(case):
    setup = prepared(*CASES[case])
    plain = evaluator(setup, False)
    expected = plain(eval_batches(setup, "validation"))
    addresses = {name: total.data_ptr() for name, total in plain.sums.items()}
    with torch.inference_mode():
        for images, labels in eval_batches(setup, "validation"):
            with NoReads():
                plain.batch(Batch("plain", {"images": images, "labels": labels}))
    assert {name: total.data_ptr() for name, total in plain.sums.items()} == addresses
    assert plain(eval_batches(setup, "validation")) == expected
    assert (
        evaluate(setup.model, eval_batches(setup, "validation"), ALONE, setup.precision, setup.vit.objective)
        == expected
    )
