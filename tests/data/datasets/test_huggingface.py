"""Sets of the Hugging Face hub and local copies of them, without the network."""

import builtins
import json
import os
import shutil
import socket

import numpy as np
import pytest
import torch
from PIL import Image

from tests.disk import WRITERS, draw_pixels, hub_table, own_cache, write_parquet
from vitlab.config.build import build
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.errors import DataError, DatasetMissing
from vitlab.config.identity import identity
from vitlab.data.augment import eval_transform
from vitlab.data.loader import EvalSampler, loader


@pytest.fixture(autouse=True)
def no_network(tmp_path, monkeypatch):
    """Nothing may so much as ask for an address."""
    own_cache(tmp_path, monkeypatch)
    tried = []

    def refuse(*arguments, **more):
        tried.append(arguments)
        raise OSError("the network was asked")

    connect = socket.socket.connect

    def local(self, address):
        return connect(self, address) if self.family == socket.AF_UNIX else refuse(address)

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", local)
    yield
    assert not tried


def hub(path, *overrides):
    node, _ = compose(["dataset=hf", f"dataset.path={path}", *overrides])
    return build(check(node["dataset"], "dataset"))


def sizes(dataset):
    return {name: len(part) for name, part in dataset.splits().items()}


def saved(tables, folder):
    import datasets

    (datasets.DatasetDict(tables) if isinstance(tables, dict) else tables).save_to_disk(folder)
    return folder


def test_a_folder_of_parquet_files_is_read(tmp_path, monkeypatch):
    dataset = hub(write_parquet(tmp_path, monkeypatch))
    assert dataset.classes == ("cat", "dog")
    splits = dataset.splits()
    assert {name: len(part) for name, part in splits.items()} == {"train": 18, "validation": 2, "test": 6}
    assert splits["test"].labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert np.array_equal(np.array(splits["test"].image(4)), draw_pixels(6, 20, 24, 3, seed=1)[4])


def test_one_parquet_file_is_cut_into_three_splits(tmp_path, monkeypatch):
    file = write_parquet(tmp_path, monkeypatch) / "data" / "train-00000-of-00001.parquet"
    dataset = hub(file, "dataset.test_split=null")
    assert sizes(dataset) == {"train": 14, "validation": 2, "test": 4}


@pytest.mark.parametrize("single", [False, True])
def test_what_was_saved_to_disk_is_read(tmp_path, single):
    tables = {"train": hub_table(20), "validation": hub_table(5), "test": hub_table(6)}
    folder = saved(hub_table(20) if single else tables, tmp_path / "set")
    overrides = ["dataset.test_split=null"] if single else ["dataset.validation_split=validation"]
    expected = {"train": 14, "validation": 2, "test": 4} if single else {"train": 20, "validation": 5, "test": 6}
    assert sizes(hub(folder, *overrides)) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_its_images_go_through_the_loader(tmp_path, monkeypatch, workers):
    dataset = hub(write_parquet(tmp_path, monkeypatch), "dataset.image_size=16")
    test = dataset.splits()["test"]
    seen = list(loader(test, eval_transform(dataset), EvalSampler(examples=6, batch=4), workers=workers))
    assert [batch[0].shape for batch in seen] == [(4, 3, 16, 16), (2, 3, 16, 16)]
    assert torch.cat([batch[1] for batch in seen]).tolist() == test.labels.tolist()


@pytest.mark.parametrize(
    ("labels", "classes"),
    [([7, 3, 7, 3, 12] * 4, ("3", "7", "12")), (["owl", "bee", "owl", "bee", "bee"] * 4, ("bee", "owl"))],
)
def test_labels_that_are_not_named_are_their_distinct_values_in_order(tmp_path, labels, classes):
    dataset = hub(saved({"train": hub_table(20, labels=labels)}, tmp_path / "set"), "dataset.test_split=null")
    assert dataset.classes == classes
    for part in dataset.splits().values():
        for row, label in zip(part.indices, part.labels, strict=True):
            assert dataset.classes[label] == str(labels[row])


def test_columns_are_values_and_images_may_be_plain_bytes(tmp_path):
    import datasets

    pictures = [bytes(png(pixels)) for pixels in draw_pixels(20, 8, 9, 3)]
    table = datasets.Dataset.from_dict({"picture": pictures, "kind": ["a", "b"] * 10})
    overrides = ["dataset.image_column=picture", "dataset.label_column=kind", "dataset.test_split=null"]
    dataset = hub(saved({"train": table}, tmp_path / "set"), *overrides)
    image = dataset.read()["train"].image(0)
    assert (image.size, image.mode) == ((9, 8), "RGB")


