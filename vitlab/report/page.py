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

from vitlab.plotting import LOG
from vitlab.report.figure_data import (
    COMPUTE,
    Curve,
    is_cost,
    learning_curves,
    member,
    pareto_front,
    series,
    varied_compute,
)
from vitlab.report.grouping import own_seconds
from vitlab.report.table import Agreement, Comparison, Row
from vitlab.report.words import words_of
from vitlab.storage.files import read_json
from vitlab.storage.metrics import COSTS, METRICS, duration, number
from vitlab.storage.run import Run

POINTS = 200  # of a learning curve; of more, every second, third, ... is left out
TITLE, DATA = "{{title}}", "{{data}}"  # in page.html


def page(comparison: Comparison, facts: Mapping[str, str], finding: str = "") -> str:
    """The page as HTML.

    Args:
        comparison: what was compared; learning curves and commands are read from the folders of its runs.
        facts: of how it was made, by name.
        finding: what somebody concluded, in words.
    """
    before, between, after = (part for half in template("page.html").split(TITLE) for part in half.split(DATA))
    title = html.escape(" ".join(comparison.title.split()))
    return "".join((before, title, between, embedded(data(comparison, facts, finding)), after))


def template(name: str) -> str:
    """A page without its contents, with the style and the light and dark themes that all pages share."""
    text, *shared = (
        Path(__file__).with_name(file).read_text(encoding="utf-8") for file in (name, "page.css", "theme.js")
    )
    return text.replace("{{style}}", shared[0]).replace("{{theme}}", shared[1])


def embedded(value: Any) -> str:
    """JSON that no HTML parser can take for the end of its element."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text.encode("utf-8", "replace").decode()


def plain(value: Any) -> Any:
    """The same as JSON has it; null for NaN and infinity."""
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
    curve, of_compute, lines = comparison.metric.per_evaluation, varied_compute(comparison), series(comparison)
    key = comparison.x if comparison.x in COMPUTE else of_compute
    points = [
        (place, row.cost[key], row.score.mean)
        for place, row in enumerate(comparison.rows)
        if key and row.score and number(row.cost.get(key))
    ]
    front = pareto_front([point[1:] for point in points], comparison.metric.higher_is_better)
    places = {
        row.name: (place, member(row, name, comparison.x))
        for place, (name, rows) in enumerate(lines.items())
        for row in rows
    }
    return {
        "title": comparison.title,
        "source": comparison.source,
        "finding": finding.strip(),
        "metric": comparison.metric.words,
        "heading": comparison.metric.heading,
        "test": comparison.metric.source == "test",
        "share": comparison.metric.share,
        "unit": comparison.unit(),
        "units": comparison.unit("s"),
        "point": comparison.point,
        "x": comparison.x and words_of(comparison.x),
        "series": [*lines],
        "log": is_cost(comparison.metric),
        "from_ratio": 2 if comparison.x in COSTS else LOG,
        "joined": comparison.x not in COSTS,
        "numeric": comparison.numeric,
        "compute": of_compute,
        "curve": {"words": curve.words, "heading": curve.heading, "scale": curve.scale},
        "costs": {name: METRICS[name].words for name in COSTS},
        "compute_words": of_compute and words_of(of_compute),
        "front": [points[i][0] for i in front],
        "front_along_x": key == comparison.x,
        "keys": [*dict.fromkeys(key for row in comparison.rows for key in row.differs)],
        "rows": [row_data(row, comparison, *places.get(row.name, (None, row.name))) for row in comparison.rows],
        "agreement": comparison.agreement and {
            **asdict(comparison.agreement), "beside": beside(comparison.agreement, comparison.reference)
        },
        "notes": [*filter(None, [comparison.warning]), *comparison.notes],
        "facts": [*facts.items()],
    }  # fmt: skip


def row_data(row: Row, comparison: Comparison, place: int | None, label: str) -> dict[str, Any]:
    """An arm; `place` is that of its series, and `label` what stands beside its mark."""
    same = ("name", "x", "baseline", "best", "state", "n", "p", "verdict", "cost", "differs", "with_images")
    estimates = {"score": row.score, "validation": row.validation, "difference": row.difference}
    return {
        **{key: getattr(row, key) for key in same},
        **{key: of and asdict(of) for key, of in estimates.items()},
        "shown": {key: METRICS[key].format(value) for key, value in row.cost.items()},
        "series": place,
        "label": label,
        "runs": runs(row, comparison),
    }


def runs(row: Row, comparison: Comparison) -> list[dict[str, Any]]:
    """The runs of an arm, with their commands and learning curves."""
    curves = {curve.folder: curve for curve in learning_curves(row, comparison.metric.per_evaluation.name)}
    own, other = comparison.metric.name, comparison.metric.validation.name
    return [
        {
            "seed": seed,
            "fold": f"fold {line['fold']}, " if row.folds else "",
            "run": str(line.get("run", "")),
            "status": line.get("status", "finished"),
            "value": line.get(own),
            "validation": line.get(other) if other != own else None,
            "time": duration(part),
            "command": command(line),
            "curve": thinned(curves[line["run"]]) if line.get("run") in curves else None,
        }
        for seed, line, part in zip(row.runs.index, row.runs.to_dict("records"), own_seconds(row.runs), strict=True)
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


def thinned(curve: Curve) -> list[list[float]]:
    """Epochs and values, at most `POINTS` of them, the last one always."""
    step = math.ceil(len(curve.epochs) / (POINTS - 1))
    keep = [*range(0, len(curve.epochs), step)]
    keep += [len(curve.epochs) - 1] if keep[-1] != len(curve.epochs) - 1 else []
    return [[float(f"{of[i]:.5g}") for i in keep] for of in (curve.epochs, curve.values)]


def beside(agreement: Agreement, base: str | None) -> dict[str, Any] | None:
    """The differences of the figure that shows what was reported beside what was measured."""
    if base is None or len(agreement.numbers) < 2:
        return None
    arms = []
    for arm, value in agreement.numbers.items():
        if arm != base:
            found = agreement.difference(base, arm)
            arms.append({"name": arm, "reported": value - agreement.numbers[base], "found": found and asdict(found)})
    return {"base": base, "arms": arms}
