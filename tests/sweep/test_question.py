"""A sweep file says what is asked; a wrong one is refused with its line."""

import contextlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitlab.config.errors import SweepFileError
from vitlab.config.groups import SWEEPS
from vitlab.config.overrides import merged, several
from vitlab.sweep import reader
from vitlab.sweep.question import BASELINE, source_of
from vitlab.sweep.reader import find, read

WHOLE = """\
question: What does a part do?
source: a paper
baseline: [patch=p2, fit.epochs=3]
arms:
  small: patch=p4
  two words: [model/pool=gap, optimizer.lr=1e-3]
axes:
  model.dropout: [0.0, 1e-1]
seeds: 2
x: parameters
expect:
  finding: it helps
  setting: something, in %
  numbers:
    small, dropout=0.0: 70.5
"""


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_arms_are_a_star_and_axes_a_grid(tmp_path):
    asked = read(written(tmp_path, WHOLE))
    cells = {cell.name: cell.overrides for cell in asked.cells()}
    assert list(cells) == [
        BASELINE,
        "baseline, dropout=0.0",
        "baseline, dropout=1e-1",
        "small, dropout=0.0",
        "small, dropout=1e-1",
        "two words, dropout=0.0",
        "two words, dropout=1e-1",
    ]
    assert cells[BASELINE] == ("patch=p2", "fit.epochs=3")
    assert cells["small, dropout=1e-1"] == ("fit.epochs=3", "patch=p4", "model.dropout=1e-1")
    assert asked.seeds == (0, 1)
    assert asked.expect.numbers == {"small, dropout=0.0": 70.5}


def test_a_margin_is_a_number_above_zero(tmp_path):
    assert read(written(tmp_path, WHOLE + "margin: 0.5\n")).margin == 0.5
    assert read(written(tmp_path, WHOLE)).margin is None
    for wrong in ("0", "-1", "nan", "inf", "half"):
        with pytest.raises(SweepFileError, match=r"line 16: margin.*expected a number"):
            read(written(tmp_path, WHOLE + f"margin: {wrong}\n"))


SERIES = """\
question: What?
arms:
  ViT: patch=p2
  ViT, larger: patch=p1
  hybrid: model/stem=resnet_small
series:
  ViT: ViT*
  mixed: [hybrid]
"""


def test_arms_of_a_series_are_named_with_a_star_for_any_letters(tmp_path):
    question = read(written(tmp_path, SERIES))
    assert {cell.name: cell.series for cell in question.cells()} == {
        "baseline": "", "ViT": "ViT", "ViT, larger": "ViT", "hybrid": "mixed"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "line", "why"),
    [
        ("[hybrid]", "[hybird]", 8, "series.mixed: there is no arm 'hybird'; did you mean hybrid?"),
        ("[hybrid]", "'*larger'", 6, "series: ViT, larger is of ViT and of mixed: an arm is of one series"),
        ("series:", "axes: {model.depth: [1, 2]}\nseries:", 7, "where there are axes, every arm is a series already"),
    ],
)
def test_a_series_of_no_arm_or_of_anothers_is_refused(tmp_path, old, new, line, why):
    with pytest.raises(SweepFileError, match=re.escape(why)) as error:
        read(written(tmp_path, SERIES.replace(old, new)))
    assert f"line {line}" in str(error.value)


def test_along_an_axis_every_arm_is_a_series(tmp_path):
    grid = (
        "question: What?\nx: model.depth\narms: {a: patch=p2}\naxes: {model.depth: [1, 2], model.dropout: [0, 0.1]}\n"
    )
    found = {cell.name: cell.series for cell in read(written(tmp_path, grid)).cells()}
    assert found["a, depth=1, dropout=0.1"] == found["a, depth=2, dropout=0.1"] == "a, dropout=0.1"
    tuned = "question: What?\nx: optimizer.lr\narms: {a: [patch=p2, 'optimizer.lr=0.1,0.2']}\n"
    assert [cell.series for cell in read(written(tmp_path, tuned)).cells()] == ["", "a", "a"]


def test_values_stay_what_was_written(tmp_path):
    text = "question: q\naxes:\n  optimizer.lr: [1e-3, 0.010]\n  fit.patience: [null, 3]\n"
    text += "  augment.area: [[0.5, 1.0], [0.8, 1]]\n"
    overrides = [cell.overrides for cell in read(written(tmp_path, text)).cells()]
    assert ("optimizer.lr=1e-3", "fit.patience=null", "augment.area=[0.5,1.0]") in overrides
    assert ("optimizer.lr=0.010", "fit.patience=3", "augment.area=[0.8,1]") in overrides