def png(pixels):
    import io

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_images_are_read_in_the_mode_that_is_asked_for(tmp_path, monkeypatch):
    path = write_parquet(tmp_path, monkeypatch)
    dataset = hub(path, "dataset.channels=1", "dataset.mean=[0.5]", "dataset.std=[0.2]")
    assert dataset.splits()["test"].image(0).mode == "L"
    with pytest.raises(ValueError, match=r"dataset\.mean has 3 values for 1 channels"):
        hub(path, "dataset.channels=1")


def test_images_with_a_csv_of_their_labels_are_another_dataset(tmp_path, monkeypatch):
    folder = tmp_path / "K"
    (folder / "train").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (8, 8)).save(folder / "train" / f"{number}.png")
    (folder / "labels.csv").write_text("id,label\n0,a\n1,b\n2,a\n3,b\n")
    with pytest.raises(DataError, match=r"no such column.*dataset=image_csv dataset\.root=.*K"):
        hub(folder)
    (folder / "test").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "test" / "0.png")  # now it has a column of labels, all None
    with pytest.raises(DataError, match=r"dataset=image_csv dataset\.root=.*K"):
        hub(folder).splits()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("dataset.image_column=img", r"image_column=img: .* has no such column; it has image, label"),
        ("dataset.label_column=class", r"label_column=class: .* it has image, label"),
        ("dataset.image_column=label", "image_column=label: it holds ClassLabel"),
        ("dataset.label_column=image", "label_column=image: it holds Image"),
        ("dataset.train_split=training", r"train_split=training: .* it has train, test: give one of them$"),
        ("dataset.validation_split=val", r"validation_split=val: .* or null for a slice of the training images"),
        ("dataset.test_fraction=2", r"test_fraction=2\.0: must lie between"),
    ],
)
def test_wrong_columns_and_splits_are_answered_with_those_that_there_are(tmp_path, monkeypatch, override, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        hub(write_parquet(tmp_path, monkeypatch), override)
    assert "\n" not in str(caught.value)


def test_an_unlabelled_split_is_refused(tmp_path):
    import datasets

    table = hub_table(6).remove_columns("label")
    table = table.add_column("label", [-1] * 6).cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    folder = saved({"train": hub_table(20), "test": table}, tmp_path / "set")
    with pytest.raises(ValueError, match=r"test_split: .* no class of the training images: -1 .*choose another split"):
        hub(folder).splits()


def test_one_class_is_not_enough(tmp_path):
    with pytest.raises(ValueError, match="has 1 class in"):
        hub(saved({"train": hub_table(4, labels=[5] * 4)}, tmp_path / "set"), "dataset.test_split=null")


def test_a_set_that_is_not_on_this_machine_is_not_fetched_unasked():
    with pytest.raises(DatasetMissing) as caught:
        hub("someone/pictures", "dataset.revision=v2")
    command = "vitlab train dataset=hf dataset.path=someone/pictures dataset.revision=v2 dataset.download=true"
    assert command in str(caught.value)
    assert "hf-cache" in str(caught.value)


def test_a_folder_that_is_not_there_is_no_name_on_the_hub(tmp_path):
    with pytest.raises(DatasetMissing, match="Give a file or folder that is there"):
        hub(tmp_path / "nowhere")


SHA = "0123456789abcdef0123456789abcdef01234567"


def cached(tmp_path):
    """A set of the hub as `datasets` leaves it in its cache after a download."""
    from datasets import config

    tables = {"train": hub_table(20), "test": hub_table(6)}
    folder = config.HF_DATASETS_CACHE / "someone___pictures" / "default" / "0.0.0" / SHA
    folder.mkdir(parents=True)
    splits = {}
    for name, table in tables.items():
        saved(table, tmp_path / name)
        (shard,) = (tmp_path / name).glob("*.arrow")
        shutil.copy(shard, folder / f"pictures-{name}.arrow")
        splits[name] = {"name": name, "num_bytes": 1, "num_examples": len(table), "dataset_name": "pictures"}
    info = json.loads((tmp_path / "train" / "dataset_info.json").read_text())
    info |= {"builder_name": "parquet", "dataset_name": "pictures", "config_name": "default", "splits": splits}
    info |= {"version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0}}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_what_was_fetched_before_is_used_without_the_network(tmp_path):
    cached(tmp_path)
    assert sizes(hub("someone/pictures")) == {"train": 18, "validation": 2, "test": 6}
    assert sizes(hub("someone/pictures", f"dataset.revision={SHA}"))["test"] == 6


def test_another_revision_than_the_one_asked_for_is_refused(tmp_path):
    from huggingface_hub import constants

    cached(tmp_path)
    with pytest.raises(DatasetMissing, match=r"someone/pictures at revision v2.*dataset\.download=true"):
        hub("someone/pictures", "dataset.revision=v2")
    refs = tmp_path / "hub-cache" / "datasets--someone--pictures" / "refs"
    assert str(tmp_path / "hub-cache") == constants.HF_HUB_CACHE
    refs.mkdir(parents=True)
    (refs / "v2").write_text(SHA)
    assert sizes(hub("someone/pictures", "dataset.revision=v2"))["test"] == 6


def test_a_configuration_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    cached(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be read: .*\['default'\]; to ask the hub: vitlab train") as caught:
        hub("someone/pictures", "dataset.config=large")
    assert "\n" not in str(caught.value)


def test_the_libraries_settings_are_put_back(tmp_path, monkeypatch):
    from datasets import config
    from huggingface_hub import constants

    before = config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE, dict(os.environ)
    hub(write_parquet(tmp_path, monkeypatch))
    with pytest.raises(DatasetMissing):
        hub("someone/pictures")
    assert (config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE, dict(os.environ)) == before


def test_a_failed_download_is_one_sentence(monkeypatch):
    from datasets import config

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)  # what the user's own HF_HUB_OFFLINE=1 does
    with pytest.raises(ValueError, match="someone/pictures could not be fetched from the hub") as caught:
        hub("someone/pictures", "dataset.download=true")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_a_damaged_parquet_file_is_refused_in_one_sentence(tmp_path, monkeypatch, size):
    path = write_parquet(tmp_path, monkeypatch)
    file = path / "data" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match="set cannot be read: ") as caught:
        hub(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_save_is_refused_in_one_sentence(tmp_path):
    folder = saved({"train": hub_table(20), "test": hub_table(6)}, tmp_path / "set")
    (shard,) = (folder / "train").glob("*.arrow")
    shard.write_bytes(shard.read_bytes()[:300])
    with pytest.raises(ValueError, match="set cannot be read: ") as caught:
        hub(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cell", [{"bytes": b"no image", "path": None}, {"bytes": None, "path": "https://x.org/a.png"},
                                  {"bytes": None, "path": None}, {"bytes": None, "path": "nowhere.png"}])  # fmt: skip
def test_a_row_without_an_image_is_named_and_not_fetched(tmp_path, cell):
    import datasets

    good = {"bytes": png(draw_pixels(1, 8, 8, 3)[0]), "path": None}
    kind = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"image": kind, "label": datasets.Value("string")})
    table = datasets.Dataset.from_dict({"image": [good] * 10 + [cell] * 10, "label": ["a", "b"] * 10}, features)
    train = hub(saved({"train": table}, tmp_path / "set"), "dataset.test_split=null").read()["train"]
    place = int(np.flatnonzero(train.indices >= 10)[0])
    with pytest.raises(DataError, match=rf"set train row {train.indices[place]} is not a readable image"):
        train.image(place)
    assert train.image(0).size == (8, 8)


