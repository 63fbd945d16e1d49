"""Datasets as they lie on disk, written small: each in the true format of its publisher."""

import gzip
import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitlab.data.datasets import torchvision_sets
from vitlab.system.lazy_imports import modules


def draw_image(path, seed=0, size=(20, 24)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def draw_pixels(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def torchvision_class(kind):
    module, _, name = kind.torchvision_name.partition(".")
    return getattr(modules(f"torchvision.datasets.{module}")[0], name)


# --- MNIST --------------------------------------------------------------------------------------------------------


def write_idx(path, array, compress=True):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if compress else data)


def write_mnist(folder, suffix=".gz", train=60, test=20):
    draw = np.random.default_rng(0)
    for prefix, n in (("train", train), ("t10k", test)):
        pixels = draw.integers(0, 256, (n, 28, 28))
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", pixels, suffix == ".gz")
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", np.sort(np.arange(n) % 10), suffix == ".gz")


# --- class folders ------------------------------------------------------------------------------------------------


def write_images(folder, classes=("cat", "dog"), n=10, size=(20, 24)):
    draw = np.random.default_rng(1)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.{'jpg' if i % 2 else 'png'}")


def write_labelled_images(folder):
    write_images(folder / "all", n=12)
    files = sorted((folder / "all").rglob("*.*"))
    rows = [f"{file.relative_to(folder)},{file.parent.name}\n" for file in files]
    (folder / "train.csv").write_text("".join(["file,label\n", *rows]))


WNIDS = ("n01440764", "n01443537", "n02012849")


def write_imagenet(root, wnids=WNIDS, train=10, test=4):
    for split, count in (("train", train), ("val", test)):
        for number, wnid in enumerate(wnids):
            for i in range(count):
                stem = f"{wnid}_{i}" if split == "train" else f"ILSVRC2012_val_{number * count + i + 1:08d}"
                draw_image(root / split / wnid / f"{stem}.JPEG", seed=number * 100 + i)


def write_tiny_imagenet(root, wnids=("n02124075", *WNIDS), train=10, test=12):
    folder = root / "tiny-imagenet-200"
    for number, wnid in enumerate(wnids):
        for i in range(train):
            draw_image(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", seed=number * 100 + i, size=(64, 64))
        boxes = "".join(f"{wnid}_{i}.JPEG\t0\t0\t63\t63\n" for i in range(train))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(boxes)
    rows = []
    for i in range(test):
        draw_image(folder / "val" / "images" / f"val_{i}.JPEG", seed=1000 + i, size=(64, 64))
        rows.append(f"val_{i}.JPEG\t{wnids[i % len(wnids)]}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(rows))
    draw_image(folder / "test" / "images" / "test_0.JPEG", size=(64, 64))
    (folder / "wnids.txt").write_text("\n".join(wnids))
    words = {"n02124075": "Egyptian cat", "n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius auratus"}
    words |= {"n02012849": "crane", "n00001740": "entity"}
    (folder / "words.txt").write_text("".join(f"{wnid}\t{word}\n" for wnid, word in words.items()))


# --- torchvision's ------------------------------------------------------------------------------------------------


def write_cifar(kind, root, monkeypatch, test=20):
    """Pickled batches as Krizhevsky's, whose checksums torchvision is told are the published ones."""
    theirs = torchvision_class(kind)
    folder = root / theirs.base_folder
    folder.mkdir(parents=True, exist_ok=True)
    key = "labels" if kind is torchvision_sets.Cifar10 else "fine_labels"

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return [name, md5(folder / name)]

    def batch(name, count, seed):
        pixels = draw_pixels(count, 3 * 32 * 32, seed=seed)
        return write(name, {"data": pixels, key: [i % len(kind.classes) for i in range(count)], "batch_label": name})

    each = 12 if kind is torchvision_sets.Cifar10 else 200
    train = [batch(name, each, seed) for seed, (name, _) in enumerate(theirs.train_list)]
    monkeypatch.setattr(theirs, "train_list", train)
    monkeypatch.setattr(theirs, "test_list", [batch(name, test, 9) for name, _ in theirs.test_list])
    names = [name.replace(" ", "_") for name in kind.classes]
    meta = write(theirs.meta["filename"], {theirs.meta["key"]: names})
    monkeypatch.setattr(theirs, "meta", theirs.meta | {"md5": meta[1]})


def write_svhn(root, monkeypatch, train=60, test=20):
    from scipy.io import savemat

    theirs = torchvision_class(torchvision_sets.Svhn)
    root.mkdir(parents=True, exist_ok=True)
    splits = dict(theirs.split_list)
    for split, count in (("train", train), ("test", test)):
        url, name, _ = splits[split]
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]  # 1 to 10, where 10 is the digit 0
        pixels = draw_pixels(count, 32, 32, 3, seed=count).transpose(1, 2, 3, 0)
        savemat(root / name, {"X": pixels, "y": labels})
        splits[split] = [url, name, md5(root / name)]
    monkeypatch.setattr(theirs, "split_list", splits)


def write_stl10(root, monkeypatch, train=30, test=20):
    """Column-major pixels and labels from 1, without the unlabelled images."""
    theirs = torchvision_class(torchvision_sets.Stl10)
    folder = root / "stl10_binary"
    folder.mkdir(parents=True, exist_ok=True)

    def write(prefix, count):
        (folder / f"{prefix}_X.bin").write_bytes(draw_pixels(count, 3, 96, 96, seed=count).tobytes())
        (folder / f"{prefix}_y.bin").write_bytes((np.arange(count) % 10 + 1).astype(np.uint8).tobytes())
        return [[f"{prefix}_{part}.bin", md5(folder / f"{prefix}_{part}.bin")] for part in "Xy"]

    monkeypatch.setattr(theirs, "train_list", [*write("train", train), theirs.train_list[2]])
    monkeypatch.setattr(theirs, "test_list", write("test", test))
    (folder / "class_names.txt").write_text("\n".join(torchvision_sets.Stl10.classes) + "\n")


def write_flowers102(root, monkeypatch, count=30):
    from scipy.io import savemat

    theirs = torchvision_class(torchvision_sets.Flowers102)
    folder = root / "flowers-102"
    for i in range(1, count + 1):
        draw_image(folder / "jpg" / f"image_{i:05d}.jpg", seed=i)
    savemat(folder / "imagelabels.mat", {"labels": (np.arange(count) % 3 + 100).astype(np.uint8)[None]})
    ids = np.arange(1, count + 1).astype(np.uint16)
    savemat(folder / "setid.mat", {"trnid": ids[None, :12], "valid": ids[None, 12:18], "tstid": ids[None, 18:]})
    files = theirs._file_dict | {
        key: (f"{stem}.mat", md5(folder / f"{stem}.mat"))
        for key, stem in (("label", "imagelabels"), ("setid", "setid"))
    }
    monkeypatch.setattr(theirs, "_file_dict", files)
    monkeypatch.setattr(torchvision_sets.Flowers102, "counts", {"train": 12, "validation": 6, "test": count - 18})


def write_oxford_pets(root, monkeypatch):
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split, numbers in (("trainval", (1, 2)), ("test", (3,))):
        rows = []
        for label, name in enumerate(torchvision_sets.OxfordPets.classes, 1):
            for number in numbers:
                stem = f"{name.replace(' ', '_')}_{number}"
                draw_image(folder / "images" / f"{stem}.jpg", seed=label)
                rows.append(f"{stem} {label} {1 + label % 2} {label}\n")
        (folder / "annotations" / f"{split}.txt").write_text("".join(rows))
    monkeypatch.setattr(torchvision_sets.OxfordPets, "counts", {"train": 74, "test": 37})


def write_food101(root, monkeypatch):
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    names = [name.replace(" ", "_") for name in torchvision_sets.Food101.classes]
    for split, each in (("train", 2), ("test", 1)):
        listed = {name: [f"{name}/{split}{i}" for i in range(each)] for name in names}
        for number, name in enumerate(names):
            for stem in listed[name]:
                draw_image(folder / "images" / f"{stem}.jpg", seed=number, size=(10, 12))
        (folder / "meta" / f"{split}.json").write_text(json.dumps(listed))
        (folder / "meta" / f"{split}.txt").write_text("\n".join(stem for stems in listed.values() for stem in stems))
    (folder / "meta" / "classes.txt").write_text("\n".join(names))
    monkeypatch.setattr(torchvision_sets.Food101, "counts", {"train": 202, "test": 101})


def write_eurosat(root, monkeypatch, each=4):
    for name in torchvision_sets.EuroSat.classes:
        folder = "".join(word.title() for word in name.split())
        for i in range(1, each + 1):
            draw_image(root / "eurosat" / "2750" / folder / f"{folder}_{i}.jpg", seed=i, size=(64, 64))
    monkeypatch.setattr(torchvision_sets.EuroSat, "counts", {"train": each * 10})


def write_imagenette(root, monkeypatch, copy="-320", train=3, test=1):
    for number, wnid in enumerate(torchvision_class(torchvision_sets.Imagenette)._WNID_TO_CLASS):
        for split, count in (("train", train), ("val", test)):
            for i in range(count):
                draw_image(root / f"imagenette2{copy}" / split / wnid / f"{wnid}_{i}.JPEG", seed=number * 10 + i)
    monkeypatch.setattr(torchvision_sets.Imagenette, "counts", {"train": train * 10, "test": test * 10})


# --- Hugging Face -------------------------------------------------------------------------------------------------


def hub_table(count, classes=("cat", "dog"), seed=0, labels=None, **columns):
    """A table of `datasets` with an image and a label a row."""
    import datasets

    pictures = [Image.fromarray(pixels) for pixels in draw_pixels(count, 20, 24, 3, seed=seed)]
    given = columns or {"image": pictures, "label": labels or [i % len(classes) for i in range(count)]}
    label = datasets.ClassLabel(names=list(classes)) if labels is None else datasets.Value(kind_of(labels))
    return datasets.Dataset.from_dict(given, datasets.Features({"image": datasets.Image(), "label": label}))


def kind_of(labels):
    return "string" if isinstance(labels[0], str) else "int64"


def own_cache(root, monkeypatch):
    """Keeps what `datasets` makes of files below `root`, and away from the user's own cache."""
    from datasets import config
    from huggingface_hub import constants

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", root / "hf-cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root / "hub-cache"))


