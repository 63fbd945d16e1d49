"""Threads spin on a quiet machine and wait passively on a busy one; no result depends on it."""

import os
import threading
import time

import pytest
import torch

from vitlab.__main__ import main
from vitlab.system import contention
from vitlab.system.contention import Delay, IdlePool, WaitPolicy

linux = pytest.mark.skipif(not contention.TASKS.is_dir(), reason="Linux counts how long threads wait")


@pytest.fixture
def two_threads(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@linux
def test_threads_wait_passively_while_others_compete_and_spin_again_afterwards(two_threads, monkeypatch):
    rates = [0.0]
    monkeypatch.setattr(Delay, "rate", lambda self: rates[0])
    monkeypatch.setattr(contention, "PERIOD", 0.005)
    before, threads = threading.active_count(), torch.get_num_threads()
    with WaitPolicy() as policy:
        assert not policy.passive
        rates[0] = 0.5
        assert until(lambda: policy.passive)
        assert torch.get_num_threads() == threads
        rates[0] = 0.1  # neither busy nor quiet
        time.sleep(0.1)
        assert policy.passive
        rates[0] = 0.0
        assert until(lambda: not policy.passive)
        rates[0] = 0.5
        assert until(lambda: policy.passive)
    assert threading.active_count() == before


@linux
def test_a_thread_that_gets_no_core_is_counted():
    """Twice as many busy threads as cores, for a moment."""
    cores, ended = len(os.sched_getaffinity(0)), threading.Event()

    def multiply():
        x = torch.randn(200, 200)
        while not ended.is_set():
            x @ x  # without Python's lock

    workers = [threading.Thread(target=multiply) for _ in range(4 * cores)]
    delay = Delay()
    for worker in workers:
        worker.start()
    time.sleep(0.3)
    new = Delay()
    time.sleep(0.3)
    rate = new.rate()
    ended.set()
    for worker in workers:
        worker.join()
    assert rate > contention.BUSY
    assert delay.rate() >= 0


def test_an_idle_pool_changes_no_number_and_no_setting(two_threads):
    x = torch.randn(300, 70_000)
    before = x.sum(0)
    pool = IdlePool()
    assert torch.equal(x.sum(0), before)
    seen = []
    fresh = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    fresh.start()
    fresh.join()
    assert seen == [torch.get_num_threads()] == [2]
    assert pool.close() is None


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_a_policy_of_the_user_stands(two_threads, monkeypatch, name):
    monkeypatch.setenv(name, "0")
    assert not WaitPolicy().on


def test_one_thread_has_nobody_to_wait_for(two_threads):
    torch.set_num_threads(1)
    assert not WaitPolicy().on
    assert not WaitPolicy(on=False).on


def test_elsewhere_nothing_is_watched(two_threads, monkeypatch, tmp_path):
    monkeypatch.setattr(contention, "TASKS", tmp_path / "none")
    assert contention.waited() == {}
    assert Delay().rate() == 0
    assert not WaitPolicy().on


def test_a_thread_that_ends_is_not_counted(monkeypatch, tmp_path):
    for task, text in {"1": "7 2000000000 3", "2": "", "3": "7"}.items():
        (tmp_path / task).mkdir()
        (tmp_path / task / "schedstat").write_text(text)
    (tmp_path / "4").mkdir()
    monkeypatch.setattr(contention, "TASKS", tmp_path)
    assert contention.waited() == {"1": 2.0}


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "said"), [(0.4, True), (0.01, False)])
def test_bench_says_when_the_machine_is_busy(monkeypatch, capsys, rate, said):
    monkeypatch.setattr(Delay, "rate", lambda self: rate)
    assert main(["bench", "model.depth=1", "--rounds", "1", "--warmup", "0", "fit.batch_size=4"]) == 0
    assert ("on a quiet machine" in capsys.readouterr().out) == said
