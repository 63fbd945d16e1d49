"""vitlab: train Vision Transformers and answer questions about them.

`vitlab.ViT` is the model, `vitlab.train("patch=p4")` trains one, `vitlab.load(RUN)` is a trained one,
`vitlab.runs(FOLDER)` the table of all runs, and `vitlab.compare(table)` what they differ in.
Each is imported when first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitlab.cli.python import train
    from vitlab.evaluation.load import load
    from vitlab.model.vit import ViT
    from vitlab.report.comparison import compare
    from vitlab.storage.runs_table import runs

__all__ = ["ViT", "compare", "load", "runs", "train"]
_HOMES = {"ViT": "vitlab.model.vit", "load": "vitlab.evaluation.load"}
_HOMES |= {"train": "vitlab.cli.python", "runs": "vitlab.storage.runs_table", "compare": "vitlab.report.comparison"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitlab' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
