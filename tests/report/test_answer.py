import csv
import io
import re
from dataclasses import replace

import pytest

from tests.report.test_figures import arm, comparison
from vitlab.report import answer
from vitlab.report.statistics import Estimate
from vitlab.report.table import Comparison
from vitlab.storage.metrics import NONE, metric

FACTS = {"hardware": "2 CPU cores", "cost": "12 min\nand more", "command": "vitlab sweep `x` <!-- finding -->"}


def cells(line):
    """Of a Markdown row, with what is escaped."""
    return [cell.strip() for cell in line.replace("\\|", "\0").strip("|").split("|")]


def test_markdown_table_has_as_many_cells_in_every_row_whatever_the_names_are():
    lines = answer.table_text(comparison(), "markdown").split("\n")
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 5
    assert len({len(cells(row)) for row in rows}) == 1
    assert len({len(row) for row in rows}) == 1  # aligned
    assert not any("<" in row.replace("\\<", "") for row in rows)


def test_best_is_bold_and_a_line_below_says_that_validation_chose_it():
    text = answer.table_text(comparison(), "markdown")
    assert "| **patch 2** " in text
    assert text.count("**") == 6  # name, score and n of one arm
    assert "bold: chosen by validation; the test images chose nothing" in text
    plain = answer.table_text(comparison())
    assert "\n* patch 2 " in plain
    assert "*: chosen by validation; the test images chose nothing" in plain


def test_accuracies_are_in_percent_with_their_spread_interval_and_difference():
    line = next(line for line in answer.table_text(comparison()).split("\n") if line.startswith("* patch 2"))
    for words in ("99.33 ± 0.25", "98.71 … 99.96", "+1.20 ± 0.75", "better (p = 0.012)", "58.2 k", "2.00 M", "797 MB"):
        assert words in line


def test_one_seed_has_neither_spread_nor_interval():
    line = next(line for line in answer.table_text(comparison()).split("\n") if "patch_4" in line)
    assert "96.20" in line
    assert "±" not in line
    assert "…" not in line
    assert "1/3" in line
    assert "2 missing" in line


def test_an_arm_without_a_finished_run_is_a_row_of_dashes_with_its_state():
    for style in ("plain", "markdown"):
        line = next(line for line in answer.table_text(comparison(), style).split("\n") if "patch 8" in line)
        assert "0/3" in line
        assert line.count(NONE) >= 5
        assert "3 failed" in line


def test_of_folds_the_tables_say_so():
    rows = [replace(row, folds=3, seeds=(0, 1)) for row in comparison().rows]
    of = replace(comparison(), rows=tuple(rows))
    text = answer.table_text(of)
    assert "3 folds x 2 seeds" in text
    assert "over n folds; interval of the mean: 95 %, Student's t, n folds" in text
    assert "paired by fold" in text
    assert " & 3 folds x 2 seeds & " in answer.table_tex(of)
    assert {row["folds"] for row in csv.DictReader(io.StringIO(answer.table_csv(of)))} == {"3"}
    assert "every run" in answer.CAPTIONS["metric"].format(metric="accuracy", point=of.point)


def test_losses_are_no_shares():
    row = arm("a", (0.5, 0.7))
    of = Comparison(**{**vars(comparison()), "metric": metric("test/loss"), "rows": (row,)})
    text = answer.table_text(of)
    assert "test loss " in text
    assert "0.6 ± 0.1414" in text


def test_what_validation_chose_by_its_own_score_is_said_to_flatter():
    of = Comparison(**{**vars(comparison()), "metric": metric("val/accuracy")})
    assert "flatters" in answer.table_text(of)


def test_csv_has_every_arm_in_full_digits():
    rows = list(csv.DictReader(io.StringIO(answer.table_csv(comparison()))))
    assert [row["arm"] for row in rows][3:] == ["</script><b>bold</b>", "patch 8"]
    assert float(rows[1]["mean"]) == pytest.approx(0.99333333333333)
    assert rows[4]["mean"] == ""
    assert rows[4]["state"] == "3 failed"
    assert rows[0]["seeds"] == "0 1 2"


def test_latex_has_booktabs_as_many_cells_a_row_and_escaped_names():
    text = answer.table_tex(comparison())
    lines = text.split("\n")
    body = lines[lines.index("\\midrule") + 1 : lines.index("\\bottomrule")]
    columns = lines[1].count("l", lines[1].index("}{")) + lines[1].count("r", lines[1].index("}{"))
    assert {line.replace("\\&", "").count("&") for line in body} == {columns - 1}
    assert all(line.endswith("\\\\") for line in body)
    assert "\\textbf{patch 2} & $\\mathbf{99.33 \\pm 0.25}$" in text
    assert "patch\\_4 \\& \\$x\\textasciicircum{}2\\$ \\textbar{} 50 \\%" in text
    assert text.count("$") - text.count("\\$") == 2 * text.count("$\\mathbf") + 2 * sum(
        line.count(" $") - line.count(" $\\mathbf") for line in body
    )
    assert not {*"±…", NONE} & {*"\n".join(body)}


