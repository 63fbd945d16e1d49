"""The README says what is so."""

import re
import sys
import types
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from vitlab.cli import readme
from vitlab.config.build import build
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.groups import SWEEPS, table
from vitlab.config.overrides import complete
from vitlab.model.vit import ViT
from vitlab.report.answer import finding_of
from vitlab.sweep import plan as plan_module
from vitlab.sweep.reader import read
from vitlab.system.footprint import check_memory
from vitlab.training.optimizer import build_optimizer
from vitlab.training.pretrained import Source, Start

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "README.md").read_text()


def block(language, opening):
    return re.search(rf"```{language}\n({re.escape(opening)}.*?)```", TEXT, flags=re.DOTALL)[1]


def between(page, name):
    text = (ROOT / page).read_text()
    return text.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0].strip()


def test_it_is_short_and_its_figures_are_there():
    assert len(TEXT.splitlines()) <= 200
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", TEXT, flags=re.DOTALL):
        assert (ROOT / picture).is_file(), picture


def test_every_package_is_on_the_map_and_every_module_of_the_map_exists():
    table = TEXT[TEXT.index("## The map") : TEXT.index("## For contributors")]
    rows = dict(re.findall(r"^\| `(\w+)/` \| (.+) \|$", table, flags=re.MULTILINE))
    assert set(rows) == {path.parent.name for path in (ROOT / "vitlab").glob("*/__init__.py")}
    for package, text in rows.items():
        for module in re.findall(r"`(\w+\.py)`", text):
            assert (ROOT / "vitlab" / package / module).is_file(), (package, module)


def options(text):
    return {
        group: set(names.split()) for group, names in re.findall(r"^\| `\+?([\w/]+)=` \| (.+) \|$", text, re.MULTILINE)
    }


def test_its_table_lists_options_that_exist():
    """A new option need not be in it: `python -m vitlab.cli.readme` adds it with the next release."""
    listed, existing = options(between("README.md", "options")), options(table())
    assert listed.keys() == existing.keys()
    for group, names in listed.items():
        assert names <= existing[group], group


def test_its_answer_and_the_index_of_questions_are_those_of_the_published_pages():
    assert between("README.md", "answer") == readme.short(SWEEPS / "ablation" / "patch_size.md")
    assert between("sweeps/README.md", "answers") == readme.index(), "python -m vitlab.cli.readme writes it anew"
    assert between("sweeps/paper/README.md", "answers") == readme.paper(), "python -m vitlab.cli.readme writes it anew"


def test_every_answer_that_ships_has_its_figure_and_somebodys_finding():
    pages = [file.with_suffix(".md") for file in SWEEPS.rglob("*.yaml")]
    for page in pages:
        assert page.with_suffix(".png").is_file(), page
        assert "No finding is written yet" not in finding_of(page), page


@pytest.mark.slow
def test_the_sweep_of_the_page_can_be_asked(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(block("yaml", "question:"))
    plan = plan_module.plan(read(path))
    assert len(plan.jobs) == 3 * 4 * 2  # the baseline is one of its own grid
    assert read(path, "quick").expect.finding


def test_the_search_of_the_questions_page_can_be_asked(tmp_path):
    path = tmp_path / "mine.yaml"
    text = (SWEEPS / "README.md").read_text()
    path.write_text(re.search(r"```yaml\n(question:.*?)```", text, flags=re.DOTALL)[1])
    assert len(read(path).search.space) == 3


def test_the_position_embedding_of_two_files_works(monkeypatch):
    module = types.ModuleType("vitlab.model.position_row")
    exec(block("python", "import torch\nfrom jaxtyping"), vars(module))
    monkeypatch.setitem(sys.modules, "vitlab.model.position_row", module)
    node = check(yaml.safe_load(block("yaml", "# A learned vector a row")), "model.position")
    sizes = {"image_size": (6, 10), "channels": 1, "classes": 3, "patch": 2, "width": 8, "depth": 1, "heads": 2}
    model = ViT(**sizes, position=build(node))
    assert model(torch.randn(2, 1, 6, 10)).shape == (2, 3)
    added = model.positions[0].add(torch.zeros(1, 16, 8))[0, 1:].view(3, 5, 8)
    torch.testing.assert_close(added, added[:, :1].expand(3, 5, 8))

    # Initialisation, weight decay, loading at another image size and the memory estimate know it.
    position = partial(ViT, **(sizes | {"width": 512}), position=build(node))
    assert float(position().positions[0].rows.detach().std()) == pytest.approx(0.02, rel=0.1)
    optimizer = build_optimizer(partial(torch.optim.AdamW, weight_decay=0.5), model)
    (group,) = [g for g in optimizer.param_groups if any(p is model.positions[0].rows for p in g["params"])]
    assert group["weight_decay"] == 0
    larger = ViT(**(sizes | {"image_size": (12, 20)}), position=build(node))
    source = Source(Path("run/best.pt"), model.state_dict(), (6, 10), ("a", "b", "c"))
    start = Start(weights="run", origin=None, positions="bilinear", patch="refuse", head="same", freeze=False)
    assert "resized: positions.0.rows 3x8 to 6x8" in start.apply(source, larger, ("a", "b", "c"))
    rows, before = larger.positions[0].rows, model.positions[0].rows
    torch.testing.assert_close(rows[[0, 5]], before[[0, 2]])
    torch.testing.assert_close(rows[2], before[0] / 4 + before[1] * 3 / 4)
    limited = {"image_size": (6, 10), "channels": 1, "classes": 3}
    check_memory(partial(ViT, **{k: v for k, v in sizes.items() if k not in limited}, position=build(node)), **limited)


@pytest.mark.slow
@pytest.mark.parametrize("line", re.findall(r"^vitlab train (?!--)(.+)$", TEXT, flags=re.MULTILINE))
def test_every_training_command_composes(line):
    words = line.partition("#")[0].split()
    many = "-m" in words
    given = complete([word for word in words if word != "-m"], many=many)
    check(compose([re.sub(r"=([^,\[]*),.*", r"=\1", word) for word in given])[0])


def test_the_picture_of_inspections_has_a_line_for_each_kind_of_figure_that_is_there(tmp_path, monkeypatch):
    def draw(words):
        folder = Path(words[2])
        folder.mkdir()
        keys = [("rollout", "blue"), ("distance", "red"), ("norms", "red")]
        for key, colour in keys if words[0] == "runs/whole" else keys[1:]:
            Image.new("RGB", (300 if key == "distance" else 500, 200), colour).save(folder / f"{key}.png")

    monkeypatch.setattr("vitlab.cli.inspect.main", draw)
    readme.inside(tmp_path / "x.png", [Path("runs/whole"), Path("runs/resnet")])
    with Image.open(tmp_path / "x.png") as whole:
        assert whole.size == (1600, 640 + 400 + 400 + 3 * 12)
        assert [whole.getpixel((1599, y)) for y in (0, 652, 1064)] == [(0, 0, 255), (255, 0, 0), (255, 0, 0)]


def test_the_top_level_is_as_promised():
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    made = {"runs", "data", "uv.lock", "dist", "outputs", "multirun"}
    assert names - made == {"pyproject.toml", "README.md", "vitlab", "conf", "tests", "sweeps"}


def test_no_registry_is_named():
    for path in [*ROOT.glob("*.*"), *(ROOT / "vitlab").rglob("*.py"), *(ROOT / "conf").rglob("*.yaml")]:
        if path.is_file() and path.name != "uv.lock":
            assert "py" + "pi.org" not in path.read_text(errors="ignore")
