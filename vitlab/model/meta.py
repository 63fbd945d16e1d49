"""Models on the meta device: shapes and parameter counts without memory."""

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ARITHMETIC = ("neg", "add", "radd", "sub", "rsub", "mul", "rmul", "div", "truediv", "pow", "rpow", "sin", "cos", "exp")


def on_meta_device(make: Callable[..., Any], **shape: Any) -> Any:
    """The model on the meta device: shapes without memory."""
    with torch.device("meta"), Unfilled():
        return make(**shape)


def zeroed(make: Callable[..., Any], **shape: Any) -> Any:
    """The model with all numbers zero, for computing with shapes only: drawing weights can take longer."""
    # what `to_empty` does, which imports the compiler to find the strides (1 s)
    return on_meta_device(make, **shape)._apply(lambda each: torch.zeros(each.shape, dtype=each.dtype))


class Unfilled(TorchFunctionMode):
    """Leaves tensors as they are made, and knows the shapes of plain arithmetic itself.

    To compute anything on the meta device, torch imports its compiler (9 s).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):  # in place
            return args[0] if args else kwargs["tensor"]
        if name.strip("_") in ARITHMETIC:
            sizes = (reversed(each.shape) for each in args if isinstance(each, Tensor))
            shape = [max(size) for size in zip_longest(*sizes, fillvalue=1)][::-1]
            return torch.empty(shape, device="meta")
        if func is torch.cat:
            shape = list(args[0][0].shape)
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            shape[dim] = sum(each.shape[dim] for each in args[0])
            return torch.empty(shape, device="meta")
        return func(*args, **kwargs)
