import json
import math

import pandas as pd
import pytest

from vitlab.plotting import save_one
from vitlab.report import figures
from vitlab.report.figure_data import Curve, pareto_front
from vitlab.report.panels import banded
from vitlab.report.statistics import Estimate
from vitlab.report.table import Agreement, Comparison, Pair, Row
from vitlab.storage.metrics import NONE, duration, metric, si


def estimate(values, mean=None):
    values = list(values)
    n, mean = len(values), sum(values) / len(values)
    sd = (sum((v - mean) ** 2 for v in values) / (n - 1)) ** 0.5 if n > 1 else None
    half = None if sd is None else {2: 12.71, 3: 4.30}.get(n, 2.3) * sd / math.sqrt(n)
    return Estimate(
        n=n, mean=mean, sd=sd, low=None if half is None else mean - half, high=None if half is None else mean + half
    )


def arm(name, values=(), *, x=None, asked=(0, 1, 2), state="", baseline=False, best=False, root=None, lost=(), **more):
    """A row whose finished runs have these scores; `root` is where their curves are written."""
    lines = []
    for seed, value in [*zip(asked, values, strict=False), *((seed, None) for seed in lost)]:
        folder = f"{root or 'runs'}/{''.join(c if c.isalnum() else '-' for c in name)}-s{seed}"
        if root is not None:
            (root.__class__(folder)).mkdir(parents=True, exist_ok=True)
            rows = [
                {"step": e * 10, "epoch": e + 0.5, "val/accuracy": (value or 0.5) * (1 - 0.8 ** (e + 1))}
                for e in range(30 if value else 9)
            ]
            (root.__class__(folder) / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
            said = {"command": ["vitlab", "train", f"seed={seed}", "patch=p2"]}
            (root.__class__(folder) / "environment.json").write_text(json.dumps(said))
        lines.append(
            {"seed": seed, "run": folder, "status": "failed" if value is None else "finished", "test/accuracy": value,
             "val/accuracy": None if value is None else value - 0.01, "seconds": 46.6}
        )  # fmt: skip
    runs = pd.DataFrame(lines).set_index("seed") if lines else pd.DataFrame()
    score = estimate(values) if values else None
    cost = {"parameters": 58234.0, "flops_per_image": 1998144.0, "training_flops": 4.6e11, "seconds": 46.6,
            "images_per_second": 1735.0, "peak_memory_bytes": 7.97e8} if values else {}  # fmt: skip
    row = {"differs": {"patch": name}, "difference": None, "p": None, "verdict": "", "validation": score, "cost": cost}
    return Row(
        name=name, x=x, baseline=baseline, best=best, seeds=tuple(asked), runs=runs, state=state, score=score,
        **row | more,
    )  # fmt: skip


def comparison(root=None, *, numeric=True, agreement=True):
    """Arms of all kinds: complete, best, with one seed, with markup in its name, and without a finished run."""
    xs = [1, 2, 4, 32, 8] if numeric else ["one", "two", "four", "x", "eight"]
    gain = Estimate(n=3, mean=0.012, sd=0.003, low=0.0045, high=0.0195)
    cheap = {"parameters": 6e4, "flops_per_image": 3.1e5, "training_flops": 4.1e10, "seconds": 4000.0}
    rows = (
        arm("patch 1", (0.981, 0.984, 0.979), x=xs[0], baseline=True, root=root),
        arm("patch 2", (0.993, 0.996, 0.991), x=xs[1], best=True, root=root, difference=gain, p=0.012,
            verdict="better (p = 0.012)"),
        arm("patch_4 & $x^2$ | 50 %", (0.962,), x=xs[2], root=root, state="2 missing", lost=(7,),
            verdict="cannot tell (1 seed)", cost=cheap),
        arm("</script><b>bold</b>", (0.94, 0.95), x=xs[3], root=root, asked=(0, 1), cost=cheap | {"training_flops": 9e9}),  # noqa: E501
        arm("patch 8", x=xs[4], state="3 failed"),
    )  # fmt: skip
    told = Agreement(
        finding="Smaller patches win.", setting="ImageNet top-1 after pre-training on JFT",
        numbers={"patch 1": 80.0, "patch 2": 81.4, "</script><b>bold</b>": 77.0},
        pairs=(
            Pair(first="patch 1", second="patch 2", reported=1.4, found=gain, verdict="agrees"),
            Pair(first="patch 1", second="</script><b>bold</b>", reported=-3.0, found=None, verdict="cannot tell"),
            Pair(first="patch 2", second="</script><b>bold</b>", reported=-4.4, found=None, verdict="cannot tell"),
        ),
        order=0.33, words="One of one pair that can be told agrees.",
    )  # fmt: skip
    return Comparison(
        title="What does a smaller patch buy, on <digits>?", source="Dosovitskiy et al. 2021, Figure 5",
        metric=metric("test/accuracy"), x="model.patch" if numeric else "patch", rows=rows,
        agreement=told if agreement else None, notes=("patch 8 has no finished run.",),
    )  # fmt: skip


def words(figure):
    return [text.get_text() for text in figure.findobj(lambda part: hasattr(part, "get_text"))]


def test_metric_is_in_percent_against_a_logarithmic_axis_where_the_numbers_span_much():
    axes = figures.against(comparison()).axes[0]
    assert axes.get_xscale() == "log"
    assert 80 < axes.get_ylim()[0] < 100
    assert axes.get_ylabel() == "test accuracy (%)"


def test_every_arm_is_named_and_the_one_without_runs_is_said_to_be_missing():
    found = words(figures.against(comparison()))
    assert "patch 1 (baseline)" in found
    assert "</script><b>bold</b>" in found
    assert any("not shown: patch 8 (3 failed)" in text for text in found)


def test_words_on_the_axis_put_the_arms_below_one_another():
    axes = figures.against(comparison(numeric=False)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one (baseline)", "two", "four", "x", "eight"]
    assert "3 failed" in [text.get_text() for text in axes.texts]


def test_a_comparison_without_any_finished_run_still_has_a_figure():
    bare = Comparison(title="?", source="", metric=metric("test/accuracy"), x="model.patch",
                      rows=(arm("a", x=1), arm("b", x=2, state="1 pruned")), agreement=None)  # fmt: skip
    assert "1 pruned" in words(figures.against(bare))
    assert figures.compute(bare) is None
    assert figures.curves(bare) is None
    assert figures.beside(bare) is None
    assert figures.combined(bare).axes


def test_learning_curves_are_means_in_a_band_up_to_where_all_seeds_came(tmp_path):
    of = comparison(tmp_path)
    figure = figures.curves(of)
    assert figure is not None
    assert len(figure.axes[0].collections) == 4  # bands
    assert any("without a curve: patch 8" in text for text in words(figure))
    assert any("did not finish" in text for text in words(figure))
    short = Curve(0, "a", True, [1.0, 2.0, 3.0], [0.1, 0.2, 0.3])
    long = Curve(1, "b", True, [2.0, 4.0], [0.4, 0.6])
    grid, mean, low, high = banded([short, long])
    assert grid.tolist() == [2, 3]
    assert mean.tolist() == pytest.approx([0.3, 0.4])
    assert low.tolist() == pytest.approx([0.2, 0.3])
    assert high.tolist() == pytest.approx([0.4, 0.5])


def test_learning_curves_are_of_the_validation_metric_that_belongs_to_the_answer(tmp_path):
    of = comparison(tmp_path)
    for file in tmp_path.glob("*/metrics.jsonl"):
        file.write_text(file.read_text().replace("val/accuracy", "val/macro_f1"))
    assert figures.curves(of) is None
    figure = figures.curves(Comparison(**{**vars(of), "metric": metric("test/macro_f1")}))
    assert figure.axes[0].get_ylabel() == "validation macro F1 (%)"


def test_pareto_front_leaves_out_what_costs_more_and_is_no_better():
    points = [(1, 0.5), (2, 0.4), (3, 0.7), (3, 0.6), (5, 0.7)]
    assert pareto_front(points) == [0, 2]
    assert pareto_front(points, higher_is_better=False) == [0, 1]


def test_compute_falls_back_to_the_flops_of_an_image():
    of = comparison()
    rows = [arm(f"a{i}", (0.9, 0.91), cost={"flops_per_image": 10.0**i}) for i in (6, 7, 8)]
    figure = figures.compute(Comparison(**{**vars(of), "rows": tuple(rows)}))
    assert figure is not None
    assert figure.axes[0].get_xlabel() == "FLOPs per image"
    assert figure.axes[0].get_xscale() == "log"


def test_reported_differences_stand_beside_those_found():
    figure = figures.beside(comparison())
    assert figure is not None
    assert "not found yet" in words(figure)
    assert figure.axes[0].get_xlabel() == "difference to patch 1 (points)"
    assert figures.beside(comparison(agreement=False)) is None


def test_a_difference_found_the_other_way_round_changes_its_sign():
    told = comparison().agreement
    turned = told.difference("patch 2", "patch 1")
    assert (turned.mean, turned.low, turned.high) == (-0.012, -0.0195, -0.0045)


def test_the_same_comparison_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        paths = figures.save(figures.against(comparison()), tmp_path / name, "metric")
        assert [path.name for path in paths] == ["metric.png", "metric.svg", "metric.pdf"]
    for path in paths:
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()
    assert b"/FontFile2" in (tmp_path / "one" / "metric.pdf").read_bytes()  # TrueType


@pytest.mark.slow
def test_forty_arms_can_be_drawn(tmp_path):
    rows = tuple(arm(f"arm {i}", (0.5 + i / 300, 0.51 + i / 300), x=i + 1, baseline=i == 3) for i in range(40))
    of = Comparison(**{**vars(comparison()), "rows": rows})
    for figure in (figures.against(of), figures.combined(of), figures.against(Comparison(**{**vars(of), "x": None}))):
        save_one(figure, tmp_path / "large.png")


@pytest.mark.parametrize(
    ("value", "words"),
    [(58234, "58.2 k"), (1998144, "2.00 M"), (999.9e3, "1.00 M"), (51, "51"), (4.1e17, "410 P"), (None, NONE)],
)  # fmt: skip
def test_large_numbers_have_prefixes(value, words):
    assert si(value) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(46.6, "46.6 s"), (4000, "1 h 06 min"), (125, "2 min 05 s"), (200000, "2 d 7 h"), (None, NONE)],
)
def test_times_are_told_in_two_units(seconds, words):
    assert duration(seconds) == words
