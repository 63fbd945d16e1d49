"""Processes of a distributed training: collectives, and gathering and sharding of state.

`torch.distributed.checkpoint.state_dict` is not used: its import takes 0.8 s, and it keys the optimizer's state by
parameter name, so older checkpoints would not resume.
"""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from vitlab.config.errors import RankLost, VitlabError
from vitlab.system.hardware import device_named
from vitlab.system.options import System

PATIENCE = timedelta(minutes=30)  # that processes wait for each other, for example while one downloads a dataset


@dataclass(frozen=True)
class Distributed:
    """The processes of a run, as this one sees them.

    Args:
        rank: number of this process.
        size: number of processes.
        device: what this process computes on.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_rank0(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    def all_reduce_sum(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(numbers)
        return numbers

    def all_reduce_max(self, *numbers: int) -> list[int]:
        """The maximum of each number over all processes; does not wait for a GPU."""
        if self.size == 1:
            return list(numbers)
        found = torch.tensor(numbers)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return found.tolist()

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.all_reduce_max(int(flag))[0])

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0, in every process."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]

    def run_on_rank0(self, question: Callable[[], Any]) -> Any:
        """What the first process answers, in every process; where it raises, every process does.

        Raises:
            VitlabError: the first process's.
            RuntimeError: in the other processes, where the first raised something else, which may not be pickled.
        """
        if self.size == 1:
            return question()
        answer = failure = None
        if self.is_rank0:
            try:
                answer = question()
            except Exception as error:
                failure = error
        shared = (
            failure if failure is None or isinstance(failure, VitlabError) else RuntimeError(f"rank 0: {failure!r}")
        )
        answer, shared = self.broadcast((answer, shared))
        if shared is not None:
            raise failure or shared
        return answer

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all processes, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def all_gather_rows(self, rows: Tensor) -> Tensor:
        """The rows of all processes, which have equally many, in every process."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def barrier(self) -> None:
        """Waits until every process has reached it."""
        if self.size > 1:
            self.all_reduce_max(0)


def single_process(device: str | torch.device = "cpu") -> Distributed:
    """A single process on one device."""
    return Distributed(0, 1, torch.device(device))


@contextmanager
def join_processes(system: System) -> Generator[Distributed]:
    """Joins the processes that torchrun started, if there are several."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = device_named(system.device)
    if device.type != "cpu":
        device = torch.device(device.type, local if device.index is None else device.index)
        torch.accelerator.set_device_index(device)
    threads = torch.get_num_threads()
    if system.threads is not None:
        torch.set_num_threads(system.threads)
    joined = size > 1 and not distributed.is_initialized()
    if joined:
        backend = "gloo"
        if device.type != "cpu":
            backend = f"cpu:gloo,{device.type}:{distributed.get_default_backend_for_device(device)}"
        distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield single_process(device) if size == 1 else Distributed(distributed.get_rank(), size, device)
    finally:
        if joined:
            distributed.destroy_process_group()
        if torch.get_num_threads() != threads:  # for the next run of this process
            torch.set_num_threads(threads)


@contextmanager
def detect_lost_rank(dist: Distributed) -> Generator[None]:
    """Turns what torch raises when another process has gone into `RankLost`."""
    try:
        yield
    except RuntimeError as error:
        lost = (
            isinstance(error, distributed.DistError) or "closed by peer" in str(error) or "reset by peer" in str(error)
        )
        if dist.size == 1 or not lost:
            raise
        raise RankLost(f"another of the {dist.size} processes has ended, so process {dist.rank} ends too") from error


def share_buffers(model: nn.Module, dist: Distributed) -> None:
    """Broadcasts rank 0's buffers (running means), which are those that are saved."""
    for buffer in model.buffers() if dist.size > 1 else ():
        distributed.broadcast(buffer, 0)


def local_tensor(tensor: Tensor) -> Tensor:
    """The local part of a tensor: with FSDP this process's shard, else all of it."""
    return getattr(tensor, "to_local", lambda: tensor)()


def full_tensor(tensor: Tensor) -> Tensor:
    """The complete tensor; with FSDP every process must call it."""
    return getattr(tensor, "full_tensor", lambda: tensor)()


def gather_state(value: Any, keep: bool = True) -> Any:
    """A copy with complete tensors on the CPU; with FSDP every process must call it.

    Args:
        value: dictionaries, lists, tensors, plain values.
        keep: whether this process needs the tensors; else it gets None for each.
    """

    def copy(tensor: Tensor) -> Tensor | None:
        full = full_tensor(tensor.detach())
        return full.to("cpu", copy=True) if keep else None

    return map_tensors(value, copy)


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Dictionaries, lists and plain values, with what the function gives for each tensor in them."""
    if isinstance(value, dict):
        return {key: map_tensors(part, function) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [map_tensors(part, function) for part in value]
    return function(value) if isinstance(value, Tensor) else value


def shard_like(full: Tensor, like: Any) -> Tensor:
    """A complete tensor sharded as `like` is; unchanged if that is no DTensor."""
    if not hasattr(like, "device_mesh"):
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
