"""A run that is killed, again and again, ends as one that was never disturbed: to the last bit."""

import contextlib
import json
import random
import signal
import time

import pytest
import torch
import yaml

from tests.processes import Training, steps, until
from vitlab.storage import checkpoint
from vitlab.storage.run import Run

SMALL = ["train", "tracking=off", "dataset.train_examples=90", "model.width=96", "model.depth=2", "model.heads=2"]
SMALL += ["fit.batch_size=16", "fit.precision=fp32", "fit.steps=60", "fit.evaluate_every=1.5", "system.log_every=1"]
DRAWS = ["model.dropout=0.1", "model.drop_path=0.2", "augment.mixup=0.4", "augment.cutmix=1.0", "fit.ema_decay=0.9"]
RECIPES = {
    "dropout, drop-path, mixup, EMA, accumulation": [*DRAWS, "fit.accumulate=2"],
    "augmented by workers, early stopping": ["augment=flip_crop", "fit.patience=3"],
    "batch normalisation, erasing, Muon": ["model/stem=convolution", "augment.erase=0.5", "optimizer=muon"],
    "schedule-free, fp16, rows far apart": [
        "optimizer=schedulefree",
        "fit.precision=fp16",
        "system.log_every=7",
        "model.width=32",
    ],
}
WORKERS = {"augmented by workers, early stopping": ["0", "2", "1"]}
TIMES = ("seconds", "images_per_second", "data_wait", "peak_memory_bytes")


def equal(one, two):
    """Whether two states are the same to the last bit, but for how long they took."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(key in TIMES or equal(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(equal, one, two))
    return type(one) is type(two) and one == two


def timeless(row):
    return {key: value for key, value in row.items() if key not in TIMES}


def only(folder):
    (found,) = folder.iterdir()
    return Run(found)


def assert_same(one, two):
    """Two finished runs have the same states, rows, results and weights, and every file of them is whole."""
    assert equal(checkpoint.load(one.last), checkpoint.load(two.last))
    assert equal(checkpoint.load(one.best), checkpoint.load(two.best))
    checkpoint.load(two.previous)
    assert [timeless(row) for row in one.rows()] == [timeless(row) for row in two.rows()]
    assert timeless(one.result()) == timeless(two.result())
    assert one.result()["status"] == "finished"
    assert one.export.read_bytes() == two.export.read_bytes()
    numbers = [row["step"] for row in two.rows()]
    assert numbers == sorted(set(numbers))
    assert not list(two.folder.glob(".*"))
    assert not list(two.folder.glob("*.damaged"))
    for path in two.folder.glob("*.json"):
        json.loads(path.read_text())
    assert two.metrics.read_text().count("\n") == len(two.rows())
    assert yaml.safe_load(two.config.read_text()) == {**yaml.safe_load(one.config.read_text()), "system": ANY}
    assert two.curves.read_bytes().endswith(b"IEND\xaeB`\x82")


def parts(folder):
    """The half-written checkpoints in a folder of runs."""
    found = set()
    for path in folder.glob("*/.last.pt.part"):
        with contextlib.suppress(FileNotFoundError):
            found.add(path.stat().st_ctime_ns // 10**7)
    return found


class Any:
    def __eq__(self, _):
        return True

    __hash__ = None


ANY = Any()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(recipe, tmp_path):
    """SIGKILL at random moments, every second time in the middle of a save; 2 a recipe, if it lasts."""
    words = [*SMALL, *RECIPES[recipe], "system.save_minutes=0.0005"]
    draw = random.Random(recipe)
    workers = WORKERS.get(recipe, ["0"])
    calm = Training([*words, f"system.runs={tmp_path}/calm", f"system.workers={workers[0]}"], tmp_path / "calm.txt")
    assert calm.wait() == [0], calm.said
    killed = tmp_path / "killed"
    kills = saving = tries = 0
    while True:
        tries += 1
        command = [*words, f"system.runs={killed}", f"system.workers={workers[tries % len(workers)]}"]
        run = Training(command, tmp_path / f"killed-{tries}.txt")
        if kills >= 2:
            assert run.wait() == [0], run.said
            break
        before, stale = steps(killed), parts(killed)
        if tries % 2:
            wanted, seen = draw.randrange(1, 5), set()
            while len(seen) < wanted and run.members[0].exitcode is None:
                seen |= parts(killed) - stale
                time.sleep(0.001)
            saving += run.members[0].exitcode is None
        else:
            until(lambda: steps(killed) != before or run.members[0].exitcode is not None)  # noqa: B023 (called here)
            time.sleep(draw.uniform(0, 0.2))
        run.send(signal.SIGKILL)
        status = run.wait()
        kills += status == [-signal.SIGKILL]
        if status == [0]:  # it was done before
            break
        assert status == [-signal.SIGKILL], run.said
        assert only(killed).result()["status"] == "interrupted"
    print(f"{kills} kills, {saving} of them aimed at a save")
    assert kills >= 1
    assert_same(only(tmp_path / "calm"), only(killed))
