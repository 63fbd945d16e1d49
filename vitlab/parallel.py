"""The machine: which device, how many processes, and how a model is spread over them."""

import math
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.utils import checkpoint

from vitlab.model.vit import ViT

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = 256  # of models that a process may train compiled; torch would run a ninth one uncompiled
PATIENCE = timedelta(minutes=30)  # that processes wait for one of them, such as one that fetches a dataset


@dataclass(kw_only=True)
class System:
    """What cannot change a result.

    Args:
        device: auto, cpu, cuda, cuda:1 ...; auto takes a GPU where there is one.
        workers: processes that read and augment images; auto is none for images that are held in memory on a CPU, or
            used as they are.
        threads: of torch on a CPU; None leaves torch's choice.
        compile: whether the model is compiled (torch.compile), once for all models of a shape that the process trains;
            `graphs` also records its kernels as CUDA graphs, for small models on a GPU that waits for Python.
        parallel: how the processes that torchrun started train together. ddp: each has the whole model and a part of
            the batch; fsdp: each has a part of every weight as well (FSDP2); auto is ddp; none refuses several.
        activation_checkpointing: whether the backward pass computes each block's activations again instead of keeping
            them (Chen et al. 2016): less memory, about a third more time.
        save_minutes: a checkpoint is written at least so often; None is at evaluations alone.
        keep_every: epochs between two checkpoints that are kept for good, as step-N.pt; None keeps none.
        log_every: steps between two rows of metrics.jsonl.
        profile_steps: records a trace of this many steps, into the run's folder as trace.json; 0 for none.
        resident: whether images that are held in memory lie on the GPU, all of them, and are augmented there; auto is
            where they take no more than a quarter of what is free. On a CPU they are where they are used.
        cache: folder in which the images of files are kept decoded, for this training and all others that ask for it;
            None decodes them again in every epoch.
        runs: folder of all runs.
        retrain: trains a finished run anew; the old folder is kept under another name.

    Raises:
        ValueError: a value that cannot be, or a device that is not there.
    """

    device: str
    workers: int | Literal["auto"]
    threads: int | None
    compile: bool | Literal["graphs"]
    parallel: Literal["auto", "none", "ddp", "fsdp"]
    activation_checkpointing: bool
    save_minutes: float | None
    keep_every: float | None
    log_every: int
    profile_steps: int
    resident: bool | Literal["auto"]
    cache: str | None
    runs: str
    retrain: bool

    def keeps(self, done: int, steps_per_epoch: float) -> bool:
        """Whether the checkpoint after update `done` is kept for good."""
        if self.keep_every is None:
            return False
        gap = max(1.0, self.keep_every * steps_per_epoch)
        turn = round(done / gap)
        return turn > 0 and round(gap * turn) == done

    def __post_init__(self) -> None:
        for name, value, least in (
            ("workers", self.workers, 0),
            ("threads", self.threads, 1),
            ("log_every", self.log_every, 1),
            ("profile_steps", self.profile_steps, 0),
        ):
            if isinstance(value, int) and value < least:
                raise ValueError(f"system.{name}={value}: must be at least {least}")
        for name, span in (("save_minutes", self.save_minutes), ("keep_every", self.keep_every)):
            if span is not None and not 0 < span < math.inf:
                raise ValueError(f"system.{name}={span}: must be above 0, or null for never")
        for name, value, most in (("workers", self.workers, 1024), ("threads", self.threads, 4096)):
            if isinstance(value, int) and value > most:
                raise ValueError(f"system.{name}={value}: must be at most {most:,}")
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
        gpu = device.type == "cuda" or (self.device == "auto" and torch.cuda.is_available())
        if self.compile == "graphs" and not gpu:
            raise ValueError("system.compile=graphs: CUDA graphs need a GPU: use system.compile=true")
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

    def most(self, *numbers: int) -> list[int]:
        """The greatest of each number over all processes; no GPU is waited for."""
        if self.size == 1:
            return list(numbers)
        found = torch.tensor(numbers)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return found.tolist()

    def agree(self, flag: bool) -> bool:
        """Whether any process says yes."""
        return bool(self.most(int(flag))[0])

    def tell(self, value: Any) -> Any:
        """What the first process says, in every process."""
        if self.size == 1:
            return value
        told = [value]
        distributed.broadcast_object_list(told)
        return told[0]

    def ask(self, question: Callable[[], Any]) -> Any:
        """What the first process answers, in every process; the ValueError or OSError that it raises, all raise."""
        answer = None
        if self.first:
            try:
                answer = question()
            except (ValueError, OSError) as error:
                answer = error
        answer = self.tell(answer)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def gather(self, value: Any) -> list[Any]:
        """What each process says, in every process."""
        if self.size == 1:
            return [value]
        said: list[Any] = [None] * self.size
        distributed.all_gather_object(said, value)
        return said

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            self.most(0)


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
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield World(distributed.get_rank(), size, device)
    finally:
        if joined:
            distributed.destroy_process_group()


