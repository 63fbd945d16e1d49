"""The published datasets, each read from files in its true format."""

import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.disk import WRITERS, torchvision_class
from vitlab.config.build import build
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.errors import DatasetMissing
from vitlab.config.identity import identity
from vitlab.data.augment import eval_transform
from vitlab.data.datasets import torchvision_sets
from vitlab.data.examples import Files, Pixels
from vitlab.data.loader import EvalSampler, loader

# What the writers of tests/disk.py wrote: the option, its class, and the number of images of each split.
SETS = {
    "cifar10": (torchvision_sets.Cifar10, 54, 6, 20),
    "cifar100": (torchvision_sets.Cifar100, 180, 20, 20),
    "svhn": (torchvision_sets.Svhn, 54, 6, 20),
    "stl10": (torchvision_sets.Stl10, 27, 3, 20),
    "flowers102": (torchvision_sets.Flowers102, 12, 6, 12),
    "oxford_pets": (torchvision_sets.OxfordPets, 67, 7, 37),
    "food101": (torchvision_sets.Food101, 182, 20, 101),
    "eurosat": (torchvision_sets.EuroSat, 29, 3, 8),
    "imagenette": (torchvision_sets.Imagenette, 27, 3, 10),
}
IN_MEMORY = ("cifar10", "cifar100", "svhn", "stl10")


def chosen(option, *overrides):
    """The dataset of an option and overrides, as a command builds it."""
    return build(check(compose([f"dataset={option}", *overrides])[0]["dataset"], "dataset"))


@pytest.fixture
def written(tmp_path, monkeypatch):
    def write(option, *overrides):
        return chosen(option, *WRITERS[option](tmp_path, monkeypatch), *overrides)

    return write


@pytest.mark.parametrize("option", SETS)
def test_each_set_is_read_from_its_own_files_and_goes_through_the_loader(option, written):
    kind, *counts = SETS[option]
    dataset = written(option, *(() if option in IN_MEMORY else ("dataset.image_size=16",)))
    splits = dataset.splits()
    assert type(dataset) is kind
    assert [len(splits[name]) for name in ("train", "validation", "test")] == counts
    for part in splits.values():
        assert isinstance(part, Pixels if option in IN_MEMORY else Files)
        assert 0 <= part.labels.min() <= part.labels.max() < len(dataset.classes)
        assert part.image(0).mode == "RGB"
    test = splits["test"]
    pixels, labels = next(iter(loader(test, eval_transform(dataset), EvalSampler(examples=len(test), batch=5))))
    assert pixels.shape == (5, 3, *dataset.shape)
    assert pixels.dtype == torch.uint8
    assert labels.tolist() == test.labels[:5].tolist()


@pytest.mark.parametrize("option", SETS)
def test_a_set_is_described_without_any_files(option):
    dataset = chosen(option)
    assert len(dataset.classes) == len(set(dataset.classes))
    assert len(dataset.mean) == len(dataset.std) == dataset.channels == 3
    assert all(0 < value < 1 for value in (*dataset.mean, *dataset.std))
    assert dataset.citation
    assert dataset.flip == (option != "svhn")


@pytest.mark.parametrize(
    ("option", "classes"),
    [("cifar100", 100), ("svhn", 10), ("flowers102", 102), ("oxford_pets", 37), ("food101", 101), ("eurosat", 10)],
)
def test_sets_have_as_many_classes_as_published(option, classes):
    assert len(chosen(option).classes) == classes


def test_class_names_are_those_that_torchvision_knows():
    flowers = chosen("flowers102").classes
    assert flowers == tuple(name.strip("?") for name in torchvision_class(torchvision_sets.Flowers102).classes)
    assert (flowers[0], flowers[101]) == ("pink primrose", "blackberry lily")
    assert chosen("imagenette").classes[:2] == ("tench", "English springer")
    folders = [name.replace(" ", "_") for name in torchvision_sets.Food101.classes]
    assert folders == sorted(folders)
    assert list(torchvision_sets.Cifar100.classes) == sorted(torchvision_sets.Cifar100.classes)


@pytest.mark.parametrize("option", SETS)
def test_a_missing_set_says_where_it_was_looked_for_and_what_gets_it(option, tmp_path):
    with pytest.raises(DatasetMissing) as caught:
        chosen(option, f"dataset.root={tmp_path}").splits()
    assert str(tmp_path / chosen(option).folder) in str(caught.value)
    assert f"vitlab train dataset={option} dataset.download=true dataset.root={tmp_path}" in str(caught.value)


