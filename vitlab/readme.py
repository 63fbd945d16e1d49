"""What the README shows of vitlab: `python -m vitlab.readme [RUN]` writes its table and draws its figures anew."""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from vitlab import config, trained
from vitlab.files import write_whole
from vitlab.menu import menu as options_of
from vitlab.menu import table
from vitlab.run import Run

MARKS = ("<!-- options -->", "<!-- /options -->")
INK, SOFT, FILL, CHOSEN = "#1f2933", "#7b8794", "#e8f0fe", "#fff4e0"


def overview(path: Path) -> None:
    """The model as a row of slots, with the options of each from conf/."""
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


def learned(run: Run, path: Path) -> None:
    """What a run learned: its curves, and test images with what it takes them for."""
    rows, model = run.rows(), trained.load(run.folder)
    test = config.build(config.check(trained.read_config(run)["dataset"], "dataset")).splits()["test"]
    with torch.no_grad():
        images = torch.stack([model.preprocess(test.image(i)) for i in range(len(test))])
        taken = model(images).argmax(dim=-1)
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = np.ravel(np.asarray(figure.subfigures(1, 2, width_ratios=[1, 1.25])))
    axes = left.subplots()
    for key, label in (("train/accuracy", "training"), ("val/accuracy", "validation")):
        points = [(row["epoch"], 100 * row[key]) for row in rows if key in row]
        axes.plot(*zip(*points, strict=True), label=label, linewidth=1 if key.startswith("train") else 2)
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    result = run.result()
    axes.set_title(f"test accuracy {result['test/accuracy']:.2%}", fontsize=10)
    axes.legend(frameon=False, loc="lower right")
    for index, cell in enumerate(right.subplots(3, 10).flat):
        right_answer = int(taken[index]) == int(test.labels[index])
        cell.imshow(test.image(index), cmap="gray_r")
        cell.set_title(model.classes[int(taken[index])], fontsize=9, color=INK if right_answer else "#c62828", pad=2)
        cell.axis("off")
    figure.savefig(path, dpi=130)


def write_table(page: Path) -> None:
    """Puts the table of what can be chosen between the two marks of the page."""
    text = page.read_text()
    start, end = text.index(MARKS[0]) + len(MARKS[0]), text.index(MARKS[1])
    write_whole(page, lambda part: part.write_text(f"{text[:start]}\n{table()}\n{text[end:]}"))


if __name__ == "__main__":
    write_table(Path("README.md"))
    folder = Path(".readme")
    folder.mkdir(exist_ok=True)
    overview(folder / "model.png")
    if len(sys.argv) > 1:
        learned(Run(Path(sys.argv[1])), folder / "digits.png")
