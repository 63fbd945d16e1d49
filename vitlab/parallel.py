"""The machine: which device, how many processes, and how a model is spread over them."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, distributed, nn

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(kw_only=True)
class System:
    """What cannot change a result.

    Args:
        device: auto, cpu, cuda, cuda:1 ...; auto takes a GPU where there is one.
        workers: processes that read and augment images; auto is none for images that are held in memory on a CPU, or
            used as they are.
        threads: of torch on a CPU; None leaves torch's choice.
        compile: whether the model is compiled (torch.compile).
        parallel: auto spreads the batch over the processes that torchrun started (ddp); none refuses several.
        log_every: steps between two rows of metrics.jsonl.
        profile_steps: records a trace of this many steps, into the run's folder as trace.json; 0 for none.
        runs: folder of all runs.
        retrain: trains a finished run anew; the old folder is kept under another name.

    Raises:
        ValueError: a value that cannot be, or a device that is not there.
    """

    device: str
    workers: int | Literal["auto"]
    threads: int | None
    compile: bool
    parallel: Literal["auto", "none", "ddp"]
    log_every: int
    profile_steps: int
    runs: str
    retrain: bool

    def __post_init__(self) -> None:
        for name, value, least in (
            ("workers", self.workers, 0),
            ("threads", self.threads, 1),
            ("log_every", self.log_every, 1),
            ("profile_steps", self.profile_steps, 0),
        ):
            if isinstance(value, int) and value < least:
                raise ValueError(f"system.{name}={value}: must be at least {least}")
        try:
            device = torch.device("cpu" if self.device == "auto" else self.device)
        except RuntimeError:
            raise ValueError(f"system.device={self.device}: no such device; use auto, cpu, cuda or cuda:1") from None
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"system.device={self.device}: vitlab runs on cpu and cuda")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(
                f"system.device={self.device}: torch sees {torch.cuda.device_count()} CUDA devices here; use"
                " system.device=auto or cpu"
            )
        if self.parallel == "none" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("system.parallel=none, and torchrun started several processes: use system.parallel=auto")


@dataclass(frozen=True)
class World:
    """This process among all of a run.

    Args:
        rank: number of this process.
        size: number of processes.
        device: what this process computes on.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(numbers)
        return numbers

    def agree(self, flag: bool) -> bool:
        """Whether any process says yes."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag), device=self.device)))

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            distributed.barrier()


def alone(device: str | torch.device = "cpu") -> World:
    """One process, on one device."""
    return World(0, 1, torch.device(device))


@contextmanager
def world(system: System) -> Generator[World]:
    """Joins the processes that torchrun started, or stands alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if system.device == "auto" else system.device
    device = torch.device(f"cuda:{local}" if kind == "cuda" else kind)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if system.threads is not None:
        torch.set_num_threads(system.threads)
    if size == 1:
        yield alone(device)
        return
    joined = not distributed.is_initialized()
    if joined:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(distributed.get_rank(), size, device)
    finally:
        if joined:
            distributed.destroy_process_group()


def spread(model: nn.Module, here: World) -> nn.Module:
    """The model as the processes train it together: itself where there is one."""
    if here.size == 1:
        return model
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(model, device_ids=[here.device] if here.device.type == "cuda" else None)


@contextmanager
def gradient_sync(model: nn.Module, *, on: bool) -> Generator[None]:
    """Whether the gradients of this backward pass are averaged over the processes."""
    from torch.nn.parallel import DistributedDataParallel

    if on or not isinstance(model, DistributedDataParallel):
        yield
    else:
        with model.no_sync():
            yield


def resolve(precision: Precision, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """The precision of a run: `auto` is bf16 where the hardware multiplies it natively, else fp32.

    A CPU that only emulates bf16 is many times slower with it: 84 times on an AVX2 server.

    Raises:
        ValueError: bf16 on a GPU that has none.
    """
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        if precision == "bf16" and not native:
            raise ValueError(f"fit.precision=bf16: {torch.cuda.get_device_name(device)} has no bf16; use fp16 or fp32")
    else:
        able = torch.cpu.get_capabilities()
        native = any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    if precision == "auto":
        return "bf16" if native else "fp32"
    return precision


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Matrix products in this precision, one of `DTYPES`; fp32 leaves everything as it is."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def describe(device: torch.device) -> str:
    """The name of the hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.cpu.get_capabilities()['cpu_name']} (CPU, {torch.get_num_threads()} threads)"


def peak_memory(device: torch.device) -> int:
    """Bytes that were in use at most: of the GPU's memory, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
