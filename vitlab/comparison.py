"""A comparison: runs grouped by everything but the seed, with honest intervals; offline, from the store of runs."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import pandas as pd

from vitlab.config import PARTS
from vitlab.estimate import Estimate, bounded, estimate, holm, is_accuracy, paired, probability, side

ROOTS = {*PARTS, "patch"} - {"system", "tracking"}  # of the configuration: what can change a result
METRICS = ("test/accuracy", "test/loss", "val/accuracy", "val/loss")  # that every finished run has
COSTS = (
    "parameters",
    "flops_per_image",
    "training_flops",
    "images",
    "images_per_second",
    "seconds",
    "peak_memory_bytes",
    "largest_batch",
)
STATES = ("failed", "pruned", "interrupted", "running", "damaged")
LARGEST = 1e100  # a number above is somebody's joke, and its square is infinite
MOST_SEEDS = 1000  # that anybody would train


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm of a comparison.

    Args:
        name: the arm's; where none was given, the keys in which it differs.
        differs: the values of the configuration keys that vary in this comparison.
        x: where it stands on the figure's axis; a word where the axis is one of names; None where it is not known.
        baseline: whether the others are compared with this one.
        best: whether validation would choose it.
        seeds: those that were asked for.
        runs: one line of the store a run of this arm, finished or not; indexed by seed.
        state: what to say of runs that are missing: '1 failed', '2 missing, 1 pruned'; empty where all are there.
        score: of the metric.
        validation: of the metric's validation counterpart.
        difference: to the baseline, over the seeds that both have finished.
        p: of the paired t test of no difference, after Holm's correction for all rows; None where it cannot be told:
            fewer than two pairs, or the very same difference in each.
        verdict: the difference in plain words.
        cost: medians over the finished runs: parameters, flops_per_image, training_flops, images, images_per_second,
            seconds, peak_memory_bytes, largest_batch; those that are known.
    """

    name: str
    differs: Mapping[str, Any]
    x: float | str | None
    baseline: bool
    best: bool
    seeds: tuple[int, ...]
    runs: pd.DataFrame
    state: str
    score: Estimate | None
    validation: Estimate | None
    difference: Estimate | None
    p: float | None
    verdict: str
    cost: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two arms, what the source reports of their difference (second minus first), and what was found.

    Args:
        reported: in points of accuracy.
        found: of the metric, over the seeds that both have finished.
        verdict: agrees, disagrees (the 95 % interval of `found` lies on one side of zero), or cannot tell.
        seeds: where it cannot be told, about how many would tell, were the difference and the spread what they seem;
            None where the difference is about zero.
    """

    first: str
    second: str
    reported: float
    found: Estimate | None
    verdict: str
    seeds: int | None = None


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What was found beside what the source of the question reports.

    Args:
        says: what the source reports, in words.
        of: what its numbers are of: "ImageNet top-1 accuracy after pre-training on JFT".
        numbers: reported, by name of the arm; accuracies in percent, as papers print them.
        pairs: every two arms that both have, but for those that the source reports as equal.
        order: Kendall's tau of the two orders, from -1 to 1; None with fewer than two arms.
        words: the agreement in a sentence or two; empty where there are no numbers.
    """

    says: str
    of: str
    numbers: Mapping[str, float]
    pairs: tuple[Pair, ...]
    order: float | None
    words: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table of arms.

    Args:
        title: the question, or what was compared.
        source: where the question comes from; empty where it is one's own.
        metric: column of the store that is reported, such as test/accuracy.
        higher_is_better: of the metric.
        x: what the figure's axis is: a configuration key, parameters, flops_per_image, training_flops, images, seconds;
            None for the arms' names.
        rows: in the order of the question.
        agreement: with the source, where it says what to expect.
        notes: what the reader must know: mixed versions of the code, mixed hardware, few seeds.
        tried: every cell, where validation chose those of `rows` among several of their arm; there `best` is one that
            was chosen. None where each arm is one cell.
    """

    title: str
    source: str
    metric: str
    higher_is_better: bool
    x: str | None
    rows: tuple[Row, ...]
    agreement: Agreement | None
    notes: tuple[str, ...] = field(default=())
    tried: "Comparison | None" = None

    def frame(self) -> pd.DataFrame:
        """A line a row: the same bytes for the same runs. Numbers in the units of the store (accuracies in 0 ... 1)."""
        rows, costs = self.rows, ("parameters", "flops_per_image", "images_per_second", "seconds", "peak_memory_bytes")

        def numbers(estimates: list[Estimate | None], what: str) -> pd.Series:
            return pd.Series([getattr(e, what, None) for e in estimates], dtype="float64")

        def words(values: list[Any]) -> pd.Series:
            return pd.Series(values, dtype=object)

        scores, differences = [r.score for r in rows], [r.difference for r in rows]
        columns = {"arm": words([r.name for r in rows]), "n": pd.Series([r.score.n if r.score else 0 for r in rows])}
        columns |= {what: numbers(scores, what) for what in ("mean", "sd", "low", "high")}
        columns["validation"] = numbers([r.validation for r in rows], "mean")
        columns["difference"] = numbers(differences, "mean")
        columns |= {f"difference_{what}": numbers(differences, what) for what in ("low", "high")}
        columns["p"] = pd.Series([r.p for r in rows], dtype="float64")
        columns["verdict"] = words([r.verdict for r in rows])
        columns |= {cost: pd.Series([r.cost.get(cost) for r in rows], dtype="float64") for cost in costs}
        columns["state"] = words([r.state for r in rows])
        columns |= {what: pd.Series([getattr(r, what) for r in rows], dtype=bool) for what in ("baseline", "best")}
        keys = dict.fromkeys(key for r in rows for key in r.differs)
        return pd.DataFrame(columns | {key: words([r.differs.get(key, math.nan) for r in rows]) for key in keys})


# --- compare ------------------------------------------------------------------------------------------------------


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
        ValueError: there is nothing to compare; no such metric, x or baseline: says what there is.
    """
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
        raise ValueError("there is no run to compare: train something first")
    owners: dict[str, str] = {}  # of names of one cell the first
    for name, cell in named_cells.items():
        owners.setdefault(cell, name)
    if baseline is not None and baseline not in named_cells and baseline not in owners:
        raise ValueError(f"baseline={baseline}: there is no such arm; there are {listed(list(named_cells))}")
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
    """Refuses what is not in the table; but what every run reports, or a sweep asks for, may be yet to come."""
    promised = metric in {*METRICS, *COSTS} or (asked and metric.endswith(("-shot", "images_per_second")))
    if metric in keys or (not promised and not numbers(table, metric).notna().any()):
        there = [k for k in table.columns if k not in {*keys, "seed"} and not k.startswith(("system", "tracking"))]
        there = [key for key in there if numbers(table, key).notna().any()]
        raise ValueError(f"metric={metric}: no run reports such a number; there are {listed(there or list(METRICS))}")
    if x is not None and x not in {*COSTS, *keys} and not (asked and x.partition(".")[0] in ROOTS):
        raise ValueError(f"x={x}: there is no such key; there are {listed([*COSTS, *keys])}")


