"""JPEGs decoded at reduced size, and the cache of decoded images."""

import io
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.config.test_check import check, compose
from tests.data.test_augment import augment
from tests.data.test_dataset import FOLDER
from tests.disk import draw_image, write_images, write_parquet, write_shards
from tests.processes import Training, until
from tests.training.test_loop import ALONE, fit
from vitlab.config.build import assemble
from vitlab.config.errors import ConfigError, DataError, DiskFull, StorageError
from vitlab.data import cache, examples
from vitlab.data.augment import eval_transform
from vitlab.data.cache import Cached, cache_images
from vitlab.data.datasets.image_folder import ImageFolder
from vitlab.data.examples import Files, Pixels, open_image
from vitlab.data.geometry import Geometry
from vitlab.data.loader import EvalSampler, View, loader
from vitlab.data.preprocess import Decoding, Preprocess, Resize, to_pixels, upright
from vitlab.evaluation.reevaluate import evaluate
from vitlab.storage.lock import Lock
from vitlab.training.batches import (
    describe_input,
    eval_batches,
    train_batches,
    train_inputs,
    train_transform,
    training_order,
)
from vitlab.training.setup import prepare

pytestmark = pytest.mark.usefixtures("no_curves")


def photo(path, size=(1200, 800), mode="RGB", orientation=1, **options):
    """Smooth shapes and some noise, as photographs have."""
    draw = np.random.default_rng(0)
    small = Image.fromarray(draw.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    pixels = (
        np.array(small.resize(size, Image.Resampling.BICUBIC)).astype(int) + draw.integers(-6, 7, size[::-1])[..., None]
    )
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **options)
    return path


def files(root, n=20, **options):
    """Images of several sizes, as JPEG and PNG."""
    paths = [root / f"{i}.{'jpg' if i % 2 else 'png'}" for i in range(n)]
    for i, path in enumerate(paths):
        draw_image(path, seed=i, size=(20 + i, 24 + 2 * i))
    return Files(paths, np.arange(n) % 2, options.pop("mode", "RGB"), **options)


def assert_same_images(one, other):
    assert len(one) == len(other)
    assert (one.labels == other.labels).all()
    for i in range(len(one)):
        mine, theirs = one.image(i), other.image(i)
        assert (mine.mode, mine.size, mine.tobytes()) == (theirs.mode, theirs.size, theirs.tobytes()), i


def cached_part(part, folder, workers=0):
    return cache_images({"train": part}, folder, workers)["train"]


def decode_image(file, mode, min_size=None):
    return open_image(file, lambda image: upright(image, Decoding(mode), min_size))


def fail_to_decode(*_, **__):
    raise AssertionError("an image was decoded")


# --- reduced size -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("min_size", "size"),
    [(None, (1200, 800)), (801, (1200, 800)), (400, (600, 400)), (399, (600, 400)), (150, (300, 200)), (8, (150, 100))],
)
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_leaves_enough_of_its_shorter_side(tmp_path, min_size, size):
    path = photo(tmp_path / "x.jpg")
    assert decode_image(path, "RGB", min_size).size == size
    assert Files([path], np.array([0]), "RGB").reduced(min_size).image(0).size == size


def test_a_turned_photo_is_upright_at_reduced_size_too(tmp_path):
    path = photo(tmp_path / "x.jpg", orientation=6)
    small, whole = decode_image(path, "RGB", 200), decode_image(path, "RGB")
    assert (small.size, whole.size) == ((200, 300), (800, 1200))
    assert difference(small, whole.resize((200, 300), Image.Resampling.BOX)) < 1


def difference(one, other):
    return float(np.abs(np.array(one).astype(float) - np.array(other)).mean())


def test_the_grey_of_a_reduced_photo_is_that_of_the_whole_one(tmp_path):
    path = photo(tmp_path / "x.jpg")
    small = decode_image(path, "L", 200)
    assert small.mode == "L"
    assert small.tobytes() == decode_image(path, "RGB", 200).convert("L").tobytes()