def test_without_a_root_the_data_folder_is_looked_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetMissing, match=r"looked for data/cifar-10-batches-py"):
        chosen("cifar10").splits()
    WRITERS["cifar10"](tmp_path / "data", monkeypatch)
    assert len(chosen("cifar10").splits()["test"]) == 20


def test_where_the_files_are_does_not_identify_a_run():
    def of(*overrides):
        return identity(check(compose(["dataset=imagenette", *overrides])[0]))

    assert of() == of("dataset.root=x", "dataset.download=true")
    assert of() != of("dataset.copy=160px")


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "cifar10": lambda root: cut_short(root / "cifar-10-batches-py" / "data_batch_3"),
    "cifar100": lambda root: (root / "cifar-100-python" / "meta").unlink(),
    "svhn": lambda root: (root / "test_32x32.mat").unlink(),
    "stl10": lambda root: cut_short(root / "stl10_binary" / "train_X.bin"),
    "flowers102": lambda root: (root / "flowers-102" / "jpg" / "image_00003.jpg").unlink(),
    "oxford_pets": lambda root: cut_short(root / "oxford-iiit-pet" / "annotations" / "test.txt"),
    "food101": lambda root: cut_short(root / "food-101" / "meta" / "train.json"),
    "eurosat": lambda root: shutil.rmtree(root / "eurosat" / "2750" / "Forest"),
    "imagenette": lambda root: (root / "imagenette2-320" / "train" / "n01440764" / "n01440764_1.JPEG").unlink(),
}


@pytest.mark.parametrize("option", SETS)
def test_a_damaged_or_incomplete_copy_is_refused_in_one_sentence(option, written, tmp_path):
    dataset = written(option)
    DAMAGES[option](tmp_path)
    with pytest.raises(ValueError, match=r"fetch it again: vitlab train dataset=") as caught:
        dataset.splits()
    assert "\n" not in str(caught.value)
    assert str(tmp_path / dataset.folder) in str(caught.value)
    assert not isinstance(caught.value, DatasetMissing)


@pytest.mark.parametrize(
    ("option", "damage", "sentence"),
    [
        (
            "oxford_pets",
            lambda root: (root / "oxford-iiit-pet/images/Pug_1.jpg").unlink(),
            "1 of 74 images are missing",
        ),
        ("food101", lambda root: (root / "food-101/images/sushi/test0.jpg").unlink(), "such as test0.jpg"),
        ("eurosat", lambda root: shutil.rmtree(root / "eurosat/2750/SeaLake"), "9 classes of 10.*sea lake"),
        ("imagenette", lambda root: (root / "imagenette2-320/train/stranger").mkdir(), "not a complete copy"),
        ("imagenette", lambda root: shutil.rmtree(root / "imagenette2-320/val"), "not a complete copy"),
        ("imagenette", DAMAGES["imagenette"], "29 train images, and imagenette has 30"),
    ],
)
def test_files_that_are_not_there_are_found_before_training(option, damage, sentence, written, tmp_path):
    dataset = written(option)
    damage(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        dataset.splits()


def test_labels_that_are_no_classes_are_refused(written, tmp_path):
    dataset = written("oxford_pets")
    file = tmp_path / "oxford-iiit-pet" / "annotations" / "test.txt"
    file.write_text(file.read_text().replace("Pug_3 26 ", "Pug_3 99 "))
    with pytest.raises(ValueError, match=r"labels are not those of the classes|not in both"):
        dataset.splits()


class Bomb:
    def __reduce__(self):
        return (print, ("the pickle was executed",))


def test_a_pickle_with_another_checksum_is_never_opened(written, tmp_path, capsys):
    dataset = written("cifar10")
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="not the published one by its checksum"):
        dataset.splits()
    assert "executed" not in capsys.readouterr().out


def test_a_failed_download_is_one_sentence(tmp_path, monkeypatch):
    def fail(*arguments, **more):
        raise OSError("no\nnetwork")

    (module,) = torchvision_sets.modules("torchvision.datasets.cifar")
    monkeypatch.setattr(module, "download_and_extract_archive", fail)
    with pytest.raises(ValueError, match=r"cifar10 could not be fetched to .*: no network"):
        chosen("cifar10", f"dataset.root={tmp_path}", "dataset.download=true").splits()


