"""Files that are in two splits."""

import numpy as np
import pytest
import torch

from vitlab.__main__ import main
from vitlab.data import copies
from vitlab.data.copies import find_copies
from vitlab.data.examples import Files, Pixels


def splits(folder, **contents):
    parts = {}
    for split, texts in contents.items():
        paths = [folder / split / f"{i}.png" for i in range(len(texts))]
        (folder / split).mkdir()
        for path, text in zip(paths, texts, strict=True):
            path.write_bytes(text)
        parts[split] = Files(paths, np.zeros(len(paths)), "RGB")
    return parts


def test_a_file_in_two_splits_is_found_by_its_bytes(tmp_path):
    parts = splits(tmp_path, train=[b"one", b"two", b"twin"], validation=[b"six", b"seven"], test=[b"twin", b"two"])
    found = find_copies(parts)
    assert found.startswith(f"2 files are in two splits with the same bytes, such as {tmp_path}/train/")
    assert "(train)" in found
    assert "(test)" in found
    assert "\n" not in found


def test_copies_within_one_split_and_other_bytes_of_one_size_are_no_fault(tmp_path):
    assert find_copies(splits(tmp_path, train=[b"one", b"one"], test=[b"two"])) == ""
    assert find_copies({"train": Pixels(torch.zeros((1, 1, 1, 1), dtype=torch.uint8), np.zeros(1))}) == ""


def test_only_files_whose_sizes_collide_are_read_and_no_more_than_the_limit(tmp_path, monkeypatch):
    parts = splits(tmp_path, train=[b"a" * 10, b"b" * 500, b"c"], test=[b"a" * 10, b"b" * 500, b"dd"])
    read = []
    whole = copies.Path.read_bytes
    monkeypatch.setattr(copies.Path, "read_bytes", lambda path: (read.append(path.name), whole(path))[1])
    assert find_copies(parts).startswith("2 files")
    assert sorted(read) == ["0.png", "0.png", "1.png", "1.png"]
    monkeypatch.setattr(copies, "MOST_BYTES", 20)
    assert "1 file is in two splits" in (said := find_copies(parts))
    assert "(2 more files of equal sizes were not compared)" in said
    monkeypatch.setattr(copies, "MOST_FILES", 5)
    assert find_copies(parts) == ""


@pytest.mark.parametrize("command", ["data", "train"])
def test_copies_and_what_is_passed_over_are_said_once(tmp_path, capsys, command, monkeypatch):
    from tests.disk import write_images

    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "set" / "train", n=10)
    write_images(tmp_path / "set" / "test", n=4)
    for folder in (tmp_path / "set").glob("*/*"):
        for number, file in enumerate(folder.iterdir()):
            if file.name != "0.png" or folder.name == "dog":
                file.write_bytes(file.read_bytes() + bytes([number]) + folder.parent.name.encode())
    (tmp_path / "set" / "train" / "cat" / "x.heic").touch()
    words = ["dataset=image_folder", "dataset.root=set", "dataset.image_size=8", "patch=p4", "fit=debug"]
    words += ["model.width=8", "model.heads=1", "model.depth=1", "fit.steps=1", "tracking=off", "fit.batch_size=4"]
    assert main([command, *words]) == 0
    said = capsys.readouterr().out
    assert said.count("1 file is in two splits with the same bytes") == 1
    assert said.count("passed over 1 file that is no image Pillow reads (.heic)") == 1
    assert "set/train/cat/0.png (train) and set/test/cat/0.png (test)" in said
