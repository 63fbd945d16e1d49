"""Copies on the CPU of an accelerator's tensors; the stream here works when it is waited for."""

import pytest
import torch
from torch import Tensor

from vitlab.system import host_copies
from vitlab.system.distributed import gather_state
from vitlab.system.host_copies import HostCopies

STATE = {
    "model": {"weight": torch.randn(3, 5).T, "one": torch.tensor(2.0), "none": torch.zeros(0, 4)},
    "optimizer": {"state": {0: {"step": torch.tensor(7)}}, "groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
    "half": [torch.randn(4).bfloat16()],
}


class Event:
    def __init__(self, stream):
        self.stream = stream

    def synchronize(self):
        for work in self.stream.queue:
            work()
        self.stream.queue = []


class Stream:
    """An accelerator's stream: what is asked of it happens when somebody waits."""

    def __init__(self, device):
        self.queue, self.follows = [], []

    def wait_stream(self, other):
        self.follows.append(other)

    def record_event(self):
        return Event(self)

    def __enter__(self):
        self.copy_, stream = Tensor.copy_, self

        def later(host, source, non_blocking=False):
            assert non_blocking
            stream.queue.append(lambda: stream.copy_(host, source))
            return host

        Tensor.copy_ = later

    def __exit__(self, *_):
        Tensor.copy_ = self.copy_


@pytest.fixture
def fake(monkeypatch):
    """A CPU whose tensors are taken for an accelerator's."""
    real = torch.empty
    monkeypatch.setattr(host_copies, "pins_memory", lambda device: True)
    monkeypatch.setattr(torch, "Stream", Stream)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: "the training's")
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory, **k: real(*a, **k).zero_())
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(host_copies, "on_cpu", lambda tensor: False)
    return HostCopies(torch.device("cuda"))


def same(one, two):
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return torch.equal(one, two) and one.dtype == two.dtype if isinstance(one, Tensor) else one == two


def test_copies_are_of_the_moment_they_were_asked_for_and_complete_after_wait(fake):
    state = gather_state(STATE)
    copy = fake.copy(state)
    assert len(fake.stream.queue) == 3  # float32, int64, bfloat16
    assert fake.stream.follows == ["the training's"] * 3  # the values are there before they are moved
    for tensor in (*state["model"].values(), state["optimizer"]["state"][0]["step"], *state["half"]):
        tensor.zero_()  # the next step
    assert not same(copy, gather_state(STATE))
    fake.wait()
    assert same(copy, gather_state(STATE))


def test_where_the_device_has_no_memory_left_for_it_copies_are_made_one_by_one(fake, monkeypatch):
    def full(_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch, "cat", full)
    assert same(fake.copy(STATE), gather_state(STATE))
    assert not fake.stream.queue


@pytest.mark.parametrize("keep", [True, False])
def test_on_a_cpu_copies_are_complete_at_once(keep):
    copies = HostCopies(torch.device("cpu"))
    found = copies.copy(STATE, keep)
    copies.wait()
    assert found["model"]["weight"] is None if not keep else same(found, gather_state(STATE))
    assert found["optimizer"]["groups"] == [{"lr": 0.1, "betas": [0.9, 0.99]}]


def test_an_accelerator_copies_beside_its_work(accelerator):
    """Many large products are queued, then a copy is asked for, then its source is changed."""
    copies, a = HostCopies(accelerator), torch.randn(4096, 4096, device=accelerator)
    state = {"a": a, "n": [torch.arange(5, device=accelerator)], "cpu": torch.ones(2)}
    expected = gather_state(state)
    for _ in range(50):
        a @ a
    found = copies.copy(state)
    a.zero_()
    copies.wait()
    assert same(found, expected)
