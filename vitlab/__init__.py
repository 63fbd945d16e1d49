"""vitlab: train Vision Transformers and answer questions about them.

`vitlab.ViT` is the model, `vitlab.load(RUN)` a trained one. Both are imported when first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitlab.model.vit import ViT
    from vitlab.trained import load

__all__ = ["ViT", "load"]
_HOMES = {"ViT": "vitlab.model.vit", "load": "vitlab.trained"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitlab' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
