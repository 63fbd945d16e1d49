"""Runs grouped into arms, and the arms named by what differs between them."""

import math
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from vitlab.storage.metrics import COSTS

LARGEST = 1e100  # the square of a number above may be infinite


def newest(table: pd.DataFrame) -> pd.DataFrame:
    """One run of each cell, fold and seed: a finished one before others, and of those the newest."""
    written = table.get("written", "")
    order = pd.DataFrame({"late": table["status"] != "finished", "written": written, "run": table["run"]})
    order = order.sort_values(["late", "written", "run"], ascending=[True, False, False])
    return table.loc[order.index].drop_duplicates(["cell", "fold", "seed"])


def with_folds(table: pd.DataFrame) -> pd.DataFrame:
    """The runs with the columns `folds`, how many parts the images are cut into or 0, and `fold`."""
    folds, fold = numbers(table, "dataset.folds"), numbers(table, "dataset.fold")
    cut = folds.between(2, 2**31) & fold.between(0, 2**31)
    whole = table.copy()  # in one piece: to a table of many pieces pandas adds columns slowly, and warns
    return whole.assign(folds=folds.where(cut, 0).astype("int64"), fold=fold.where(cut, 0).astype("int64"))


def of_other_images(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether the runs of two arms are tested on different images, as far as is known: their scores say nothing then.

    By the dataset, the fingerprint of its images, and how many of them are tested on.
    """
    for key in ("dataset", "data", "test_images"):
        first, second = (
            {str(value) for value in part[key].dropna()} if key in part else set() for part in (one, other)
        )
        if first and second and not first & second:
            return True
    return False


def repetitions(runs: pd.DataFrame) -> pd.MultiIndex:
    """What tells apart the runs of a cell: the number of folds, the fold and the seed. Runs equal in all are paired."""
    return pd.MultiIndex.from_frame(runs[["folds", "fold"]].assign(seed=runs.index))


def differing(table: pd.DataFrame, keys: list[str]) -> dict[str, dict[str, Any]]:
    """The values of the configuration keys that vary, by cell; not of those that vary within a cell (paths)."""
    cells, differs = table["cell"].tolist(), {cell: {} for cell in table["cell"]}
    for key in keys:
        values: dict[str, Any] = {}
        for cell, value in zip(cells, table[key].tolist(), strict=True):
            if not absent(value) and values.setdefault(cell, plain(value)) != plain(value):
                break
        else:
            if len({(type(value) is bool, value) for value in values.values()}) > 1:
                for cell, value in values.items():
                    differs[cell][key] = value
    return differs


def named(table: pd.DataFrame, differs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The cell of each name, in the order of the values in which they differ."""
    keys = list(dict.fromkeys(key for values in differs.values() for key in values))

    def order(cell: str) -> tuple[Any, ...]:
        return (*(rank(differs[cell].get(key, math.nan)) for key in keys), cell)

    slugs = {
        cell: re.sub(r"(-f\d+)?(-s\d+)?-[0-9a-f]{8}$", "", name)
        for cell, name in zip(table["cell"], table["name"], strict=True)
    }
    words = {
        cell: ", ".join(f"{key}={show(values[key])}" for key in keys if key in values) or slugs[cell]
        for cell, values in differs.items()
    }
    shared = {word for word in words.values() if list(words.values()).count(word) > 1}
    return {f"{words[c]} ({c})" if words[c] in shared else words[c]: c for c in sorted(differs, key=order)}


def absent(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def plain(value: Any) -> Any:
    """A whole number as an int again, where pandas made its column one of floats."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value


def rank(value: Any) -> tuple[int, float, str]:
    """Sort key: null, then numbers, then strings, then missing values."""
    if value is None or absent(value):
        return (0 if value is None else 3, 0.0, "")
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, str(value))


def show(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def listed(names: list[str], most: int = 20) -> str:
    """Names, which may have commas."""
    return "; ".join(names[:most]) + (f"; and {len(names) - most} more" if len(names) > most else "")


def numbers(table: pd.DataFrame, key: str) -> pd.Series:
    """A column as floats; NaN where it is not a finite number."""

    def number(value: Any) -> float:
        counts = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
        return float(value) if counts else math.nan

    values = [number(value) for value in table[key]] if key in table else math.nan
    return pd.Series(values, index=table.index, dtype="float64")


def finished(table: pd.DataFrame, key: str) -> pd.Series:
    """The numbers of the finished runs; NaN for the rest."""
    return numbers(table, key).where(table["status"] == "finished")


def trained_together(table: pd.DataFrame) -> pd.Series:
    """With how many runs each was trained, itself among them."""
    return numbers(table, "packed").fillna(1)


def own_seconds(table: pd.DataFrame) -> pd.Series:
    """Seconds that each run took; of those that were trained together, each its part."""
    return numbers(table, "seconds") / trained_together(table)


def position(x: str | None, group: pd.DataFrame, cost: Mapping[str, float]) -> float | str | None:
    """The arm's place on the figure's axis."""
    if x is None or x in COSTS:
        return cost.get(x or "")
    values = [value for value in group[x].tolist() if not absent(value)] if x in group else []
    if not values:
        return None
    number = isinstance(values[0], int | float) and not isinstance(values[0], bool)
    return float(values[0]) if number else show(values[0])