@pytest.mark.parametrize("crop", [1.0, 0.875])
@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_what_evaluation_sees_of_a_reduced_photo_is_close_to_what_it_sees_of_the_whole(tmp_path, size, crop):
    resize, path = Resize(size, crop), photo(tmp_path / "x.jpg", quality=90)
    small, whole = decode_image(path, "RGB", resize.min_size), decode_image(path, "RGB")
    assert small.width < whole.width
    assert difference(resize(small), resize(whole)) < 1
    preprocess = Preprocess(size=size, channels=3, crop=crop, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert torch.allclose(preprocess(path) * 255, to_pixels(resize(small)).float(), atol=1e-3)


def test_small_photos_and_other_kinds_of_files_are_decoded_as_they_were(tmp_path):
    paths = [photo(tmp_path / name, (120, 80)) for name in ("x.jpg", "x.png", "x.webp")]
    paths += [photo(tmp_path / name) for name in ("y.png", "y.bmp")]
    paths += [photo(tmp_path / "grey.jpg", (120, 80), "L"), photo(tmp_path / "print.jpg", (120, 80), "CMYK")]
    whole = Files(paths, np.zeros(len(paths), dtype=np.int64), "RGB")
    assert_same_images(whole.reduced(64), whole)


@pytest.mark.parametrize("area", [(0.08, 1.0), (0.35, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("image", [(1200, 800), (640, 2000), (900, 900)])
def test_no_training_crop_of_a_reduced_photo_is_magnified_more_than_of_the_whole(tmp_path, area, image):
    dataset = folder(tmp_path / "images", image_size=(24, 32))
    path = photo(tmp_path / "x.jpg", image)
    min_size = augment(crop="resized", area=area).min_size(dataset)
    small = decode_image(path, "RGB", min_size)
    assert min(small.size) >= min(min_size, *image)
    crop = min(small.size) * (area[0] * max(small.size) / min(small.size) * 3 / 4) ** 0.5  # the smallest side of a crop
    assert crop >= max(dataset.shape) or small.size == image


def folder(root, **values):
    if not root.exists():
        write_images(root)
    return ImageFolder(**FOLDER | {"root": str(root)} | values)


@pytest.mark.parametrize("crop", ["none", "pad"])
def test_training_without_a_random_area_reads_as_evaluation_does(tmp_path, crop):
    dataset = folder(tmp_path / "images", image_size=(24, 32), evaluation_crop=0.8)
    assert augment(crop=crop).min_size(dataset) == Resize((24, 32), 0.8).min_size == 80
    assert augment(crop="resized", area=(1.0, 1.0)).min_size(dataset) == 80  # which evaluation may see as well


def test_tables_and_shards_read_at_reduced_size_too(tmp_path, monkeypatch):
    path = photo(tmp_path / "x.jpg")
    asked = []

    def asks(image, decoding, min_size):
        asked.append(min_size)
        return upright(image, decoding, min_size)

    monkeypatch.setattr(examples, "upright", asks)
    write_shards(tmp_path)
    shards = [f"dataset.train={tmp_path}/train-*.tar", f"dataset.cache={tmp_path}/cache"]
    table = f"dataset.path={write_parquet(tmp_path / 'table', monkeypatch)}"
    for words in (["dataset=webdataset", *shards], ["dataset=hf", table]):
        node = check(compose([*words, "dataset.image_size=16"])[0])
        train = assemble(node)["dataset"].splits()["train"]
        train.reduced(40).take(np.array([1, 0])).image(0)
        train.image(0)
    assert asked == [40, None, 40, None]
    assert decode_image(io.BytesIO(path.read_bytes()), "RGB", 100).size == (150, 100)


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("workers", [0, 2])
def test_cached_images_are_the_same_bytes(tmp_path, mode, workers):
    part = files(tmp_path / "images", mode=mode)
    kept = cached_part(part, tmp_path / "cache", workers)
    assert isinstance(kept, Cached)
    assert_same_images(kept, part)
    chosen = np.array([7, 3, 3])
    assert_same_images(kept.take(chosen), part.take(chosen))
    draws = [np.random.default_rng(0) for _ in range(2)]
    assert (kept.shuffle(draws[0], 4) == part.shuffle(draws[1], 4)).all()


def test_reduced_photos_are_kept_reduced(tmp_path):
    photo(tmp_path / "x.jpg")
    part = Files([tmp_path / "x.jpg"], np.array([0]), "RGB")
    small = cached_part(part.reduced(200), tmp_path / "cache")
    assert small.image(0).size == (300, 200)
    assert_same_images(small, part.reduced(200))
    assert cached_part(part, tmp_path / "cache").image(0).size == (1200, 800)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_and_without(tmp_path, workers):
    dataset = folder(tmp_path / "images")
    parts = dataset.splits()
    kept = cache_images(parts, tmp_path / "cache", 0)
    for name, transform in (("train", augment(crop="resized").transform(dataset)), ("test", eval_transform(dataset))):
        order = EvalSampler(examples=len(parts[name]), batch=4)
        batches = [list(loader(part[name], transform, order, seed=3, workers=workers)) for part in (parts, kept)]
        for (mine, labels), (theirs, others) in zip(*batches, strict=True):
            assert torch.equal(mine, theirs)
            assert torch.equal(labels, others)


def test_a_second_use_decodes_nothing(tmp_path, monkeypatch, capsys):
    part = files(tmp_path / "images")
    first = cached_part(part, tmp_path / "cache")
    assert capsys.readouterr().out == f"decoding 20 train images, once, into {tmp_path / 'cache'}\n"
    monkeypatch.setattr(examples, "upright", fail_to_decode)
    assert_same_images(cached_part(part, tmp_path / "cache"), first)
    assert capsys.readouterr().out == ""


def test_a_changed_file_is_seen(tmp_path):
    part = files(tmp_path / "images")
    assert_same_images(cached_part(part, tmp_path / "cache"), part)
    file = part.paths[2]
    draw_image(file, seed=99, size=(30, 30))
    assert_same_images(cached_part(part, tmp_path / "cache"), part)
    before = file.stat()
    changed = bytearray(file.read_bytes())
    draw_image(file, seed=100, size=(30, 30))
    assert file.read_bytes() != changed
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    kept = cached_part(part, tmp_path / "cache")
    assert_same_images(kept, part)


def test_another_pillow_another_mode_and_another_size_have_caches_of_their_own(tmp_path, monkeypatch):
    part = files(tmp_path / "images")
    grey = Files(part.names, part.labels, "L")
    keys = [
        cache.key(p) for p in (part, grey, part.reduced(8), part.take(np.arange(5)), part.take(np.arange(20)[::-1]))
    ]
    monkeypatch.setattr(cache.PIL, "__version__", "0.0")
    keys.append(cache.key(part))
    monkeypatch.setattr(cache, "FORMAT", 0)
    assert len({*keys, cache.key(part)}) == 7


def test_a_relative_name_is_the_file_that_it_names(tmp_path, monkeypatch):
    part = files(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    relative = Files([path.relative_to(tmp_path) for path in part.paths], part.labels, "RGB")
    assert cache.key(relative) == cache.key(part)


@pytest.mark.parametrize("damage", ["cut pixels", "more pixels", "no pixels", "cut sizes", "no sizes", "other sizes"])
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    part = files(tmp_path / "images")
    cached_part(part, tmp_path / "cache")
    (pixels,), (sizes,) = ((tmp_path / "cache").glob(f"*.{end}") for end in ("pixels", "npy"))
    match damage.split():
        case ["cut", what]:
            file = pixels if what == "pixels" else sizes
            file.write_bytes(file.read_bytes()[:-100])
        case ["more", _]:
            pixels.write_bytes(pixels.read_bytes() + b"x")
        case ["no", what]:
            (pixels if what == "pixels" else sizes).unlink()
        case _:
            np.save(sizes, np.load(sizes)[:-1])
    assert_same_images(cached_part(part, tmp_path / "cache"), part)


def test_what_is_in_memory_stays_there_and_nothing_is_written(tmp_path):
    part = Pixels(torch.zeros(2, 3, 4, 5, dtype=torch.uint8), np.array([0, 1]))
    assert cached_part(part, tmp_path / "cache") is part
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named_as_without_a_cache(tmp_path, workers):
    part = files(tmp_path / "images", n=50, remedy="mend it")
    (tmp_path / "images" / "41.jpg").write_bytes(part.paths[41].read_bytes()[:200])
    with pytest.raises(DataError) as without:
        part.image(41)
    with pytest.raises(DataError) as found:
        cached_part(part, tmp_path / "cache", workers)
    assert str(found.value) == str(without.value)
    assert "41.jpg is not a readable image" in str(found.value)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]
    part.paths[41].unlink()
    with pytest.raises(DataError, match=r"41\.jpg .*: mend it"):
        cached_part(part, tmp_path / "cache", workers)


def disk_with(monkeypatch, *free):
    """A disk that has so many bytes free, one answer after the other."""
    answers = list(free)

    def usage(_):
        return type("Usage", (), {"free": answers.pop(0) if len(answers) > 1 else answers[0]})

    monkeypatch.setattr(cache.shutil, "disk_usage", usage)


def test_images_that_do_not_fit_on_the_disk_are_refused_before_any_is_written(tmp_path, monkeypatch):
    part = files(tmp_path / "images")
    disk_with(monkeypatch, cache.RESERVED + 1000)
    with pytest.raises(DiskFull, match=r"20 decoded images take about 0.0 GB, .*: free some, .*system\.cache=null"):
        cached_part(part, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


def test_a_disk_that_becomes_full_meanwhile_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    part = files(tmp_path / "images")
    disk_with(monkeypatch, 2**40, 2**40, 1000)
    with pytest.raises(DiskFull, match="nearly full after 8 of 20 images"):
        cached_part(part, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]
    disk_with(monkeypatch, 2**40)
    assert_same_images(cached_part(part, tmp_path / "cache"), part)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    part = files(tmp_path / "images")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match=r"system\.cache=.*file/cache cannot be written .*: give another"):
        cached_part(part, tmp_path / "file" / "cache")


# --- several processes ------------------------------------------------------------------------------------------------

SLOWLY = """
import sys, time
from pathlib import Path
import numpy as np
from vitlab.data import cache, examples
paths = sorted(Path(sys.argv[1]).iterdir())
whole, count = examples.upright, 0
def slow(*given, **more):
    global count
    count += 1
    time.sleep(float(sys.argv[3]))
    return whole(*given, **more)
examples.upright = slow
part = examples.Files(paths, np.zeros(len(paths), dtype=np.int64), "RGB")
kept = cache.cache_images({"train": part}, Path(sys.argv[2]), 0)["train"]
print("decoded", count, flush=True)
for i in range(len(paths)):
    assert kept.image(i).tobytes() == part.image(i).tobytes()
"""


def process(tmp_path, seconds):
    words = [sys.executable, "-c", SLOWLY, str(tmp_path / "images"), str(tmp_path / "cache"), str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_two_processes_at_once_decode_once_and_both_have_the_images(tmp_path):
    files(tmp_path / "images", n=16)
    both = [process(tmp_path, 0.1) for _ in range(2)]
    said = [each.communicate(timeout=120)[0] for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    counts = sorted(int(text.split("decoded ")[-1]) for text in said)
    assert counts == [0, 32], said  # a sample of each for the size, then all


@pytest.mark.slow
def test_who_waits_for_another_says_so(tmp_path):
    files(tmp_path / "images", n=4)
    (tmp_path / "cache").mkdir()
    with Lock(tmp_path / "cache" / "lock"):
        waits = process(tmp_path, 0)
        said = waits.stdout.readline()
        assert f"is being written by process {os.getpid()} on" in said
        assert said.endswith("waiting for its decoded images\n")
    rest = waits.communicate(timeout=60)[0]
    assert waits.returncode == 0, rest
    assert "decoding 4 train images, once" in rest


@pytest.mark.slow
def test_what_a_killed_process_leaves_is_not_believed(tmp_path):
    part = files(tmp_path / "images", n=16)
    killed = process(tmp_path, 0.1)
    until(lambda: any((tmp_path / "cache").glob(".*.part")))
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert not list((tmp_path / "cache").glob("*.npy"))
    part = Files(sorted(part.paths), np.zeros(16, dtype=np.int64), "RGB")
    assert_same_images(cached_part(part, tmp_path / "cache"), part)
    assert not list((tmp_path / "cache").glob(".*"))


# --- trainings --------------------------------------------------------------------------------------------------------


def images_of(tmp_path, n=40):
    write_images(tmp_path / "images", n=n, size=(70, 90))
    return [
        "dataset=image_folder",
        f"dataset.root={tmp_path}/images",
        "dataset.image_size=16",
        "dataset.validation_fraction=0.2",
        "patch=p4",
        "augment=flip_crop",
        "augment.crop=resized",
        "dataset.train_examples=40",
    ]


@pytest.mark.slow
def test_a_training_from_the_cache_is_the_training_without_it(tmp_path, monkeypatch):
    words = images_of(tmp_path)
    plain, expected = fit(tmp_path, *words, name="plain")
    assert not (tmp_path / "cache").exists()
    kept, result = fit(tmp_path, *words, f"system.cache={tmp_path}/cache", "system.workers=2", name="kept")
    timed = {"seconds", "images_per_second", "data_wait", "peak_memory_bytes"}
    assert {k: v for k, v in result.items() if k not in timed} == {k: v for k, v in expected.items() if k not in timed}
    losses = [[row["train/loss"] for row in run.rows()] for run in (plain, kept)]
    assert losses[0] == losses[1]
    scores, _ = evaluate(kept.folder)
    assert scores == {key: result[key] for key in scores}
    monkeypatch.setattr(examples, "upright", fail_to_decode)
    _, again = fit(tmp_path, *words, f"system.cache={tmp_path}/cache", name="again")
    assert again["test/loss"] == result["test/loss"]


def test_a_training_says_how_its_images_come(tmp_path):
    words = images_of(tmp_path)
    node = check(compose([*words, "fit.batch_size=16", "tracking=off"])[0])
    said = describe_input(prepare(**assemble(node), dist=ALONE))
    assert said.endswith("each is decoded in every epoch (system.cache=FOLDER would keep them decoded)")
    node = check(compose([*words, "fit.batch_size=16", "tracking=off", f"system.cache={tmp_path}/cache"])[0])
    setup = prepare(**assemble(node), dist=ALONE)
    assert describe_input(setup).endswith(f"they are cached decoded in {tmp_path}/cache")
    assert {name: type(part) for name, part in setup.splits.items()} == dict.fromkeys(setup.splits, Cached)
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 3


def whole_batches(tmp_path, *words, size=(16, 16)):
    write_images(tmp_path / "images", n=20, size=size)
    words = (*images_of(tmp_path, n=0), "dataset.train_examples=20", "dataset.evaluation_crop=1", *words)
    node = check(compose([*words, "fit.batch_size=8", "fit.steps=9", "tracking=off"])[0])
    return prepare(**assemble(node), dist=ALONE)


@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
@pytest.mark.parametrize("flip", ["true", "false"])
def test_cached_images_of_one_size_are_augmented_as_whole_batches_as_those_in_memory_are(tmp_path, crop, flip):
    words = (f"augment.crop={crop}", f"dataset.flip={flip}")
    files = whole_batches(tmp_path / "1", *words).splits
    cached = whole_batches(tmp_path / "1", *words, "augment.batched=true", f"system.cache={tmp_path}/cache")
    assert {name: type(part) for name, part in cached.splits.items()} == dict.fromkeys(files, Pixels)
    expected = {
        name: Pixels(torch.stack([to_pixels(part.image(i)) for i in range(len(part))]), part.labels)
        for name, part in files.items()
    }
    for name, part in expected.items():
        assert torch.equal(part.pixels, cached.splits[name].pixels)
        assert (part.labels == cached.splits[name].labels).all()
    assert "in the training's own process" in describe_input(cached)
    inputs = train_inputs(cached)
    view = View(expected["train"], train_transform(cached.augment, cached.dataset), cached.seed)
    assert isinstance(view.transform, Geometry | None)
    for keys, batch in zip(training_order(cached, 0), train_batches(cached, 0), strict=True):
        assert "pixels" not in batch.tensors
        pixels, labels = view.__getitems__(keys)
        seen, targets = inputs(batch)
        assert torch.equal(seen, cached.normalize(pixels))
        assert torch.equal(targets, labels)
    assert view.transform is None or not torch.equal(pixels, expected["train"].pixels[[index for _, index in keys]])
    plain = replace(cached, splits=files)
    for split in ("validation", "test"):
        for (one, first), (two, second) in zip(eval_batches(cached, split), eval_batches(plain, split), strict=True):
            assert torch.equal(one, two)
            assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("words", "size", "sentence"),
    [
        (["system.cache=null"], (16, 16), r"decoded from files, .*: system.cache=FOLDER keeps them decoded; or use"),
        (
            [],
            (20, 16),
            r"20 of 20 training images are not 16x16 pixels .* such as one of 20x16: .* resize the files",
        ),
        (
            ["dataset.evaluation_crop=0.875", "augment.crop=pad"],
            (16, 16),
            "evaluation_crop=0.875 enlarges each image .*evaluation_crop=1",
        ),
        (["augment=randaugment"], (16, 16), "auto_augment=rand-m9-mstd0.5-inc1 is for one image after the other"),
    ],
)
def test_whole_batches_of_files_are_refused_where_they_cannot_be(tmp_path, words, size, sentence):
    with pytest.raises(ConfigError, match=f"augment.batched=true, but .*{sentence}"):
        whole_batches(tmp_path, f"system.cache={tmp_path}/cache", *words, "augment.batched=true", size=size)


@pytest.mark.slow
def test_two_processes_of_one_training_share_a_cache(tmp_path):
    words = ["train", *images_of(tmp_path), "tracking=off", "model.width=16", "model.depth=1", "model.heads=2"]
    words += ["fit.batch_size=16", "fit.steps=4", f"system.runs={tmp_path}/runs", "system.workers=0"]
    pair = Training([*words, f"system.cache={tmp_path}/cache"], tmp_path / "out.txt", world_size=2)
    assert pair.wait() == [0, 0], pair.said
    assert pair.said.count("decoding 40 train images, once") == 1
