"""Writes the tables of the READMEs and draws the model: `python -m vitlab.cli.readme`.

With runs, `python -m vitlab.cli.readme RUN...`, also the picture of what `vitlab inspect` draws of each.
"""

import re
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

from vitlab.config.errors import ConfigError
from vitlab.config.groups import SWEEPS, table
from vitlab.config.groups import menu as options_of
from vitlab.report.answer import finding_of
from vitlab.storage.files import write_whole
from vitlab.sweep.reader import read

SHORT = ("arm", "test accuracy", "n", "verdict", "FLOPs per image", "training time")  # columns for the first page
INSIDE = (  # figures of an inspection, in lines
    ("rollout", "attention-0"),
    ("distance", "entropy", "norms"),
    ("positions", "cka", "rank", "filters"),
)
TOLD = re.compile(r"Of (\d+) differences? that the source reports, (\d+) .*? same sign, (\d+) with the other")
INK, SOFT, FILL, CHOSEN = "#1f2933", "#7b8794", "#e8f0fe", "#fff4e0"


def overview(path: Path) -> None:
    """Draws the model as a row of slots, with the options of each from conf/."""
    menu = options_of()
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xlim(0, 13)
    axes.set_ylim(0.75, 4.3)
    axes.axis("off")

    def box(x: float, y: float, width: float, height: float, title: str, below: str = "", fill: str = FILL) -> None:
        shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.03,rounding_size=0.08", fc=fill, ec=INK)
        axes.add_patch(shape)
        axes.text(x + width / 2, y + height / 2, title, ha="center", va="center", fontsize=10, color=INK)
        axes.text(x + width / 2, y - 0.15, below, ha="center", va="top", fontsize=8, color=SOFT, linespacing=1.35)

    def arrow(x: float, to: float, y: float = 2.9) -> None:
        axes.add_patch(FancyArrowPatch((x, y), (to, y), arrowstyle="-|>", mutation_scale=12, color=INK))

    def options(group: str) -> str:
        return "\n".join(menu[group])

    for row in range(4):
        for column in range(4):
            axes.add_patch(
                FancyBboxPatch(
                    (0.15 + 0.3 * column, 2.35 + 0.3 * row),
                    0.22,
                    0.22,
                    boxstyle="square,pad=0.02",
                    fc="#d8dee6",
                    ec="white",
                )
            )
    axes.text(
        0.72,
        2.2,
        "image\n(b c y x)\npatch=\n" + ", ".join(menu["patch"]).replace("p14", "\np14"),
        ha="center",
        va="top",
        fontsize=8,
        color=SOFT,
    )
    arrow(1.45, 1.85)
    box(1.9, 2.5, 1.2, 0.8, "stem", "model/stem=\n" + options("model/stem"))
    arrow(3.15, 3.5)
    box(3.55, 2.5, 1.35, 0.8, "+ position", "model/position=\n" + options("model/position"))
    axes.text(4.22, 3.75, "prefix tokens in front:\nclass token, registers", ha="center", fontsize=8, color=SOFT)
    arrow(4.95, 5.3)
    axes.add_patch(
        FancyBboxPatch(
            (5.35, 2.2), 3.55, 1.65, boxstyle="round,pad=0.03,rounding_size=0.1", fc="white", ec=INK, ls="--"
        )
    )
    axes.text(7.1, 4.0, "block x depth     x + drop_path(scale * branch(norm(x)))", ha="center", fontsize=9, color=INK)
    box(5.5, 2.5, 1.5, 0.8, "norm, attention", "", CHOSEN)
    axes.text(
        6.25, 2.05, "model/attention=\n" + options("model/attention"), ha="center", va="top", fontsize=8, color=SOFT
    )
    box(7.3, 2.5, 1.45, 0.8, "norm, mlp", "", CHOSEN)
    axes.text(8.0, 2.05, "model/mlp=\n" + options("model/mlp"), ha="center", va="top", fontsize=8, color=SOFT)
    arrow(7.03, 7.27)
    arrow(8.95, 9.3)
    box(9.35, 2.5, 0.75, 0.8, "norm")
    arrow(10.15, 10.4)
    box(10.45, 2.5, 0.85, 0.8, "pool", "model/pool=\n" + options("model/pool"))
    arrow(11.35, 11.6)
    box(11.65, 2.5, 0.85, 0.8, "head", "model/head=\n" + options("model/head"))
    arrow(12.53, 12.85)
    figure.savefig(path, dpi=130)