def test_words_of_the_command_line_are_every_cells(tmp_path):
    asked = read(written(tmp_path, WHOLE))
    for cell in asked.cells(["fit.steps=7", "tracking=off"]):
        assert "fit.steps=7" in cell.overrides
        assert "fit.epochs=3" not in cell.overrides  # another way to say how long


def test_the_first_names_of_keys_are_read_as_those_of_today(tmp_path):
    today = WHOLE.replace("small: patch=p4", "small: [patch=p4, init=pretrain/of]")
    today += "pretrain: {of: fit.epochs=1, says: fit.epochs=2}\nscale: {takes: {duration: a day}}\n"
    first = today.replace("finding:", "says:").replace("setting:", "of:").replace("duration:", "takes:")
    first = first.replace("pretrain:", "first:").replace("pretrain/", "first/")
    new, old = read(written(tmp_path, today)), read(written(tmp_path, first))
    assert (new.scale, new.duration, list(new.pretrain)) == ("takes", "a day", ["of", "says"])
    for name in ("scale", "duration", "pretrain", "axes", "expect", "lines", "seeds"):
        assert getattr(old, name) == getattr(new, name)
    assert [source_of(cell.overrides) for cell in old.cells()] == [source_of(cell.overrides) for cell in new.cells()]
    with pytest.raises(SweepFileError, match="line 18: pretrain is there twice"):
        read(written(tmp_path, first + "pretrain: {of: fit.epochs=1}\n"))


@pytest.mark.parametrize("word", ["patch=p1", "model.dropout=0.3", "optimizer.lr=1", "seed=3"])
def test_a_word_about_what_is_varied_is_refused(tmp_path, word):
    with pytest.raises(SweepFileError, match=re.escape(word)):
        read(written(tmp_path, WHOLE)).cells([word])


def test_scales_replace_what_they_name(tmp_path):
    text = "question: q\nbaseline: [patch=p2]\narms: {a: patch=p4}\nscale:\n  quick:\n    overrides: [fit.epochs=1]\n"
    text += (
        "    seeds: 2\n  large:\n    baseline: [dataset=cifar10]\n    arms:\n      b: patch=p8\n    duration: a day\n"
    )
    path = written(tmp_path, text)
    quick, large = read(path), read(path, "large")
    assert (quick.scale, quick.seeds, quick.baseline) == ("quick", (0, 1), ("patch=p2", "fit.epochs=1"))
    assert (large.seeds, large.baseline, list(large.arms)) == ((0, 1, 2), ("dataset=cifar10",), ["b"])
    assert large.duration == "a day"
    with pytest.raises(SweepFileError, match="there is no scale 'huge'; there is quick, large"):
        read(path, "huge")


@pytest.mark.parametrize(
    ("old", "new", "line", "why"),
    [
        ("source:", "sauce:", 2, "did you mean source"),
        ("question: What does a part do?\n", "", 1, "question is missing"),
        ("  small: patch=p4", "  small: patch p4", 5, "no override"),
        ("  small: patch=p4", "  small: [seed=4]", 5, "seeds are given once"),
        ("  small: patch=p4", "  baseline: patch=p4", 5, "no name for an arm"),
        ("  small: patch=p4", "  two words: patch=p4", 6, "twice"),
        ("seeds: 2", "seeds: [0, 0]", 9, "different seeds"),
        ("seeds: 2", "seeds: [a]", 9, "a whole number"),
        ("seeds: 2", "seeds: 0", 9, "how many"),
        ("x: parameters", "x: paramters", 10, "expected one of parameters"),
        ("x: parameters", "metric: test/acuracy", 10, "did you mean test/accuracy"),
        ("[0.0, 1e-1]", "0.0,0.1", 8, "expected a list"),
        ("[0.0, 1e-1]", "[0.0, 0.0]", 8, "different values"),
        ("  model.dropout: [0.0, 1e-1]", "  seed: [0, 1]", 8, "seeds are given as"),
        ("70.5", "seventy", 15, "a number"),
        ("    small, dropout=0.0: 70.5", "    smal, dropout=0.0: 70.5", 11, "there is no arm"),
        ("arms:\n", "arms: [\n", 6, "no YAML"),
        ("seeds: 2", "search: {method: tpe, trials: 3, space: {optimizer.lr: {log: [0, 1]}}}", 9, "above 0"),
        ("seeds: 2", "search: {method: tpa, trials: 3, space: {}}", 9, "did you mean tpe"),
        ("seeds: 2", "search: {method: tpe, space: {}}", 9, "trials is missing"),
        (
            "seeds: 2",
            "search: {method: grid, trials: 1, space: {optimizer.lr: {log: [1, 2]}}}",
            9,
            "a grid takes values",
        ),
        ("seeds: 2", "search: {method: tpe, trials: 1, space: {optimizer.lrr: {log: [1, 2]}}}", 9, "optimizer.lr"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path, old, new, line, why):
    assert old in WHOLE
    path = written(tmp_path, WHOLE.replace(old, new))
    with pytest.raises(SweepFileError) as said:
        read(path)
    assert str(said.value).startswith(f"{path}, line {line}: "), said.value
    assert why in str(said.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "word", "question: q", "a: &a [*a, *a]", "question: q\narms: {a: []", "\x00"]
)
def test_what_is_no_sweep_is_refused_in_one_sentence(tmp_path, text):
    with pytest.raises(ValueError, match="mine"):
        read(written(tmp_path, text))


def test_much_made_of_little_is_refused(tmp_path):
    lines = ["a0: &a0 {x: 1, y: 1}"] + [
        f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}, r: *a{i - 1}}}" for i in range(1, 18)
    ]
    with pytest.raises(SweepFileError, match="too much"):
        read(written(tmp_path, "\n".join(lines)))


