"""A model looked into: every composition, held to what the model itself gives; and the command."""

import csv
import json
import math
import re
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.test_loop import fit
from vitlab.__main__ import main
from vitlab.cli import inspect as command
from vitlab.config.errors import ConfigError
from vitlab.data.examples import Pixels
from vitlab.data.preprocess import Preprocess
from vitlab.evaluation import attention_maps as maps
from vitlab.evaluation import inspection
from vitlab.evaluation import representations as of
from vitlab.evaluation.inspection import inspect
from vitlab.evaluation.inspection_contents import contents
from vitlab.evaluation.load import Trained, load
from vitlab.evaluation.reevaluate import training_dataset
from vitlab.model.attention import Attention, Axial
from vitlab.model.objective import MaskedPatch
from vitlab.model.pool import Gap, Map
from vitlab.model.position import Learned1d, Learned2d, Position, Relative, Rope, SinCos2d
from vitlab.model.resnet import ResNet
from vitlab.model.stem import Convolutions
from vitlab.model.vit import ViT
from vitlab.report.inspection import Drawn, page

pytestmark = pytest.mark.usefixtures("no_curves")

SIZE, ROWS, COLUMNS = (8, 12), 4, 6
IMAGES = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (9, 13, 3), dtype=np.uint8)) for i in range(7)]
KINDS = {
    "class token": {},
    "colour, registers": {"channels": 3, "registers": 2},
    "gap": {"pool": Gap, "registers": 2},
    "map": {"pool": Map},
    "axial": {"pool": Gap, "attention": Axial},
    "no position": {"position": Position},
    "every block": {"position": partial(Learned1d, at="every_block")},
    "learned 2d": {"position": Learned2d},
    "sincos": {"position": SinCos2d},
    "rope": {"position": Rope},
    "relative": {"position": Relative},
    "relative, shared": {"position": partial(Relative, at="every_block_shared")},
    "masked patches": {"objective": MaskedPatch},
    "convolutions": {"stem": Convolutions, "channels": 3},
    "depth 0": {"pool": Gap, "depth": 0},
    "resnet": {"pool": Gap, "depth": 0, "position": Position, "stem": partial(ResNet, blocks=(1, 1), root="small")},
    "one patch": {"image_size": (2, 2)},
}
ATTENTION = {"rollout", "attention-0", "attention-1", "attention-2", "distance", "entropy"}
TOKENS = {"norms", "rank", "cka"}


def trained(channels=1, image_size=SIZE, **parts):
    sizes = {"classes": 3, "patch": 2, "width": 16, "depth": 3, "heads": 2} | parts
    model = ViT(image_size=image_size, channels=channels, **sizes)
    with torch.no_grad():
        for value in model.parameters():
            value += 0.1 * torch.randn_like(value)
    ready = Preprocess(size=image_size, channels=channels, crop=1.0, mean=[0.5] * channels, std=[0.3] * channels)
    return Trained(model, ("a", "b", "c"), ready)


def look(model, **options):
    return inspect("run", model, len(IMAGES), IMAGES.__getitem__, **options)


def seen(model):
    """What the model gives for all images at once."""
    with torch.no_grad():
        return model(torch.stack([model.preprocess(i) for i in IMAGES]), attention=True, intermediates=True)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_composition_has_each_figure_or_a_reason_why_not(kind):
    found = look(trained(**KINDS[kind]))
    keys = {part.key for part in contents([found])}
    positions = {"position_bias" if kind.startswith("relative") else "positions"}
    expected = ATTENTION | TOKENS | {"filters"} | positions
    if KINDS[kind].get("depth") == 0:
        expected -= ATTENTION | TOKENS
        assert set(found.missing) >= {"attention", "rollout", "distance", "entropy"} | TOKENS
    if KINDS[kind].get("position") is Position:
        expected -= positions
        assert "position=none" in found.missing["positions"]
    assert keys == expected
    for part in contents([found]):
        rows = list(part.rows())
        assert rows
        assert {len(row) for row in rows} == {len(part.header)}
    for values in (found.distance, found.entropy, found.rollout, found.attention):
        assert values is None or values.isfinite().all()


def test_all_runs_are_drawn_side_by_side_on_one_scale():
    runs = [inspect(kind, trained(**KINDS[kind]), 3, IMAGES.__getitem__)
            for kind in ("class token", "gap", "axial", "relative", "depth 0", "resnet")]  # fmt: skip
    figures = {part.key: part.draw() for part in contents(runs)}
    assert set(figures) == ATTENTION | TOKENS | {"filters", "positions", "position_bias"}
    panels = [axes for axes in figures["distance"].axes if axes.axison]
    assert [axes.get_title() for axes in panels] == ["class token", "gap", "axial", "relative"]
    assert len({axes.get_ylim() for axes in panels}) == 1
    for key in ("cka", "positions", "attention-0"):
        scales = {
            image.get_clim() for axes in figures[key].axes for image in axes.images if image.get_array().ndim == 2
        }
        assert len(scales) == 1, key


