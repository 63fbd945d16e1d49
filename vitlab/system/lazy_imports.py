"""Start-up: what torch and timm import on the way and no training uses; measured, 6 s and 12 s of a slow core."""

import importlib
import importlib.util
import inspect
import sys
from functools import cache
from types import MethodType, ModuleType

import torch

# Packages whose __init__ imports every model or every dataset there is.
SHELLS = ("torchvision", "torchvision.datasets", "torchvision.models", "timm", "timm.data")


@cache
def modules(*names: str) -> tuple[ModuleType, ...]:
    """Modules of timm and torchvision without the packages around them.

    Each package in `SHELLS` is stood in for by its empty self while the modules are imported; afterwards all of it is
    taken out of `sys.modules`, so that whoever imports timm or torchvision later gets the whole of it.
    """
    if {"timm", "torchvision"} & set(sys.modules):
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
    """An optimizer whose step does not import torch's compiler (`torch._dynamo`) to be left alone by it.

    The step is the plain one below torch's wrappers, which only tell the compiler not to look, and run hooks that
    nobody set here. A compiled model is not concerned.
    """
    optimizer.step = MethodType(torch.no_grad()(inspect.unwrap(type(optimizer).step)), optimizer)  # type: ignore[method-assign]
    return optimizer


# The same for the methods that torch marks with `_disable_dynamo`: each asks for this attribute before it imports.
for _method in vars(torch.optim.Optimizer).values():
    if hasattr(_method, "__wrapped__"):
        vars(_method.__wrapped__).setdefault("__dynamo_disable", _method.__wrapped__)
