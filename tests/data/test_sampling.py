"""Balanced sampling: every class equally often, a function of the seed and the step."""

import numpy as np
import pytest

from tests.disk import write_images, write_shards
from tests.training.test_loop import ALONE, SMALL, fit
from vitlab.config.build import assemble
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError
from vitlab.data.loader import TrainSampler, balanced_order
from vitlab.data.seeding import seed_of
from vitlab.training.batches import training_order
from vitlab.training.checks import check_classes
from vitlab.training.recipe import Recipe
from vitlab.training.setup import prepare

pytestmark = pytest.mark.usefixtures("no_curves")

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 3], [90, 9, 2]))  # class 2 is not there
WALK = {"examples": len(LABELS), "batch": 12, "seed": 0, "labels": LABELS}


def test_every_class_is_drawn_equally_often_and_its_images_before_they_come_again():
    orders = [balanced_order(np.random.default_rng(seed), LABELS) for seed in range(30)]
    for order in orders:
        assert len(order) == len(LABELS)
        draws = np.bincount(LABELS[order])[[0, 1, 3]]
        assert sorted(draws) == [33, 34, 34]
        times = np.bincount(order, minlength=len(LABELS))
        assert set(times[LABELS == 0]) == {0, 1}
        assert set(times[LABELS == 1]) <= {3, 4}
        assert set(times[LABELS == 3]) <= {16, 17}
    first = np.array([LABELS[order[:12]] for order in orders])  # a batch is a sample of all classes
    assert np.bincount(first.ravel())[[0, 1, 3]] / first.size == pytest.approx([1 / 3] * 3, abs=0.1)
    assert len({tuple(order) for order in orders}) == len(orders)
    seen = np.bincount(np.concatenate(orders)[LABELS[np.concatenate(orders)] == 0], minlength=len(LABELS))
    assert seen[LABELS == 0].min() > 0  # another part of the large class in every epoch


def test_batches_are_the_same_from_any_step_and_for_any_number_of_processes():
    whole = list(TrainSampler(**WALK, start=0, stop=30))
    assert whole[17:] == list(TrainSampler(**WALK, start=17, stop=30))
    assert whole != list(TrainSampler(**WALK | {"seed": 1}, start=0, stop=30))
    for world in (2, 3):
        parts = [list(TrainSampler(**WALK, start=0, stop=30, rank=rank, world_size=world)) for rank in range(world)]
        for step, keys in enumerate(whole):
            assert sorted(key for part in parts for key in part[step]) == sorted(keys)


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize(("batch", "repeats"), [(12, 1), (12, 3), (90, 1), (101, 2), (240, 3)])
def test_each_position_of_the_sequence_is_an_image_of_its_epoch(batch, repeats, labels):
    sampler = TrainSampler(examples=101, batch=batch, start=2, stop=9, seed=3, repeats=repeats, labels=labels)
    for step, keys in enumerate(sampler, 2):
        positions = range(step * batch, (step + 1) * batch)
        expected = []
        for position in sorted(positions, key=lambda position: position % 101 % repeats):
            draw = np.random.default_rng(seed_of(3, position // 101))
            order = draw.permutation(101) if labels is None else balanced_order(draw, labels)
            draws, copy = divmod(position % 101, repeats)
            expected.append((position // 101 * repeats + copy if labels is None else position, order[draws]))
        assert keys == expected


@pytest.mark.parametrize("repeats", [1, 3])
def test_no_draw_is_augmented_as_another_one(repeats):
    keys = [key for batch in TrainSampler(**WALK, start=0, stop=60, repeats=repeats) for key in batch]
    assert len(set(keys)) == len(keys)
    assert np.bincount(LABELS[[image for _, image in keys]])[[0, 1, 3]] / len(keys) == pytest.approx(
        [1 / 3] * 3, abs=0.1
    )


def words_of(root):
    write_images(root, ("many",), n=90)
    write_images(root, ("few",), n=9)
    return [
        "dataset=image_folder",
        f"dataset.root={root}",
        "dataset.image_size=16",
        "patch=p8",
        "fit.sampling=balanced",
    ]


def test_a_training_draws_the_classes_of_a_folder_equally_often(tmp_path):
    words = [*SMALL, *words_of(tmp_path / "images"), "dataset.train_examples=null"]
    setup = prepare(**assemble(check(compose(words)[0])), dist=ALONE)
    labels = setup.splits["train"].labels
    drawn = labels[[image for batch in training_order(setup, 0) for _, image in batch]]
    assert np.bincount(labels).min() < 10
    assert np.bincount(drawn)[0] / len(drawn) == pytest.approx(0.5, abs=0.05)
    run, result = fit(tmp_path, *words[len(SMALL) :], "fit.steps=2", "augment=flip_crop", "augment.mixup=0.2")
    assert result["status"] == "finished"
    assert run.rows()[-1]["step"] == 2


def recipe(*words):
    return Recipe(**assemble(check(compose(words)[0])))


@pytest.mark.parametrize(
    ("words", "empty", "sentence"),
    [
        (["loss.class_weights=balanced"], False, "small classes would count twice: use one of the two"),
        ([], True, "the class 3 has no training images"),
    ],
)
def test_what_does_not_go_with_balanced_sampling_is_refused(words, empty, sentence):
    images = np.where(np.arange(10) == 3, 0 if empty else 2, 20)
    with pytest.raises(ConfigError, match=rf"^fit\.sampling=balanced: .*{sentence}"):
        check_classes(recipe("fit.sampling=balanced", *words), images)


def test_one_batch_is_drawn_once():
    with pytest.raises(ConfigError, match=r"fit\.sampling=balanced with fit\.one_batch=true"):
        recipe("fit.sampling=balanced", "fit=overfit")


def test_shards_are_read_in_their_own_order(tmp_path):
    pytest.importorskip("webdataset")
    write_shards(tmp_path)
    words = ["dataset=webdataset", f"dataset.train={tmp_path}/train-*.tar", f"dataset.cache={tmp_path}/cache"]
    with pytest.raises(ConfigError, match=r"fit\.sampling=balanced: these images are read from shards .*class_weights"):
        check_classes(recipe("fit.sampling=balanced", *words), np.array([10, 1]))


def test_weights_with_balanced_sampling_have_a_mean_of_1_over_what_is_drawn():
    given = recipe("fit.sampling=balanced", f"loss.class_weights=[{','.join('1234567890')}]")
    check_classes(given, np.arange(1, 11))
    assert given.loss.weights.mean().item() == pytest.approx(1)
