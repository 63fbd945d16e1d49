"""The choice of test images in the interval of a difference: by simulation, from files, and silent without them."""

import numpy as np
import pandas as pd
import pytest

from tests.report.test_comparison import compared, line, rows
from vitlab.report.answer import table_text
from vitlab.report.image_noise import image_error
from vitlab.report.statistics import paired
from vitlab.storage import predictions
from vitlab.storage.run import Run

IMAGES = 300


def drawn(draw, seeds, images=IMAGES, seed_noise=0.2, image_noise=1.5):
    """Correct predictions (seed, image) of an arm and the baseline: images are hard for both, or for one."""
    hard = draw.normal(size=images)
    found = []
    for _ in range(2):
        own = hard + image_noise * draw.normal(size=images) + seed_noise * draw.normal(size=(seeds, 1))
        found.append(own + draw.normal(size=(seeds, images)) > -1)
    return found


def by_seed(table):
    return dict(enumerate(table))


@pytest.mark.parametrize("seeds", [3, 8])
@pytest.mark.parametrize("noise", [{"image_noise": 1.5}, {"image_noise": 0.0}, {"seed_noise": 0.8}])
def test_the_interval_holds_the_difference_on_all_images_in_95_of_100_sweeps(seeds, noise):
    """No arm is better on all images. Without the images' part it would miss that in many of the sweeps."""
    draw, held, seeds_alone = np.random.default_rng(seeds), 0, 0
    for _ in range(300):
        arm, base = drawn(draw, seeds, **noise)
        own = paired(pd.Series(arm.mean(1)), pd.Series(base.mean(1)))
        images = 1.96 * image_error(by_seed(arm), by_seed(base))
        held += abs(own.mean) <= np.hypot(own.half or 0, images)
        seeds_alone += abs(own.mean) <= (own.half or 0)
    assert held / 300 > 0.92
    if noise == {"image_noise": 1.5} and seeds == 8:
        assert seeds_alone / 300 < 0.85


def test_the_error_is_that_of_the_images_alone():
    """Where every seed has the same predictions, the difference is a mean over images, as of McNemar's test."""
    arm, base = np.random.default_rng(0).random((2, IMAGES)) < 0.8
    gap = arm.astype(float) - base
    found = image_error(by_seed([arm] * 4), by_seed([base] * 4))
    assert found == pytest.approx(gap.std(ddof=1) / np.sqrt(IMAGES))
    assert image_error(by_seed([arm]), by_seed([base])) is None  # one seed: images and chance are not told apart
    assert image_error({0: arm, 1: arm}, {2: base, 3: base}) is None
    assert image_error({0: arm, 1: arm[:10]}, {0: base, 1: base[:10]}) is None


def store(tmp_path, keep=True, seeds=4, **noise):
    """Runs of two arms that have kept their predictions."""
    lines = []
    for name, table in zip("ba", drawn(np.random.default_rng(1), seeds, **noise), strict=True):
        for seed, correct in enumerate(table):
            run = Run(tmp_path / f"{name}-{seed}")
            run.folder.mkdir()
            if keep:
                predictions.write(run, correct)
            known = {"run": str(run.folder), "test_images": IMAGES, "data": "0123"}
            lines.append(line(name, seed, float(correct.mean()), **known))
    return lines[::-1]


def test_an_answer_says_both_intervals_and_when_more_seeds_cannot_help(tmp_path):
    found = compared(store(tmp_path, seed_noise=0.01), baseline="a")
    row = rows(found)["b"]
    arm, base = ({seed: np.unpackbits(np.fromfile(tmp_path / f"{name}-{seed}/test-correct.bin", np.uint8), count=IMAGES)
                  for seed in range(4)} for name in "ba")  # fmt: skip
    assert row.images == pytest.approx(1.95996 * image_error(arm, base), rel=1e-4)
    assert row.with_images == pytest.approx(np.hypot(row.difference.half, row.images))
    (note,) = [note for note in found.notes if note.startswith("As a measure of other test images")]
    assert f"known to ± {100 * row.with_images:.2g} points" in note
    assert f"The 300 test images alone leave ± {100 * row.images:.2g} points open" in note
    assert "Of b that is more than the seeds do: more test images would help, not more seeds." in note
    assert "± on other images" in table_text(found, "plain")
    assert found.frame()["difference_half_with_images"].iloc[1] == pytest.approx(row.with_images)


def test_where_the_seeds_are_the_larger_part_more_of_them_help(tmp_path):
    found = compared(store(tmp_path, seed_noise=1.5), baseline="a")
    (note,) = [note for note in found.notes if note.startswith("As a measure of other test images")]
    assert "more test images would help" not in note


def changed(lines, tmp_path, how):
    if how == "other accuracy":
        lines[0]["test/accuracy"] += 0.1
        lines[1]["test/accuracy"] += 0.1
        lines[2]["test/accuracy"] += 0.1
    elif how == "cut":
        for run in tmp_path.glob("a-*"):
            (run / "test-correct.bin").write_bytes(b"x")
    elif how == "other images":
        lines[0]["data"] = "4567"
    return lines


@pytest.mark.parametrize("how", ["other accuracy", "cut", "other images"])
def test_what_does_not_fit_is_left_out(tmp_path, how):
    assert rows(compared(changed(store(tmp_path), tmp_path, how), baseline="a"))["b"].images is None


def test_without_the_files_an_answer_is_as_before(tmp_path):
    found = compared(store(tmp_path, keep=False), baseline="a")
    assert rows(found)["b"].images is None
    assert "other images" not in table_text(found, "plain")
    assert not [note for note in found.notes if note.startswith("As a measure of other test images")]
    assert "difference_half_with_images" not in found.frame()


def test_predictions_are_a_bit_an_image(tmp_path):
    correct = np.random.default_rng(0).random(IMAGES) < 0.9
    run = Run(tmp_path)
    predictions.write(run, correct)
    assert run.test_correct.stat().st_size == 38
    assert (predictions.read(run, IMAGES, correct.mean()) == correct).all()
