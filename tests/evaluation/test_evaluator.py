"""Evaluations batch by batch: without a wait for the device, and captured as CUDA graphs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.config.test_check import check, compose
from tests.recording import NoReads
from tests.training.test_loop import ALONE, SMALL
from vitlab.config.build import assemble
from vitlab.data.batch import Batch
from vitlab.data.loader import PADDING, EvalSampler
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
        if exact:
            np.testing.assert_array_equal(plain.correct(), captured.correct())
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


def test_which_images_were_correct_is_known_in_their_order_whatever_the_number_of_processes():
    """Of two processes, each with every second image; the last batch is padded."""
    setup = prepared("fit.evaluation_batch_size=32")
    alone = evaluator(setup, False)
    scores, images = alone(eval_batches(setup, "test")), len(setup.splits["test"])
    expected = alone.correct()
    assert len(expected) == images
    assert expected.mean() == scores["accuracy"]
    labels = torch.from_numpy(setup.splits["test"].labels)
    setup.model.eval()
    with torch.no_grad():
        logits = torch.cat([setup.model(batch) for batch, _ in eval_batches(setup, "test")])
    np.testing.assert_array_equal(expected, (logits.argmax(1) == labels).numpy())

    hits = torch.from_numpy(expected.astype("int8"))
    parts = []
    for rank in range(2):
        keys = EvalSampler(examples=images, batch=32, full=True, rank=rank, world_size=2).keys
        own = [-1 if mark == PADDING else int(hits[place]) for mark, place in keys]
        parts.append(torch.tensor(own, dtype=torch.int8))
    alone.hits = [parts[0]]
    alone.dist = SimpleNamespace(size=2, all_gather_rows=lambda rows: torch.cat(parts))
    np.testing.assert_array_equal(alone.correct(), expected)


def test_without_classes_nothing_is_correct():
    setup = prepared(*MASKED)
    masked = evaluator(setup, False)
    masked(eval_batches(setup, "validation"))
    assert masked.correct() is None