class Gone(Exception):
    """Another process of this training has ended; says so."""


@contextmanager
def together(here: World) -> Generator[None]:
    """Turns what torch raises when another process has gone into `Gone`."""
    try:
        yield
    except RuntimeError as error:
        lost = (
            isinstance(error, distributed.DistError) or "closed by peer" in str(error) or "reset by peer" in str(error)
        )
        if here.size == 1 or not lost:
            raise
        raise Gone(f"another of the {here.size} processes has ended, so process {here.rank} ends too") from error


def spread(model: ViT, here: World, system: System) -> nn.Module:
    """The model as the processes train it together: itself where there is one, and nothing else was asked for."""
    if system.activation_checkpointing:
        if not model.blocks:
            raise ValueError(
                "system.activation_checkpointing=true: model.depth=0 has no block to compute again: use false"
            )
        for block in model.blocks:
            block.forward = partial(recomputed, block.forward)  # type: ignore[method-assign]
    sharded = here.size > 1 and system.parallel == "fsdp"
    if system.compile:
        import torch._dynamo.config

        torch._dynamo.config.recompile_limit = SHAPES  # ty: ignore[invalid-assignment]
        for part in model.blocks if sharded else [model]:
            part.compile(mode="reduce-overhead" if system.compile == "graphs" else None)
    if sharded:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(here.device.type, (here.size,))
        for part in (*model.blocks, model):
            fully_shard(
                part, mesh=mesh, reshard_after_forward=True
            )  # the root too: see `evaluate`, which swaps weights
        return model
    if here.size == 1:
        return model
    from torch.nn.parallel import DistributedDataParallel

    devices = [here.device] if here.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices)


@contextmanager
def eagerly(compiled: bool) -> Generator[None]:
    """While entered, a compiled model runs as it was written: for what is asked of it once."""
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield


def recomputed(forward: Callable[..., Tensor], *args: Any) -> Tensor:
    """A block whose activations are computed again in the backward pass."""
    return checkpoint.checkpoint(forward, *args, use_reentrant=False) if torch.is_grad_enabled() else forward(*args)


@contextmanager
def gradient_sync(net: Any, *, on: bool) -> Generator[None]:
    """Whether the gradients of this backward pass are averaged over the processes."""
    if hasattr(net, "set_requires_gradient_sync"):  # FSDP's
        net.set_requires_gradient_sync(on)
        yield
    elif on or not hasattr(net, "no_sync"):  # DDP's
        yield
    else:
        with net.no_sync():
            yield


def share_buffers(model: nn.Module, here: World) -> None:
    """Gives every process the first one's buffers (running means), which are those that are saved."""
    for buffer in model.buffers() if here.size > 1 else ():
        distributed.broadcast(buffer, 0)


def shard(tensor: Tensor) -> Tensor:
    """What this process has of a tensor: with FSDP its part, else all of it."""
    return getattr(tensor, "to_local", lambda: tensor)()


def complete(tensor: Tensor) -> Tensor:
    """All of a tensor; with FSDP every process must call it alike."""
    return getattr(tensor, "full_tensor", lambda: tensor)()


def whole(value: Any, keep: bool = True) -> Any:
    """A copy of tensors in plain containers, complete and on the CPU; with FSDP every process must call it alike.

    Args:
        value: dictionaries, lists, tensors, plain values.
        keep: whether this process wants it; one that does not gets None for tensors.
    """
    if isinstance(value, dict):
        return {key: whole(part, keep) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [whole(part, keep) for part in value]
    if not isinstance(value, Tensor):
        return value
    full = complete(value.detach())
    return full.to("cpu", copy=True) if keep else None


def parted(full: Tensor, like: Any) -> Tensor:
    """A complete tensor as `like` is spread: with FSDP this process's part of it."""
    if not hasattr(like, "device_mesh"):
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


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
    threads = torch.get_num_threads()
    return f"{torch.cpu.get_capabilities()['cpu_name']} (CPU, {threads} thread{'s' * (threads != 1)})"


def peak_memory(device: torch.device) -> int:
    """Bytes that were in use at most: of the GPU's memory, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # what getrusage says began with the parent's peak
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
