"""A comparison: runs grouped by everything but the seed, with honest intervals; offline, from the store of runs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from vitlab.config.check import PARTS
from vitlab.config.errors import ConfigError
from vitlab.config.moved import current_key
from vitlab.report.agreement import agree, part
from vitlab.report.grouping import differing, finished, listed, named, newest, place
from vitlab.report.statistics import Estimate, bounded, estimate, holm, paired, probability
from vitlab.report.table import Comparison, Row
from vitlab.report.verdict import notes, verdict
from vitlab.storage import metrics
from vitlab.storage.metrics import COSTS, STATES, counterpart, higher_is_better

ROOTS = {*PARTS} - {"system", "tracking"}  # of the configuration: what can change a result


def compare(
    table: pd.DataFrame,
    *,
    metric: str = "test/accuracy",
    x: str | None = None,
    baseline: str | None = None,
    cells: Mapping[str, str] | None = None,
    planned: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    title: str = "",
    source: str = "",
    expect: Any = None,
    arms: Mapping[str, str] | None = None,
) -> Comparison:
    """The runs of a table grouped by everything but the seed, each group beside the baseline.

    Where an arm has several cells, the one with the best mean on the validation images stands for it.

    Args:
        table: of the store, `store.runs()`, or some lines of it.
        metric: column to report. More is better for accuracies and images_per_second, less for all else.
        x: the figure's axis: a configuration key, or a cost; None for the names.
        baseline: an arm or a cell; the first where none is given.
        cells: the cell of each arm, in the order of the rows; of arms that are one cell the first is shown. All cells
            of the table where none are given, named by what differs.
        planned: the seeds that were asked for, of every arm or by arm; others are left out. None for those found.
        title: the question.
        source: where it comes from.
        expect: has `says`, `of` and `numbers` (see `Agreement`), as attributes or as keys; empty is as None.
        arms: the arm of each of `cells`; by these `baseline` and `expect` then name them. None where each is its own.

    Raises:
        ConfigError: there is nothing to compare; no such metric, x or baseline: says what there is.
    """
    x = current_key(x) if x else None
    if cells is not None and arms is not None and len({arms[name] for name in cells}) < len(cells):
        asked = {"metric": metric, "x": x, "planned": planned, "title": title, "source": source}
        return tuned(table, cells, arms, baseline, expect, asked)
    keys = [key for key in table.columns if key.partition(".")[0] in ROOTS]
    check(table, metric, x, keys, cells is not None)
    table = table.reset_index(drop=True)
    placed = pd.Series([isinstance(cell, str) for cell in table["cell"]], dtype=bool) & table["seed"].notna()
    lost = sorted(table["name"][~placed].astype(str))
    found = table[placed].astype({"seed": "int64"}).sort_values("run")
    if cells is not None:
        found = found[found["cell"].isin(set(cells.values()))]
    differs = differing(found, keys)
    named_cells = named(found, differs) if cells is None else dict(cells)
    if not named_cells:
        raise ConfigError("there is no run to compare: train something first")
    owners: dict[str, str] = {}  # of names of one cell the first
    for name, cell in named_cells.items():
        owners.setdefault(cell, name)
    if baseline is not None and baseline not in named_cells and baseline not in owners:
        raise ConfigError(f"baseline={baseline}: there is no such arm; there are {listed(list(named_cells))}")
    base = owners[named_cells.get(baseline, baseline) if baseline is not None else next(iter(named_cells.values()))]

    groups, seeds, stray = {}, {}, 0
    picked = (
        newest(found).sort_values(["cell", "seed"]).set_index("seed").copy()
    )  # in one piece: grouped ten times faster
    grouped = dict(list(picked.groupby("cell", sort=False)))
    for cell, name in owners.items():
        group = grouped.get(cell, picked.iloc[:0])
        asked = planned.get(name) if isinstance(planned, Mapping) else planned
        seeds[name] = tuple(group.index if asked is None else dict.fromkeys(asked))
        wanted = group.index.isin(seeds[name])
        stray += int((~wanted).sum())
        groups[name] = group if wanted.all() else group[wanted]
    scores = {name: finished(group, metric) for name, group in groups.items()}
    validation = {name: estimate(finished(group, counterpart(metric))) for name, group in groups.items()}
    differences = {name: paired(scores[name], scores[base]) for name in groups if name != base}
    tested = {name: p for name, d in differences.items() if d is not None and (p := probability(d)) is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    states = {name: state(group, seeds[name], metric) for name, group in groups.items()}
    chosen = best(validation, states, counterpart(metric))
    rows = []
    for name, group in groups.items():
        costs = {key: finished(group, key) for key in COSTS}
        medians = {key: float(values.median()) for key, values in costs.items() if len(values)}
        row = Row(
            name=name,
            differs=differs.get(named_cells[name], {}),
            x=place(x, group, medians),
            baseline=name == base,
            best=name == chosen,
            seeds=seeds[name],
            runs=group,
            state=states[name],
            score=bounded(estimate(scores[name]), metric),
            validation=bounded(validation[name], counterpart(metric)),
            difference=differences.get(name),
            p=corrected.get(name),
            verdict="the baseline"
            if name == base
            else verdict(metric, scores[name], scores[base], differences[name], tested.get(name), corrected.get(name)),
            cost=medians,
        )
        rows.append(row)
    counting = {(named_cells[name], seed) for name, values in scores.items() for seed in values.index}
    used = picked[[pair in counting for pair in zip(picked["cell"], picked.index, strict=True)]]
    agreement = None
    said = notes(metric, used, rows, len(tested), lost, len(found) - len(picked), stray)
    if expect is not None:
        told = agree(expect, scores, metric, {name: owners[cell] for name, cell in named_cells.items()})
        agreement = told if told.says or told.numbers else None
        if others := [name for name in told.numbers if name not in named_cells]:
            said.append(f"Reported, but no arm here: {listed(others)}.")
    return Comparison(
        title=title,
        source=source,
        metric=metric,
        higher_is_better=higher_is_better(metric),
        x=x,
        rows=tuple(rows),
        agreement=agreement,
        notes=tuple(said),
    )


def tuned(
    table: pd.DataFrame,
    cells: Mapping[str, str],
    arms: Mapping[str, str],
    baseline: str | None,
    expect: Any,
    asked: Mapping[str, Any],
) -> Comparison:
    """The comparison of what validation chose of each arm, with everything that was tried."""
    its: dict[str, list[str]] = {}
    for name in cells:
        its.setdefault(arms[name], []).append(name)
    base = its.get(baseline or "", [*cells])
    tried = compare(table, cells=cells, baseline=base[0], **asked)
    rows = {cells[row.name]: row for row in tried.rows}
    picked: dict[str, str] = {}
    for arm, names in its.items():
        found = {name: rows[cells[name]] for name in names}
        states = {name: row.state for name, row in found.items()}
        validation = {name: row.validation for name, row in found.items()}
        picked[arm] = best(validation, states, counterpart(asked["metric"])) or names[0]
    if expect is not None:
        numbers = dict(part(expect, "numbers") or {})
        renamed = {picked.get(name, name): value for name, value in numbers.items()}
        expect = {"says": part(expect, "says"), "of": part(expect, "of"), "numbers": renamed}
    chosen = {name: cells[name] for name in picked.values()}
    found = compare(table, cells=chosen, baseline=picked[baseline] if baseline else None, expect=expect, **asked)
    several = sum(len(names) > 1 for names in its.values())
    said = (
        f"{several} of {len(its)} arms have several values: of each arm the one with the best mean of all seeds on the"
        " validation images is compared; what else was tried stands below."
    )
    kept = set(chosen.values())
    tried = replace(tried, rows=tuple(replace(row, best=cells[row.name] in kept) for row in tried.rows))
    return replace(found, notes=(said, *found.notes), tried=tried)


def check(table: pd.DataFrame, metric: str, x: str | None, keys: list[str], asked: bool) -> None:
    """Refuses what is unknown, and what no finished run has; but a sweep may ask for what is yet to come."""
    try:
        metrics.metric(metric)
    except ConfigError as error:
        raise ConfigError(f"metric={error}") from None
    if not asked and (table["status"] == "finished").any() and finished(table, metric).empty:
        there = [key for key in table.columns if metrics.find(key) and not finished(table, key).empty]
        raise ConfigError(f"metric={metric}: no run reports such a number; there are {listed(there)}")
    if x is not None and x not in {*COSTS, *keys} and not (asked and x.partition(".")[0] in ROOTS):
        raise ConfigError(f"x={x}: there is no such key; there are {listed([*COSTS, *keys])}")


def best(validation: Mapping[str, Estimate | None], states: Mapping[str, str], metric: str) -> str | None:
    """The arm that validation would choose, of those that are complete where there are any."""
    means = {name: found.mean for name, found in validation.items() if found is not None}
    whole = {name: mean for name, mean in means.items() if not states[name]} or means
    sign = 1 if higher_is_better(metric) else -1
    return max(whole, key=lambda name: sign * whole[name], default=None)


def state(group: pd.DataFrame, seeds: Sequence[int], metric: str) -> str:
    """Which runs do not count, in words."""
    counts = Counter(group["status"])
    odd = sorted(str(status) for status in counts if status not in {*STATES, "finished"})
    said = [f"{counts[status]} {status}" for status in (*STATES, *odd) if counts[status]]
    without = counts["finished"] - len(finished(group, metric))
    missing = len(seeds) - len(group)
    return ", ".join(
        said + ([f"{without} without {metric}"] if without else []) + ([f"{missing} missing"] if missing else [])
    )
