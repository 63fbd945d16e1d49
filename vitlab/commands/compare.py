"""`vitlab compare`: runs as a table with intervals, figures and a page; offline, from the store."""

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.commands import DONE, refuse
from vitlab.files import read_json

if TYPE_CHECKING:
    import pandas as pd

    from vitlab.comparison import Comparison

DESCRIPTION = """Compares what was trained: the arms of a sweep, single runs, or every run of a folder. Runs that differ
by their seed alone are one row: mean, spread, 95 % interval, and the difference to the baseline, paired by seed."""
MOST = 20_000_000  # bytes of sweep.json
MEASURED = "measured.json"  # of a sweep whose cells were measured, and not trained


def main(words: list[str]) -> int:
    """Prints the table, and writes the answer beside the sweep or where it is told to."""
    parser = argparse.ArgumentParser(prog="vitlab compare", description=DESCRIPTION)
    parser.add_argument(
        "what", nargs="*", help="a sweep's name or folder, runs, or a folder of runs; the folder of --runs"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="PATH", help="folder of all runs; runs")
    parser.add_argument("--metric", help="what is compared: test/accuracy, val/loss, seconds, ...")
    parser.add_argument("--x", help="the figure's axis: a configuration key, parameters, training_flops, ...")
    parser.add_argument("--baseline", help="the row that the others are compared with; the first")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where answer.md, answer.html and the rest go")
    parser.add_argument("--wandb", action="store_true", help="the table and the figures to Weights & Biases as well")
    options = parser.parse_intermixed_args(words)
    changed = {key: getattr(options, key) for key in ("metric", "x", "baseline") if getattr(options, key)}
    try:
        if (folder := asked(options.what, options.runs)) is not None:
            record = read_json(folder / "sweep.json", MOST) | changed
            conclude(record, held(folder), options.out or folder, wandb=options.wandb)
        else:
            table = picked(options.what, options.runs)
            of = ", ".join(options.what) or str(options.runs)
            record = {"name": "comparison", "question": f"How do the runs of {of} differ?"} | changed
            alone = len(options.what) == 1 and not (Path(options.what[0]) / "config.yaml").is_file()
            root = Path(options.what[0]) if alone else options.runs  # beside the runs that it is about
            conclude(record, table, options.out or root / "comparison", wandb=options.wandb)
    except (ValueError, OSError) as error:
        return refuse(error)
    return DONE


