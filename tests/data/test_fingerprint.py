"""The fingerprint of a dataset's images says whether they are those of before, and what has changed."""

import json
import shutil

import pytest

from tests.data.datasets.test_webdataset import shards, write_shards
from tests.data.test_dataset import digits, folder
from tests.disk import hub_table, own_cache, write_images
from vitlab.config.build import build
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.errors import DataError, StorageError
from vitlab.data import fingerprint
from vitlab.data.dataset import read_once
from vitlab.data.datasets.image_folder import ImageFolder
from vitlab.storage.run import Run


def other_pixels(root):
    image = root / "cat" / "0.png"
    image.write_bytes(image.read_bytes() + b"more")


def move_image(root):
    (root / "cat" / "0.png").rename(root / "dog" / "new.png")


def split(root):
    (root / "train").mkdir()
    for name in ("cat", "dog"):
        (root / name).rename(root / "train" / name)
    write_images(root / "test", n=3)


CHANGES = {
    "3 images more": lambda root: write_images(root / "cat" / "more", classes=("",), n=3),
    "1 image fewer": lambda root: (root / "cat" / "2.png").unlink(),
    "class cat is now called zebra": lambda root: (root / "cat").rename(root / "zebra"),
    "class dog gone; class zebra new; 1 image fewer": lambda root: (
        (root / "dog").rename(root / "zebra"),
        (root / "zebra" / "2.png").unlink(),
    ),
    "class bird new; 8 images more": lambda root: write_images(root, classes=("bird",), n=8),
    "class emu gone; 8 images fewer": lambda root: shutil.rmtree(root / "emu"),
    "as many images, but 4 bytes more": other_pixels,
    "as many images, but others": lambda root: (root / "cat" / "2.png").rename(root / "cat" / "9.png"),
    "the test split of 6 images is new": split,
}


@pytest.mark.parametrize("words", CHANGES)
def test_what_has_changed_is_said(tmp_path, words):
    root = tmp_path / "images"
    write_images(root, classes=("cat", "dog", "emu") if "emu" in words else ("cat", "dog"), n=8)
    before = folder(root).fingerprint()
    assert json.loads(json.dumps(before)) == before == folder(root).fingerprint()
    CHANGES[words](root)
    now = folder(root).fingerprint()
    assert now["hash"] != before["hash"]
    assert "; ".join(fingerprint.changes(before, now)) == words


def test_an_image_that_changes_its_class_is_a_change(tmp_path):
    write_images(tmp_path, n=8)
    before = folder(tmp_path).fingerprint()
    move_image(tmp_path)
    now = folder(tmp_path).fingerprint()
    assert before["splits"]["train"]["images"] == {"cat": 8, "dog": 8}
    assert now["splits"]["train"]["images"] == {"cat": 7, "dog": 9}
    assert fingerprint.changes(before, now) == ["as many images, but others"]


def test_classes_in_another_order_are_a_change():
    images = digits().listed()
    one = fingerprint.fingerprint("0123456789", images)
    other = fingerprint.fingerprint("1023456789", images)
    assert "the classes are in another order" in fingerprint.changes(one, other)


def test_a_copy_elsewhere_is_the_same_data(tmp_path, monkeypatch):
    write_images(tmp_path / "here", n=8)
    shutil.copytree(tmp_path / "here", tmp_path / "a" / "disk" / "there")
    monkeypatch.chdir(tmp_path)
    found = [folder(root).fingerprint() for root in ("here", "./here/", tmp_path / "here", "a/disk/there")]
    assert found.count(found[0]) == 4


def test_no_image_is_opened_for_it(tmp_path):
    write_images(tmp_path, n=8)
    before = folder(tmp_path).fingerprint()
    for file in tmp_path.rglob("*.*g"):
        file.write_bytes(b"x" * file.stat().st_size)  # no image any more, which verify=True would refuse
    assert folder(tmp_path, verify=True).fingerprint() == before


