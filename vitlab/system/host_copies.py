"""Copies of tensors on the CPU, which an accelerator makes while it goes on computing."""

from typing import Any

import torch
from torch import Tensor

from vitlab.system.distributed import gather_state, map_tensors
from vitlab.system.hardware import pins_memory
from vitlab.system.memory import out_of_memory


class HostCopies:
    """Copies of states on the CPU; where memory can be pinned, the thread that asks for one waits for nothing.

    There the tensors are put together in the device's memory, which is what fixes their values, and go to pinned memory
    on a stream of their own. Not yet run on a GPU.

    Args:
        device: of the tensors.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.Stream(device) if pins_memory(device) else None
        self.copied: torch.Event | None = None

    def copy(self, state: Any, keep: bool = True) -> Any:
        """A copy as of `gather_state`, not to be read before `wait`.

        Args:
            state: dictionaries, lists, tensors, plain values.
            keep: whether this process needs the tensors.
        """
        tensors: list[Tensor] = []
        map_tensors(state, tensors.append)
        if self.stream is None or not keep or any(hasattr(tensor, "device_mesh") for tensor in tensors):
            return gather_state(state, keep)
        try:
            copies = iter(self.start([tensor.detach() for tensor in tensors], self.stream))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return gather_state(state)  # one after the other, which takes none of the device's memory
        return map_tensors(state, lambda _: next(copies))

    def start(self, tensors: list[Tensor], stream: torch.Stream) -> list[Tensor]:
        """Starts the copies: of each type one."""
        copies: dict[int, Tensor] = {i: t.clone() for i, t in enumerate(tensors) if on_cpu(t)}
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            which = [i for i, tensor in enumerate(tensors) if i not in copies and tensor.dtype == dtype]
            if not which:
                continue
            together = torch.cat([tensors[i].reshape(-1) for i in which])
            stream.wait_stream(torch.accelerator.current_stream(self.device))
            with stream:
                host = torch.empty(together.shape, dtype=dtype, pin_memory=True).copy_(together, non_blocking=True)
            together.record_stream(stream)  # its memory is not given to others before
            parts = host.split([tensors[i].numel() for i in which])
            copies |= {i: part.view(tensors[i].shape) for i, part in zip(which, parts, strict=True)}
        self.copied = stream.record_event()
        return [copies[i] for i in range(len(tensors))]

    def wait(self) -> None:
        """Waits, in the calling thread alone, until all copies that were asked for are complete."""
        if self.copied is not None:
            self.copied.synchronize()


def on_cpu(tensor: Tensor) -> bool:
    """Whether a tensor is in the machine's own memory."""
    return tensor.device.type == "cpu"