def inside(path: Path, folders: list[Path]) -> None:
    """Draws the figures of `vitlab inspect` of each run in one picture, 1,600 pixels wide."""
    from vitlab.cli import inspect

    lines: list[list[Image.Image]] = []
    with tempfile.TemporaryDirectory() as place:
        for number, folder in enumerate(folders):
            inspect.main([str(folder), "--save", f"{place}/{number}"])
            found = [[Path(place, str(number), f"{key}.png") for key in keys] for keys in INSIDE]
            drawn = [[Image.open(file).convert("RGB") for file in files if file.is_file()] for files in found]
            lines += [line for line in drawn if line]
    scales = [1600 / sum(picture.width for picture in line) for line in lines]
    lines = [
        [picture.resize((int(picture.width * scale), int(picture.height * scale))) for picture in line]
        for line, scale in zip(lines, scales, strict=True)
    ]
    heights = [max(picture.height for picture in line) + 12 for line in lines]
    whole, top = Image.new("RGB", (1600, sum(heights)), "white"), 0
    for line, height in zip(lines, heights, strict=True):
        left = 0
        for picture in line:
            whole.paste(picture, (left, top))
            left += picture.width
        top += height
    write_whole(path, lambda part: whole.save(part, format="png", optimize=True))


def cells(line: str) -> list[str]:
    """The cells of a line of a table in Markdown."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def short(page: Path) -> str:
    """The table of a published answer, with the columns of `SHORT` alone."""
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    keep = [i for i, name in enumerate(cells(lines[0])) if any(name.startswith(kept) for kept in SHORT)]
    rows = [[cells(line)[i] for i in keep] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["--"] * len(keep), *rows[2:]])


def index() -> str:
    """Every question of sweeps/, its answer, and the first sentence of the finding, as a table in Markdown."""
    lines = ["| question | answer | found | time |", "|--|--|--|--|"]
    for file in sorted(SWEEPS.rglob("*.yaml")):
        asked, page = read(file), file.with_suffix(".md")
        link = f"[{asked.name}]({page.relative_to(SWEEPS).as_posix()})" if page.exists() else f"`{asked.name}`"
        found = " ".join(finding_of(page).split()) if page.exists() else "Not run here yet."
        lines.append(
            f"| {asked.question} | {link} | {re.split(r'(?<=[.!?]) (?=[A-Z])', found)[0]} | {asked.duration} |"
        )
    return "\n".join(lines)


def paper() -> str:
    """Every ablation of a paper: the question, what its source says, what was found, the command and its time."""
    lines, counts = ["| question | the paper | here | command | time |", "|--|--|--|--|--|"], np.zeros(3, int)
    for file in sorted((SWEEPS / "paper").glob("*.yaml")):
        asked, page = read(file), file.with_suffix(".md")
        found = " ".join(finding_of(page).split()) if page.exists() else "Not run here yet."
        title = f"[{asked.question}]({page.name})" if page.exists() else asked.question
        lines.append(f"| {title} | {asked.expect.finding} | {found} | `vitlab sweep {asked.name}` | {asked.duration} |")
        if page.exists() and (told := TOLD.search(page.read_text(encoding="utf-8"))):
            counts += [int(number) for number in told.groups()]
    reported, same, other = counts
    found = f"{same} are found here with the same sign, {other} with the other"
    rest = f"{reported - same - other} cannot be told"
    lines.append(f"\nOf {reported} differences that the sources report as numbers, {found}, and {rest}.")
    return "\n".join(lines)


def put(page: Path, name: str, text: str) -> None:
    """Replaces the text between the two marks of this name in a page."""
    before, start, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not (start and end):
        raise ConfigError(f"{page} has no marks for {name}: put <!-- {name} --> and <!-- /{name} --> back")
    write_whole(page, lambda part: part.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8"))


if __name__ == "__main__":
    put(Path("README.md"), "options", table())
    put(Path("README.md"), "answer", short(SWEEPS / "ablation" / "patch_size.md"))
    put(SWEEPS / "README.md", "answers", index())
    put(SWEEPS / "paper" / "README.md", "answers", paper())
    Path(".readme").mkdir(exist_ok=True)
    overview(Path(".readme/model.png"))
    if sys.argv[1:]:
        inside(Path(".readme/inspect.png"), [Path(word) for word in sys.argv[1:]])
