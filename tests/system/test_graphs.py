"""Functions captured as CUDA graphs; on a CPU their operations are recorded instead."""

import pytest
import torch

from vitlab.data.batch import Batch
from vitlab.system.graphs import LIVE, WARMUP, Captured
from vitlab.system.hardware import seed_device


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    if request.param == "cpu":
        request.getfixturevalue("recorder")
    return torch.device(request.param)


def batch(kind="plain", size=4, value=1.0):
    return Batch(kind, {"numbers": torch.full((size,), value), "labels": torch.arange(size)})


class Sum:
    """A function that adds to a tensor in place, and counts its calls in Python."""

    def __init__(self, device):
        self.total, self.calls, self.full = torch.zeros((), device=device), 0, lambda: False

    def __call__(self, given):
        self.calls += 1
        if self.full():
            if self.total.device.type == "cpu":
                raise torch.OutOfMemoryError("out of memory")
            torch.empty(2**48, dtype=torch.uint8, device=self.total.device)
        self.total += (given.tensors["numbers"] * given.tensors["labels"]).sum()
        return given.tensors["numbers"] + self.total


def test_every_call_is_one_of_the_function(device):
    plain, function = Sum("cpu"), Sum(device)
    captured = Captured(function, device)
    for step in range(9):
        given = batch(value=float(step))
        assert torch.equal(captured(given).cpu(), plain(given))
        assert torch.equal(given.tensors["numbers"], torch.full((4,), float(step)))
        assert function.calls == min(step, WARMUP) + 1  # in a replay, nothing happens in Python
    assert torch.equal(function.total.cpu(), plain.total)


def test_each_kind_and_each_shape_has_a_graph_of_its_own(device):
    plain, function = Sum("cpu"), Sum(device)
    captured = Captured(function, device)
    for step in range(24):
        given = batch(("plain", "mixup", "plain")[step % 3], (4, 4, 3)[step % 3], float(step))
        assert torch.equal(captured(given).cpu(), plain(given))
    assert torch.equal(function.total.cpu(), plain.total)
    assert function.calls == 3 * (WARMUP + 1)
    assert len(captured.shapes) == 3
    if device.type == "cuda":
        assert len({graph.pool() for graph in LIVE}) == 1


def test_a_replay_draws_what_the_function_would(device):
    def draw(given):
        return torch.nn.functional.dropout(given.tensors["numbers"], 0.5) * torch.rand(50, device=device)

    captured = Captured(draw, device)
    drawn = []
    for step in range(8):
        for function, given in ((draw, batch(size=50).to(device)), (captured, batch(size=50))):
            torch.manual_seed(step)
            seed_device(device, step)
            drawn.append(function(given).clone())
        assert torch.equal(*drawn[-2:])
    assert len({tuple(each.tolist()) for each in drawn}) == 8


def call(captured, times, kind="plain"):
    for _ in range(times):
        captured(batch(kind))


@pytest.mark.parametrize("calls", [1, WARMUP])
def test_after_an_error_all_graphs_are_captured_anew(device, calls):
    """Also one in a capture, which takes hold of the generator."""
    function = Sum(device)
    captured = Captured(function, device)
    call(captured, 6, "mixup")
    call(captured, calls)
    before, function.full = function.total.clone(), lambda: True
    with pytest.raises(torch.OutOfMemoryError):
        call(captured, 1)
    assert not captured.shapes
    assert torch.equal(function.total, before)
    assert torch.rand(5, device=device).sum() > 0
    function.full, function.calls = lambda: False, 0
    call(captured, WARMUP + 3, "mixup")
    assert function.calls == WARMUP + 1
    assert torch.equal(function.total, before + 6 * (WARMUP + 3))


def test_dropped_graphs_share_no_memory_with_new_ones(device):
    for _ in range(2):
        captured = Captured(Sum(device), device)
        for step in range(6):
            captured(batch(value=float(step)))
        captured.release()
        assert not captured.shapes
    assert not list(LIVE)


def test_what_reads_a_value_cannot_be_captured(recorder):
    captured = Captured(lambda given: given.tensors["numbers"].sum().item(), torch.device("cpu"))
    with pytest.raises(AssertionError, match="is read on the host"):
        captured(batch())
