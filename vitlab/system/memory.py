"""Memory of the machine or GPU, and errors where it does not suffice."""

import ctypes
import sys
from pathlib import Path

import psutil
import torch

from vitlab.config.errors import ConfigError
from vitlab.system.hardware import memory_info

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


def total_memory(device: torch.device | str = "cpu") -> int:
    """Bytes of memory: of the GPU, else of the machine or the container."""
    device = torch.device(device)
    if device.type != "cpu" and (own := memory_info(device)) is not None:
        return own[1]
    limits = [Path(file).read_text(encoding="utf-8").strip() for file in LIMITS if Path(file).is_file()]
    return min([psutil.virtual_memory().total, *(int(s) for s in limits if s.isdecimal())])


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes of memory that are free: of the GPU, else of the machine."""
    device = torch.device(device)
    if device.type != "cpu" and (own := memory_info(device)) is not None:
        return own[0]
    return psutil.virtual_memory().available


def keep_freed_memory() -> None:
    """Lets the C library keep memory that is freed, for the tensors of the next step.

    GNU's gives large pieces back to the system at once, which has to clear them before it gives them again: 5 % of a
    training step with activations of some megabytes on a CPU, 10 % of that of a pack.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        for option, value in ((M_MMAP_THRESHOLD, 2**25), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            libc.mallopt(option, value)


def check_fits(size: float, what: str, remedy: str, device: torch.device | str = "cpu") -> None:
    """Raises ValueError where `what` takes more bytes (`size`) than there are."""
    there, where = total_memory(device), "this machine" if torch.device(device).type == "cpu" else str(device)
    if size > there:
        raise ConfigError(f"{what} {format_bytes(size)}, and {where} has {format_bytes(there)}: {remedy}")


def format_bytes(size: float) -> str:
    """Bytes with a unit: 17.3 TB."""
    if size >= 10**18:
        return "more than a million TB"
    unit, name = next((pair for pair in ((10**12, "TB"), (10**9, "GB")) if size >= pair[0]), (10**6, "MB"))
    return f"{size / unit:,.1f} {name}"


def out_of_memory(error: Exception) -> bool:
    words = ("can't allocate memory", "MPS backend out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
