"""Objectives: masked patch prediction against targets made by hand, and through a whole training."""

from functools import partial

import pytest
import torch

from tests.config.test_check import check, compose
from vitlab.cli.run import summary
from vitlab.config.build import assemble
from vitlab.evaluation.evaluate import evaluate
from vitlab.evaluation.load import load
from vitlab.model.grid import Grid
from vitlab.model.objective import MaskedPatch, TrainingModel, select
from vitlab.model.vit import ViT
from vitlab.storage import checkpoint
from vitlab.storage.run import Run
from vitlab.system.distributed import single_process
from vitlab.training.batches import eval_batches
from vitlab.training.loop import fit
from vitlab.training.setup import prepare

GRID = Grid(3, 5, prefix=1)


def masked(**values):
    return MaskedPatch(**({"width": 8, "grid": GRID, "patch": 4, "channels": 3} | values))


def test_the_mean_colour_of_a_patch_is_three_bits_a_channel():
    images = torch.zeros(2, 3, 12, 20)
    images[0, :, :4, 4:8] = torch.tensor([1.0, 0.5, 0.13]).view(3, 1, 1)  # the second patch
    images[1, 2, 8:, 16:] = torch.linspace(0, 0.998, 16).view(4, 4)  # the last: its mean is just below a half
    targets = masked().targets(images)
    assert targets.shape == (2, 15)
    assert targets[0, 1] == 7 * 64 + 4 * 8 + 1
    assert targets[1, 14] == 3
    assert targets.sum() == targets[0, 1] + targets[1, 14]


def test_normalised_pixels_have_the_colours_that_they_had():
    objective, images = masked(), torch.rand(2, 3, 12, 20)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    plain = objective.targets(images)
    objective.set_normalization(mean, std)
    normalised = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert (objective.targets(normalised) == plain).double().mean() > 0.99  # but where rounding crosses a level


def test_a_patch_made_small_has_a_colour_a_pixel():
    images = torch.zeros(1, 3, 24, 40)
    images[0, 0, 2:4, 6:8] = 1.0  # row 1, column 3 of the first patch of 8 pixels made 4
    targets = masked(patch=8, target="small").targets(images)
    assert targets.shape == (1, 15, 16)
    assert targets[0, 0, 7] == 7 * 64
    assert targets.sum() == 7 * 64


def test_pixels_of_a_patch_are_its_own():
    images = torch.arange(2 * 3 * 12 * 20.0).view(2, 3, 12, 20)
    targets = masked(target="pixels").targets(images)
    assert torch.equal(targets[1, 7], images[1, :, 4:8, 8:12].flatten())


def test_the_share_that_is_said_is_corrupted_as_is_said():
    torch.manual_seed(0)
    objective = masked(corrupt=0.4)
    patches = torch.arange(400 * 15.0).view(400, 15, 1).expand(-1, -1, 8) + 10
    where = torch.rand(400, 15).argsort(dim=1)[:, : objective.count]
    assert objective.count == 6
    after = objective.corrupted(patches, where)
    changed = torch.ones(400, 15, dtype=torch.bool).scatter(1, where, False)
    assert torch.equal(after[changed], patches[changed])
    now, before = select(after, where)[..., 0], select(patches, where)[..., 0]
    tokens = (select(after, where) == objective.token).all(dim=-1)
    swapped = ~tokens & (now != before)
    assert float(tokens.double().mean()) == pytest.approx(0.8, abs=0.03)
    assert float(swapped.double().mean()) == pytest.approx(0.1, abs=0.02)
    assert (
        (now[swapped] // 1 - 10)
        .div(15, rounding_mode="floor")
        .equal((before[swapped] - 10).div(15, rounding_mode="floor"))
    )  # another patch of the same image


@pytest.mark.parametrize("target", ["mean", "small", "pixels"])
def test_what_is_told_is_of_the_corrupted_patches_and_learns(target):
    torch.manual_seed(0)
    shape = {"image_size": (12, 20), "channels": 3, "classes": 5, "patch": 4, "width": 16, "depth": 1, "heads": 2}
    model = ViT(**shape, objective=partial(MaskedPatch, target=target))
    images = torch.rand(4, 3, 12, 20).round()
    trained = TrainingModel(model)
    told, true = trained(images)
    assert told.shape[:2] == true.shape[:2] == (4, 8)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.02)
    seen = []
    for _ in range(60):
        loss, metrics = model.objective.losses(trained(images), torch.zeros(4), torch.sub)
        assert metrics["accuracy"].shape == (4,)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < 0.8 * seen[0]
    assert model.head.output.weight.grad is None


def test_images_that_fill_a_batch_up_do_not_count():
    torch.manual_seed(0)
    objective = masked()
    out = torch.randn(3, 8, 512), torch.randint(0, 512, (3, 8))
    scores = objective.scores(out, torch.tensor([4, -1, 2]))
    assert scores["loss"][1] == scores["accuracy"][1] == 0
    assert (scores["loss"][[0, 2]] > 0).all()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"corrupt": 1.5}, "model.objective.corrupt=1.5"),
        ({"corrupt": 0.01}, "of 15 patches that is none"),
        ({"mask": 0.8, "swap": 0.3}, r"model.objective.mask \+ swap=1.1"),
        ({"patch": 2, "target": "small"}, "use target=mean"),
        ({"channels": 5}, "5 channels"),
    ],
)
def test_what_cannot_be_corrupted_or_told_is_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        masked(**values)


SMALL = ["tracking=off", "dataset.train_examples=60", "fit.batch_size=16", "fit.steps=6", "fit.precision=fp32"]


def run_of(tmp_path, name, *overrides):
    node = check(compose([*SMALL, f"system.runs={tmp_path}", *overrides])[0])
    setup = prepare(**assemble(node), dist=single_process())
    run = Run(tmp_path / name)
    run.create()
    return run, fit(setup, run, node), setup


def test_a_training_fills_in_patches_and_another_starts_from_it(tmp_path):
    run, result, setup = run_of(tmp_path, "first", "model/objective=masked_patch", "fit.ema_decay=0.9")
    assert 0 <= result["val/accuracy"] <= 1
    again = evaluate(setup.model, eval_batches(setup, "test"), single_process(), "fp32", setup.vit.objective)
    assert again["loss"] == result["test/loss"]
    with pytest.raises(ValueError, match="was trained to predict masked patches, not classes"):
        load(run.folder)
    assert load(run.folder, classifies=False).model.objective.classifies is False
    said = summary(run, result)
    assert f"vitlab probe {run.folder}" in said
    assert f"vitlab train init={run.folder}" in said
    assert "vitlab predict" not in said
    fine, result, setup = run_of(tmp_path, "second", f"init={run.folder}")
    assert "left out: objective.predict.bias, objective.predict.weight, objective.token" in setup.initial_weights
    assert result["status"] == "finished"
    assert "objective.token" not in checkpoint.load(fine.best)["model"]
