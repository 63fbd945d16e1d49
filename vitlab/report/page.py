"""The answer as one page that needs nothing else: a table to sort, figures to ask, and every run's details."""

import html
import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from vitlab.report import figures
from vitlab.report.table import Agreement, Comparison, Row
from vitlab.storage.files import read_json
from vitlab.storage.metrics import is_share, number
from vitlab.storage.run import Run

POINTS = 200  # of a learning curve; of more, every second, third, ... is left out
TITLE, DATA = "{{title}}", "{{data}}"  # in page.html
CURVE = "val/accuracy"


def page(comparison: Comparison, facts: Mapping[str, str], finding: str = "") -> str:
    """The page as HTML.

    Args:
        comparison: what was compared; learning curves and commands are read from the folders of its runs.
        facts: of how it was made, by name.
        finding: what somebody concluded, in words.
    """
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    before, between, after = (part for half in template.split(TITLE) for part in half.split(DATA))
    title = html.escape(" ".join(comparison.title.split()))
    return "".join((before, title, between, embedded(data(comparison, facts, finding)), after))


def embedded(value: Any) -> str:
    """JSON that no HTML parser can take for the end of its element."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text.encode("utf-8", "replace").decode()


def plain(value: Any) -> Any:
    """The same in what JSON has; null for what is no finite number."""
    if isinstance(value, Mapping):
        return {str(key): plain(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [plain(of) for of in value]
    if hasattr(value, "item"):  # of NumPy
        return plain(value.item())
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return None if value is pd.NaT or value is pd.NA else str(value)


def data(comparison: Comparison, facts: Mapping[str, str], finding: str) -> dict[str, Any]:
    key, told = figures.costs(comparison), comparison.agreement
    points = [
        (place, row.cost[key], row.score.mean)
        for place, row in enumerate(comparison.rows)
        if key and row.score and number(row.cost.get(key))
    ]
    best = figures.front([point[1:] for point in points], comparison.higher_is_better)
    return {
        "title": comparison.title,
        "source": comparison.source,
        "finding": finding.strip(),
        "metric": figures.named(comparison.metric, unit=False),
        "test": comparison.metric.startswith("test/"),
        "share": is_share(comparison.metric),
        "x": comparison.x and figures.WORDS.get(comparison.x, comparison.x),
        "numeric": figures.numeric(comparison),
        "compute": key,
        "words": figures.WORDS,
        "front": [points[i][0] for i in best],
        "keys": [*dict.fromkeys(key for row in comparison.rows for key in row.differs)],
        "rows": [told_row(row, comparison.metric) for row in comparison.rows],
        "agreement": told and {**asdict(told), "beside": beside(comparison, told)},
        "notes": comparison.notes,
        "facts": [*facts.items()],
    }


def told_row(row: Row, metric: str) -> dict[str, Any]:
    estimates = {
        name: of and asdict(of)
        for name, of in (("score", row.score), ("validation", row.validation), ("difference", row.difference))
    }
    told = {"name": row.name, "x": row.x, "baseline": row.baseline, "best": row.best, "state": row.state, "p": row.p}
    return {
        **told,
        **estimates,
        "verdict": row.verdict,
        "cost": row.cost,
        "asked": len(row.seeds),
        "differs": row.differs,
        "runs": runs(row, metric),
    }


def runs(row: Row, metric: str) -> list[dict[str, Any]]:
    """What is told of each run of an arm."""
    curves = {curve.folder: curve for curve in figures.learning(row, CURVE)}
    other = metric.replace("test/", "val/")
    return [
        {
            "seed": seed,
            "run": str(line.get("run", "")),
            "status": line.get("status", "finished"),
            "value": line.get(metric),
            "validation": line.get(other) if other != metric else None,
            "seconds": line.get("seconds"),
            "command": command(line),
            "curve": thinned(curves[line["run"]]) if line.get("run") in curves else None,
        }
        for seed, line in zip(row.runs.index, row.runs.to_dict("records"), strict=True)
    ]


def command(line: Mapping[Any, Any]) -> str:
    """What started the run; empty where its folder does not say."""
    if isinstance(line.get("command"), str):
        return line["command"]
    try:
        words = read_json(Run(Path(line["run"])).environment).get("command")
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return shlex.join(map(str, words)) if isinstance(words, list) else ""


def thinned(curve: figures.Curve) -> list[list[float]]:
    """Epochs and values, at most `POINTS` of them, the last one always."""
    step = math.ceil(len(curve.epochs) / (POINTS - 1))
    keep = [*range(0, len(curve.epochs), step)]
    keep += [len(curve.epochs) - 1] if keep[-1] != len(curve.epochs) - 1 else []
    return [[float(f"{of[i]:.5g}") for i in keep] for of in (curve.epochs, curve.values)]


def beside(comparison: Comparison, told: Agreement) -> dict[str, Any] | None:
    """The differences of the figure that shows what was reported beside what was found."""
    base = figures.reference(comparison, told)
    if base is None or len(told.numbers) < 2:
        return None
    arms = [
        {"name": arm, "reported": value - told.numbers[base], "found": found and asdict(found)}
        for arm, value in told.numbers.items()
        if arm != base
        for found in [figures.found_difference(told, base, arm)]
    ]
    return {"base": base, "arms": arms}