@pytest.mark.slow
def test_an_answer_is_written_whole_and_twice_the_same(tmp_path):
    first = answer.write(comparison(tmp_path / "runs"), tmp_path / "a", facts=FACTS)
    second = answer.write(comparison(tmp_path / "runs"), tmp_path / "b", facts=FACTS)
    names = {f"{name}.{kind}" for name in ("metric", "curves", "compute", "beside") for kind in ("png", "svg", "pdf")}
    names |= {f"{name}-half.pdf" for name in ("metric", "curves", "compute", "beside")}
    assert {path.name for path in first} == names | {"answer.md", "answer.html", "table.csv", "table.tex"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {path.name for path in first}
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name


@pytest.mark.usefixtures("no_figures")
def test_a_finding_is_kept_to_the_letter_and_shown_in_the_page(tmp_path):
    answer.write(comparison(), tmp_path, facts=FACTS, pictures=False)
    path = tmp_path / "answer.md"
    text = path.read_text()
    assert answer.UNWRITTEN in text
    mine = "\n## Patches of 2 win\r\n\n  by *far*: `</script>` <b>&\n\n"
    before, _, rest = text.partition(answer.FINDING[0])
    _, _, after = rest.partition(answer.FINDING[1])
    path.write_bytes((before + answer.FINDING[0] + mine + answer.FINDING[1] + after).encode())
    kept = path.read_bytes()
    answer.write(comparison(), tmp_path, facts=FACTS, pictures=False)
    assert path.read_bytes() == kept
    assert "Patches of 2 win" in (tmp_path / "answer.html").read_text()


@pytest.mark.usefixtures("no_figures")
def test_an_answer_that_lost_its_marks_is_not_written_over(tmp_path):
    (tmp_path / "answer.md").write_text("all that I know")
    with pytest.raises(ValueError, match="put both marks back"):
        answer.write(comparison(), tmp_path, facts=FACTS, pictures=False)
    assert [path.name for path in tmp_path.iterdir()] == ["answer.md"]
    assert (tmp_path / "answer.md").read_text() == "all that I know"


def test_titles_and_facts_cannot_take_the_place_of_the_finding():
    of = Comparison(**{**vars(comparison()), "title": "<!-- finding -->x<!-- /finding -->"})
    text = answer.markdown(of, FACTS, {}, "mine")
    assert text.partition(answer.FINDING[0])[2].partition(answer.FINDING[1])[0] == "mine"


def test_a_command_stands_in_a_fence_that_it_cannot_close():
    assert answer.fact("command", "echo ```` x") == "**command:**\n`````\necho ```` x\n`````"


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_figures_of_an_earlier_answer_do_not_outlive_their_reason(tmp_path):
    answer.write(comparison(), tmp_path, facts={})
    assert (tmp_path / "beside.png").exists()
    answer.write(comparison(agreement=False), tmp_path, facts={})
    assert not list(tmp_path.glob("beside.*"))
    assert "beside.png" not in (tmp_path / "answer.md").read_text()


def test_the_answer_says_what_the_source_expects_and_how_it_was_made():
    text = answer.markdown(comparison(), FACTS, {"metric": "metric.png"}, "")
    for words in ("Dosovitskiy et al. 2021", "Smaller patches win.", "patch 2 81.4", "One of one pair", "12 min",
                  "![metric](metric.png)", "- patch 8 has no finished run."):  # fmt: skip
        assert words in text
    assert text.endswith("\n")


@pytest.mark.usefixtures("no_figures")
def test_the_committed_answer_is_one_page_and_one_figure(tmp_path):
    path = tmp_path / "patch.md"
    assert [p.name for p in answer.publish(comparison(), path, FACTS)] == ["patch.png", "patch.md"]
    assert "(patch.png)" in path.read_text()
    path.write_text(path.read_text().replace(answer.UNWRITTEN, "mine"))
    answer.publish(comparison(), path, FACTS)
    assert f"{answer.FINDING[0]}mine{answer.FINDING[1]}" in path.read_text()


def test_a_difference_of_one_pair_has_no_half_width():
    assert answer.change(Estimate(n=1, mean=-0.01, sd=None, low=None, high=None), metric("test/accuracy")) == "-1.00"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a|b", "a\\|b"),
        ("snake_case", "snake_case"),
        ("_x_", "\\_x\\_"),
        ("two\nlines", "two lines"),
        ("`a`", "\\`a\\`"),
    ],
)
def test_names_are_shown_in_markdown_as_they_are(name, shown):
    assert answer.escaped(name) == shown


def test_what_was_tried_is_a_table_of_validation_and_test_with_the_chosen_in_bold():
    from tests.report.test_comparison import TEST, VALIDATION, tuned

    found = tuned(VALIDATION, TEST)
    text = answer.markdown(found, FACTS, {}, "")
    tried = text.partition("## What was tried")[2].partition("##")[0]
    assert "| a1 | 55.00 ± 7.07 | 95.00 ± 0.00 | 2 |" in tried
    assert "| **a2** | **75.00 ± 7.07** | **65.00 ± 7.07** | **2** |" in tried
    assert tried.count("\n| ") == 2 + 4
    assert "a1" not in answer.table_text(found)
    assert "What was tried" not in answer.markdown(replace(found, tried=None), FACTS, {}, "")


def test_reported_numbers_stand_beside_ours_with_what_became_of_them():
    from tests.report.test_comparison import arms, compared

    told = {"of": "B/16", "numbers": {"a": 60, "b": 65.5, "c": 61, "d": 59}}
    found = compared(arms(a=[0.5, 0.51], b=[0.6, 0.611], c=[0.4, 0.411], d=[0.4, 0.7], e=[0.5, 0.5]), expect=told)
    lines = [line for line in answer.table_text(found).split("\n") if line[:2] in ("  ", "* ")]
    table = {line.strip("* ")[0]: line for line in lines}
    assert "60.00 " in table["a"]
    assert "65.50 (+5.50)  agrees" in table["b"]
    assert "61.00 (+1.00)  disagrees" in table["c"]
    assert re.search(r"59.00 \(-1.00\)  cannot tell \(about \d+ seeds would\)", table["d"])
    assert "reported: B/16, and its difference to a" in answer.table_text(found)