def write_parquet(root, monkeypatch, train=20, test=6):
    own_cache(root, monkeypatch)
    folder = root / "set" / "data"
    folder.mkdir(parents=True)
    hub_table(train).to_parquet(folder / "train-00000-of-00001.parquet")
    hub_table(test, seed=1).to_parquet(folder / "test-00000-of-00001.parquet")
    return root / "set"


# --- tar shards ---------------------------------------------------------------------------------------------------


def write_shards(root, shards=2, each=10):
    """Shards of images and labels of 2 classes, by webdataset's own writer."""
    from webdataset import ShardWriter

    pixels = draw_pixels(shards * each, 12, 12, 3)
    with ShardWriter(f"{root}/train-%03d.tar", maxcount=each, verbose=0) as writer:
        for number, image in enumerate(pixels):
            writer.write({"__key__": f"{number:06d}", "png": image, "cls": number % 2})


# --- by option ----------------------------------------------------------------------------------------------------

Writer = Callable[[Path, pytest.MonkeyPatch], list[str]]
HALF = "dataset.validation_fraction=0.2"  # a slice of a small set has to have an image


def at_root(write: Callable, *more: str) -> Writer:
    """A writer of files below `root` that monkeypatches what is known of their true size."""

    def writer(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        write(root, monkeypatch)
        return [f"dataset.root={root}", *more]

    return writer


def writes_parquet(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return [f"dataset.path={write_parquet(root, monkeypatch)}"]


def writes_shards(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    root.mkdir(parents=True, exist_ok=True)
    write_shards(root)
    return [f"dataset.train={root}/train-*.tar", f"dataset.cache={root}/cache"]


WRITERS: dict[str, Writer] = {
    "digits": lambda root, monkeypatch: [],
    "synthetic": lambda root, monkeypatch: ["dataset.examples=64"],
    "mnist": at_root(lambda root, _: write_mnist(root)),
    "kmnist": at_root(lambda root, _: write_mnist(root / "KMNIST" / "raw")),
    "fashion_mnist": at_root(lambda root, _: write_mnist(root / "FashionMNIST" / "raw")),
    "image_folder": at_root(lambda root, _: write_images(root)),
    "image_csv": at_root(lambda root, _: write_labelled_images(root)),
    "imagenet": at_root(lambda root, _: write_imagenet(root), HALF),
    "tiny_imagenet": at_root(lambda root, _: write_tiny_imagenet(root)),
    "cifar10": at_root(lambda root, patch: write_cifar(torchvision_sets.Cifar10, root, patch)),
    "cifar100": at_root(lambda root, patch: write_cifar(torchvision_sets.Cifar100, root, patch)),
    "svhn": at_root(write_svhn),
    "stl10": at_root(write_stl10),
    "flowers102": at_root(write_flowers102),
    "oxford_pets": at_root(write_oxford_pets),
    "food101": at_root(write_food101),
    "eurosat": at_root(write_eurosat),
    "imagenette": at_root(write_imagenette),
    "hf": writes_parquet,
    "webdataset": writes_shards,
}