def newest(table: pd.DataFrame) -> pd.DataFrame:
    """One run of each cell and seed: a finished one before others, and of those the newest."""
    written = table.get("written", "")
    order = pd.DataFrame({"late": table["status"] != "finished", "written": written, "run": table["run"]})
    order = order.sort_values(["late", "written", "run"], ascending=[True, False, False])
    return table.loc[order.index].drop_duplicates(["cell", "seed"])


def differing(table: pd.DataFrame, keys: list[str]) -> dict[str, dict[str, Any]]:
    """The values of the configuration keys that vary, by cell.

    What varies within a cell is no part of it: where the files of a dataset lie.
    """
    cells, found = table["cell"].tolist(), {cell: {} for cell in table["cell"]}
    for key in keys:
        values: dict[str, Any] = {}
        for cell, value in zip(cells, table[key].tolist(), strict=True):
            if not absent(value) and values.setdefault(cell, plain(value)) != plain(value):
                break
        else:
            if len({(type(value) is bool, value) for value in values.values()}) > 1:
                for cell, value in values.items():
                    found[cell][key] = value
    return found


def named(table: pd.DataFrame, differs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The cell of each name, in the order of the values in which they differ."""
    keys = list(dict.fromkeys(key for values in differs.values() for key in values))

    def order(cell: str) -> tuple[Any, ...]:
        return (*(rank(differs[cell].get(key, math.nan)) for key in keys), cell)

    slugs = {
        cell: re.sub(r"(-s\d+)?-[0-9a-f]{8}$", "", name)
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
    """A number as it was typed, whether or not a missing neighbour made its column one of floats."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value


def rank(value: Any) -> tuple[int, float, str]:
    """null, then numbers, then words, then what is absent."""
    if value is None or absent(value):
        return (0 if value is None else 3, 0.0, "")
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, str(value))


