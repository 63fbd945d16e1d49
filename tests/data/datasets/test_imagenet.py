"""ImageNet and Tiny ImageNet, read from files in their true layouts."""

import os
import shutil

import pytest
from PIL import Image

from tests.disk import WNIDS, WRITERS, draw_image, write_imagenet, write_tiny_imagenet
from vitlab.config.build import build
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.errors import DatasetMissing
from vitlab.config.identity import identity
from vitlab.data.augment import eval_transform
from vitlab.data.dataset import for_evaluation
from vitlab.data.loader import EvalSampler, loader
from vitlab.system.lazy_imports import modules


def imagenet(root, *overrides, option="imagenet"):
    node, _ = compose([f"dataset={option}", f"dataset.root={root}", "dataset.validation_fraction=0.2", *overrides])
    return build(check(node["dataset"], "dataset"))


def tiny(root, *overrides):
    return imagenet(root, *overrides, option="tiny_imagenet")


def test_the_validation_images_are_the_test_set_and_validation_is_a_slice_of_train(tmp_path):
    write_imagenet(tmp_path)
    splits = imagenet(tmp_path).splits()
    assert {name: len(part) for name, part in splits.items()} == {"train": 24, "validation": 6, "test": 12}
    assert {path.parent.parent.name for path in splits["test"].paths} == {"val"}
    assert {path.parent.parent.name for part in ("train", "validation") for path in splits[part].paths} == {"train"}
    for part in splits.values():
        assert [path.parent.name for path in part.paths] == [WNIDS[label] for label in part.labels]
    assert set(splits["validation"].labels) == {0, 1, 2}


def test_an_evaluation_needs_no_training_images(tmp_path):
    write_imagenet(tmp_path)
    shutil.rmtree(tmp_path / "train")
    shutil.rmtree(tmp_path / "val" / WNIDS[1])
    with pytest.raises(DatasetMissing):
        imagenet(tmp_path)
    with for_evaluation():
        dataset = imagenet(tmp_path)
    assert dataset.classes == (WNIDS[0], WNIDS[2])
    assert {name: len(part) for name, part in dataset.splits().items()} == {"test": 8, "all": 8}


@pytest.mark.parametrize("make", [imagenet, tiny])
def test_its_images_go_through_the_loader(make, tmp_path):
    (write_imagenet if make is imagenet else write_tiny_imagenet)(tmp_path)
    dataset = make(tmp_path, "dataset.image_size=32")
    test = dataset.splits()["test"]
    pixels, labels = next(
        iter(loader(test, eval_transform(dataset), EvalSampler(examples=len(test), batch=5), workers=0))
    )
    assert pixels.shape == (5, 3, 32, 32)
    assert labels.tolist() == test.labels[:5].tolist()


def test_without_a_list_of_words_a_part_of_imagenet_is_called_by_its_wordnet_ids(tmp_path):
    write_imagenet(tmp_path)
    assert imagenet(tmp_path).classes == WNIDS


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\nn02012849 crane\nn01443537 goldfish, Carassius\n\n"),
        ("words.txt", "n01440764\ttench, Tinca tinca\nn02012849\tcrane\nn01443537\tgoldfish, Carassius\nn1\tentity\n"),
    ],
)
def test_the_words_beside_the_folders_name_the_classes(tmp_path, file, text):
    write_imagenet(tmp_path)
    (tmp_path / file).write_text(text)
    assert imagenet(tmp_path).classes == ("tench", "goldfish", "crane")


def test_classes_of_one_word_are_told_apart_by_their_ids(tmp_path):
    write_imagenet(tmp_path)
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 crane\nn02012849 crane\n")
    assert imagenet(tmp_path).classes == ("crane (n01440764)", "n01443537", "crane (n02012849)")