@pytest.mark.parametrize("kind", ["class token", "gap", "axial", "rope", "relative"])
def test_the_numbers_are_those_of_the_models_own_attention_and_tokens(kind):
    model = trained(**KINDS[kind])
    found, own, prefix = look(model), seen(model), model.model.grid.prefix
    weights = [own[f"attention_{layer}"] for layer in range(3)]
    distances = maps.patch_distances(ROWS, COLUMNS, (2.0, 2.0))
    expected = torch.stack([maps.attention_distance(w, distances).mean(dim=0) for w in weights])
    torch.testing.assert_close(found.distance.float(), expected)
    expected = torch.stack([maps.attention_entropy(w).mean(dim=0) for w in weights])
    torch.testing.assert_close(found.entropy.float(), expected)
    rolled = maps.rollout(weights)
    from_pool = rolled[:, prefix:].mean(dim=1) if kind in ("gap", "axial") else rolled[:, 0]
    torch.testing.assert_close(found.rollout.flatten(1), from_pool[:, prefix:])
    tokens = [own["with_position"], *(own[f"block_{layer}"] for layer in range(3))]
    norms = [float(x[:, prefix:].norm(dim=-1).mean()) for x in tokens]
    assert found.norms["patches"] == pytest.approx(norms, rel=1e-5)
    assert found.norms["largest patch"] > found.norms["patches"]
    patches = [x[:, prefix:].flatten(0, 1) for x in tokens]  # all of them, as they are few
    torch.testing.assert_close(found.cka, of.linear_cka(patches), atol=1e-5, rtol=1e-5)
    assert found.rank == pytest.approx([of.effective_rank(x) for x in patches], rel=1e-4)


def test_attention_is_seen_from_what_is_asked_for():
    model = trained(registers=2)
    weights = torch.stack([seen(model)[f"attention_{layer}"] for layer in range(3)], dim=1)
    found = look(model, closely=2)
    torch.testing.assert_close(found.attention.flatten(3), weights[:2, :, :, 0, 3:])
    assert found.read == "the class token"
    found = look(model, at=(2, 5))
    torch.testing.assert_close(found.attention.flatten(3), weights[:3, :, :, 3 + 2 * COLUMNS + 5, 3:])
    assert found.read == "the patch at row 2, column 5"
    masked = trained(objective=MaskedPatch)
    rows = seen(masked)["attention_0"][:3, :, 1:, 1:].mean(dim=2)
    torch.testing.assert_close(look(masked).attention[:, 0].flatten(2), rows)


def test_a_pool_that_attends_is_seen_through_its_own_weights():
    model = trained(pool=Map)
    own, pool = seen(model), model.model.pool
    reads = pool.reads(own["encoded"][:, :0], own["encoded"])
    torch.testing.assert_close(reads.sum(dim=1), torch.ones(len(IMAGES)))
    assert reads.std() > 1e-3
    expected = torch.einsum("bq,bhqk->bhk", reads, own["attention_1"])
    torch.testing.assert_close(look(model).attention[:, 1].flatten(2), expected[:3].detach())


def test_attention_that_is_uniform_has_the_distance_of_its_lines():
    model = trained(pool=Gap, attention=Axial, depth=2, width=8, heads=1)
    for block in model.model.blocks:
        torch.nn.init.zeros_(block.attention.branch.qkv.weight)
        torch.nn.init.zeros_(block.attention.branch.qkv.bias)
    found = look(model)
    row, column = (2 * (n**2 - 1) / (3 * n) for n in (COLUMNS, ROWS))
    torch.testing.assert_close(found.distance.flatten().tolist(), [row, column])
    torch.testing.assert_close(found.entropy.flatten().tolist(), [math.log(COLUMNS), math.log(ROWS)])
    assert found.uniform is None  # along a line nobody can attend to all
    torch.testing.assert_close(found.rollout, torch.full((7, ROWS, COLUMNS), 1 / (ROWS * COLUMNS)))


def test_a_relative_bias_is_what_it_adds_to_the_logits_of_the_queries():
    model = trained(position=Relative, width=8, depth=1, heads=2)
    attention, position = model.model.blocks[0].attention.branch, model.model.position(0)
    torch.nn.init.zeros_(attention.qkv.weight)
    (only,) = look(model).positions
    queries = attention.qkv.bias.detach()[:8].view(2, 4).mean(dim=0)  # the same for all images and tokens
    n = ROWS * COLUMNS
    offset = (7 - 12) + n - 1
    expected = queries @ position.table.detach()[offset] / math.sqrt(4)
    assert float(only.values.view(n, n)[7, 12]) == pytest.approx(float(expected), abs=1e-6)
    assert only.bias