def test_images_in_memory_are_told_apart_by_their_pixels():
    one, other = digits().fingerprint(), digits().listed()
    assert digits(split_seed=1, image_size=12).fingerprint() == one  # other splits and sizes of the same images
    other["train"].pixels[7, 0, 3, 3] ^= 1
    assert fingerprint.changes(one, fingerprint.fingerprint("0123456789", other)) == ["as many images, but others"]


def test_of_generated_images_none_is_drawn():
    node, _ = compose(["dataset=synthetic", "dataset.examples=1_000_000"])
    assert build(check(node["dataset"], "dataset")).fingerprint()["splits"] == {}


def test_shards_are_told_apart_by_their_index(tmp_path):
    before = shards(tmp_path, write_shards(tmp_path / "a", 2)).fingerprint()
    assert shards(tmp_path, write_shards(tmp_path / "b", 2)).fingerprint() == before
    now = shards(tmp_path, write_shards(tmp_path / "c", 3), test=write_shards(tmp_path / "d", 1)).fingerprint()
    assert fingerprint.changes(before, now) == ["10 images more in train", "the test split of 10 images is new"]
    other = shards(tmp_path, write_shards(tmp_path / "e", 2, label=lambda number: (number + 1) % 4)).fingerprint()
    assert fingerprint.changes(before, other) == ["as many images, but others"]


def test_tables_are_told_apart_by_the_sizes_of_their_images(tmp_path, monkeypatch):
    own_cache(tmp_path, monkeypatch)

    def found(name, *values):
        if values:
            hub_table(*values).to_parquet(tmp_path / name / "train.parquet")
        node, _ = compose(["dataset=hf", f"dataset.path={tmp_path / name}", "dataset.test_split=null"])
        return build(check(node["dataset"], "dataset")).fingerprint()

    for name in ("one", "more", "other", "named"):
        (tmp_path / name).mkdir()
    before = found("one", 12)
    shutil.copytree(tmp_path / "one", tmp_path / "deep" / "copy")
    assert found("deep/copy") == before
    assert before["splits"]["train"]["images"] == {"cat": 6, "dog": 6}
    assert before["splits"]["train"]["bytes"] > 12 * 500
    assert fingerprint.changes(before, found("more", 14)) == ["2 images more"]
    assert fingerprint.changes(before, found("named", 12, ("cat", "emu"))) == ["class dog is now called emu"]
    other = found("other", 12, ("cat", "dog"), 0, ["dog", "cat"] * 6)
    assert fingerprint.changes(before, other) == ["as many images, but others"]


def test_trainings_in_a_row_look_once(tmp_path, monkeypatch):
    write_images(tmp_path, n=8)
    calls, listed = [], ImageFolder.listed
    monkeypatch.setattr(ImageFolder, "listed", lambda self: calls.append(1) or listed(self))
    with read_once():
        for _ in range(3):
            folder(tmp_path).fingerprint()
            folder(tmp_path).splits()
    assert len(calls) == 1


def test_of_a_finished_run_whose_images_are_gone_nothing_is_said(tmp_path):
    """It was recognised without them before; an interrupted one needs them."""
    run = Run(tmp_path)

    def gone():
        raise DataError("no images")

    assert fingerprint.changed_images(run, gone) == ""  # of an earlier version
    run.data.write_text(json.dumps(digits().fingerprint()))
    run.write_result({"status": "finished"})
    assert fingerprint.changed_images(run, gone) == ""
    run.write_result({"status": "interrupted"})
    with pytest.raises(DataError, match="no images"):
        fingerprint.changed_images(run, gone)
    assert fingerprint.changed_images(run, digits().fingerprint) == ""


@pytest.mark.parametrize(
    "text",
    [
        '{"classes": ["a"]}',
        '{"classes": [1], "splits": {}}',
        '{"classes": ["a"], "splits": {"train": 3}}',
        '{"classes": ["a"], "splits": {"train": {"bytes": 1, "images": {"a": "many"}}}}',
        "[]",
        "{",
    ],
)
def test_a_damaged_fingerprint_is_named(tmp_path, text):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(StorageError, match=r"data\.json is damaged"):
        fingerprint.read(Run(tmp_path))
