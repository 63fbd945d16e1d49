"""Faster start-up: imports of torch and timm that no training uses are left out.

Measured (CPU seconds, medians of three, after `import torch`): timm.scheduler 2.2 s whole and less than 0.01 s alone;
an optimizer's first step 1.3 s with the import of `torch._dynamo` and less than 0.01 s without.
"""

import importlib
import importlib.util
import inspect
import sys
from functools import cache
from types import MethodType, ModuleType

import torch

# Packages whose __init__ imports every model or every dataset.
SHELLS = ("torchvision", "torchvision.datasets", "torchvision.models", "timm", "timm.data")


@cache
def modules(*names: str) -> tuple[ModuleType, ...]:
    """Modules of timm and torchvision without the packages around them.

    While they are imported, each package in `SHELLS` is an empty module; afterwards all of them are removed from
    `sys.modules`, so that a later import of timm or torchvision gets the complete package. Only on Linux: elsewhere
    workers are spawned, and what they are sent must be of modules that they can import.
    """
    if sys.platform != "linux" or {"timm", "torchvision"} & set(sys.modules):
        return tuple(importlib.import_module(name) for name in names)
    try:
        for shell in SHELLS:
            spec = importlib.util.find_spec(shell)
            assert spec is not None, f"{shell} is a dependency"
            sys.modules[shell] = importlib.util.module_from_spec(spec)
        return tuple(importlib.import_module(name) for name in names)
    finally:
        for module in [m for m in sys.modules if m.partition(".")[0] in SHELLS]:
            del sys.modules[module]


def spare_dynamo(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer, with a step that does not import torch's compiler (`torch._dynamo`).

    It is the step without torch's wrappers, which only exclude it from compilation and run hooks that are not used
    here. Compiled models are not affected.
    """
    optimizer.step = MethodType(torch.no_grad()(inspect.unwrap(type(optimizer).step)), optimizer)  # type: ignore[method-assign]
    return optimizer


# The same for the methods that torch marks with `_disable_dynamo`: each looks for this attribute before it imports.
for _method in vars(torch.optim.Optimizer).values():
    if hasattr(_method, "__wrapped__"):
        vars(_method.__wrapped__).setdefault("__dynamo_disable", _method.__wrapped__)
