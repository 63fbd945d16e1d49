"""A stand-in for CUDA graphs on a CPU: the operations of a function are recorded, and done again at the same addresses.

As with a graph, nothing that the function does in Python happens again, a number that it had then stays, and reading a
value of a tensor is an error.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitlab.system import graphs

aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.nonzero, aten.nonzero_static, aten.is_nonzero, aten.masked_select}
READS |= {aten.unique_dim, aten._unique, aten._unique2, aten.equal, aten.bincount, aten.repeat_interleave}
INDEXED = {aten.index, aten.index_put, aten.index_put_}


class NoReads(TorchDispatchMode):
    """Fails where the host would wait for a number from the device, or the shape of a result depends on one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        masks = packet in INDEXED and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if masks or packet in READS:
            raise AssertionError(f"{func} is read on the host")
        return func(*args, **(kwargs or {}))


class Recording(NoReads):
    """Records operations, and does them again."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.operations.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, result in self.operations:
            for before, now in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(before, Tensor) and before.untyped_storage()._cdata != now.untyped_storage()._cdata:
                    before.copy_(now)


class Recorder:
    """Takes the place of what `vitlab.system.graphs` does on a GPU; `log` is what it was asked for."""

    def __init__(self):
        self.log = []

    def call_aside(self, function, batch):
        self.log.append(f"warm-up {batch.kind}")
        with NoReads():
            return function(batch)

    def capture(self, function, batch, *_):
        self.log.append(f"capture {batch.kind}")
        recording = Recording()
        with recording:
            result = function(batch)  # which is also its first replay

        def replay():
            self.log.append(f"replay {batch.kind}")
            if self.log[-2] != f"capture {batch.kind}":
                recording.replay()
            return result

        return replay

    def install(self, monkeypatch):
        monkeypatch.setattr(graphs, "DEVICES", ("cuda", "cpu"))
        monkeypatch.setattr(graphs, "call_aside", self.call_aside)
        monkeypatch.setattr(graphs, "capture", self.capture)
        return self