def test_all_thousand_classes_have_torchvisions_names(tmp_path):
    wnids = [f"n{i:08d}" for i in range(1000)]
    write_imagenet(tmp_path, wnids[:1], train=1, test=1)
    for split in ("train", "val"):
        image = next((tmp_path / split / wnids[0]).iterdir())
        for wnid in wnids[1:]:
            (tmp_path / split / wnid).mkdir()
            os.link(image, tmp_path / split / wnid / image.name)
    classes = imagenet(tmp_path).classes
    (meta,) = modules("torchvision.models._meta")
    assert list(classes) == meta._IMAGENET_CATEGORIES
    assert (classes[0], classes[134], classes[999]) == ("tench", "crane bird", "toilet tissue")


@pytest.mark.parametrize("make", ["nothing", "train alone"])
def test_missing_imagenet_says_where_to_get_it_and_how_to_lay_it_out(tmp_path, make):
    if make == "train alone":
        write_imagenet(tmp_path)
        shutil.rmtree(tmp_path / "val")
    with pytest.raises(DatasetMissing, match=r"val.*https://www\.image-net\.org.*train/WNID.*dataset\.root=PATH"):
        imagenet(tmp_path)


def test_unsorted_validation_images_are_refused_with_the_way_out(tmp_path):
    write_imagenet(tmp_path)
    for path in sorted((tmp_path / "val").rglob("*.JPEG")):
        path.rename(tmp_path / "val" / path.name)
    with pytest.raises(ValueError, match=r"val has no class folders.*valprep\.sh"):
        imagenet(tmp_path)


def test_classes_that_differ_are_counted_and_not_all_listed(tmp_path):
    write_imagenet(tmp_path, [f"n{i:08d}" for i in range(20)], train=1, test=1)
    for i in range(12):
        shutil.rmtree(tmp_path / "val" / f"n{i:08d}")
    assert "the test images have none of n00000000, n00000001," in imagenet(tmp_path).passed_over
    shutil.rmtree(tmp_path / "train")
    write_imagenet(tmp_path, [f"n{i:08d}" for i in range(12, 30)], train=1, test=1)
    for i in range(16, 22):
        shutil.rmtree(tmp_path / "train" / f"n{i:08d}")
    with pytest.raises(
        ValueError, match=r"18 classes, 6 of them not among the 12 .*: n00000016, .* n00000020 and 1 more"
    ):
        imagenet(tmp_path)


def test_a_broken_file_is_found_where_that_is_asked_for(tmp_path):
    write_imagenet(tmp_path)
    broken = tmp_path / "train" / WNIDS[1] / f"{WNIDS[1]}_3.JPEG"
    broken.write_bytes(broken.read_bytes()[:300])
    assert len(imagenet(tmp_path).splits()["train"]) == 24
    with pytest.raises(ValueError, match=f"{broken.name} is not a readable image"):
        imagenet(tmp_path, "dataset.verify=true").splits()
    dataset = imagenet(tmp_path, "dataset.skip_corrupted=true")
    assert len(dataset.splits()["train"]) == 23
    assert "passed over 1 image that cannot be decoded (train)" in dataset.passed_over


def test_a_million_files_are_listed_by_their_names_alone(tmp_path, monkeypatch):
    write_imagenet(tmp_path)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("a file was opened"))
    asked = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *a, **k: (asked.append(str(path)), stat(path, *a, **k))[1])
    assert len(imagenet(tmp_path).splits()["train"]) == 24
    assert not [path for path in asked if path.endswith(".JPEG")]


def test_where_imagenet_lies_does_not_identify_a_run():
    def of(option, *overrides):
        return identity(check(compose([f"dataset={option}", *overrides])[0]))

    assert of("imagenet", "dataset.root=a") == of("imagenet", "dataset.root=b", "dataset.verify=true")
    assert of("tiny_imagenet", "dataset.root=a") == of("tiny_imagenet")
    assert of("imagenet", "dataset.root=a") != of("imagenet", "dataset.root=a", "dataset.skip_corrupted=true")


