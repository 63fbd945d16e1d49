"""Looking before training: `vitlab data` and `vitlab schedule`."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.test_dataset import write_images
from vitlab.__main__ import main
from vitlab.cli import data, schedule
from vitlab.config.build import assemble
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.data.levels import count_levels, mean_and_std
from vitlab.system.distributed import single_process
from vitlab.training.batches import train_batches, train_inputs
from vitlab.training.optimizer import learning_rate
from vitlab.training.setup import prepare

pytestmark = pytest.mark.usefixtures("no_curves")

TINY = ["tracking=off", "model.width=8", "model.depth=2", "model.heads=1"]


def setup(*overrides):
    return prepare(**assemble(check(compose([*TINY, *overrides])[0])), dist=single_process())


def test_data_says_what_the_model_is_fed(tmp_path, capsys):
    picture = tmp_path / "look.png"
    words = [*TINY, "dataset.train_examples=101", "augment.mixup=0.8", "fit.batch_size=20", "fit.epochs=2"]
    assert main(["data", *words, "--save", str(picture)]) == 0
    said = capsys.readouterr().out
    for fact in (
        "10 classes, 8x8 pixels, 1 channel, mirrored: never",
        "11 steps of 20 images, 2.178 epochs of 5.05 steps",
        "train              101   10 (",
        "test               359   35 (",
        "of 101 training images; normalised by 0.305, 0.376",
        "next        vitlab train tracking=off",
    ):
        assert fact in said
    with Image.open(picture) as drawn:
        assert drawn.width > 500


def test_the_statistics_are_those_of_the_training_pixels():
    composed = setup()
    pixels = composed.splits["train"].pixels.numpy() / 255
    counts = count_levels(composed.splits["train"], composed.dataset)
    assert counts.shape == (1, 256)
    assert counts.sum() == pixels.size
    assert [np.count_nonzero(counts), counts[0, 0]] == [len(np.unique(pixels)), (pixels == 0).sum()]
    mean, std = mean_and_std(counts)
    assert mean == pytest.approx(pixels.mean(), abs=1e-6)
    assert std == pytest.approx(pixels.std(), abs=1e-6)


def test_the_picture_has_each_image_as_it_is_and_as_training_sees_it():
    axes = data.picture(setup("fit.batch_size=8", "augment.mixup=0.8")).axes[0]
    shown = [np.asarray(image.get_array()) for image in axes.get_images()]
    assert len(shown) == 8
    composed = setup("fit.batch_size=8")
    images, _ = train_inputs(composed)(next(train_batches(composed, 0)))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (composed.dataset.mean, composed.dataset.std))
    first = ((images * std + mean) * 255).round()
    for image, pixels in zip(shown, first, strict=True):
        assert image.shape == (8, 17, 3)
        assert (image[:, :8, 0] == pixels[0].numpy()).all()
    assert any((image[:, :8] != image[:, 9:]).any() for image in shown)
    words = [text.get_text() for text in axes.texts]
    assert any(word.endswith("%") and word != "100.0%" for word in words)
    plain = data.picture(composed).axes[0]
    for image in plain.get_images():
        assert (np.asarray(image.get_array())[:, :8] == np.asarray(image.get_array())[:, 9:]).all()


def test_data_looks_at_files_in_colour_and_repeats(tmp_path, capsys):
    write_images(tmp_path / "images", n=12)
    words = ["dataset=image_folder", f"dataset.root={tmp_path}/images", "dataset.image_size=16", "patch=p4"]
    words += ["augment=deit", "fit.batch_size=9"]
    assert main(["data", *TINY, *words, "--save", str(tmp_path / "look.png")]) == 0
    assert "3 channels" in capsys.readouterr().out


def write_scans(root, values, n=8):
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(values).save(root / name / f"{i}.png")
    return ["dataset=image_folder", f"dataset.root={root}", "dataset.image_size=64", "patch=p16", "fit.batch_size=4"]


def test_data_says_how_deep_images_and_transparent_ones_become_pixels(tmp_path, capsys):
    scan = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    words = [*write_scans(tmp_path / "images", scan), "dataset.evaluation_crop=1", "dataset.validation_fraction=0.2"]
    assert main(["data", *TINY, *words, "--save", str(tmp_path / "look.png")]) == 0
    said = capsys.readouterr().out
    assert "levels      256 of 256 are in use" in said
    assert "alpha       transparent pixels lie over white" in said
    assert "depth       deeper than 8 bits: 0 is black, 4095 is white" in said
    assert "warning" not in said
    assert main(["data", *TINY, *words, "dataset.range=null", "--save", str(tmp_path / "look.png")]) == 0
    said = capsys.readouterr().out
    assert "levels      16 of 256 are in use" in said
    assert "deeper than 8 bits" not in said
    assert "warning     nearly all pixels are the same: 99 % have the values 0 to 15 of 255" in said


def test_data_refuses_images_in_which_all_pixels_are_the_same(tmp_path, capsys):
    words = write_scans(tmp_path / "images", np.zeros((8, 8, 4), np.uint8))
    words += ["dataset.background=black", "dataset.validation_fraction=0.2", "--save", str(tmp_path / "look.png")]
    assert main(["data", *TINY, *words]) == 2
    said = capsys.readouterr().err
    assert "are the same, (0.000, 0.000, 0.000) of 1: look at a file; dataset.background is" in said
    assert not (tmp_path / "look.png").exists()


def test_data_names_the_classes_that_have_far_fewer_images(tmp_path, capsys):
    for name, n in (("many", 100), ("some", 30), ("few", 10)):
        write_images(tmp_path / "images", (name,), n=n)
    words = [*TINY, "dataset=image_folder", f"dataset.root={tmp_path}/images", "dataset.image_size=16", "patch=p4"]
    words += ["fit.batch_size=9", "--save", str(tmp_path / "look.png")]
    assert main(["data", *words]) == 0
    said = capsys.readouterr().out
    assert "\nimbalance   few (7): at most a tenth of the training images of many (72)\n" in said
    assert "loss.class_weights=balanced weighs" in said
    assert main(["data", *words, "loss.class_weights=balanced"]) == 0
    said = capsys.readouterr().out
    assert "imbalance   few (7)" in said
    assert "balanced weighs" not in said
    assert main(["data", *TINY, "--save", str(tmp_path / "look.png")]) == 0
    assert "imbalance" not in capsys.readouterr().out


def test_schedule_has_the_rates_that_training_has(tmp_path, capsys):
    words = ["fit.epochs=3", "fit.batch_size=50", "fit.layer_decay=0.5", "optimizer=muon", "optimizer.lr=0.1"]
    words += ["schedule.warmup_steps=10"]
    picture = tmp_path / "rates.png"
    assert main(["schedule", *TINY, *words, "--save", str(picture)]) == 0
    said = capsys.readouterr().out
    for fact in (
        "78 steps, 3.014 epochs of 1,294 images",
        "first       0.01 at step 1",
        "peak        0.1 at step 10",
        "last        0 at step 78",
        "layers      0.0125 at the peak of the first, 0.1 of the last",
    ):
        assert fact in said
    with Image.open(picture) as drawn:
        assert drawn.width > 500
    parts = assemble(check(compose([*TINY, *words])[0]))
    updates, rates, _ = schedule.curve(parts, 1294)
    composed = setup(*words)
    for update, rate in zip(updates, rates[-1], strict=True):
        composed.schedule.set(update)
        assert learning_rate(composed.optimizer) == rate


def test_schedule_counts_no_files_where_it_is_told_how_many(tmp_path, capsys):
    words = ["experiment=cifar10_vit", "dataset.root=nowhere", "--save", str(tmp_path / "rates.png")]
    assert main(["schedule", *words]) == 2
    assert "dataset.download=true" in capsys.readouterr().err
    assert main(["schedule", *words, "--examples", "45000"]) == 0
    assert "70,313 steps, 200 epochs of 45,000 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["data", "model=tyni"], "did you mean tiny"),
        (["data", "dataset=mnist", "dataset.root=nowhere"], "is not there"),
        (["schedule", "schedule.warmup_steps=99999999"], "the training has"),
        (["schedule", "--examples", "0"], "--examples=0"),
    ],
)
def test_what_cannot_be_looked_at_is_one_sentence(tmp_path, capsys, words, sentence):
    assert main([*words, "--save", str(tmp_path / "x.png")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("vitlab: ")
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "x.png").exists()
