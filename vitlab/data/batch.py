"""A batch as a training step receives it from the host: indices or pixels, labels, and all random draws."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["plain", "mixup", "cutmix"]


@dataclass(frozen=True)
class Batch:
    """What one training step receives from the host; `Inputs` makes images and targets of it on the device.

    Args:
        kind: how its images are mixed. A CUDA graph is captured for each kind.
        tensors: by name; their shapes depend on the kind, the batch size and the configuration alone.
    """

    kind: Kind
    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.tensors["labels"])

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; the host does not wait for the copies."""
        return Batch(self.kind, {name: values.to(device, non_blocking=True) for name, values in self.tensors.items()})
