"""What a search found: its trials ranked and written as a table."""

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitlab.config.overrides import typed
from vitlab.storage.files import write_whole
from vitlab.storage.metrics import metric_of


def ranked(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The finished trials, the best first."""
    finished = [trial for trial in record["trials"] if trial["state"] == "finished" and trial["value"] is not None]
    sign = metric_of(record).sign
    return sorted(finished, key=lambda trial: (-sign * trial["value"], trial["number"]))


def top5_table(record: dict[str, Any]) -> list[list[str]]:
    """The best five trials as a table, with a header row."""
    keys = [each["key"] for each in record["space"]]
    rows = [["trial", "validation", *keys]]
    for trial in ranked(record)[:5]:
        values = [trial["params"].get(key, "") for key in keys]
        values = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        rows.append([str(trial["number"]), metric_of(record).format(trial["value"]), *values])
    return rows


def report(record: dict[str, Any], folder: Path, say: Callable[[str], object]) -> None:
    """Writes search.md, trials.csv and the figures, and prints the best trials."""
    from vitlab.report import figures, search_figures

    table, states = top5_table(record), Counter(trial["state"] for trial in record["trials"])
    counts = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
    head, *body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
    lines = [
        "# The search",
        "",
        f"{record['method']}, pruning: {record['prune']}; trials: {counts}. Chosen by the best"
        f" {metric_of(record).words} of one seed, which flatters the winner of many: the answer is that of the runs"
        " with every seed.",
        "",
        *(head, "|" + "--|" * len(table[0]), *body),
    ]
    if record["best"]:
        lines += ["", f"The best, beside the baseline: `{' '.join(typed(record['best']['params']))}`"]
    if record["importance"]:
        lines += ["", "Share of the variance of the trials that each hyper-parameter explains (fANOVA):", ""]
        lines += [f"* {key}: {value:.0%}" for key, value in record["importance"].items()]
    for draw in (search_figures.history, search_figures.importance, search_figures.slices):
        if figure := draw(record):
            figures.save(figure, folder, draw.__name__)
            lines += ["", f"![{draw.__name__}]({draw.__name__}.svg)"]
    write_whole(folder / "search.md", lambda part: part.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    write_whole(folder / "trials.csv", lambda part: write_trials(record, part))
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    say(f"\nsearch      {counts}; the best by validation:")
    for row in table:
        say("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    say(f"search      {folder}/search.md, {folder}/trials.csv")


def write_trials(record: dict[str, Any], path: Path) -> None:
    keys = [each["key"] for each in record["space"]]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "state", metric_of(record).name, "run", *keys])
        for trial in record["trials"]:
            params = [trial["params"].get(key, "") for key in keys]
            writer.writerow([trial["number"], trial["state"], trial["value"], trial["run"], *params])
