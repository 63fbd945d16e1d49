"""What a search found: its trials ranked and written as a table."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitlab.config.overrides import typed
from vitlab.storage.files import write_whole
from vitlab.storage.metrics import SELECTED_BY


def ranked(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The finished trials, the best first."""
    finished = [trial for trial in record["trials"] if trial["state"] == "finished" and trial["value"] is not None]
    return sorted(finished, key=lambda trial: (-SELECTED_BY.sign * trial["value"], trial["number"]))


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def top5_table(record: dict[str, Any]) -> list[list[str]]:
    """The five best trials as a table, its head first."""
    keys = [each["key"] for each in record["space"]]
    head = ["trial", "validation", *keys]
    rows = []
    for trial in ranked(record)[:5]:
        values = [short(trial["params"].get(key, "")) for key in keys]
        rows.append([str(trial["number"]), SELECTED_BY.format(trial["value"]), *values])
    return [head, *rows]


def counted(record: dict[str, Any]) -> str:
    states = [trial["state"] for trial in record["trials"]]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states)))


def report(record: dict[str, Any], folder: Path, say: Callable[[str], object]) -> None:
    """Writes search.md, trials.csv and the figures, and says the best trials."""
    from vitlab.report import figures, search_figures

    table = top5_table(record)
    lines = [
        "# The search",
        "",
        f"{record['method']}, pruning: {record['prune']}; trials: {counted(record)}. Chosen by the best validation"
        " accuracy of one seed, which flatters the winner of many: the answer is that of the runs with every seed.",
        "",
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table[:1]),
        "|" + "--|" * len(table[0]),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table[1:]),
    ]
    if record["best"]:
        words = " ".join(typed(record["best"]["params"]))
        lines += ["", f"The best, beside the baseline: `{words}`"]
    if record["importance"]:
        lines += ["", "Share of the variance of the trials that each hyper-parameter explains (fANOVA):", ""]
        lines += [f"* {key}: {value:.0%}" for key, value in record["importance"].items()]
    for name, figure in (
        ("history", search_figures.history(record)),
        ("importance", search_figures.importance(record)),
        ("slices", search_figures.slices(record)),
    ):
        if figure is not None:
            figures.save(figure, folder, name)
            lines += ["", f"![{name}]({name}.svg)"]
    write_whole(folder / "search.md", lambda part: part.write_text("\n".join(lines) + "\n"))
    write_whole(folder / "trials.csv", lambda part: write_trials(record, part))
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    say(f"\nsearch      {counted(record)}; the best by validation:")
    for row in table:
        say("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    say(f"search      {folder}/search.md, {folder}/trials.csv")


def write_trials(record: dict[str, Any], path: Path) -> None:
    keys = [each["key"] for each in record["space"]]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "state", SELECTED_BY.name, "run", *keys])
        for trial in record["trials"]:
            params = [trial["params"].get(key, "") for key in keys]
            writer.writerow([trial["number"], trial["state"], trial["value"], trial["run"], *params])
