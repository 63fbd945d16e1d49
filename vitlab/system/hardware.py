"""Devices: by name, what each of them can compute, and its memory.

A device is the CPU or torch's accelerator of this machine: CUDA, or another such as Apple's `mps` or Intel's `xpu`.
What differs between them is asked here. No other than the CPU and CUDA was run: `pytest -m cuda` would test it.
"""

import platform
import sys
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

from vitlab.config.errors import ConfigError

COMPILED_FOR = ("cpu", "cuda", "xpu")  # devices that torch.compile is finished for
APPLE = "mps"  # its memory is the machine's, and cannot be pinned


def device_named(name: str | torch.device, option: str = "device ") -> torch.device:
    """The device of this name; auto is CUDA where there is one, else the CPU.

    Args:
        name: auto, cpu, cuda, cuda:1, mps, ...
        option: that names it, for the message.

    Raises:
        ConfigError: no such device, or not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{option}{name}: there is no such device: use auto, cpu, cuda, cuda:1 or mps") from None
    if device.type != "cpu" and (device.index or 0) >= (count := device_count(device)):
        raise ConfigError(f"{option}{name}: torch sees {count} {device.type.upper()} devices here: use auto or cpu")
    return device


def device_count(device: torch.device) -> int:
    """How many devices of this type torch sees."""
    there = torch.accelerator.current_accelerator(check_available=True)
    return torch.accelerator.device_count() if there is not None and there.type == device.type else 0


def module_of(device: torch.device) -> Any:
    """torch.cuda, torch.mps, ...: not every one has every function."""
    return torch.get_device_module(device)


@cache
def computes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device multiplies matrices of this type; it is tried once."""
    try:
        ones = torch.ones(2, 2, dtype=dtype, device=device)
        return bool(((ones @ ones).float().cpu() == 2).all())
    except (RuntimeError, TypeError):
        return False


def sum_dtype(device: torch.device) -> torch.dtype:
    """The type of sums over many images: float64, or float32 on a device that lacks it, as Apple's do."""
    exact = device.type in ("cpu", "cuda") or computes(device, torch.float64)
    return torch.float64 if exact else torch.float32


def seed_device(device: torch.device, seed: int) -> None:
    """Seeds the generator of an accelerator; torch.manual_seed would ask every backend, which takes 0.15 ms."""
    if device.type != "cpu":
        module_of(device).manual_seed(seed)


def pins_memory(device: torch.device) -> bool:
    """Whether copies to the device are faster from pinned memory."""
    return device.type not in ("cpu", APPLE)


def describe(device: torch.device) -> str:
    """The name of the hardware."""
    if device.type != "cpu":
        return getattr(module_of(device), "get_device_name", lambda device: f"{device.type.upper()} device")(device)
    threads, name = torch.get_num_threads(), torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    return f"{name} (CPU, {threads} thread{'s' * (threads != 1)})"


def memory_info(device: torch.device) -> tuple[int, int] | None:
    """Free and all bytes of an accelerator's own memory; None where it shares the machine's, or does not tell."""
    told = getattr(module_of(device), "mem_get_info", None)
    return None if told is None or device.type == APPLE else told(device)


def empty_cache(device: torch.device) -> None:
    """Gives memory that torch keeps for later back to an accelerator."""
    if device.type != "cpu":
        module_of(device).empty_cache()


def held_memory(device: torch.device) -> int:
    """Bytes of an accelerator that tensors take now."""
    module = module_of(device)
    return (module.current_allocated_memory() if device.type == APPLE else module.memory_allocated(device)) or 0


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the GPU, or of the process on a CPU. Apple's GPUs tell only what they hold now."""
    if device.type == APPLE:
        return module_of(device).driver_allocated_memory()
    if device.type != "cpu":
        return module_of(device).max_memory_allocated(device)
    status = Path("/proc/self/status")  # getrusage starts with the peak of the parent
    for line in status.read_text(encoding="utf-8").splitlines() if status.is_file() else ():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = psutil.Process().memory_info()
    return getattr(memory, "peak_wset", memory.rss)  # Windows'