def test_a_download_writes_where_it_is_read(tmp_path, monkeypatch):
    def fetch(url, root, **more):
        assert url == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
        WRITERS["cifar10"](tmp_path, monkeypatch)

    (module,) = torchvision_sets.modules("torchvision.datasets.cifar")
    monkeypatch.setattr(module, "download_and_extract_archive", fetch)
    assert len(chosen("cifar10", f"dataset.root={tmp_path}", "dataset.download=true").splits()["train"]) == 54


def test_pixels_and_labels_of_cifar_are_those_in_the_batches(written, tmp_path):
    train = written("cifar10").read()["train"]
    batch = pickle.loads((tmp_path / "cifar-10-batches-py" / "data_batch_2").read_bytes(), encoding="latin1")
    assert torch.equal(train.pixels[12:24], torch.from_numpy(batch["data"].reshape(-1, 3, 32, 32)))
    assert train.labels[12:24].tolist() == batch["labels"]


def test_the_digit_zero_of_svhn_has_the_label_zero(written, tmp_path):
    from scipy.io import loadmat

    test = written("svhn").read()["test"]
    theirs = loadmat(tmp_path / "test_32x32.mat")
    assert test.labels.tolist() == [int(y) % 10 for y in theirs["y"][:, 0]]
    assert np.array_equal(np.array(test.image(7)), theirs["X"][..., 7])


def test_stl_images_stand_upright(written, tmp_path):
    test = written("stl10").read()["test"]
    columns = np.fromfile(tmp_path / "stl10_binary" / "test_X.bin", np.uint8).reshape(-1, 3, 96, 96)
    assert np.array_equal(np.array(test.image(4)), columns[4].transpose(2, 1, 0))
    assert test.labels[4] == 4


def test_flowers_come_with_a_validation_split_of_their_own(written):
    splits = written("flowers102").splits()
    assert [path.name for path in splits["validation"].paths] == [f"image_{i:05d}.jpg" for i in range(13, 19)]
    assert splits["train"].labels.tolist()[:4] == [99, 100, 101, 99]


def test_pets_and_dishes_have_the_labels_of_their_lists(written, tmp_path):
    for option in ("oxford_pets", "food101"):
        dataset = written(option)
        test = dataset.splits()["test"]
        for path, label in zip(test.paths, test.labels, strict=True):
            name = path.parent.name if option == "food101" else path.stem.rpartition("_")[0]
            assert dataset.classes[label] == name.replace("_", " ")


def test_the_validation_folder_of_imagenette_is_its_test_set(written):
    dataset = written("imagenette")
    splits = dataset.splits()
    assert {path.parent.parent.name for path in splits["test"].paths} == {"val"}
    assert {path.parent.parent.name for path in splits["validation"].paths} == {"train"}
    last = splits["test"].take(np.array([9]))
    assert (last.paths[0].parent.name, dataset.classes[last.labels[0]]) == ("n03888257", "parachute")


def test_every_copy_of_imagenette_has_its_folder():
    folders = [chosen("imagenette", f"dataset.copy={copy}").folder for copy in ("full", "320px", "160px")]
    assert folders == ["imagenette2", "imagenette2-320", "imagenette2-160"]


def test_eurosat_is_cut_into_three_splits_that_share_no_image(written):
    splits = written("eurosat").splits()
    paths = [set(part.paths) for part in splits.values()]
    assert len(set.union(*paths)) == sum(map(len, paths)) == 40
    with pytest.raises(ValueError, match=r"test_fraction=1\.0"):
        chosen("eurosat", "dataset.test_fraction=1")


def test_files_are_listed_and_not_opened(written, monkeypatch):
    dataset = written("food101")
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("a file was opened"))
    assert len(dataset.splits()["train"]) == 182


@pytest.mark.slow
def test_reading_a_set_imports_neither_the_compiler_nor_torchvisions_models(tmp_path, monkeypatch):
    WRITERS["eurosat"](tmp_path, monkeypatch)
    code = f"""
import sys
from vitlab.data.datasets.torchvision_sets import EuroSat
EuroSat.counts = {{"train": 40}}
EuroSat(root={str(tmp_path)!r}, download=False, image_size=64, validation_fraction=0.1, train_fraction=1.0,
    train_examples=None, split_seed=0, folds=None, fold=0, evaluation_crop=1.0,
    test_fraction=0.2).splits()
assert not {{"torch._dynamo", "torchvision", "torchvision.models", "timm", "sklearn"}} & set(sys.modules)
import torchvision
assert torchvision.datasets.CIFAR10 and torchvision.models.resnet18 and torchvision.transforms.Resize
"""
    subprocess.run([sys.executable, "-c", code], check=True)
