"""Weights to start from: what is loaded, resized and left out, and what cannot be carried over."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.config.test_check import check, compose
from vitlab.config.build import assemble
from vitlab.config.compose import compose as compose_overrides
from vitlab.config.identity import identity
from vitlab.evaluation.load import load
from vitlab.model.meta import on_meta_device
from vitlab.model.part import interpolated
from vitlab.model.stem import resize_projection
from vitlab.model.vit import ViT
from vitlab.storage import checkpoint
from vitlab.storage.run import Run
from vitlab.system.distributed import single_process
from vitlab.training.loop import fit
from vitlab.training.pretrained import Start, to_come
from vitlab.training.setup import prepare

pytestmark = pytest.mark.usefixtures("no_curves")

SMALL = [
    "tracking=off",
    "dataset.train_examples=60",
    "model.width=16",
    "model.depth=2",
    "model.heads=2",
    "fit.batch_size=16",
    "fit.steps=4",
    "fit.precision=fp32",
]


def setup(*overrides):
    node = check(compose([*SMALL, *overrides])[0])
    return prepare(**assemble(node), dist=single_process()), node


def trained(folder, *overrides):
    made, node = setup(f"system.runs={folder}", *overrides)
    run = Run(folder / "run")
    run.create()
    fit(made, run, node)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("start"))


@pytest.mark.parametrize("file", ["", "best.pt", "best.safetensors"])
def test_the_same_model_starts_with_all_weights_of_a_run(run, file):
    made, _ = setup(f"init={run.folder / file}", "seed=5")
    kept = checkpoint.load(run.best)["model"]
    assert kept.keys() == made.vit.state_dict().keys()
    for name, value in made.vit.state_dict().items():
        assert torch.equal(value, kept[name]), name
    assert made.initial_weights.startswith(f"{len(kept)} tensors are loaded from {run.folder}")
    assert "random" not in made.initial_weights


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."])
def test_names_that_ddp_or_compile_have_prefixed_are_the_models(run, prefix, tmp_path):
    """As trained elsewhere: the whole model wrapped, and one block compiled by itself."""
    state = checkpoint.load(run.best)
    inner = {name.replace("blocks.1.", "blocks.1._orig_mod."): value for name, value in state["model"].items()}
    there = Run(tmp_path / "run")
    there.create()
    there.config.write_text(run.config.read_text())
    checkpoint.save(there.best, state | {"model": {prefix + name: value for name, value in inner.items()}})
    for name, value in setup(f"init={there.folder}", "seed=5")[0].vit.state_dict().items():
        assert torch.equal(value, state["model"][name]), name
    assert all(
        torch.equal(value, state["model"][name]) for name, value in load(there.folder).model.state_dict().items()
    )


def test_other_classes_get_a_new_head_and_that_is_said(run):
    made, _ = setup(f"init={run.folder}", "dataset=synthetic", "dataset.channels=1", "dataset.image_size=8")
    assert not made.vit.head.output.weight.any()
    assert torch.equal(
        made.vit.blocks[0].mlp.norm.weight, checkpoint.load(run.best)["model"]["blocks.0.mlp.norm.weight"]
    )
    assert "left out: head.output.bias, head.output.weight; drawn at random: head.output.bias" in made.initial_weights


def test_another_image_size_has_its_positions_interpolated(run):
    made, _ = setup(f"init={run.folder}", "dataset.image_size=16")
    before = checkpoint.load(run.best)["model"]["positions.0.table"]
    after = made.vit.positions[0].table
    assert torch.equal(after[:1], before[:1])
    image = before[1:].T.reshape(1, 16, 4, 4)
    expected = functional.interpolate(image, (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(after[1:], expected.flatten(2)[0].T)
    assert "resized: positions.0.table 17x16 to 65x16" in made.initial_weights


def test_learned_rows_and_columns_are_interpolated_too(tmp_path):
    run = trained(tmp_path, "model/position=learned_2d")
    made, _ = setup(f"init={run.folder}", "model/position=learned_2d", "dataset.image_size=16")
    rows = checkpoint.load(run.best)["model"]["positions.0.rows"]
    expected = functional.interpolate(rows.T[None], 8, mode="linear", align_corners=False)[0].T
    torch.testing.assert_close(made.vit.positions[0].rows, expected)


def test_a_grid_that_is_stretched_is_torchs_own_whatever_its_shape():
    table = torch.randn(15, 6)
    for mode in ("bilinear", "bicubic"):
        found = interpolated(table, (3, 5), (6, 7), mode)
        image = table.view(3, 5, 6).permute(2, 0, 1)[None]
        expected = (
            functional.interpolate(image, (6, 7), mode=mode, align_corners=False)[0].permute(1, 2, 0).reshape(42, 6)
        )
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(interpolated(table, (3, 5), (3, 5), "bilinear"), table)


def test_a_projection_of_larger_patches_gives_resized_patches_the_same_tokens():
    weight, patch = torch.randn(7, 2 * 16), torch.randn(1, 2, 4, 4)
    larger = functional.interpolate(patch, (6, 6), mode="bilinear", align_corners=False)
    found = larger.flatten(1) @ resize_projection(weight, 4, 6).T
    torch.testing.assert_close(found, patch.flatten(1) @ weight.T, atol=1e-4, rtol=1e-4)


def test_another_patch_size_is_refused_or_resized_as_is_said(run):
    with pytest.raises(ValueError, match=r"stem.projection.weight: 16x4 there, 16x16 in this model.*init.patch=resize"):
        setup(f"init={run.folder}", "patch=p4", "dataset.image_size=16")
    made, _ = setup(f"init={run.folder}", "patch=p4", "dataset.image_size=16", "init.patch=resize")
    assert "resized: stem.projection.weight 16x4 to 16x16" in made.initial_weights


def test_a_frozen_backbone_stays_and_the_head_learns(run, tmp_path):
    made, node = setup(f"init={run.folder}", "init.freeze=true", "optimizer.lr=0.1", f"system.runs={tmp_path}")
    before = {name: value.clone() for name, value in made.vit.state_dict().items()}
    folder = Run(tmp_path / "frozen")
    folder.create()
    fit(made, folder, node)
    for name, value in checkpoint.load(folder.last)["model"].items():
        assert torch.equal(value, before[name]) != name.startswith("head."), name
    assert made.initial_weights.endswith("all but the head is frozen")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["init=nowhere"], "there is no such run or file"),
        (["init={run}", "model.width=32"], "do not fit, the first of them"),
        (["init={run}", "model.depth=3"], r"blocks.2.*: none there"),
        (["init={run}", "model.depth=1"], r"blocks.1.*none in this model"),
        (["init={run}/metrics.jsonl"], "is not a checkpoint"),
        (["init.freeze=true"], "give trained ones, init=RUN"),
        (["init={run}", "model/position=relative"], None),
    ],
)
def test_what_cannot_be_carried_over_is_refused_before_anything_is_trained(run, overrides, sentence):
    words = [word.format(run=run.folder) for word in overrides]
    if sentence is None:
        assert "left out: positions.0.table" in setup(*words)[0].initial_weights
        return
    with pytest.raises(ValueError, match=sentence):
        setup(*words)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="holds other objects than tensors"):
        setup(f"init={tmp_path / 'evil.pt'}")
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds no weights of vitlab's"):
        setup(f"init={tmp_path / 'other.pt'}")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        setup(f"init={tmp_path / 'broken.safetensors'}")


def test_the_start_identifies_a_run(run):
    plain, begun = (compose([*SMALL, *words])[0] for words in ([], [f"init={run.folder}"]))
    assert identity(check(plain)) != identity(check(begun))


def test_a_new_head_is_one_even_where_the_classes_are_the_same(run):
    kept = checkpoint.load(run.best)["model"]["head.output.weight"]
    assert torch.equal(setup(f"init={run.folder}")[0].vit.head.output.weight, kept)
    made, _ = setup(f"init={run.folder}", "init.head=new")
    assert not made.vit.head.output.weight.any()
    assert "left out: head.output.bias, head.output.weight" in made.initial_weights


def test_an_origin_is_the_cell_of_the_run_and_no_other(run):
    cell = "1a2b3c4d"
    run.write_result({"status": "finished", "cell": cell})
    assert setup(f"init={run.folder}", f"init.origin={cell}")[0].initial_weights
    with pytest.raises(ValueError, match=rf"init.origin=deadbeef: .* is of the cell {cell}: leave it out"):
        setup(f"init={run.folder}", "init.origin=deadbeef")
    with pytest.raises(ValueError, match="drawn at random: give their run"):
        setup(f"init.origin={cell}")


def test_where_weights_lie_tells_runs_apart_unless_it_is_said_what_they_are():
    def node(*words):
        return compose_overrides([*SMALL, *words])[0]

    chance = node()
    assert identity(chance) == identity(node("init.positions=bicubic", "init.head=new"))
    assert identity(chance) == identity({k: v for k, v in chance.items() if k != "init"})
    one, other = node("init=runs/a"), node("init=runs/b")
    assert len({identity(each) for each in (chance, one, other)}) == 3
    same = [node(f"init=runs/{name}", "init.origin=1a2b3c4d") for name in "ab"]
    assert identity(same[0]) == identity(same[1]) != identity(one)
    assert identity(same[0]) != identity(node("init=runs/a", "init.origin=5e6f7a8b"))


def test_weights_that_are_yet_to_come_are_checked_by_their_shapes():
    model = partial(ViT, patch=2, width=16, depth=2, heads=2)
    before, own = {"image_size": (8, 8), "channels": 1, "classes": 10}, {"image_size": (16, 16), "channels": 1}
    names = tuple("abcdefghij")
    source = to_come(Path("runs/it/best.pt"), on_meta_device(model, **before), (8, 8), names)
    start = Start(weights="runs/it", origin=None, positions="bilinear", patch="refuse", head="same", freeze=False)
    said = start.apply(source, on_meta_device(model, **own, classes=10), names)
    assert "resized: positions.0.table 17x16 to 65x16" in said
    with pytest.raises(ValueError, match="do not fit"):
        start.apply(source, on_meta_device(partial(model, width=32), **own, classes=10), names)


def test_a_start_is_made_by_hand_as_well(run):
    model = ViT(image_size=8, channels=1, classes=10, patch=2, width=16, depth=2, heads=2)
    start = Start(weights=str(run.folder), origin=None, positions="bicubic", patch="refuse", head="same", freeze=False)
    said = start.apply(start.read(), model, ("another",) * 10)
    assert "left out: head.output.bias" in said
