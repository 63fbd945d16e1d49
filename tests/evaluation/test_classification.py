"""What probabilities are worth: properties, and numbers from papers and from hand."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vitlab.data.preprocess import Normalize
from vitlab.evaluation import classification, pictures
from vitlab.evaluation.classification import ClassificationReport, wilson
from vitlab.plotting import save, shorten
from vitlab.system.distributed import Distributed

ALONE = Distributed(0, 1, torch.device("cpu"))


def drawn(n=3000, classes=10, seed=0, sharpness=1.0):
    """Probabilities, and labels that are drawn from them: calibrated where the sharpness is 1."""
    draw = np.random.default_rng(seed)
    true = np.exp(2 * draw.normal(size=(n, classes)))
    true /= true.sum(axis=1, keepdims=True)
    labels = (draw.random((n, 1)) > true.cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
    said = true**sharpness
    return said / said.sum(axis=1, keepdims=True), labels, tuple(f"class {i}" for i in range(classes))


def by_hand():
    """Four examples of three classes."""
    probabilities = np.array([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.3, 0.3, 0.4]])
    return ClassificationReport.of(probabilities, np.array([0, 1, 1, 2]), ("ant", "bee", "cat"))


def test_four_examples_are_judged_as_by_hand():
    judged = by_hand()
    assert judged.accuracy == 0.75
    assert judged.predicted.tolist() == [0, 1, 0, 2]
    assert judged.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert judged.examples.tolist() == [1, 2, 1]
    assert judged.per_class.tolist() == [1, 0.5, 1]
    assert judged.hardest(1) == [1]
    assert judged.confusions(5) == [("bee", "ant", 1)]
    ((index, true, predicted, said, meant),) = judged.mistakes(5)
    assert (index, true, predicted) == (2, "bee", "ant")
    assert (said, meant) == pytest.approx((0.7, 0.2))
    # each example has a bin of its own: the distances are 0.1, 0.2, 0.7 and 0.6
    assert judged.ece == pytest.approx((0.1 + 0.2 + 0.7 + 0.6) / 4)


def test_bins_are_open_below_and_closed_above():
    counted = classification.bins(np.array([1 / 15, 1 / 15 + 1e-9, 1.0, 0.99]), np.array([1, 1, 1, 0]))
    assert counted.examples.tolist() == [1, 1, *[0] * 12, 2]
    assert counted.accuracy[14] == 0.5


def test_the_calibration_error_of_probabilities_that_are_true_is_small_and_of_sharper_ones_is_not():
    true, sharp = (ClassificationReport.of(*drawn(20000, sharpness=s)) for s in (1.0, 3.0))
    assert true.ece < 0.015
    assert sharp.ece > 0.1
    assert sharp.accuracy == true.accuracy


def test_the_calibration_error_is_the_one_of_a_plain_loop():
    probabilities, labels, classes = drawn(500, sharpness=2.0)
    top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for low in range(15):
        inside = (top > low / 15) & (top <= (low + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - top[inside].mean())
    assert ClassificationReport.of(probabilities, labels, classes).ece == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("right", "examples", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_that_of_newcombe_1998(right, examples, low, high):
    """Its table I, method 3; and what is not right is the rest."""
    assert wilson(right, examples) == pytest.approx((low, high), abs=1e-4)
    assert wilson(examples - right, examples) == pytest.approx((1 - high, 1 - low), abs=1e-4)


def test_rows_of_the_confusion_matrix_sum_to_the_examples_and_its_diagonal_to_the_right_ones():
    probabilities, labels, classes = drawn()
    judged = ClassificationReport.of(probabilities, labels, classes)
    assert judged.confusion.sum(axis=1).tolist() == np.bincount(labels, minlength=10).tolist()
    assert judged.confusion.trace() / len(labels) == pytest.approx(judged.accuracy)
    assert np.average(judged.per_class, weights=judged.examples) == pytest.approx(judged.accuracy)
    assert judged.interval[0] < judged.accuracy < judged.interval[1]


def test_the_order_of_the_examples_and_the_kind_of_array_change_nothing():
    probabilities, labels, classes = drawn()
    mixed = np.random.default_rng(1).permutation(len(labels))
    one = ClassificationReport.of(probabilities, labels, classes).as_dict()
    two = ClassificationReport.of(
        torch.from_numpy(probabilities[mixed]), torch.from_numpy(labels[mixed]), classes
    ).as_dict()
    assert one["confusion"] == two["confusion"]
    assert one["ece"] == pytest.approx(two["ece"])
    assert one["top5_accuracy"] == two["top5_accuracy"]


def test_top_five_counts_the_true_class_among_the_five_highest_and_is_left_out_for_five_classes():
    probabilities, labels, classes = drawn()
    expected = [label in np.argsort(-row)[:5] for row, label in zip(probabilities, labels, strict=True)]
    assert ClassificationReport.of(probabilities, labels, classes).top5 == pytest.approx(np.mean(expected))
    assert ClassificationReport.of(*drawn(classes=5)).top5 is None


def test_all_classes_equally_probable_is_the_first_class_and_the_first_five():
    judged = ClassificationReport.of(np.full((6, 6), 1 / 6), np.arange(6), tuple("abcdef"))
    assert judged.accuracy == pytest.approx(1 / 6)
    assert judged.top5 == pytest.approx(5 / 6)


def test_a_class_without_examples_has_no_accuracy_and_is_not_the_hardest():
    judged = ClassificationReport.of(np.eye(3), np.array([0, 1, 1]), ("a", "b", "c"))
    assert math.isnan(judged.per_class[2])
    assert judged.hardest(3) == [1, 0]
    none = {"class": "c", "images": 0, "accuracy": None, "roc_auc": None}
    assert judged.as_dict()["classes"][2] == none | dict.fromkeys(("precision", "recall", "f1"))


def test_the_worst_mistakes_come_first():
    worst = ClassificationReport.of(*drawn()).mistakes(20)
    assert [mistake.probability for mistake in worst] == sorted((m.probability for m in worst), reverse=True)
    assert all(m.true != m.predicted and m.probability >= m.true_probability for m in worst)


@pytest.mark.parametrize(
    ("probabilities", "labels", "sentence"),
    [
        (np.zeros((0, 3)), np.zeros(0), "at least 1"),
        (np.ones((2, 4)), np.zeros(2), "give a row of 3"),
        (np.full((1, 3), np.nan), np.zeros(1), "NaN or infinite"),
        (np.ones((1, 3)), np.array([3]), r"not in 0 \.\.\. 2"),
    ],
)
def test_what_cannot_be_judged_is_refused(probabilities, labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        ClassificationReport.of(probabilities, labels, ("a", "b", "c"))


def test_predictions_keep_the_order_and_leave_the_model_as_it_was():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(12, 3)).train()
    pixels, labels = torch.randint(0, 256, (7, 3, 2, 2), dtype=torch.uint8), torch.arange(7) % 3
    images = Normalize((0.5,) * 3, (0.2,) * 3)(pixels)
    batches = list(zip(images.split(3), labels.split(3), strict=True))
    found, same = classification.predictions(model, batches, ALONE, "fp32")
    assert torch.equal(same, labels)
    assert model.training
    model.eval()
    torch.testing.assert_close(found, model(images).softmax(dim=-1))
    low, _ = classification.predictions(model, batches, ALONE, "bf16")
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, found, atol=0.05, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 10, 40, 200])
def test_every_picture_can_be_drawn_for_any_number_of_classes(tmp_path, classes):
    probabilities, labels, _ = drawn(300, classes)
    judged = ClassificationReport.of(probabilities, labels, [f"cost ${i} ^_ 猫 {'x' * i}" for i in range(classes)])
    worst = judged.mistakes(7)
    images = [Image.new(mode, (9 + i, 20)) for i, mode in enumerate(("L", "RGB", "RGBA", "P", "1", "L", "L"))]
    figures = {
        "confusion": pictures.confusion(judged, "a run"),
        "calibration": pictures.calibration(judged),
        "mistakes": pictures.mistakes(images, worst, "a run " * 20),
    }
    for name, figure in figures.items():
        save(figure, tmp_path / f"{name}.png", dpi=40)
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 100


def test_a_model_that_is_always_right_can_be_drawn_too(tmp_path):
    judged = ClassificationReport.of(np.eye(3), np.arange(3), ("a", "b", "c"))
    assert judged.mistakes(5) == judged.confusions(5) == []
    save(pictures.confusion(judged), tmp_path / "a.png", dpi=40)
    save(pictures.calibration(judged), tmp_path / "b.png", dpi=40)


def test_words_that_are_too_long_keep_their_beginning_and_their_end():
    assert shorten("tabby cat", 9) == "tabby cat"
    assert shorten("a very long name of a cat", 10) == "a very…cat"
    assert shorten("folder/file.png", 9, keep=0) == "…file.png"
    assert shorten("two\nlines", 20) == "two lines"
