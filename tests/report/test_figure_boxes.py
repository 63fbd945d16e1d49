"""What is drawn, measured: no letters on other letters, on a mark or out of the frame, at both widths."""

from itertools import combinations, pairwise
from zlib import crc32

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.transforms import Bbox

from tests.report.test_figures import arm
from vitlab.config.groups import SWEEPS, is_known, known_keys
from vitlab.config.overrides import key_of
from vitlab.plotting import COLOURS, FULL, HALF, INK
from vitlab.report import figures
from vitlab.report.figure_data import COMPUTE, series, varied_compute
from vitlab.report.table import Comparison
from vitlab.report.words import WORDS, settings, words_of
from vitlab.storage.metrics import COSTS, find, metric
from vitlab.sweep import reader

FILES = {file.stem: file for file in sorted(SWEEPS.rglob("*.yaml"))}


def value(word):
    word = word.partition("=")[2]
    try:
        return int(word) if word.isdigit() else float(word)
    except ValueError:
        return word


def made_up(question, seed=0):
    """The comparison that a sweep would give, of made-up numbers."""
    random = np.random.default_rng([seed, crc32(question.name.encode())])
    bench, cells = metric(question.metric).source == "bench", question.cells()
    if question.arms:
        cells = [cell for cell in cells if not cell.arm.startswith("baseline")]
    rows = []
    for n, cell in enumerate(cells):
        given = {key_of(word): value(word) for word in cell.overrides}
        flops, size = 10 ** random.uniform(9, 12), 10 ** random.uniform(4, 6)
        cost = {"parameters": size, "flops_per_image": flops / 1e4} | ({} if bench else {"training_flops": flops})
        mean = 10 ** random.uniform(1, 3) if bench else random.uniform(0.85, 0.98)
        scores = [mean * (1 + 0.1 * each) if bench else min(1, mean + 0.006 * each) for each in random.normal(size=3)]
        differs = {key: given[key] for key in question.axes if key in given}
        x = cost.get(question.x, given.get(question.x))
        rows.append(arm(cell.name, scores, x=x, baseline=n == 0, best=n == 2, cost=cost, differs=differs))
    return Comparison(
        title=question.question, source=question.source, metric=metric(question.metric), x=question.x, rows=tuple(rows),
        agreement=None, series={cell.name: cell.series for cell in cells if cell.series},
    )  # fmt: skip


def letters(axes):
    """The boxes of all texts of a panel, by what they say."""
    texts = [axes.xaxis.label, axes.yaxis.label, *axes.texts]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return texts


def marks(axes):
    """The boxes of the marks and intervals."""
    unit, boxes = axes.figure.dpi / 72, []
    for line in axes.lines:
        if line.get_marker() not in ("", "None", None) and len(line.get_xdata()):
            by = unit * line.get_markersize() / 2
            boxes += [Bbox([at - by, at + by]) for at in line.get_transform().transform(line.get_xydata())]
    for bars in axes.collections:
        if isinstance(bars, LineCollection):
            boxes += [Bbox(np.sort(bars.get_transform().transform(each), axis=0)) for each in bars.get_segments()]
    return boxes


def crossings(figure):
    """What is drawn over something else, in words."""
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    texts = [text for text in (*texts, *(each for axes in figure.axes for each in letters(axes))) if text.get_text()]
    found = [f"{text.get_text()} has {text.get_fontsize()} points" for text in texts if text.get_fontsize() < 7]
    boxes = [(text.get_text(), text.get_window_extent().padded(-0.5)) for text in texts]
    found += [f"{a} on {b}" for (a, one), (b, two) in combinations(boxes, 2) if one.overlaps(two)]
    width, height = figure.bbox.max
    found += [f"{a} leaves the figure" for a, b in boxes if min(b.min) < 0 or b.x1 > width or b.y1 > height]
    for axes in figure.axes:
        frame, own = axes.get_window_extent(), [text for text in axes.texts if text.get_transform() == axes.transData]
        found += ["a legend covers data" for each in figure.legends if each.get_window_extent().overlaps(frame)]
        for text in own:
            box = text.get_window_extent()
            found += [f"{text.get_text()} on a mark" for mark in marks(axes) if box.overlaps(mark)]
            inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
            found += [] if inside else [f"{text.get_text()} leaves the frame"]
    return found


@pytest.mark.parametrize("name", FILES)
def test_nothing_covers_anything_in_the_figure_of_a_shipped_sweep(name):
    of = made_up(reader.read(FILES[name]))
    assert crossings(figures.against(of, HALF)) == []
    assert crossings(figures.combined(of)) == []


