"""The answer to a question: a table for the terminal, Markdown, LaTeX and CSV, figures, and a page.

The tables are written here: pandas would need tabulate for Markdown, and knows neither bold rows nor ± as mathematics.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vitlab.config.errors import ConfigError
from vitlab.plotting import HALF, save_one, shorten
from vitlab.report import figures
from vitlab.report.page import page as page_of
from vitlab.report.statistics import Estimate
from vitlab.report.table import Agreement, Comparison
from vitlab.storage.files import make_folder, read_text, write_whole
from vitlab.storage.metrics import COSTS, METRICS, NONE, Metric

FINDING = ("<!-- finding -->", "<!-- /finding -->")
UNWRITTEN = "\n*No finding is written yet: what stands between these two marks is kept.*\n"
MOST = 10_000_000  # bytes of an answer
NAMES = (60, 90, 150)  # letters of an arm's name in a terminal
CAPTIONS = {
    "metric": "{metric} of each arm: means with 95 % intervals, and every {point}",
    "curves": "learning curves: means of the {point}s, from the lowest to the highest",
    "compute": "{metric} against compute, with its Pareto front",
    "beside": "differences that the source reports, beside those found",
}


class Column(NamedTuple):
    """A column of the table: its head, whether it is of numbers, and a cell an arm."""

    head: str
    number: bool
    cells: list[str]


def table_text(comparison: Comparison, style: Literal["plain", "markdown"] = "plain") -> str:
    """The table, one line an arm, and what it means below; for a terminal, or as Markdown."""
    marked = style == "markdown"
    table, rows = columns(comparison), comparison.rows
    names = [one_line(row.label) for row in rows]
    body = [list(line) for line in zip(names, *(column.cells for column in table), strict=True)]
    heads = ["arm", *(column.head for column in table)]
    if marked:
        body = [[escaped(cell) for cell in line] for line in body]
        for row, line in zip(rows, body, strict=True):
            line[:3] = [f"**{cell}**" if row.best and cell != NONE else cell for cell in line[:3]]
        heads = [escaped(head) for head in heads]
    else:
        for row, line, name in zip(rows, body, short_names(names), strict=True):
            line[0] = f"{'*' if row.best else ' '} {name}"
        heads[0] = f"  {heads[0]}"
    numeric = [False, *(column.number for column in table)]
    widths = [max(3, *map(len, cells)) for cells in zip(heads, *body, strict=True)]

    def line_of(cells: Sequence[str]) -> str:
        sized = zip(cells, widths, numeric, strict=True)
        padded = [cell.rjust(width) if right else cell.ljust(width) for cell, width, right in sized]
        return f"| {' | '.join(padded)} |" if marked else "  ".join(padded).rstrip()

    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True)]
    bar = line_of(rule) if marked else "─" * (sum(widths) + 2 * len(widths) - 2)
    below = legend(comparison, "bold" if marked else "*")
    above = [f"**{comparison.warning}**" if marked else comparison.warning, ""] if comparison.warning else []
    lines = [*above, line_of(heads), bar, *map(line_of, body), "", *(line + "  " * marked for line in below), ""]
    return "\n".join(lines)


def short_names(names: list[str]) -> list[str]:
    """The names of arms for a terminal, cut in the middle; less where some would be the same."""
    for most in NAMES:
        short = [shorten(name, most, 0.5) for name in names]
        if len(set(short)) == len(set(names)):
            return short
    return names


def columns(comparison: Comparison) -> list[Column]:
    """All columns but the names; those that no arm fills are left out."""
    metric, rows = comparison.metric, comparison.rows
    shown = [METRICS[key] for key in COSTS if key not in ("training_flops", "images", metric.name)]
    if metric.source == "bench":
        shown.remove(METRICS["seconds"])  # of measuring
    all_columns = [
        Column(metric.heading, True, [mean_sd(row.score, metric) for row in rows]),
        Column("n", True, [row.n for row in rows]),
        Column("95 % interval", True, [interval(row.score, metric) for row in rows]),
        Column("difference", True, ["baseline" if r.baseline else change(r.difference, metric) for r in rows]),
        Column(
            "± on other images", True, [NONE if r.with_images is None else metric.cell(r.with_images) for r in rows]
        ),
        Column("verdict", False, [one_line(row.verdict) or NONE for row in rows]),
        *reported(comparison),
        *(Column(cost.words, True, [cost.format(row.cost.get(cost.name)) for row in rows]) for cost in shown),
        Column("state", False, [one_line(row.state) or ("" if row.score else "no finished run") for row in rows]),
    ]
    return [column for column in all_columns if {*column.cells} - {NONE, ""}]


def reported(comparison: Comparison) -> list[Column]:
    """What the source reports of each arm, with its difference to the baseline's; and whether that is found here."""
    agreement, base = comparison.agreement, comparison.reference
    if agreement is None or base is None:
        return []
    pairs = {pair.first if pair.second == base else pair.second: pair
             for pair in agreement.pairs if base in (pair.first, pair.second)}  # fmt: skip
    numbers, verdicts = [], []
    for row in comparison.rows:
        value, pair = agreement.numbers.get(row.name), pairs.get(row.name)
        gap = f" ({value - agreement.numbers[base]:+.2f})" if value is not None and row.name != base else ""
        numbers.append(NONE if value is None else f"{value:.2f}{gap}")
        seeds = f" (about {pair.seeds} seeds would)" if pair and pair.seeds else ""
        verdicts.append(pair.verdict + seeds if pair else NONE)
    return [Column("reported", True, numbers), Column("and here", False, verdicts)]


