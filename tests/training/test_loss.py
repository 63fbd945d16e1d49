"""Losses with class weights, and the focal loss."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from tests.config.test_check import check, compose
from tests.training.test_loop import ALONE, fit, weights
from vitlab.config.build import assemble
from vitlab.config.errors import ConfigError
from vitlab.config.identity import identity
from vitlab.training.loss import CrossEntropy, Focal, SigmoidCrossEntropy
from vitlab.training.setup import prepare

CLASSES, IMAGES = ("ant", "bee", "cat"), np.array([90, 9, 1])
LOSSES = {
    "cross_entropy": CrossEntropy,
    "sigmoid": lambda **values: SigmoidCrossEntropy(head_bias=None, **values),
    "focal": lambda **values: Focal(gamma=2.0, **values),
}


def weighted(given, kind="cross_entropy", smoothing=0.1):
    loss = LOSSES[kind](label_smoothing=smoothing, class_weights=given)
    loss.set_classes(CLASSES, IMAGES)
    return loss


def drawn():
    torch.manual_seed(0)
    return torch.randn(8, 3), torch.tensor([0, 1, 2, 2, 0, 0, 1, 0])


def test_balanced_weights_are_those_of_scikit_learn():
    labels = np.repeat(np.arange(3), IMAGES)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    torch.testing.assert_close(weighted("balanced").weights, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("given", ["balanced", (1.0, 2.0, 3.0), (0.0, 5.0, 5.0)])
def test_the_mean_weight_of_the_training_images_is_1_and_only_ratios_count(given):
    found = weighted(given).weights
    assert found.double() @ torch.from_numpy(IMAGES).double() / 100 == pytest.approx(1, rel=1e-6)
    if given != "balanced":
        torch.testing.assert_close(found[1] / found[2], torch.tensor(given[1] / given[2]))
        torch.testing.assert_close(weighted(tuple(7 * w for w in given)).weights, found)


@pytest.mark.parametrize("kind", LOSSES)
def test_each_image_counts_by_the_weight_of_its_class(kind):
    logits, labels = drawn()
    loss, plain = weighted("balanced", kind), weighted(None, kind)
    each = torch.stack([plain(logits[i : i + 1], labels[i : i + 1]) for i in range(len(labels))])
    expected = (loss.weights[labels] * each).mean()
    torch.testing.assert_close(loss(logits, labels), expected)
    torch.testing.assert_close(loss(logits, torch.nn.functional.one_hot(labels, 3).float()), expected)
    equal = weighted((2.0, 2.0, 2.0), kind)
    torch.testing.assert_close(equal(logits, labels), plain(logits, labels))


@pytest.mark.parametrize("kind", ["cross_entropy", "sigmoid"])
def test_a_mixed_image_has_the_weighted_loss_of_each_of_its_labels(kind):
    logits, labels = drawn()
    one, two = (torch.nn.functional.one_hot(part, 3).float() for part in (labels, labels.flip(0)))
    loss = weighted("balanced", kind)
    mixed = loss(logits, 0.3 * one + 0.7 * two)
    torch.testing.assert_close(mixed, 0.3 * loss(logits, one) + 0.7 * loss(logits, two))


@pytest.mark.parametrize("kind", LOSSES)
def test_parts_of_a_batch_have_the_mean_of_the_whole(kind):
    logits, labels = drawn()
    loss = weighted("balanced", kind)
    halves = [loss(logits[part], labels[part]) for part in (slice(4), slice(4, 8))]
    torch.testing.assert_close(sum(halves) / 2, loss(logits, labels))


def test_a_class_without_weight_gives_no_loss_and_no_nan():
    logits, labels = drawn()
    loss = weighted((0.0, 1.0, 1.0))
    logits.requires_grad_()
    targets = torch.nn.functional.one_hot(labels, 3).float()
    for given in (labels, targets):
        (slope,) = torch.autograd.grad(loss(logits, given), logits)
        assert slope[labels == 0].abs().max() == 0
        assert slope[labels == 1].abs().min() > 0


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((1.0, 2.0), r"class_weights=\[1.0, 2.0\]: 2 weights for 3 classes: give one for each"),
        ((1.0, -2.0, 1.0), r"class_weights=\[1.0, -2.0, 1.0\]: no weight may be negative"),
        ((0.0, 0.0, 0.0), "one must be above 0"),
        ((), "one must be above 0"),
    ],
)
def test_weights_that_cannot_be_are_refused(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        weighted(given)


def test_classes_without_images_have_no_balanced_weight():
    for given, sentence in (("balanced", "the class bee has no training images"), ((0.0, 1.0, 0.0), "no class with")):
        with pytest.raises(ConfigError, match=sentence):
            CrossEntropy(label_smoothing=0.0, class_weights=given).set_classes(CLASSES, np.array([5, 0, 5]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_loss_without_focus_is_cross_entropy(smoothing):
    logits, labels = drawn()
    none = Focal(label_smoothing=smoothing, class_weights=None, gamma=0.0)
    torch.testing.assert_close(none(logits, labels), weighted(None, smoothing=smoothing)(logits, labels))
    balanced = Focal(label_smoothing=smoothing, class_weights="balanced", gamma=0.0)
    balanced.set_classes(CLASSES, IMAGES)
    torch.testing.assert_close(balanced(logits, labels), weighted("balanced", smoothing=smoothing)(logits, labels))


def test_focal_loss_is_the_papers_and_differentiable_where_a_prediction_is_certain():
    logits, labels = drawn()
    p = logits.softmax(-1)[torch.arange(8), labels]
    for gamma in (0.5, 2.0):
        loss = Focal(label_smoothing=0.0, class_weights=None, gamma=gamma)
        torch.testing.assert_close(loss(logits, labels), (-((1 - p) ** gamma) * p.log()).mean())
        certain = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
        for label in (0, 1):
            (slope,) = torch.autograd.grad(loss(certain, torch.tensor([label])), certain)
            assert slope.isfinite().all()
    with pytest.raises(ConfigError, match=r"gamma=-1\.0: must be at least 0"):
        Focal(label_smoothing=0.0, class_weights=None, gamma=-1.0)


def test_a_weighted_training_of_two_halves_is_that_of_the_whole_batch(tmp_path):
    plain = ["model.dropout=0", "fit.clip=null", "optimizer=sgd", "fit.steps=3", "augment.mixup=0.5"]
    plain += [f"loss.class_weights=[{','.join(str(1 + 9 * (i % 2)) for i in range(10))}]"]
    whole, result = fit(tmp_path, *plain, name="whole")
    halves, _ = fit(tmp_path, *plain, "fit.accumulate=2", name="halves")
    other, unweighted = fit(tmp_path, *plain[:-1], name="other")
    torch.testing.assert_close(weights(whole), weights(halves), atol=1e-6, rtol=1e-5)
    for one, two in zip(whole.rows(), halves.rows(), strict=True):
        assert one["train/loss"] == pytest.approx(two["train/loss"], rel=1e-5)
    assert whole.rows()[0]["train/loss"] != other.rows()[0]["train/loss"]
    assert result["val/loss"] != unweighted["val/loss"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["loss.class_weights=[1,2]"], "2 weights for 10 classes"),
        (["loss.class_weights=even"], "expected balanced, a list of numbers, or null"),
        (["loss.class_weights=balanced", "model/objective=masked_patch"], "predicts patches and no classes"),
    ],
)
def test_weights_are_refused_before_a_training_begins(words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        prepare(**assemble(check(compose(words)[0])), dist=ALONE)


def test_another_weighting_is_another_run():
    names = {identity(check(compose(words)[0])) for words in ([], ["loss.class_weights=balanced"], ["loss=focal"])}
    assert "cebb32de" in names
    assert len(names) == 3
