"""The machine: which device, how many processes, and how a model is spread over them."""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from vitlab.system.options import System

PATIENCE = timedelta(minutes=30)  # that processes wait for one of them, such as one that fetches a dataset


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