def show(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def listed(names: list[str], most: int = 20) -> str:
    """Names, which may have commas."""
    return "; ".join(names[:most]) + (f"; and {len(names) - most} more" if len(names) > most else "")


def numbers(table: pd.DataFrame, key: str) -> pd.Series:
    """A column of what may be anything: finite numbers, NaN for the rest."""

    def number(value: Any) -> float:
        counts = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
        return float(value) if counts else math.nan

    values = [number(value) for value in table[key]] if key in table else math.nan
    return pd.Series(values, index=table.index, dtype="float64")


def finished(table: pd.DataFrame, key: str) -> pd.Series:
    """The numbers of the finished runs that have one."""
    values = numbers(table, key)
    return values[(table["status"] == "finished") & values.notna()]


def place(x: str | None, group: pd.DataFrame, cost: Mapping[str, float]) -> float | str | None:
    """Where an arm stands on the axis."""
    if x is None or x in COSTS:
        return cost.get(x or "")
    values = [value for value in group[x].tolist() if not absent(value)] if x in group else []
    if not values:
        return None
    number = isinstance(values[0], int | float) and not isinstance(values[0], bool)
    return float(values[0]) if number else show(values[0])


def counterpart(metric: str) -> str:
    """What validation says of the same: no arm is chosen by its test score."""
    split, _, what = metric.partition("/")
    return metric if split == "val" else f"val/{what}" if split == "test" and what else "val/accuracy"


def higher_is_better(metric: str) -> bool:
    return is_accuracy(metric) or metric.endswith("images_per_second")


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


# --- words --------------------------------------------------------------------------------------------------------


def verdict(
    metric: str, mine: pd.Series, base: pd.Series, found: Estimate | None, p: float | None, adjusted: float | None
) -> str:
    """A difference to the baseline in plain words; accuracies in percentage points."""
    if mine.empty or base.empty:
        return "nothing finished" if mine.empty else "the baseline has not finished"
    if found is None:
        return "no pair of seeds"
    unit = 100 if is_accuracy(metric) else 1
    mean = found.mean * unit
    if found.sd is None or found.high is None:
        return f"one seed: no interval ({mean:+.3g})"
    direction = "better" if (mean > 0) == higher_is_better(metric) else "worse"
    if p is None or adjusted is None:
        return f"{direction} by {abs(mean):.3g} in every seed: no spread to test" if mean else "the same in every seed"
    half = (found.high - found.mean) * unit
    # One digit of the uncertainty, two where it begins with 1 or 2, as the Particle Data Group rounds.
    digits = max(0, -math.floor(math.log10(half)) + (int(f"{half:e}"[0]) < 3))
    if adjusted < 0.05:
        return f"{direction} by {abs(mean):.{digits}f} ± {half:.{digits}f}"
    after = " after Holm's correction" if p < 0.05 else ""
    mean = round(mean, digits) + 0.0  # no -0.0
    return f"no difference shown{after} ({mean:+.{digits}f} ± {half:.{digits}f})"


def notes(
    metric: str, used: pd.DataFrame, rows: Sequence[Row], tests: int, lost: list[str], twice: int, stray: int
) -> list[str]:
    """What the reader must know.

    Args:
        used: the runs whose scores count.
        tests: how many differences were tested.
        lost: runs of which it cannot be told what they are.
        twice: runs left out for another of the same cell and seed.
        stray: runs left out for a seed that was not asked for.
    """
    said = []

    def several(column: str) -> list[str]:
        return sorted({str(v) for v in used[column] if v is not None and not absent(v)}) if column in used else []

    for column, words in {
        "commit": "The runs are of {n} commits of the code ({values}).",
        "vitlab": "The runs are of {n} versions of vitlab ({values}).",
        "torch": "The runs are of {n} versions of torch ({values}).",
        "dataset": "The runs are of {n} datasets ({values}): their scores are of different images.",
        "precision": "The runs computed in {n} precisions ({values}).",
        "device": "The runs ran on {n} devices ({values}): times, speeds and memory are not comparable.",
        "processes": "The runs ran on different numbers of processes ({values}): times and speeds are not comparable.",
    }.items():
        values = several(column)
        if len(values) > 1:
            short = [value[:7] if column == "commit" else value for value in values]
            said.append(words.format(n=len(values), values=listed(short)))
    dirty = sum(value is True for value in used["dirty"].tolist()) if "dirty" in used else 0
    if dirty:
        said.append(f"{dirty} of {len(used)} runs were of code with changes that were not committed.")
    few = [row.name for row in rows if row.score is not None and row.score.n < 3]
    if few:
        which = "all" if len(few) == len(rows) > 1 else listed(few, 5)
        said.append(f"Fewer than 3 seeds: {which}. With 2 an interval is very wide, with 1 there is none: train more.")
    if metric.startswith("inference/"):
        said.append("Intervals are 95 %, Student's t over rounds that measured every arm one after the other.")
    elif any(row.score is not None and row.score.low is not None for row in rows):
        images = numbers(used, "test_images").min()
        what = f" (one is {100 / images:.2g} points)" if images > 0 and metric == "test/accuracy" else ""
        said.append(
            "Intervals are 95 %, Student's t over the seeds: they hold the randomness of training, not that of the"
            f" choice of test images{what}."
        )
    if tests > 1:
        said.append(f"{tests} differences to the baseline are tested; p is corrected for all of them (Holm).")
    if metric.startswith("val/"):
        said.append("The weights were chosen by validation, so validation scores flatter.")
    if twice:
        said.append(f"{twice} more of a cell and seed that is there already: of each the newest finished run counts.")
    if stray:
        said.append(f"{stray} run{'s' * (stray > 1)} of other seeds than were asked for left out.")
    if lost:
        said.append(f"{len(lost)} cannot be read, and belong to no arm: {listed(lost)}.")
    return said


def agree(expect: Any, scores: Mapping[str, pd.Series], metric: str, owners: Mapping[str, str]) -> Agreement:
    """What is found beside what is reported.

    Args:
        expect: has says, of, numbers.
        scores: one a seed, by arm.
        metric: that the scores are of; accuracies are reported, and a loss goes the other way.
        owners: the arm that is shown, of every arm.
    """
    reported = {str(name): float(number) for name, number in (part(expect, "numbers") or {}).items()}
    comparable = is_accuracy(metric) or "loss" in metric
    arms = [n for n in owners if comparable and n in reported and not scores[owners[n]].empty]
    sign = 1 if higher_is_better(metric) else -1
    pairs = []
    for first, second in combinations(arms, 2):
        gap = reported[second] - reported[first]
        if gap and owners[first] != owners[second]:
            found = paired(scores[owners[second]], scores[owners[first]])
            told = side(found) * sign * (1 if gap > 0 else -1)
            word = {1: "agrees", -1: "disagrees", 0: "cannot tell"}[told]
            seeds = None if told else needed(found)
            pair = Pair(first=first, second=second, reported=gap, found=found, verdict=word, seeds=seeds)
            pairs.append(pair)
    order = None
    if len(arms) > 1:
        from scipy.stats import kendalltau

        means = [sign * float(scores[owners[name]].mean()) for name in arms]
        tau = float(kendalltau([reported[name] for name in arms], means).statistic)
        order = None if math.isnan(tau) else tau
    return Agreement(
        says=str(part(expect, "says") or ""),
        of=str(part(expect, "of") or ""),
        numbers=reported,
        pairs=tuple(pairs),
        order=order,
        words=sentence(pairs, order) if reported else "",
    )


def part(expect: Any, key: str) -> Any:
    return expect.get(key) if isinstance(expect, Mapping) else getattr(expect, key, None)


def needed(found: Estimate | None) -> int | None:
    """Seeds after which the interval would about leave out zero; None where there would be no end of them."""
    if found is None or not found.sd or not found.mean:
        return None
    seeds = max(math.floor((1.96 * found.sd / found.mean) ** 2), found.n) + 1
    return seeds if seeds <= MOST_SEEDS else None


def sentence(pairs: Sequence[Pair], order: float | None) -> str:
    """The agreement in words."""
    if not pairs:
        return "There are no two arms yet of which a difference is reported."
    counts = {word: sum(pair.verdict == word for pair in pairs) for word in ("agrees", "disagrees", "cannot tell")}
    open_ = [pair for pair in pairs if pair.verdict == "cannot tell"]
    with_ = sorted({pair.found.n if pair.found else 0 for pair in open_})
    seeds = " to ".join(dict.fromkeys(str(n) for n in (with_[:1] + with_[-1:])))
    said = f"Of {len(pairs)} difference{'s' * (len(pairs) > 1)} that the source reports, {counts['agrees']}"
    said += f" {'is' if counts['agrees'] == 1 else 'are'} found here with the same sign, {counts['disagrees']} with the"
    said += f" other, and {len(open_)} cannot be told"
    said += f" with {seeds} seed{'s' * (seeds != '1')}." if open_ else "."
    said += " Each is judged by a 95 % interval of its own, without correction."
    enough = sorted(pair.seeds for pair in open_ if pair.seeds)
    if enough:
        about = " to ".join(dict.fromkeys(str(n) for n in (enough[0], enough[-1])))
        said += f" To tell {'it' if len(open_) == 1 else 'them'}, about {about} seeds would be needed"
        none = len(open_) - len(enough)
        said += f"; for {none} no number of seeds can be named." if none else "."
    if order is not None:
        how = {1: "the same", -1: "reversed"}.get(round(order, 9), "not the same")
        said += (
            f" The order is {how} (tau {order:.2g})." if abs(order) < 1 else f" The order is {how} (tau {order:.1f})."
        )
    return said