@given(st.text(max_size=200))
@settings(max_examples=200)
def test_any_text_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "mine.yaml"
    path.write_text(text)
    with contextlib.suppress(SweepFileError):
        read(path)


def test_a_later_override_takes_the_earlier_ones_place():
    assert merged(["patch=p2", "fit.epochs=3"], ["fit.steps=5"], ["patch=p4"]) == ("fit.steps=5", "patch=p4")
    assert merged(["+model.width=3"], ["model.width=4"]) == ("model.width=4",)


def test_sweeps_are_found_by_name_and_a_typo_is_told(tmp_path):
    assert find("patch_size") == SWEEPS / "ablation" / "patch_size.yaml"
    assert find("ablation/patch_size") == find("patch_size")
    with pytest.raises(ValueError, match="did you mean patch_size"):
        find("patchsize")


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("optimizer.lr=1e-3,2e-3", ["1e-3", "2e-3"]),
        ("fit.shots=[1,5]", ["[1,5]"]),
        ("fit.shots=[1,5],[5]", ["[1,5]", "[5]"]),
        ("dataset.root='a,b'", ["'a,b'"]),
        ("patch=p2", ["p2"]),
        ("dataset.root=", [""]),
    ],
)
def test_values_of_an_override_are_those_between_commas_in_no_bracket(word, values):
    assert several(word) == values


def test_the_values_of_a_line_may_have_spaces_and_be_a_dictionary(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "question: Which?\nbaseline: 'dataset=image_folder dataset.root=~/My Data (1)  fit={steps: 3, clip: null}'\n"
        "arms: {a: 'dataset.root=~/a, b', b: fit.epochs=2, c: ['patch=choice(p2,p4)', 'tracking.notes=a, b']}\n"
    )
    root, fit = "dataset.root=~/My Data (1)", ("fit.steps=3", "fit.clip=null")
    assert [(cell.name, *cell.overrides[1:]) for cell in read(file).cells()] == [
        ("baseline", root, *fit),
        ("a, root=~/a", *fit, "dataset.root=~/a"),
        ("a, root=b", *fit, "dataset.root=b"),
        ("b", root, "fit.clip=null", "fit.epochs=2"),
        ("c, patch=p2", root, *fit, "patch=p2", "tracking.notes=a, b"),
        ("c, patch=p4", root, *fit, "patch=p4", "tracking.notes=a, b"),
    ]


def test_an_override_of_several_values_makes_a_cell_of_each(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "question: Which?\nbaseline: ['optimizer.lr=1,2']\n"
        "arms: {a: model.depth=3, b: ['optimizer.lr=5', 'fit.clip=1,2,null']}\n"
    )
    cells = reader.read(file).cells()
    assert [(cell.arm, cell.name) for cell in cells] == [
        ("baseline", "baseline, lr=1"), ("baseline", "baseline, lr=2"), ("a", "a, lr=1"), ("a", "a, lr=2"),
        ("b", "b, clip=1"), ("b", "b, clip=2"), ("b", "b, clip=null"),
    ]  # fmt: skip
    assert cells[-1].overrides == ("optimizer.lr=5", "fit.clip=null")
