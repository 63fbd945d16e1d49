"""A comparison: runs grouped by everything but seed and fold, with intervals and tests, offline."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from vitlab.config.check import PARTS
from vitlab.config.errors import ConfigError
from vitlab.config.moved import current_key
from vitlab.report import image_noise, power
from vitlab.report.agreement import agree, part
from vitlab.report.contrasts import Contrast, against, in_words, looks_in_words
from vitlab.report.grouping import (
    absent,
    differing,
    finished,
    listed,
    named,
    newest,
    numbers,
    of_other_images,
    position,
    repetitions,
    trained_together,
    with_folds,
)
from vitlab.report.statistics import Estimate, clipped, estimate
from vitlab.report.table import Comparison, Row
from vitlab.report.verdict import notes, verdict
from vitlab.storage import metrics
from vitlab.storage.metrics import COSTS, Metric
from vitlab.storage.runs_table import select_runs

ROOTS = {*PARTS} - {"system", "tracking"}  # of the configuration: what can change a result
STATES = ("failed", "pruned", "interrupted", "running", "damaged")  # of runs that do not count


def compare(
    table: pd.DataFrame | str | Path | Sequence[str | Path],
    *,
    metric: str = "test/accuracy",
    x: str | None = None,
    baseline: str | None = None,
    cells: Mapping[str, str] | None = None,
    planned: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    folds: Mapping[str, int] | None = None,
    title: str = "",
    source: str = "",
    expect: Any = None,
    arms: Mapping[str, str] | None = None,
    margin: float | None = None,
    looks: Sequence[int] = (),
) -> Comparison:
    """The runs of a table grouped by everything but the seed and the fold, each group beside the baseline.

    Where an arm has several cells, the one with the best mean on the validation images stands for it.

    Args:
        table: of the store, `runs_table.runs()`, or some lines of it; or a folder of runs, or a list of runs.
        metric: name of what is reported, of the table in `vitlab.storage.metrics`.
        x: the figure's axis: a configuration key, or a cost; None for the names.
        baseline: an arm or a cell; the first where none is given.
        cells: the cell of each arm, in the order of the rows; of arms that are one cell the first is shown. All cells
            of the table where none are given, named by what differs.
        planned: the seeds that were asked for, of every arm or by arm; others are left out. None for those found.
        folds: how many folds each of `cells` has, 0 for none, for arms of which no run is there yet.
        title: the question.
        source: where it comes from.
        expect: has `finding`, `setting` and `numbers` (see `Agreement`), as attributes or as keys; empty is as None.
        margin: within which an arm counts as equivalent to the baseline, in percentage points of a share, else in the
            metric's unit; None asks for no equivalence.
        looks: numbers of seeds at which the differences were to be looked at while seeds were added; empty for one.
        arms: the arm of each of `cells`; by these `baseline` and `expect` then name them. None where each is its own.

    Raises:
        ConfigError: there is nothing to compare; no such metric, x or baseline: says what there is.
    """
    if not isinstance(table, pd.DataFrame):
        names = [table] if isinstance(table, str | Path) else table
        if not (isinstance(names, list | tuple) and all(isinstance(name, str | Path) for name in names)):
            raise ConfigError(f"{names!r}: give a table, vitlab.runs('runs'), a folder of runs, or a list of runs")
        table = select_runs(names)
    if lacking := [key for key in ("run", "name", "cell", "seed", "status") if key not in table]:
        raise ConfigError(f"the table has no column {lacking[0]}: give lines of vitlab.runs('runs')")
    x = current_key(x) if x else None
    if cells is not None and arms is not None and len({arms[name] for name in cells}) < len(cells):
        asked: dict[str, Any] = {"metric": metric, "x": x, "planned": planned, "folds": folds, "title": title}
        asked |= {"source": source, "margin": margin, "looks": looks}
        return tuned(table, cells, arms, baseline, expect, asked)
    keys = [key for key in table.columns if key.partition(".")[0] in ROOTS and key != "dataset.fold"]
    measured = check(table, metric, x, keys, cells is not None)
    table = table.reset_index(drop=True)
    readable = pd.Series([isinstance(cell, str) for cell in table["cell"]], dtype=bool) & table["seed"].notna()
    unreadable = sorted(table["name"][~readable].astype(str))
    table = with_folds(table[readable].astype({"seed": "int64"}).sort_values("run"))
    if cells is not None:
        table = table[table["cell"].isin(set(cells.values()))]
    differs = differing(table, keys)
    cells = named(table, differs) if cells is None else dict(cells)
    if not cells:
        raise ConfigError("there is no run to compare: train something first")
    owners: dict[str, str] = {}  # the first name of each cell
    for name, cell in cells.items():
        owners.setdefault(cell, name)
    if baseline is not None and baseline not in cells and baseline not in owners:
        raise ConfigError(f"baseline={baseline}: there is no such arm; there are {listed(list(cells))}")
    base = owners[cells.get(baseline, baseline) if baseline is not None else next(iter(cells.values()))]

    runs = newest(table).sort_values(["cell", "seed", "fold"])
    by_cell = runs.groupby("cell")
    twice, there, cut = len(table) - len(runs), by_cell["seed"].agg(tuple).to_dict(), by_cell["folds"].max().to_dict()
    seeds, cuts = {}, {}
    for cell, name in owners.items():
        cuts[name] = int(cut.get(cell, (folds or {}).get(name, 0)))
        asked = planned.get(name) if isinstance(planned, Mapping) else planned
        seeds[name] = tuple(dict.fromkeys(there.get(cell, ()) if asked is None else asked))
    wanted = [seed in seeds[owners[cell]] for cell, seed in zip(runs["cell"], runs["seed"], strict=True)]
    runs = runs[pd.Series(wanted, runs.index, dtype=bool)].set_index("seed").copy()  # in one piece, grouping is faster
    groups = dict(list(runs.groupby("cell", sort=False)))
    keys = dict.fromkeys((*COSTS, metric, measured.validation.name))
    values = pd.DataFrame({key: finished(runs, key) for key in keys})
    values["seconds"] /= trained_together(runs)
    values["images_per_second"] *= trained_together(runs)
    values = values.set_index(repetitions(runs))
    grouped = values.groupby(runs["cell"].to_numpy(), sort=False)
    parts, costs = dict(list(grouped)), grouped.median().to_dict("index")
    parts = {name: parts.get(cell, values.iloc[:0]) for cell, name in owners.items()}
    scores = {name: part[metric].dropna() for name, part in parts.items()}
    validation = {name: estimate(part[measured.validation.name].dropna()) for name, part in parts.items()}
    baseline_runs = groups.get(cells[base], runs.iloc[:0])
    apart = {
        name
        for cell, name in owners.items()
        if measured.source != "bench" and of_other_images(groups.get(cell, runs.iloc[:0]), baseline_runs)
    }
    alike = {name: part.iloc[:0] if name in apart else part for name, part in scores.items()}
    if margin is not None and not margin > 0:
        raise ConfigError(f"margin={margin}: expected a number above 0, in points of a share or in the metric's unit")
    within = None if margin is None else margin / measured.scale
    many = max(1, len(looks))
    contrasts, family = against(base, alike, within, many)
    images: Mapping[str, float] = {}
    if metric == "test/accuracy":
        alike_runs = {name: groups[cell] for cell, name in owners.items() if name not in apart and cell in groups}
        images = image_noise.widths(alike_runs, base, family) if base in alike_runs else {}
    states = {
        name: state(groups[cell]["status"] if cell in groups else (), asked, len(scores[name]), metric)
        for cell, name in owners.items()
        for asked in [len(seeds[name]) * max(1, cuts[name])]
    }
    chosen = best({name: one for name, one in validation.items() if name not in apart}, states, measured.validation)
    rows = []
    for cell, name in owners.items():
        group = groups.get(cell, runs.iloc[:0])
        medians = {key: value for key, value in costs.get(cell, {}).items() if key in COSTS and not absent(value)}
        contrast, words = contrasts.get(name, Contrast(difference=None)), "the baseline"
        if name in apart:
            words = "other images: not compared"
        elif name != base:
            words = verdict(measured, scores[name], scores[base], contrast, margin)
        row = Row(
            name=name,
            differs=differs.get(cell, {}),
            x=position(x, group, medians),
            baseline=name == base,
            best=name == chosen,
            apart=name in apart,
            seeds=seeds[name],
            folds=cuts[name],
            runs=group,
            state=states[name],
            score=clipped(estimate(scores[name]), measured),
            validation=clipped(validation[name], measured.validation),
            difference=contrast.difference,
            p=contrast.p,
            verdict=words,
            cost=medians,
            images=images.get(name),
        )
        rows.append(row)
    used = runs[values[metric].notna().to_numpy()]
    looked = looks_in_words(looks, max(map(len, seeds.values())))
    open_images = image_noise.in_words(rows, int(numbers(used, "test_images").max())) if images else ""
    tested = [open_images, in_words(family), looked, power.in_words(family, contrasts, measured, within)]
    lines = notes(measured, used, rows, tested, unreadable, twice, len(wanted) - sum(wanted))
    agreement = None
    if expect is not None:
        agreement = agree(expect, alike, measured, {name: owners[cell] for name, cell in cells.items()}, many)
        if others := [name for name in agreement.numbers if name not in cells]:
            lines.append(f"Reported, but no arm here: {listed(others)}.")
        agreement = agreement if agreement.finding or agreement.numbers else None
    return Comparison(
        title=title,
        source=source,
        metric=measured,
        x=x,
        rows=tuple(rows),
        agreement=agreement,
        test=family.name,
        notes=tuple(lines),
    )


def tuned(
    table: pd.DataFrame,
    cells: Mapping[str, str],
    arms: Mapping[str, str],
    baseline: str | None,
    expect: Any,
    options: Mapping[str, Any],
) -> Comparison:
    """The comparison of the cells that validation chose, one of each arm, with every cell that was tried."""
    names_of: dict[str, list[str]] = {}
    for name in cells:
        names_of.setdefault(arms[name], []).append(name)
    first = names_of.get(baseline or "", [*cells])[0]
    tried = compare(table, cells=cells, baseline=first, **options)
    rows = {cells[row.name]: row for row in tried.rows}
    picked: dict[str, str] = {}
    for arm, names in names_of.items():
        states = {name: rows[cells[name]].state for name in names}
        validation = {name: rows[cells[name]].validation for name in names}
        picked[arm] = best(validation, states, tried.metric.validation) or names[0]
    if expect is not None:
        numbers = {picked.get(name, name): value for name, value in (part(expect, "numbers") or {}).items()}
        expect = {"finding": part(expect, "finding"), "setting": part(expect, "setting"), "numbers": numbers}
    chosen = {name: cells[name] for name in picked.values()}
    base = picked.get(baseline or "", baseline)  # an arm, or the cell that stands for one
    answer = compare(table, cells=chosen, baseline=base, expect=expect, **options)
    several = sum(len(names) > 1 for names in names_of.values())
    note = (
        f"{several} of {len(names_of)} arms have several values: of each arm the one with the best mean of all seeds on"
        " the validation images is compared; what else was tried stands below."
    )
    kept = set(chosen.values())
    tried = replace(tried, rows=tuple(replace(row, best=cells[row.name] in kept) for row in tried.rows))
    return replace(answer, notes=(note, *answer.notes), tried=tried)


def check(table: pd.DataFrame, name: str, x: str | None, keys: list[str], asked: bool) -> Metric:
    """The metric of this name; refuses a metric and an axis that are unknown, or that no finished run has.

    Args:
        keys: of the configuration.
        asked: whether a sweep asks for it, whose runs may be yet to come.
    """
    try:
        metric = metrics.metric(name)
    except ConfigError as error:
        raise ConfigError(f"metric={error}") from None
    if not asked and (table["status"] == "finished").any() and finished(table, name).isna().all():
        there = [key for key in table.columns if metrics.find(key) and finished(table, key).notna().any()]
        raise ConfigError(f"metric={name}: no run reports such a number; there are {listed(there)}")
    if x is not None and x not in {*COSTS, *keys} and not (asked and x.partition(".")[0] in ROOTS):
        raise ConfigError(f"x={x}: there is no such key; there are {listed([*COSTS, *keys])}")
    return metric


def best(validation: Mapping[str, Estimate | None], states: Mapping[str, str], metric: Metric) -> str | None:
    """The arm that validation would choose, of the complete ones if there are any."""
    means = {name: estimate.mean for name, estimate in validation.items() if estimate is not None}
    complete = {name: mean for name, mean in means.items() if not states[name]} or means
    return max(complete, key=lambda name: metric.sign * complete[name], default=None)


def state(statuses: Iterable[str], planned: int, counting: int, metric: str) -> str:
    """Which runs do not count, in words.

    Args:
        planned: how many runs were asked for.
        counting: how many finished runs have the metric.
    """
    counts = Counter(statuses)
    other = sorted(str(status) for status in counts if status not in {*STATES, "finished"})
    parts = [(counts[status], status) for status in (*STATES, *other)]
    parts += [(counts["finished"] - counting, f"without {metric}"), (planned - counts.total(), "missing")]
    return ", ".join(f"{n} {words}" for n, words in parts if n > 0)