def test_the_size_of_a_batch_changes_no_number_and_no_weights_are_kept(monkeypatch):
    model = trained(**KINDS["relative"])
    together = look(model)
    monkeypatch.setattr(inspection, "NUMBERS", 1)
    batches, lists = [], []
    encode = ViT.encode

    def watched(self, patches, weights=None):
        batches.append(len(patches))
        lists.append(weights)
        return encode(self, patches, weights)

    monkeypatch.setattr(ViT, "encode", watched)
    alone = look(model)
    assert set(batches) == {1}
    assert not any(lists)
    for key in ("distance", "entropy", "rollout", "attention", "cka"):
        torch.testing.assert_close(getattr(alone, key), getattr(together, key))
    torch.testing.assert_close(alone.positions[1].values, together.positions[1].values)
    assert alone.norms["patches"] == pytest.approx(together.norms["patches"])


def test_many_images_give_as_many_tokens_as_few(monkeypatch):
    monkeypatch.setattr(inspection, "TOKENS", 20)
    model = trained()
    inspector = inspection.Inspector("run", model, None, 7)
    with torch.inference_mode():
        inspector.look(torch.stack([model.preprocess(image) for image in IMAGES]), 0)
    assert [len(torch.cat(kept)) for kept in inspector.tokens] == [21] * 4  # three of each image


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (3, [0, 1, 2]), (16, range(16))])
def test_few_places_are_all_there(count, expected):
    assert inspection.evenly(count) == list(expected)
    assert inspection.evenly(64)[::15] == [0, 63]
    assert len(inspection.evenly(64)) == 16


def test_a_patch_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ConfigError, match=r"--at 4,0: run has 4 rows and 6 columns .* row of 0 to 3 and a column of 0"):
        look(trained(), at=(4, 0))


def test_attention_that_gives_no_weights_is_said_and_the_rest_is_drawn():
    class Mute(Attention):
        def attend(self, qkv, bias, weights):
            return super().attend(qkv, bias, None)

    found = look(trained(attention=Mute))
    assert found.reasons()["Mute gives no attention weights"] == ["attention", "rollout", "distance", "entropy"]
    assert {part.key for part in contents([found])} == TOKENS | {"filters", "positions"}


def test_an_output_that_is_nan_is_refused_with_the_image():
    model = trained()
    nan = torch.full((1, *SIZE), torch.nan)
    model.preprocess, plain = (lambda image: nan if image is IMAGES[3] else plain(image)), model.preprocess
    model.preprocess.resize, model.preprocess.decoding = plain.resize, plain.decoding
    with pytest.raises(ConfigError, match="image 3 is NaN or infinite"):
        look(model)


# --- the page -----------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else_and_takes_its_colours_from_its_theme():
    svg = '<?xml?><svg width="3pt" height="2pt" viewBox="0 0 396 2"><!-- <b> --><metadata>http://x</metadata>\
<path style="fill: #1f2933; stroke: #004488"/><path style="fill: #ffffff"/><path style="fill: #123456"/></svg>'
    text = page("A <b>", "{{body}}", [Drawn("norms", "Norms", "Of & it", svg)], ["run: cka: none"], {"command": "x"})
    assert "<title>A &lt;b&gt;</title>" in text
    assert "fill: var(--ink); stroke: var(--c0)" in text
    assert "fill: var(--paper)" in text
    assert "fill: #123456" in text
    assert "http://x" not in text
    assert "{{" not in text.replace("{{body}}", "")
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", text)
    assert 'href="norms.csv"' in text


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("runs"), "fit.steps=2")[0].folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    words = ["fit.steps=2", "model/objective=masked_patch", "model/position=rope"]
    return fit(tmp_path_factory.mktemp("others"), *words, name="other")[0].folder


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def quick(monkeypatch):
    """Only the rank is drawn."""
    only = lambda runs: [part for part in contents(runs) if part.key == "rank"]  # noqa: E731
    monkeypatch.setattr("vitlab.evaluation.inspection_contents.contents", only)


