"""Functions captured as CUDA graphs; on a CPU their operations are recorded instead."""

import pytest
import torch

from vitlab.data.batch import Batch
from vitlab.system.graphs import WARMUP, Captured

CPU = torch.device("cpu")


def batch(kind="plain", size=4, value=1.0):
    return Batch(kind, {"numbers": torch.full((size,), value), "labels": torch.arange(size)})


class Sum:
    """A function that adds to a tensor in place, and counts its calls in Python."""

    def __init__(self):
        self.total, self.calls, self.full = torch.zeros(()), 0, False

    def __call__(self, given):
        self.calls += 1
        if self.full:
            raise torch.OutOfMemoryError("out of memory")
        self.total += (given.tensors["numbers"] * given.tensors["labels"]).sum()
        return given.tensors["numbers"] + self.total


def test_every_call_is_one_of_the_function(recorder):
    plain, function = Sum(), Sum()
    captured = Captured(function, CPU)
    for step in range(9):
        given = batch(value=float(step))
        assert torch.equal(captured(given), plain(given))
        assert torch.equal(given.tensors["numbers"], torch.full((4,), float(step)))
    assert torch.equal(function.total, plain.total)
    assert function.calls == WARMUP + 1  # in a replay, nothing happens in Python
    assert recorder.log == ["warm-up plain"] * WARMUP + ["capture plain"] + ["replay plain"] * (9 - WARMUP)


def test_each_kind_and_each_shape_has_a_graph_of_its_own(recorder):
    plain, function = Sum(), Sum()
    captured = Captured(function, CPU)
    for step in range(24):
        given = batch(("plain", "mixup", "plain")[step % 3], (4, 4, 3)[step % 3], float(step))
        assert torch.equal(captured(given), plain(given))
    assert torch.equal(function.total, plain.total)
    assert [recorder.log.count(f"capture {kind}") for kind in ("plain", "mixup")] == [2, 1]
    assert len(captured.shapes) == 3


def test_a_replay_draws_what_the_function_would(recorder):
    def draw(given):
        return torch.nn.functional.dropout(given.tensors["numbers"], 0.5)

    captured = Captured(draw, CPU)
    for step in range(8):
        torch.manual_seed(step)
        expected = draw(batch(size=50))
        torch.manual_seed(step)
        assert torch.equal(captured(batch(size=50)), expected)
    assert "replay plain" in recorder.log


@pytest.mark.parametrize("calls", [1, WARMUP])
def test_after_an_error_all_graphs_are_captured_anew(recorder, calls):
    function = Sum()
    captured = Captured(function, CPU)
    for _ in range(6):
        captured(batch("mixup"))
    for _ in range(calls):
        captured(batch())
    before, function.full = function.total.clone(), True
    with pytest.raises(torch.OutOfMemoryError):
        captured(batch())
    assert not captured.shapes
    assert torch.equal(function.total, before)
    function.full = False
    del recorder.log[:]
    for _ in range(WARMUP + 1):
        captured(batch("mixup"))
    assert recorder.log == ["warm-up mixup"] * WARMUP + ["capture mixup", "replay mixup"]


def test_what_reads_a_value_cannot_be_captured(recorder):
    captured = Captured(lambda given: given.tensors["numbers"].sum().item(), CPU)
    with pytest.raises(AssertionError, match="is read on the host"):
        captured(batch())