def test_code_and_other_files_than_images_are_refused(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text("raise SystemExit('executed')")
    with pytest.raises(ValueError, match="cannot be read: Dataset scripts are no longer supported"):
        hub(tmp_path / "set")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "train.csv").write_text("image,label\n1,2\n")
    with pytest.raises(ValueError, match=r"texts is made of \w+ files: vitlab reads parquet, arrow"):
        hub(tmp_path / "texts")


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match="set cannot be read") as caught:
        hub(tmp_path / "set")
    assert "\n" not in str(caught.value)


def test_without_the_library_the_way_to_install_it_is_said(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **more):
        if name.partition(".")[0] == "datasets":
            raise ModuleNotFoundError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r'uv sync --extra hf, or pip install "vitlab\[hf\]"'):
        hub("someone/pictures")


def test_what_it_reads_identifies_a_run_and_the_download_does_not(tmp_path):
    def of(*overrides):
        return identity(check(compose(["dataset=hf", "dataset.path=a/b", *overrides])[0]))

    assert of() == of("dataset.download=true")
    others = ["dataset.path=a/c", "dataset.revision=v1", "dataset.label_column=fine", "dataset.test_split=null"]
    assert len({of(), *map(of, others)}) == 5


def test_the_smallest_command_builds(tmp_path, monkeypatch):
    node, _ = compose(["dataset=hf", *WRITERS["hf"](tmp_path, monkeypatch)])
    assert build(check(node["dataset"], "dataset")).citation.startswith("Hugging Face dataset")


def test_labels_that_differ_in_spaces_are_one_class(tmp_path):
    labels = ["cat", "cat ", "\ufeffdog", "dog\u00a0"] * 5
    dataset = hub(saved({"train": hub_table(20, labels=labels)}, tmp_path / "set"), "dataset.test_split=null")
    assert dataset.classes == ("cat", "dog")
    assert sum(int(part.labels.sum()) for part in dataset.splits().values()) == 10
