"""Tar shards: read at any place, fetched once, kept below a limit, and the same batches for every number of readers."""

import gzip
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from webdataset import ShardWriter

from tests.data.test_augment import STRONG, augment
from tests.data.test_dataset import COMMON
from vitlab.config.errors import DataError, DatasetMissing
from vitlab.data.datasets.download import ShardCache, check_address, file_stat
from vitlab.data.datasets.webdataset import WebDataset
from vitlab.data.loader import TrainSampler, loader, local_indices

VALUES = COMMON | {
    "image_size": 8,
    "validation": None,
    "test": None,
    "test_fraction": 0.2,
    "image": ("jpg", "png"),
    "label": "cls",
    "classes_file": None,
    "channels": 3,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "flip": True,
    "background": "white",
    "range": "auto",
    "lanes": 4,
    "window": 2,
    "cache_bytes": None,
}


def picture(number):
    """An image that says its number: every pixel is (number % 256, number // 256, 7)."""
    return np.full((9, 10, 3), (number % 256, number // 256, 7), dtype=np.uint8)


def number_of(image):
    red, green, _ = np.asarray(image)[0, 0].tolist()
    return red + 256 * green


def write_shards(folder, shards=8, each=10, name="train", start=0, label=lambda number: number % 4):
    """Shards of `each` images and labels, by webdataset's own writer."""
    folder.mkdir(parents=True, exist_ok=True)
    with ShardWriter(f"{folder}/{name}-%03d.tar", maxcount=each, verbose=0) as writer:
        for number in range(start, start + shards * each):
            writer.write({"__key__": f"{number:06d}", "png": picture(number), "cls": label(number)})
    return f"{folder}/{name}-{{000..{shards - 1:03d}}}.tar"


def write_tar(path, members):
    """A shard of any members, by tarfile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def png(number=0):
    file = io.BytesIO()
    Image.fromarray(picture(number)).save(file, "png")
    return file.getvalue()


def shards(tmp_path, train, **values):
    return WebDataset(**(VALUES | {"train": train, "cache": str(tmp_path / "cache")} | values))


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """A web server in a process of its own: its address, its folder and its log."""
    folder = tmp_path_factory.mktemp("web")
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process:
        port = re.search(rb"port (\d+)", process.stdout.readline())[1].decode()
        yield f"http://127.0.0.1:{port}", folder
        process.terminate()


class RemoteFolder:
    """A folder on the server.

    Args:
        address: of the folder.
        folder: where it is on this disk.
        log: of the server.
    """

    def __init__(self, address, folder, log):
        self.address, self.folder, self.log = address, folder, log

    def requests(self):
        """The files that were requested, in order."""
        return re.findall(rf"GET /{self.folder.name}/(\S+)", self.log.read_text())


@pytest.fixture
def remote_folder(web):
    address, root = web
    folder = root / str(len(list(root.iterdir())))
    folder.mkdir()
    return RemoteFolder(f"{address}/{folder.name}", folder, root / "log")


def numbers(examples):
    return [number_of(examples.image(i)) for i in range(len(examples))]


def test_every_image_of_the_shards_is_in_one_split_with_its_own_label(tmp_path):
    dataset = shards(tmp_path, write_shards(tmp_path / "data"))
    splits = dataset.splits()
    assert dataset.classes == ("0", "1", "2", "3")
    assert {name: len(part) for name, part in splits.items()} == {"train": 58, "validation": 6, "test": 16}
    assert sorted(n for part in splits.values() for n in numbers(part)) == list(range(80))
    for part in splits.values():
        assert (part.labels == np.array(numbers(part)) % 4).all()
        image, label = part.item(3)
        assert (number_of(image) % 4, image.mode) == (label, "RGB")


def test_validation_and_test_shards_are_used_as_they_are(tmp_path):
    splits = ((3, "a", 0), (1, "b", 30), (2, "c", 40))
    train, validation, test = (write_shards(tmp_path / "data", n, name=name, start=s) for n, name, s in splits)
    splits = shards(tmp_path, train, validation=validation, test=test).splits()
    assert [numbers(splits[name]) for name in splits] == [list(range(30)), list(range(30, 40)), list(range(40, 60))]
    with pytest.raises(ValueError, match=r"a-000\.tar is named twice"):
        shards(tmp_path, train, test=train)


@pytest.mark.parametrize(
    "pattern",
    [
        "data",
        "data/*.tar",
        "data/train-00?.tar",
        "data/train-00[01].tar",
        "data/train-{000..001}.tar",
        "data/{train-000,train-001}.tar",
        "data/train-000.tar::data/train-001.tar",
    ],
)
def test_shards_are_named_by_folders_wildcards_braces_and_lists(tmp_path, monkeypatch, pattern):
    write_shards(tmp_path / "data", 2)
    monkeypatch.chdir(tmp_path)
    dataset = shards(tmp_path, pattern)
    assert dataset.shards["train"] == ("data/train-000.tar", "data/train-001.tar")
    assert sum(len(part) for part in dataset.splits().values()) == 20


def test_samples_of_any_tar_are_read_by_the_preferred_extension(tmp_path):
    members = {"__meta__/about.json": b"{}", "readme": b"no sample"}
    for number in range(8):
        parts = {"JPG": png(number), "seg.png": b"", "png": b""}
        parts["json"] = json.dumps({"animal": ["cat", "dog"][number % 2]}).encode()
        members |= {f"a/{'long' * 40}{number}.{extension}": data for extension, data in parts.items()}
    train = write_tar(tmp_path / "x.tar", members)
    dataset = shards(tmp_path, train, label="json:animal", test_fraction=0.5, validation_fraction=0.5)
    splits = dataset.splits()
    assert dataset.classes == ("cat", "dog")
    assert sorted(n for part in splits.values() for n in numbers(part)) == list(range(8))
    assert all((part.labels == np.array(numbers(part)) % 2).all() for part in splits.values())


def test_labels_are_numbers_in_their_order_or_names_in_a_file(tmp_path):
    train = write_shards(tmp_path / "data", label=lambda n: f"{n % 12 + 1:02d}")
    dataset = shards(tmp_path, train)
    assert dataset.classes == tuple(str(n) for n in range(1, 13))
    part = dataset.splits()["train"]
    assert (part.labels == np.array(numbers(part)) % 12).all()
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    for label in (lambda n: n % 3, lambda n: ("ant", "bee", "cat")[n % 3]):
        train = write_shards(tmp_path / "named", label=label)
        dataset = shards(tmp_path, train, classes_file=str(tmp_path / "names.txt"))
        part = dataset.splits()["train"]
        assert dataset.classes == ("ant", "bee", "cat")
        assert (part.labels == np.array(numbers(part)) % 3).all()


def test_an_index_is_made_once_and_again_for_a_file_that_changed(tmp_path, monkeypatch):
    train = write_shards(tmp_path / "data", 3)
    before = shards(tmp_path, train).splits()["train"]
    made = []
    scan = WebDataset.scan
    monkeypatch.setattr(WebDataset, "scan", lambda self, name: made.append(name) or scan(self, name))
    again = shards(tmp_path, train).splits()["train"]
    assert numbers(again) == numbers(before)
    assert made == []
    os.utime(tmp_path / "data" / "train-001.tar", (1, 1))
    shards(tmp_path, train)
    assert [name[-7:] for name in made] == ["001.tar"]
    assert not list((tmp_path / "cache").rglob("*.part"))


@pytest.mark.parametrize("limit", [None, 10**9])
def test_remote_shards_are_the_same_as_those_on_a_disk_and_fetched_once(tmp_path, remote_folder, limit):
    near = shards(tmp_path, write_shards(remote_folder.folder)).splits()["train"]
    values = {"cache": str(tmp_path / "other"), "cache_bytes": limit, "range": None}
    fetched = shards(tmp_path, f"{remote_folder.address}/train-{{000..007}}.tar", **values).splits()["train"]
    assert sorted(remote_folder.requests()) == [f"train-{i:03d}.tar" for i in range(8)]  # to make the indices
    for _ in range(2):
        assert numbers(fetched) == numbers(near)
    again = shards(tmp_path, f"{remote_folder.address}/train-{{000..007}}.tar", **values).splits()["train"]
    assert numbers(again) == numbers(near)
    assert len(remote_folder.requests()) == (8 if limit is None else 16)


def test_the_least_recently_used_shards_go_where_the_cache_is_full(tmp_path, remote_folder):
    write_shards(remote_folder.folder, 4)
    size = (remote_folder.folder / "train-000.tar").stat().st_size
    store = ShardCache(tmp_path / "cache", 2 * size + 100)
    names = [f"{remote_folder.address}/train-{i:03d}.tar" for i in range(4)]
    for when, shard in enumerate((0, 1, 0, 2, 0, 3, 0)):
        os.close(store.open(names[shard], size))
        os.utime(store.path(names[shard]), (when, when))
        assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) <= 2 * size + 100
    assert [int(name[-5]) for name in remote_folder.requests()] == [0, 1, 2, 3]
    with pytest.raises(DataError, match=rf"dataset.cache_bytes={size - 1}: .*train-000.tar alone has {size} bytes"):
        ShardCache(tmp_path / "small", size - 1).open(names[0], size)


def test_a_cache_too_small_for_what_is_read_at_a_time_is_remarked_on(tmp_path, remote_folder, caplog):
    write_shards(remote_folder.folder, 8)
    size = (remote_folder.folder / "train-000.tar").stat().st_size
    for limit, said in ((None, 0), (8 * size, 0), (8 * size - 1, 1)):
        caplog.clear()
        shards(tmp_path, f"{remote_folder.address}/train-{{000..007}}.tar", cache_bytes=limit).splits()
        assert len(caplog.records) == said
    assert f"shards of up to {8 * size} bytes at a time" in caplog.text


def test_what_a_dead_process_left_takes_no_room(tmp_path, remote_folder):
    write_shards(remote_folder.folder, 2)
    size = (remote_folder.folder / "train-000.tar").stat().st_size
    store = ShardCache(tmp_path / "cache", size)
    left = store.path(f"{remote_folder.address}/train-001.tar")
    left = left.with_name(f".{left.name}.part")
    left.parent.mkdir()
    left.write_bytes(bytes(size))
    os.close(store.open(f"{remote_folder.address}/train-000.tar", size))
    assert not left.exists()


def read_all(store, names, data, seed):
    """Reads every file three times, and fails where one is incomplete or the files take too much room."""
    for i in np.random.default_rng(seed).permutation(len(names) * 3) % len(names):
        file = store.open(names[i], len(data[i]))
        assert os.pread(file, 10**6, 0) == data[i]
        os.close(file)
        assert store.limit is None or sum(file_stat(path)[0] for path in store.folder.glob("*.tar")) <= store.limit


@pytest.mark.parametrize("fitting", [None, 2])
def test_several_processes_fetch_at_once_and_keep_the_limit(tmp_path, remote_folder, fitting):
    write_shards(remote_folder.folder, 6)
    data = [path.read_bytes() for path in sorted(remote_folder.folder.iterdir())]
    names = [f"{remote_folder.address}/train-{i:03d}.tar" for i in range(6)]
    store = ShardCache(tmp_path / "cache", fitting and fitting * len(data[0]))
    fork = multiprocessing.get_context("fork")
    several = [fork.Process(target=read_all, args=(store, names, data, seed)) for seed in range(4)]
    for one in several:
        one.start()
    for one in several:
        one.join(60)
    assert [one.exitcode for one in several] == [0] * 4
    if fitting is None:
        assert sorted(remote_folder.requests()) == [f"train-{i:03d}.tar" for i in range(6)]
    assert not list((tmp_path / "cache").glob(".*"))


def test_an_epoch_shows_every_image_once_and_depends_on_its_draw_alone(tmp_path):
    part = shards(tmp_path, write_shards(tmp_path / "data", 11, 7), lanes=3).splits()["train"]
    for batch in (1, 2, 8, 10, 1000):
        orders = [part.shuffle(np.random.default_rng(seed), batch) for seed in (0, 0, 1)]
        assert (np.sort(orders[0]) == np.arange(len(part))).all()
        assert (orders[0] == orders[1]).all()
        assert not (orders[0] == orders[2]).all()


def test_processes_read_mostly_shards_of_their_own_and_few_at_a_time(tmp_path):
    folder = tmp_path / "data"
    train, test = write_shards(folder, 40, 20), write_shards(folder, 1, 10, name="test", start=800)
    part = shards(tmp_path, train, test=test, lanes=4, window=2).splits()["train"]
    walk = {"examples": len(part), "shuffle": part.shuffle, "batch": 16, "start": 0, "stop": len(part) // 16, "seed": 0}
    read = []
    for rank in range(2):
        batches = [[part.shard[i] for _, i in keys] for keys in TrainSampler(**walk, rank=rank, world_size=2)]
        read.append({shard for batch in batches for shard in batch})
        for i in range(0, len(batches) - 4, 4):
            assert len({shard for batch in batches[i : i + 4] for shard in batch}) <= 2 * (2 + 2)  # 2 lanes
    assert len(read[0] & read[1]) <= 3
    assert len(read[0] | read[1]) == 40
    order = part.shuffle(np.random.default_rng(0), 16)
    neighbours = np.abs(np.diff(part.offsets[order[part.shard[order] == part.shard[order[0]]]]))
    assert len(np.unique(neighbours)) > 2  # shuffled within a shard, too


def batches(tmp_path, train, workers=0, rank=0, world=1, start=0, **values):
    dataset = shards(tmp_path, train, **values)
    part = dataset.splits()["train"]
    walk = {"examples": len(part), "shuffle": part.shuffle, "batch": 8, "start": start, "stop": 12, "seed": 3}
    order = TrainSampler(**walk, rank=rank, world_size=world)
    found = list(loader(part, augment(**STRONG).transform(dataset), order, seed=3, workers=workers))
    return [pixels for pixels, _ in found], [labels for _, labels in found]


@pytest.mark.slow
def test_batches_are_the_same_for_any_workers_and_ranks_and_from_any_step(tmp_path, remote_folder):
    write_shards(remote_folder.folder)
    size = (remote_folder.folder / "train-000.tar").stat().st_size
    train = f"{remote_folder.address}/train-{{000..007}}.tar"
    pixels, labels = batches(tmp_path, train)
    for changed in ({"workers": 2}, {"workers": 2, "cache": str(tmp_path / "few"), "cache_bytes": 3 * size}):
        again, same = batches(tmp_path, train, **changed)
        assert all(map(torch.equal, again, pixels))
        assert all(map(torch.equal, same, labels))
    resumed, _ = batches(tmp_path, train, start=5)
    assert all(map(torch.equal, resumed, pixels[5:]))
    for rank in range(2):
        for part, whole in zip(batches(tmp_path, train, rank=rank, world=2), (pixels, labels), strict=True):
            assert torch.equal(torch.stack(part), torch.stack(whole)[:, local_indices(8, rank, 2)])


def test_a_subset_has_the_same_images_as_the_whole(tmp_path):
    part = shards(tmp_path, write_shards(tmp_path / "data"), train_examples=11).splits()["train"]
    assert len(part) == 11
    few = part.take(np.array([7, 3, 3]))
    assert numbers(few) == [numbers(part)[i] for i in (7, 3, 3)]
    assert sorted(few.shuffle(np.random.default_rng(0), 64)) == [0, 1, 2]


def pair(**more):
    return {f"{n}.{e}": d for n in "abcd" for e, d in {"png": png(), "cls": b"01"[ord(n) % 2 :][:1]}.items()} | more


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path, whole: path.write_bytes(whole[:-10240]), "is cut short or no tar"),
        (lambda path, whole: path.write_bytes(whole[:2048]), "is cut short or no tar"),
        (lambda path, whole: path.write_bytes(whole[: 1024 * 3 + 100]), "is cut short or no tar"),
        (lambda path, whole: path.write_bytes(b""), "is cut short or no tar"),
        (lambda path, whole: path.write_bytes(bytes(10240)), "has no samples"),
        (lambda path, whole: path.write_bytes(b"<html>not found</html>" * 99), "is cut short or no tar"),
        (lambda path, whole: path.write_bytes(gzip.compress(whole)), "one that is compressed must be unpacked"),
        (lambda path, whole: path.write_bytes(whole[:2048] + b"x" * 512 + whole[2560:]), "is cut short or no tar"),
        (lambda path, whole: write_tar(path, pair(**{"e.cls": b"1"})), r"sample e has no image \(jpg, png\) but cls"),
        (lambda path, whole: write_tar(path, pair(**{"e.png": png()})), r"sample e has no label \(cls\) but png"),
        (lambda path, whole: write_tar(path, pair(**{"e.png": png(), "e.cls": b""})), "label of sample e is neither"),
        (
            lambda path, whole: write_tar(path, pair(**{"e.png": png(), "e.cls": b"\xff"})),
            "label of sample e is neither",
        ),
        (lambda path, whole: write_tar(path, pair(**{"d.PNG": png()})), r"sample d has two members \.png"),
    ],
)
def test_a_damaged_shard_is_refused_by_name_until_it_is_mended(tmp_path, remote_folder, damage, sentence, remote):
    path = remote_folder.folder / "x.tar"
    write_tar(path, pair())
    whole = path.read_bytes()
    damage(path, whole)
    where = f"{remote_folder.address}/x.tar" if remote else str(path)
    for limit in (None, 10**9):
        with pytest.raises(DataError, match=rf"x\.tar.*{sentence}") as caught:
            shards(tmp_path, where, cache_bytes=limit)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    assert len(shards(tmp_path, where).examples("train")) == 4


def test_an_image_that_cannot_be_decoded_is_named_with_its_shard(tmp_path):
    members = pair(**{"folder/e.png": png()[:45], "folder/e.cls": b"1", "f.jpg": b"not an image", "f.cls": b"1"})
    dataset = shards(tmp_path, write_tar(tmp_path / "x.tar", members))
    whole = dataset.examples("train")
    for index, name in ((4, "folder/e.png"), (5, "f.jpg")):
        with pytest.raises(ValueError, match=rf"{name} in .*x\.tar is not a readable image") as caught:
            whole.image(index)
        assert "BytesIO" not in str(caught.value)


def test_a_remote_shard_that_changed_since_its_index_was_made_is_refused(tmp_path, remote_folder):
    write_tar(remote_folder.folder / "x.tar", pair())
    part = shards(tmp_path, f"{remote_folder.address}/x.tar", cache_bytes=10**9).examples("train")
    write_tar(remote_folder.folder / "x.tar", pair(**{f"{i}.txt": bytes(999) for i in range(99)}))
    with pytest.raises(DataError, match=r"x\.tar has \d+ bytes, but had \d+ when its index was made"):
        part.image(0)


def test_a_shard_that_is_not_there_is_refused_in_a_sentence(tmp_path, remote_folder):
    with pytest.raises(DatasetMissing, match=r"x-000\.tar"):
        shards(tmp_path, str(tmp_path / "x-{000..003}.tar"))
    with pytest.raises(DatasetMissing, match=r"x-\*\.tar"):
        shards(tmp_path, str(tmp_path / "x-*.tar"))
    with pytest.raises(DatasetMissing, match=r"classes_file.*names\.txt"):
        shards(tmp_path, write_shards(tmp_path / "data"), classes_file=str(tmp_path / "names.txt"))
    for limit in (None, 10**9):
        with pytest.raises(DataError, match=r"x\.tar could not be fetched \(curl: exit 22\)"):
            shards(tmp_path, f"{remote_folder.address}/x.tar", cache_bytes=limit)


@pytest.mark.parametrize(
    ("label", "names", "sentence"),
    [
        (lambda n: n % 5, "ant\nbee\n", r"train-000\.tar: the label 2 is none of the 2 classes \(ant to bee\)"),
        (lambda n: "cow" if n == 25 else "ant", "ant\nbee\n", r"train-002\.tar: the label cow is none of"),
        (lambda n: -1, "ant\nbee\n", r"the label -1 is none"),
        (lambda n: 1, None, r"has 1 class \(1\)"),
    ],
)
def test_labels_that_are_no_classes_are_refused_by_shard(tmp_path, label, names, sentence):
    train = write_shards(tmp_path / "data", 3, label=label)
    if names is not None:
        (tmp_path / "names.txt").write_text(names)
        names = str(tmp_path / "names.txt")
    with pytest.raises(ValueError, match=sentence):
        shards(tmp_path, train, classes_file=names).splits()


def test_test_labels_that_training_has_not_are_refused(tmp_path):
    train = write_shards(tmp_path / "data", 2)
    test = write_shards(tmp_path / "data", 1, name="test", start=100, label=lambda n: n % 7)
    with pytest.raises(DataError, match=r"test-000\.tar: the label . is none of the 4 classes"):
        shards(tmp_path, train, test=test).splits()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("pipe:touch hacked", "would run a command, which no configuration may: give a path"),
        ("pipe:aws s3 cp s3://a/x.tar -", "would run a command"),
        ("{x.tar,pipe:touch hacked}", "would run a command"),
        ("data/x.tar::pipe:touch hacked", "would run a command"),
        ("file:///etc/passwd", "is no path or address"),
        ("sftp://host/x.tar", "is no path or address"),
        ("htgs://host/x.tar", "is no path or address"),
        ("HTTP://host/x.tar", "is no path or address"),
        ("s3://bucket/x-*.tar", r"has '\*', which no address has"),
        ("gs://bucket/x y.tar", "has ' ', which no address has"),
        ("http://host/x.tar\n--upload-file=/etc/passwd", r"has '\\n', which"),
        ("http://host/`touch hacked`.tar", "has '`', which"),
        ("http://host/[0-9].tar", r"has '\[', which"),
    ],
)
def test_an_address_runs_no_command(tmp_path, monkeypatch, name, sentence):
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "data" / "x.tar", pair())
    write_tar(tmp_path / "x.tar", pair())
    with pytest.raises(DataError, match=sentence):
        shards(tmp_path, name)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(("scheme", "tool"), [("s3", "aws"), ("gs", "gsutil")])
def test_objects_are_fetched_by_a_program_without_a_shell(tmp_path, monkeypatch, scheme, tool):
    write_shards(tmp_path / "data", 2)
    programs = tmp_path / "programs"
    programs.mkdir()
    script = """#!/bin/sh
echo "$@" >> HERE/said
for word; do case "$word" in s3:*|gs:*) cat "HERE/data/$(basename "${word%%;*}")";; esac; done
"""
    (programs / tool).write_text(script.replace("HERE", str(tmp_path)))
    (programs / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    part = shards(tmp_path, f"{scheme}://bucket/train-{{000..001}}.tar;touch$IFS{tmp_path}/hacked").splits()["train"]
    assert len(numbers(part)) == 14
    assert "bucket/train-000.tar;touch$IFS" in (tmp_path / "said").read_text()
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "name", ["x.tar", "../a b/x.tar", "https://u:p@host:80/a/x.tar?X-Sig=a%2Fb&y=1#z", "s3://b/k.tar", "gs://b/k.tar"]
)
def test_ordinary_paths_and_addresses_are_let_through(name):
    check_address(name)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"lanes": 0}, "dataset.lanes=0: must be at least 1"),
        ({"window": 0}, "dataset.window=0"),
        ({"cache_bytes": 0}, "dataset.cache_bytes=0"),
        ({"channels": 2}, "dataset.channels=2"),
        ({"test_fraction": 1.0}, "dataset.test_fraction=1.0"),
        ({"image_size": None}, "image_size=null"),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path, values, sentence):
    with pytest.raises(ValueError, match=sentence):
        shards(tmp_path, write_shards(tmp_path / "data", 1), **values)


def test_without_the_library_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(ValueError, match=r'uv sync --extra webdataset, or pip install "vitlab\[webdataset\]"'):
        shards(tmp_path, "x.tar")


def test_labels_that_differ_in_spaces_or_in_unicodes_form_are_one_class(tmp_path):
    names = ["caf\u00e9", "cafe\u0301", "\ufeffdog", "dog\u00a0"]
    members = {
        f"{i:02d}.{end}": data for i in range(20) for end, data in (("png", png()), ("cls", names[i % 4].encode()))
    }
    dataset = shards(tmp_path, write_tar(tmp_path / "data" / "x.tar", members))
    assert dataset.classes == ("caf\u00e9", "dog")
    (tmp_path / "names.txt").write_bytes("\ufeffcaf\u00e9\r\ndog \r\n".encode())
    listed = shards(tmp_path, str(tmp_path / "data"), classes_file=str(tmp_path / "names.txt"))
    assert listed.classes == ("caf\u00e9", "dog")
    assert len(listed.splits()["train"]) > 0