def test_a_run_gets_a_folder_of_figures_numbers_and_a_page(run, capsys):
    assert main(["inspect", str(run), "--images", "9"]) == 0
    said = capsys.readouterr().out
    folder = run / "inspection"
    keys = ATTENTION | TOKENS | {"filters", "positions"}
    assert {file.name for file in folder.iterdir()} == {
        *(f"{key}.{kind}" for key in keys for kind in ("png", "svg", "csv")), "index.html", "inspection.json",
    }  # fmt: skip
    rows = table(folder / "distance.csv")
    assert [(row["layer"], row["head"]) for row in rows] == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    first = sum(float(row["distance_pixels"]) for row in rows[:2]) / 2
    assert f"distance    {first:.3g} pixels in the first layer" in said
    rolled = [float(row["times_uniform"]) for row in table(folder / "rollout.csv")]
    assert len(rolled) == 9 * 16
    text = (folder / "index.html").read_text()
    assert text.count("<figure ") == len(keys)
    assert "9 test images, evenly spaced" in text
    with Image.open(folder / "rollout.png") as image:
        assert min(image.size) > 200


def test_runs_are_named_by_what_differs_and_the_images_are_those_given(run, other, tmp_path, capsys, quick):
    training_dataset(run).splits()["test"].image(3).save(tmp_path / "3.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    words = [str(run), str(tmp_path), "--compare", str(other), str(run), "--save", str(tmp_path / "out"), "--json"]
    assert main(["inspect", *words]) == 1
    out, err = capsys.readouterr()
    assert "bad.png: it is no image" in err
    said = json.loads(out)
    assert said["images"] == [str(tmp_path / "3.png")]
    rows = table(tmp_path / "out" / "rank.csv")
    names = list(dict.fromkeys(row["run"] for row in rows))
    assert names == list(said["seen from"])
    assert len(names) == 2
    assert "model.position=rope" in names[1]
    assert "not trained" in said["seen from"][names[1]]


def test_the_images_that_are_shown_are_of_all_classes_in_files_sorted_by_class(run, monkeypatch):
    options = SimpleNamespace(images=[], run=run, root=None, changed_data=False, count=60)
    labels = training_dataset(run).splits()["test"].labels
    order = np.argsort(labels, kind="stable")
    monkeypatch.setattr(Pixels, "sample", lambda examples, count: order[:: len(order) // count][:count])
    used, _, lost = command.images_of(options, load(run))
    assert len(set(used)) == 60
    assert len(set(labels[used[:24]])) >= 8
    assert not lost


def test_figures_of_an_earlier_inspection_go_and_other_files_stay(run, tmp_path, quick):
    place = tmp_path / "out"
    place.mkdir()
    (place / "inspection.json").write_text('{"figures": ["cka", "../x"]}')
    for name in ("cka.png", "mine.png", "../x.png"):
        (place / name).write_bytes(b"x")
    assert main(["inspect", str(run), "--images", "2", "--save", str(place)]) == 0
    assert not (place / "cka.png").exists()
    assert (place / "mine.png").read_bytes() == (tmp_path / "x.png").read_bytes() == b"x"
    assert (place / "rank.svg").is_file()


def test_the_figures_become_media_of_the_run_in_wandb(run, tmp_path, quick):
    tracked = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("inspection"))
    config = (tracked / "config.yaml").read_text()
    (tracked / "config.yaml").write_text(re.sub(r"mode: .off.", "mode: offline", config))
    assert command.WandbSender(tracked, 9).step == 10  # after an earlier inspection
    assert main(["inspect", str(tracked), "--images", "2", "--wandb"]) == 0
    assert list(tracked.glob("wandb/offline-run-*/files/media/images/inspection/rank_*.png"))
    step = json.loads((tracked / "inspection" / "inspection.json").read_text())["wandb_step"]
    assert step == 2 + 2  # after the last one and the validation media


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--wandb"], "was trained with tracking=off"),
        (["--at", "1"], "--at 1: expected the row and the column"),
        (["--at", "4,0"], "4 rows and 4 columns of patches"),
        (["--images", "0"], "--images 0: must be at least 1"),
        (["x.png", "--images", "3"], "--images 3: for test images, and images are given"),
        (["x.png", "--root", "x"], "--root x is for test images"),
        (["nowhere.png"], "there is no image to look at"),
        (["--save", "FOLDER"], "holds other files than those of vitlab inspect"),
        (["--save", "FOLDER/mine.txt"], "it is a file: give a folder"),
        (["--compare", "nowhere"], "nowhere is not a run"),
        (["--compare", *map(str, range(12))], "13 runs in all: a figure has room for 12"),
        (["--device", "gpu"], "no such device"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(run, tmp_path, capsys, words, sentence):
    (tmp_path / "mine.txt").touch()
    assert main(["inspect", str(run), *(word.replace("FOLDER", str(tmp_path)) for word in words)]) == 2
    assert sentence in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_names_that_would_not_tell_runs_apart_are_those_of_their_folders(run, tmp_path):
    again = tmp_path / "again"
    again.mkdir()
    (again / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    assert command.name_runs([run, again]) == {run: "run", again: "again"}