def asked(what: list[str], runs: Path) -> Path | None:
    """The folder of the sweep's answer that is meant, if one is.

    Raises:
        ValueError: a sweep of that name was not run, or at several scales.
    """
    if len(what) != 1:
        return None
    if Path(what[0]).is_dir():
        return Path(what[0]) if (Path(what[0]) / "sweep.json").is_file() else None
    name = Path(what[0]).stem if what[0].endswith(".yaml") else what[0]
    there = sorted(path.parent for path in (runs / "sweeps").glob("*/sweep.json"))
    found = [path for path in there if path.name == name]
    found = found or [path for path in there if read_json(path / "sweep.json", MOST).get("name") == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{name} was run several times: say {' or '.join(map(str, found))}")
    listed = f" (there are {', '.join(path.name for path in there)})" if there else ""
    raise ValueError(f"{what[0]} is no run, no folder of runs, and no sweep that was run{listed}: vitlab sweep {name}")


def held(folder: Path) -> "Path | pd.DataFrame":
    """Where the lines are that a sweep's answer is made of: in the folder of all runs, or what was measured itself."""
    if not (folder / MEASURED).is_file():
        return folder.parent.parent
    import pandas as pd

    return pd.DataFrame(read_json(folder / MEASURED, MOST)["lines"])


def picked(what: list[str], runs: Path) -> "pd.DataFrame":
    """The lines of the store of these runs and folders of runs; of all runs where none is named.

    Raises:
        ValueError: what is neither.
    """
    import pandas as pd

    from vitlab import store

    parts, names = [], {}
    for each in [Path(name) for name in what] or [runs]:
        if (each / "config.yaml").is_file():
            names.setdefault(each.resolve().parent, []).append(each.resolve().name)
        elif each.is_dir():
            parts.append(store.runs(each))
        else:
            raise ValueError(f"{each} is no run and no folder of runs: vitlab train or vitlab sweep makes some")
    for root, of in names.items():
        table = store.runs(root)
        parts.append(table[table["name"].isin(of)])
    return pd.concat(parts, ignore_index=True)


def conclude(
    record: dict[str, Any],
    table: "Path | pd.DataFrame",
    folder: Path,
    *,
    page: Path | None = None,
    wandb: bool = False,
) -> None:
    """Writes an answer from what the store holds, and says it.

    Args:
        record: what was asked, as `sweep.Plan.record` has it.
        table: the runs, or the folder of all runs.
        folder: where the answer goes.
        page: where it is published as well, such as sweeps/ablation/NAME.md.
        wandb: whether it goes to Weights & Biases too.
    """
    from vitlab import answer, comparison, store

    table = store.runs(table) if isinstance(table, Path) else table
    try:
        found = comparison.compare(
            table,
            metric=record.get("metric") or "test/accuracy",
            x=record.get("x"),
            baseline=record.get("baseline"),
            cells={name: cell["cell"] for name, cell in record["cells"].items()} if "cells" in record else None,
            arms={name: cell.get("arm", name) for name, cell in record.get("cells", {}).items()},
            planned=record.get("seeds"),
            title=record["question"],
            source=record.get("source", ""),
            expect=record.get("expect"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}/sweep.json is damaged ({error!r}): run the sweep again") from error
    told = facts(record, found, table)
    folder.mkdir(parents=True, exist_ok=True)
    answer.write(found, folder, facts=told)
    if page is not None:
        answer.publish(found, page, facts=told)
    if wandb:
        from vitlab import remote

        remote.send(record, found, folder)
    print(f"\n{answer.table_text(found, 'plain')}")
    if found.agreement and found.agreement.words:
        print(f"{found.agreement.says}\n{found.agreement.words}")
    print(f"\nanswer      {folder}/answer.md" + (f", {page}" if page else ""))
    print(f"page        {folder}/answer.html")


def facts(record: dict[str, Any], found: "Comparison", store: "pd.DataFrame") -> dict[str, str]:
    """What an answer says of itself: the command that gives it, what it cost, on what, with which code.

    Args:
        record: what was asked.
        found: the answer.
        store: all runs, with the trials of a search among them.
    """
    import pandas as pd

    from vitlab.figures import duration

    rows = [row.runs for row in (found.tried or found).rows if len(row.runs)]
    table = pd.concat(rows) if rows else pd.DataFrame()
    search: dict[str, Any] = record.get("search") or {"trials": [], "best": None}
    tried = {Path(trial["run"]).name for trial in search["trials"] if trial.get("run")}
    first = {name: store[store["cell"] == cell["cell"]] for name, cell in record.get("first", {}).items()}
    before = {name for runs in first.values() for name in runs["name"]}
    spent = store[store["name"].isin({*tried, *before, *table.get("name", [])})] if len(store) else store

    def kinds(column: str) -> str:
        values = [value for value in table.get(column, []) if isinstance(value, str)]
        return ", ".join(f"{value} ({n} run{'s' * (n > 1)})" for value, n in sorted(Counter(values).items()))

    what = "measuring" if found.metric.startswith("inference/") else "training"
    seconds = pd.to_numeric(spent.get("seconds", pd.Series(dtype=float)), errors="coerce").sum()
    from vitlab.question import SWEEPS

    ships = Path(record.get("file", "")).resolve().is_relative_to(SWEEPS.resolve())
    words = [
        record["name"] if ships else record.get("file"),
        f"scale={record['scale']}" if record.get("scale") else None,
        f"seeds={','.join(map(str, record['seeds']))}" if record.get("own_seeds") else None,
        *record.get("words", []),
    ]
    command = f"vitlab sweep {' '.join(word for word in words if word)}" if record.get("file") else ""
    said = {
        "command": command,
        "search": f"{len(search['trials'])} trials, by validation alone; each is in search.md" if tried else "",
        **{
            f"command of {name}, trained before": f"vitlab train {' '.join(cell['overrides'])}"
            for name, cell in record.get("first", {}).items()
        },
        "best found": " ".join(search["best"]["overrides"]) if search["best"] else "",
        "cost": f"{duration(seconds)} of {what} in {len(spent)} run{'s' * (len(spent) != 1)}",
        "hardware": kinds("device"),
        "commit": ", ".join(sorted({value[:10] for value in table.get("commit", []) if isinstance(value, str)})),
    }
    return {key: value for key, value in said.items() if value}