@pytest.mark.parametrize("root", ["", "tiny-imagenet-200"])
def test_tiny_imagenet_is_read_in_its_own_layout(tmp_path, root):
    write_tiny_imagenet(tmp_path)
    dataset = tiny(tmp_path / root)
    splits = dataset.splits()
    assert dataset.classes == ("tench", "goldfish", "crane", "Egyptian cat")
    assert {name: len(part) for name, part in splits.items()} == {"train": 32, "validation": 8, "test": 12}
    assert splits["test"].image(0).size == (64, 64)
    lines = (tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt").read_text().splitlines()
    wnids = dict(line.split("\t")[:2] for line in lines)
    for path, label in zip(splits["test"].paths, splits["test"].labels, strict=True):
        assert sorted(set(wnids.values()))[label] == wnids[path.name]


def test_the_unlabelled_images_of_tiny_imagenet_are_left_alone(tmp_path):
    write_tiny_imagenet(tmp_path)
    paths = [path for part in tiny(tmp_path).splits().values() for path in part.paths]
    assert not [path for path in paths if path.name == "test_0.JPEG"]


def test_images_that_no_list_of_imagenets_names_are_said(tmp_path):
    write_tiny_imagenet(tmp_path)
    draw_image(tmp_path / "tiny-imagenet-200" / "val" / "images" / "extra.JPEG")
    small = tiny(tmp_path)
    small.splits()
    assert small.passed_over == "passed over 1 image without a label (extra.JPEG)"
    write_imagenet(tmp_path / "large")
    draw_image(tmp_path / "large" / "test" / "1.JPEG")
    (tmp_path / "large" / "train" / "n0" / ".cache").mkdir(parents=True)
    large = imagenet(tmp_path / "large")
    large.splits()
    assert "1 folder without images (n0), 1 hidden or system entry (.cache), 1 image in" in large.passed_over
    assert large.passed_over.endswith("(test)")


def test_missing_tiny_imagenet_says_where_to_get_it(tmp_path):
    with pytest.raises(DatasetMissing, match=r"tiny-imagenet-200\.zip.*dataset\.root=PATH"):
        tiny(tmp_path)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda root: shutil.rmtree(root / "train" / WNIDS[0]), "1 of the 4 classes in wnids.txt have no images"),
        (lambda root: shutil.rmtree(root / "train"), "4 of the 4 classes"),
        (lambda root: (root / "val" / "val_annotations.txt").unlink(), "val_annotations.txt cannot be read"),
        (lambda root: (root / "val" / "val_annotations.txt").write_text("val_0.JPEG"), "cannot be read"),
        (lambda root: (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn1\t0"), "cannot be read"),
        (lambda root: (root / "val" / "val_annotations.txt").write_text(""), "0 of the 0 images"),
        (lambda root: (root / "val" / "images" / "val_3.JPEG").unlink(), "1 of the 12 images.*such as val_3.JPEG"),
        (lambda root: shutil.rmtree(root / "val" / "images"), "cannot be read"),
    ],
)
def test_a_damaged_tiny_imagenet_is_refused_in_one_sentence(tmp_path, damage, sentence):
    write_tiny_imagenet(tmp_path)
    damage(tmp_path / "tiny-imagenet-200")
    with pytest.raises(ValueError, match=sentence) as caught:
        tiny(tmp_path).splits()
    assert "\n" not in str(caught.value)


def test_class_folders_may_be_links_and_have_folders_in_them(tmp_path, monkeypatch):
    overrides = WRITERS["image_folder"](tmp_path / "set", monkeypatch)
    (tmp_path / "set" / "cat").rename(tmp_path / "elsewhere")
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "elsewhere")
    draw_image(tmp_path / "set" / "dog" / "deep" / "down" / "1.png")
    (tmp_path / "set" / "dog" / "notes.txt").write_text("no image")
    dataset = build(check(compose(["dataset=image_folder", *overrides])[0]["dataset"], "dataset"))
    assert sum(len(part) for part in dataset.splits().values()) == 21
