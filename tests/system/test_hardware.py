"""Devices: what each can do is asked of it, and what it cannot is refused before the training.

Apple's GPU is a fake here: its answers, and the type that it lacks.
"""

from types import SimpleNamespace

import psutil
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.training.test_loop import SMALL, fit
from vitlab.cli.hydra_task import isolated
from vitlab.config.build import assemble
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError
from vitlab.data.examples import Pixels
from vitlab.evaluation import evaluate
from vitlab.sweep import local
from vitlab.system import hardware, precision
from vitlab.system.distributed import Distributed
from vitlab.system.memory import out_of_memory, total_memory
from vitlab.training import meter
from vitlab.training.batches import move_to_gpu, on_gpu

MPS = torch.device("mps")


@pytest.fixture
def apple(monkeypatch):
    """A machine whose accelerator is Apple's."""
    seeds = []
    module = SimpleNamespace(
        manual_seed=seeds.append,
        current_allocated_memory=lambda: 5,
        driver_allocated_memory=lambda: 7,
        empty_cache=lambda: seeds.append("emptied"),
        seeds=seeds,
    )
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: MPS)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(hardware, "module_of", lambda device: module)
    return module


@pytest.mark.parametrize("name", ["mps", "xpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ConfigError, match=rf"system.device={name}: torch sees \d+ .* devices here: use auto or cpu"):
        check_system(f"system.device={name}")
    with pytest.raises(ConfigError, match=f"device {name}: torch sees"):
        hardware.device_named(name)


def check_system(*overrides):
    return assemble(check(compose(list(overrides))[0]))["system"]


def test_auto_is_never_an_accelerator_that_nobody_has_tested(apple):
    assert hardware.device_named("auto").type in ("cpu", "cuda")
    assert hardware.device_named("mps") == MPS
    assert check_system("system.device=mps").device == "mps"


@pytest.mark.parametrize("compiled", ["true", "graphs"])
def test_what_apple_s_gpus_lack_is_refused(apple, monkeypatch, compiled):
    with pytest.raises(ConfigError, match=r"torch.compile is not finished for mps: use system.compile=false"):
        check_system("system.device=mps", f"system.compile={compiled}")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for parallel in ("ddp", "fsdp"):
        with pytest.raises(ConfigError, match="started 2 processes here, and torch sees 1 MPS devices"):
            check_system("system.device=mps", f"system.parallel={parallel}")
    assert check_system("system.device=cpu", "system.parallel=fsdp").device == "cpu"


def test_precision_is_tried_on_the_device(apple, monkeypatch):
    assert precision.resolve("auto", MPS) == "fp32"
    for able in (True, False):
        monkeypatch.setattr(precision, "computes", lambda device, dtype, able=able: able)
        if able:
            assert precision.resolve("bf16", MPS) == "bf16"
        else:
            with pytest.raises(ConfigError, match=r"fit.precision=bf16: MPS device cannot compute in it: use fp32"):
                precision.resolve("bf16", MPS)
            assert precision.resolve("fp32", MPS) == "fp32"
    assert hardware.computes(torch.device("cpu"), torch.float64)
    assert not hardware.computes(torch.device("meta"), torch.float32)


def test_memory_and_generators_are_asked_of_the_device_s_own_module(apple):
    assert hardware.memory_info(MPS) is None
    assert total_memory(MPS) <= psutil.virtual_memory().total
    assert (hardware.held_memory(MPS), hardware.peak_memory(MPS)) == (5, 7)
    hardware.seed_device(MPS, 3)
    hardware.empty_cache(MPS)
    hardware.seed_device(torch.device("cpu"), 4)
    assert apple.seeds == [3, "emptied"]
    assert [hardware.pins_memory(torch.device(name)) for name in ("cpu", "mps", "cuda", "xpu")] == [
        False,
        False,
        True,
        True,
    ]
    assert out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))


def test_another_accelerator_than_cuda_with_memory_of_its_own(apple):
    apple.mem_get_info, apple.memory_allocated = lambda device: (1, 2), lambda device: 3
    apple.max_memory_allocated, apple.get_device_name = lambda device: 4, lambda device: "Arc"
    xpu = torch.device("xpu")
    assert hardware.memory_info(xpu) == (1, 2)
    assert total_memory(xpu) == 2
    assert (hardware.held_memory(xpu), hardware.peak_memory(xpu), hardware.describe(xpu)) == (3, 4, "Arc")


def test_images_stay_in_memory_that_the_gpu_shares(apple):
    parts = assemble(check(compose([*SMALL, "system.device=mps"])[0]))
    splits, dist = parts["dataset"].splits(), Distributed(0, 1, MPS)
    assert move_to_gpu(splits, parts["dataset"], parts["augment"], parts["system"], dist) == splits
    parts["system"].resident = True
    with pytest.raises(ConfigError, match="the memory of mps is the machine's own"):
        move_to_gpu(splits, parts["dataset"], parts["augment"], parts["system"], dist)
    assert on_gpu(Pixels(torch.zeros(1, 1, 2, 2, dtype=torch.uint8, device="meta"), splits["train"].labels[:1]))


def test_a_sweep_trains_one_run_at_a_time_on_such_a_gpu(apple):
    (slot,) = local.slots(None, 9, "mps")
    assert "CUDA_VISIBLE_DEVICES" not in slot.environment
    assert len(local.slots(2, 9, "mps")) == 2


def test_a_job_restores_the_generator_of_any_accelerator(apple, monkeypatch):
    states = [1]
    module = SimpleNamespace(
        get_rng_state=lambda device: states[-1], set_rng_state=lambda state, device: states.append(state)
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device=None: module)
    with isolated():
        states.append(2)
    assert states == [1, 2, 1]


class NoDoubles(TorchDispatchMode):
    """A device without float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64 for leaf in tree_leaves(out)):
            raise TypeError(f"{func}: this device has no float64")
        return out


@pytest.mark.parametrize("objective", ["classify", "masked_patch"])
def test_a_training_needs_no_float64(tmp_path, monkeypatch, objective):
    words = ("tracking=off", f"model/objective={objective}", "fit.steps=3", "augment=flip_crop", "augment.erase=0.5")
    _, usual = fit(tmp_path, *words, name="usual")
    with pytest.raises(TypeError, match="no float64"), NoDoubles():
        fit(tmp_path, *words, name="refused")
    for module in (meter, evaluate):
        monkeypatch.setattr(module, "sum_dtype", lambda device: torch.float32)
    with NoDoubles():
        _, result = fit(tmp_path, *words, name="single")
    for name in ("val/loss", "test/loss", "val/accuracy", "test/accuracy"):
        assert result[name] == pytest.approx(usual[name], rel=1e-5)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sums_are_exact_where_the_device_can(device):
    assert hardware.sum_dtype(torch.device(device)) == torch.float64


def test_sums_are_of_32_bits_where_it_cannot():
    assert hardware.sum_dtype(torch.device("meta")) == torch.float32