@pytest.mark.parametrize("seed", range(8))
def test_nothing_covers_anything_in_a_random_figure(seed):
    random = np.random.default_rng(seed)
    names = ["ViT", "a hybrid, larger", "twice as long as the name of an arm may be", "p4", "MLP width 192"]
    rows = tuple(
        arm(f"{names[n % 5]} {n}", [*(random.uniform(0.3, 1) + random.normal(size=3) * 10 ** random.uniform(-4, -1))],
            x=10 ** random.uniform(6, 6 + seed), baseline=n == 0)
        for n in range(2 + 2 * seed)
    )  # fmt: skip
    of = Comparison(title="?", source="", metric=metric("test/accuracy"), x=["parameters", "model.width"][seed % 2],
                    rows=rows, agreement=None)  # fmt: skip
    assert crossings(figures.against(of, [HALF, FULL][seed // 2 % 2])) == []


def test_names_that_cannot_stand_beside_their_marks_stand_in_a_legend():
    rows = tuple(arm(f"an arm of a long name {n}", (0.9, 0.91), x=1e6 + n) for n in range(9))
    of = Comparison(title="?", source="", metric=metric("test/accuracy"), x="parameters", rows=rows, agreement=None)
    figure = figures.against(of, HALF)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [row.name for row in rows]
    assert not figure.axes[0].texts
    assert crossings(figure) == []
    assert len({(h.get_color(), h.get_marker()) for h in figure.legends[0].get_lines()}) == 9


def test_a_series_has_one_line_and_one_color_and_the_front_is_drawn_into_the_same_panel():
    of = made_up(reader.read(FILES["figure5_compute"]))
    figure = figures.combined(of)
    (axes,) = figure.axes  # the second would show the same points
    assert figures.compute(of) is None
    assert [text.get_text() for text in figure.legends[0].get_texts()][:3] == ["ViT", "ResNet", "hybrid"]
    joined = [line for line in axes.lines if len(line.get_xdata()) == 3 and line.get_linestyle() != "None"][:3]
    assert len({line.get_color() for line in joined}) == len({line.get_linestyle() for line in joined}) == 3
    assert {text.get_text() for text in axes.texts} == {"smaller", "larger"}
    assert axes.get_xlabel() == "training compute (FLOPs)"
    assert "dotted grey: Pareto front of the means" in figure._suptitle.get_text()


def test_speeds_are_on_a_logarithmic_axis_and_lines_are_named_by_their_arm():
    figure = figures.combined(made_up(reader.read(FILES["figure12_cost"])))
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["image size (pixels)", "FLOPs per image"]
    assert figure.axes[0].get_ylabel() == "inference speed (images/s)"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["Ti/16", "S/32", "S/16", "ResNet-26", "R26+S/32", "baseline", "chosen by validation"]


def test_the_lines_of_a_grid_are_named_in_words():
    of = made_up(reader.read(FILES["learning_rate_batch_size"]))
    assert [*series(of)] == ["batch size 32", "batch size 64", "batch size 128"]
    assert figures.against(of).axes[0].get_xlabel() == "learning rate"


def test_learning_curves_of_a_grid_share_the_color_of_their_line_and_are_named_in_words(tmp_path):
    rows = [
        arm(f"b={batch}, lr={rate}", (0.9, 0.92), x=rate, root=tmp_path, asked=(0, 1),
            differs={"fit.batch_size": batch, "optimizer.lr": rate})
        for batch in (32, 64) for rate in (1e-3, 1e-2, 1e-1)
    ]  # fmt: skip
    of = made_up(reader.read(FILES["learning_rate_batch_size"]))
    for width in (HALF, FULL):
        figure = figures.curves(Comparison(**{**vars(of), "rows": tuple(rows)}), width)
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()][:2] == [
            "batch size 32, learning rate 0.001", "batch size 32, learning rate 0.01"
        ]  # fmt: skip
        assert len({line.get_color() for line in legend.get_lines()}) == 2
        assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in legend.get_lines()}) == 6
        assert crossings(figure) == []


def test_compute_is_a_panel_of_its_own_only_where_the_axis_does_not_order_the_arms_by_it():
    of = made_up(reader.read(FILES["model_size"]))
    alike = [arm(f"a{n}", (0.9, 0.91), x=float(n), cost={"training_flops": 10.0**n}) for n in (1, 2, 3)]
    assert varied_compute(Comparison(**{**vars(of), "rows": tuple(alike)})) is None
    assert varied_compute(Comparison(**{**vars(of), "rows": tuple(alike), "x": "model.width"})) == "training_flops"
    assert varied_compute(of) == "training_flops"  # random numbers are in no order


def test_colours_can_be_told_apart_in_grey():
    def lightness(color):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
        return 116 * (np.array([0.2126, 0.7152, 0.0722]) @ linear) ** (1 / 3) - 16

    assert min(b - a for a, b in pairwise(sorted(map(lightness, (*COLOURS, INK))))) > 8


def test_keys_have_words_and_other_keys_their_own_name():
    unknown = [key for key in WORDS if not is_known(key, known_keys())]
    assert unknown == []
    asked = [question.x for file in FILES.values() if (question := reader.read(file)).x]
    assert [key for key in asked if key not in WORDS and not find(key)] == []
    assert words_of("optimizer.lr") == "learning rate"
    assert words_of("model.patch") == "patch size (pixels)"
    assert words_of("model.position.base") == "model.position.base"
    assert settings({"fit.batch_size": 32, "optimizer.lr": 0.1, "model.position.base": None}, "optimizer.lr") == (
        "batch size 32, base=null"
    )
    assert {*COMPUTE} < {*COSTS}


def test_letters_stay_letters_in_the_files(tmp_path):
    of = made_up(reader.read(FILES["patch_size"]))
    figures.save(figures.against(of), tmp_path, "metric")
    assert "<text" in (tmp_path / "metric.svg").read_text()
    assert b"/FontFile2" in (tmp_path / "metric.pdf").read_bytes()