def legend(comparison: Comparison, mark: str) -> list[str]:
    """What the table's marks and numbers mean."""
    lines, metric = [], comparison.metric
    if any(row.best for row in comparison.rows):
        own = {
            "test": "; the test images chose nothing",
            "validation": ", whose own score is shown: it flatters the chosen",
        }
        lines.append(f"{mark}: chosen by validation{own.get(metric.source, '')}")
    of = comparison.unit("s")
    lines.append(f"mean ± standard deviation over n {of}; interval of the mean: 95 %, Student's t, n {of}")
    if any(row.difference for row in comparison.rows):
        unit = ", in percentage points" if metric.share else ""
        lines.append(
            f"difference to the baseline: mean ± half of its 95 % interval, paired by {comparison.unit()}{unit};"
            f" verdicts: {comparison.test}"
        )
    if any(row.with_images for row in comparison.rows):
        lines.append("± on other images: half of the difference's interval with the choice of test images in it too")
    if comparison.agreement and (base := comparison.reference):
        lines.append(
            f"reported: {one_line(comparison.agreement.setting) or 'by the source'}, and its difference to {base};"
            " here: whether the 95 % interval of ours lies on the same side of zero"
        )
    return lines


def table_csv(comparison: Comparison) -> str:
    """The table in full digits: shares in 0 ... 1, times in seconds; empty where nothing is known."""
    frame = comparison.frame()
    frame.insert(1, "seeds", [" ".join(map(str, row.seeds)) for row in comparison.rows])
    frame.insert(2, "folds", [row.folds or "" for row in comparison.rows])
    frame.insert(3, "x", ["" if row.x is None else row.x for row in comparison.rows])
    out = io.StringIO()
    frame.to_csv(out, index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    return out.getvalue()


def table_tex(comparison: Comparison) -> str:
    """The table for a paper that uses the package booktabs."""
    table = [column for column in columns(comparison) if column.head != "verdict"]
    lines = ["% needs \\usepackage{booktabs}", f"\\begin{{tabular}}{{l{''.join('lr'[c.number] for c in table)}}}"]
    lines += ["\\toprule", " & ".join(["arm", *(tex(column.head) for column in table)]) + " \\\\", "\\midrule"]
    for i, row in enumerate(comparison.rows):
        cells = [tex(one_line(row.label)), *(tex_number(column.cells[i]) for column in table)]
        if row.best:
            cells[:2] = [f"\\textbf{{{cells[0]}}}", cells[1].replace("$", "$\\mathbf{", 1)[:-1] + "}$"]
        lines.append(" & ".join(cells) + " \\\\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    below = [*filter(None, [comparison.warning]), *legend(comparison, "bold")]
    return "\n".join(lines + [f"% {line}" for line in below]) + "\n"


def markdown(comparison: Comparison, facts: Mapping[str, str], links: Mapping[str, str], finding: str) -> str:
    """The answer as Markdown.

    Args:
        comparison: what was compared.
        facts: of how it was made, by name: cost, hardware, commit, command.
        links: of the figures, by what they show.
        finding: what stands between the two marks, as it stands there.
    """
    parts = [f"# {escaped(comparison.title)}"]
    parts += [f"Source: {escaped(comparison.source)}"] if comparison.source else []
    parts += [f"{FINDING[0]}{finding}{FINDING[1]}", table_text(comparison, "markdown").rstrip()]
    parts += [f"![{escaped(words)}]({link})" for words, link in links.items()]
    parts += agreement_text(comparison.agreement) if comparison.agreement else []
    parts += ["## What was tried", tried_text(comparison.tried)] if comparison.tried else []
    if comparison.notes:
        parts += ["## What to know", "\n".join(f"- {escaped(note)}" for note in comparison.notes)]
    if facts:
        parts += ["## How it was made", *(fact(name, value) for name, value in facts.items())]
    return "\n\n".join(parts) + "\n"


def agreement_text(agreement: Agreement) -> list[str]:
    """What the source expects, and how far it was met; paragraphs of Markdown."""
    parts = ["## What the source expects", escaped(agreement.finding)]
    if agreement.numbers:
        numbers = ", ".join(f"{escaped(name)} {value:g}" for name, value in agreement.numbers.items())
        parts.append(f"Reported{f' ({escaped(agreement.setting)})' if agreement.setting else ''}: {numbers}.")
    return [part for part in (*parts, escaped(agreement.words)) if part]


def tried_text(tried: Comparison) -> str:
    """Every cell with its validation score, in Markdown."""
    metric, other = tried.metric, tried.metric.validation
    lines = [f"| cell | {other.heading} | {metric.heading} | n |", "| --- | ---: | ---: | ---: |"]
    for row in tried.rows:
        cells = [escaped(row.name), mean_sd(row.validation, other), mean_sd(row.score, metric), row.n]
        lines.append(f"| {' | '.join([f'**{cell}**' if row.best else cell for cell in cells])} |")
    return "\n".join([*lines, "", "bold: chosen by validation for its arm"])


def fact(name: str, value: str) -> str:
    if "\n" not in value.strip() and not name.lower().startswith("command"):
        return f"**{escaped(name)}:** {escaped(value)}"
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", value)), default=0))
    return f"**{escaped(name)}:**\n{fence}\n{value.strip()}\n{fence}"


def finding_of(path: Path) -> str:
    """What somebody wrote between the two marks of an answer; a hint where there is no answer yet.

    Raises:
        ConfigError: there is a file without them, and what it says would be lost.
    """
    if not path.exists():
        return UNWRITTEN
    _, first, rest = read_text(path, MOST).partition(FINDING[0])
    finding, last, _ = rest.partition(FINDING[1])
    if not (first and last):
        raise ConfigError(f"{path} has no {FINDING[0]} ... {FINDING[1]}: put both marks back, or move the file away")
    return finding


def write(comparison: Comparison, folder: Path, *, facts: Mapping[str, str], pictures: bool = True) -> list[Path]:
    """Writes answer.md, table.csv, table.tex, answer.html, and four figures; gives their paths.

    A figure is as wide as a page, as PNG, SVG and PDF, and as wide as a column, NAME-half.pdf. The finding in an
    answer.md that is there is kept. Equal comparisons give equal bytes.

    Raises:
        ConfigError: answer.md is there and has lost the marks of its finding.
    """
    make_folder(folder)
    finding = finding_of(folder / "answer.md")
    draw = {"metric": figures.against, "curves": figures.curves, "compute": figures.compute, "beside": figures.beside}
    paths, links = [], {}
    for name in draw if pictures else ():
        if (page := draw[name](comparison)) and (column := draw[name](comparison, HALF)):
            paths += [*figures.save(page, folder, name), save_one(column, folder / f"{name}-half.pdf")]
            links[CAPTIONS[name].format(metric=comparison.metric.words, point=comparison.point)] = f"{name}.png"
        else:  # one of an earlier answer would mislead
            for end in (".png", ".svg", ".pdf", "-half.pdf"):
                (folder / f"{name}{end}").unlink(missing_ok=True)
    texts = {
        "table.csv": table_csv(comparison),
        "table.tex": table_tex(comparison),
        "answer.html": page_of(comparison, facts, "" if finding == UNWRITTEN else finding),
        "answer.md": markdown(comparison, facts, links, finding),
    }
    return [*paths, *(write_text(folder / name, text) for name, text in texts.items())]


def publish(comparison: Comparison, path: Path, facts: Mapping[str, str]) -> list[Path]:
    """Writes the answer beside its question: NAME.md, whose finding is kept, and one figure, NAME.png."""
    finding = finding_of(path)
    picture = save_one(figures.combined(comparison), path.with_suffix(".png"))
    words = CAPTIONS["metric"].format(metric=comparison.metric.words, point=comparison.point)
    return [picture, write_text(path, markdown(comparison, facts, {words: picture.name}, finding))]


def write_text(path: Path, text: str) -> Path:
    write_whole(path, lambda part: part.write_bytes(text.encode()))
    return path


def mean_sd(of: Estimate | None, metric: Metric) -> str:
    return plus_minus(metric, of.mean, of.sd) if of else NONE


def interval(of: Estimate | None, metric: Metric) -> str:
    if of is None or of.half is None or of.low is None or of.high is None:
        return NONE
    return f"{metric.cell(of.low)} … {metric.cell(of.high)}"


def change(of: Estimate | None, metric: Metric) -> str:
    return plus_minus(metric, of.mean, of.half, "+") if of else NONE


def plus_minus(metric: Metric, mean: float, spread: float | None, sign: str = "") -> str:
    return metric.cell(mean, sign) + ("" if spread is None else f" ± {metric.cell(spread)}")


def one_line(words: Any) -> str:
    return " ".join(str(words).split())


def escaped(words: str) -> str:
    """Words in one line that Markdown shows as they are."""
    words = re.sub(r"([\\`*\[\]<>|~#$])", r"\\\1", one_line(words).replace("&", "&amp;"))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", words)


def tex(words: str) -> str:
    """Words that LaTeX shows as they are."""
    backslashed = {letter: f"\\{letter}" for letter in "&%$#_{}"}
    named = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater", "|": "bar"}
    other = {NONE: "--", "…": "\\dots{}", "±": "$\\pm$"} | backslashed
    return "".join(f"\\text{named[c]}{{}}" if c in named else other.get(c, c) for c in words)


def tex_number(cell: str) -> str:
    """A cell of the table; a number with its spread in math mode."""
    if re.fullmatch(r"[+-]?[\d.e+-]+( [±…] [+-]?[\d.e+-]+)?", cell):
        return f"${cell.replace('±', chr(92) + 'pm').replace('…', chr(92) + 'ldots')}$"
    return tex(cell)
