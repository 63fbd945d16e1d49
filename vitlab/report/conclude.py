"""Runs compared and written up: table, verdicts, figures, answer, page."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.config import own
from vitlab.config.errors import ConfigError
from vitlab.storage.files import read_json
from vitlab.storage.metrics import duration

if TYPE_CHECKING:
    import pandas as pd

    from vitlab.report.table import Comparison
MAX_BYTES = 20_000_000  # bytes of sweep.json
MEASURED = "measured.json"  # of a sweep whose cells were measured, not trained


def answer_runs(folder: Path) -> "Path | pd.DataFrame":
    """What a sweep's answer is made of: the folder of all runs, or the table of what was measured."""
    if not (folder / MEASURED).is_file():
        return folder.parent.parent
    import pandas as pd

    return pd.DataFrame(read_json(folder / MEASURED, MAX_BYTES)["lines"])


def conclude(
    record: dict[str, Any],
    table: "Path | pd.DataFrame",
    folder: Path,
    *,
    page: Path | None = None,
    wandb: bool = False,
) -> None:
    """Writes an answer from the store of runs, and prints its table.

    Args:
        record: what was asked, as `sweep.Plan.record` has it.
        table: the runs, or the folder of all runs.
        folder: where the answer goes.
        page: where it is published as well, such as sweeps/ablation/NAME.md.
        wandb: whether it goes to Weights & Biases too.
    """
    from vitlab.report import answer
    from vitlab.storage import runs_table

    table = runs_table.runs(table) if isinstance(table, Path) else table
    found = compared(record, table)
    made = facts(record, found, table)
    answer.write(found, folder, facts=made)
    if page is not None:
        answer.publish(found, page, facts=made)
    if wandb:
        from vitlab.report import wandb_report

        wandb_report.send(record, found, folder)
    print(f"\n{answer.table_text(found, 'plain')}")
    if found.agreement and found.agreement.words:
        print(f"{found.agreement.finding}\n{found.agreement.words}")
    print(f"\nanswer      {folder}/answer.md" + (f", {page}" if page else ""))
    print(f"page        {folder}/answer.html")


def compared(record: dict[str, Any], table: "pd.DataFrame") -> "Comparison":
    """The comparison that a sweep asked for.

    Args:
        record: what was asked, as `sweep.Plan.record` has it.
        table: the runs.
    """
    from vitlab.report import comparison

    try:
        found = comparison.compare(
            table,
            metric=record.get("metric") or "test/accuracy",
            x=record.get("x"),
            baseline=record.get("baseline"),
            cells={name: cell["cell"] for name, cell in record["cells"].items()} if "cells" in record else None,
            arms={name: cell.get("arm", name) for name, cell in record.get("cells", {}).items()},
            planned=record.get("seeds"),
            folds={name: cell.get("folds") or 0 for name, cell in record.get("cells", {}).items()},
            title=record["question"],
            source=record.get("source", ""),
            expect=record.get("expect"),
            margin=record.get("margin"),
            looks=record.get("looks") or (),
        )
        series = {str(name): str(of) for name, of in record.get("series", {}).items()}
        return replace(found, series=series, tried=found.tried and replace(found.tried, series=series))
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"sweep.json of {record['name']} is damaged ({error!r}): run the sweep again") from error


def facts(record: dict[str, Any], comparison: "Comparison", store: "pd.DataFrame") -> dict[str, str]:
    """How an answer was made: the command that gives it, what it cost, on what hardware, with which code.

    Args:
        record: what was asked.
        comparison: the answer.
        store: all runs, with the trials of a search among them.
    """
    import pandas as pd

    from vitlab.report.grouping import own_seconds

    rows = [row.runs for row in (comparison.tried or comparison).rows if len(row.runs)]
    table = pd.concat(rows) if rows else pd.DataFrame()
    search: dict[str, Any] = record.get("search") or {"trials": [], "best": None}
    tried = {Path(trial["run"]).name for trial in search["trials"] if trial.get("run")}
    pretrain: dict[str, Any] = record.get("pretrain") or record.get("first") or {}  # its name in earlier records
    before = store["name"][store["cell"].isin([cell["cell"] for cell in pretrain.values()])] if pretrain else ()
    spent = store[store["name"].isin({*tried, *before, *table.get("name", [])})] if len(store) else store
    seconds = own_seconds(spent).sum()
    what = "measuring" if comparison.metric.source == "bench" else "training"
    devices = Counter(value for value in table.get("device", []) if isinstance(value, str))
    commits = {value[:10] for value in table.get("commit", []) if isinstance(value, str)}
    flags = record.get("flags") or ()
    lines = {
        "command": command(record),
        "search": f"{len(search['trials'])} trials, by validation alone; each is in search.md" if tried else "",
        **{
            f"command of {name}, trained before": own.command("train", *cell["overrides"], flags=flags)
            for name, cell in pretrain.items()
        },
        "best found": " ".join(search["best"]["overrides"]) if search["best"] else "",
        "cost": f"{duration(seconds)} of {what} in {len(spent)} run{'s' * (len(spent) != 1)}",
        "hardware": ", ".join(f"{name} ({n} run{'s' * (n > 1)})" for name, n in sorted(devices.items())),
        "commit": ", ".join(sorted(commits)),
    }
    return {key: value for key, value in lines.items() if value}


def command(record: dict[str, Any]) -> str:
    """The command that gives the answer again; empty where it was no sweep."""
    from vitlab.config.groups import SWEEPS

    if not record.get("file"):
        return ""
    looks = record.get("looks")
    ships = Path(record["file"]).resolve().is_relative_to(SWEEPS.resolve())
    words = [
        record["name"] if ships else record["file"],
        f"scale={record['scale']}" if record.get("scale") else "",
        f"seeds={','.join(map(str, record['seeds'][: (looks or [None])[0]]))}" if record.get("own_seeds") else "",
        *record.get("words", []),
        *(["--until", f"{record['until']:g}", "--most-seeds", str(looks[-1])] if looks else []),
    ]
    return own.command("sweep", *filter(None, words), flags=record.get("flags") or ())
