"""Images of every kind become the right pixels: transparency, deep grey, palettes, frames, rotations."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

import vitlab
from tests.data.test_dataset import FOLDER
from tests.disk import hub_table, own_cache
from vitlab.__main__ import main
from vitlab.config.build import assemble
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.errors import DataError
from vitlab.data import cache
from vitlab.data.datasets.image_folder import ImageFolder
from vitlab.data.examples import Files, open_image
from vitlab.data.levels import describe_enlarged
from vitlab.data.pixel_range import find_range
from vitlab.data.preprocess import Decoding, Preprocess, upright
from vitlab.evaluation.reevaluate import dataset_from_overrides, eval_inputs, training_dataset

pytestmark = pytest.mark.usefixtures("no_curves")

WHITE, RED, BLUE, BLACK = (255, 255, 255), (254, 0, 0), (0, 0, 254), (0, 0, 0)
SCAN = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # every value of 12 bits
LEVELS = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4", "F": "<f4"}  # PIL's mode: numpy's type


def decode(image, mode="RGB", background=WHITE, range=None, **options):
    """The pixels of an image that was written to a file; `options` are of `save`."""
    file = io.BytesIO()
    image.save(file, **{"format": "PNG"} | options)
    found = open_image(io.BytesIO(file.getvalue()), lambda image: upright(image, Decoding(mode, background, range)))
    return np.asarray(found)


def two(mode, left, right):
    """An image of two pixels."""
    image = Image.new(mode, (2, 1))
    image.putpixel((0, 0), left)
    image.putpixel((1, 0), right)
    return image


def palette(*colours):
    image = two("P", 0, 1)
    image.putpalette([value for colour in colours for value in colour])
    return image


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (two("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)), {}, (WHITE, BLACK)),
        (two("RGBA", (0, 0, 0, 51), (254, 0, 0, 255)), {}, ((204,) * 3, RED)),
        (two("LA", (0, 0), (100, 255)), {}, (WHITE, (100,) * 3)),
        (two("RGBA", (0, 0, 0, 0), (254, 0, 0, 255)), {"format": "WEBP", "lossless": True}, (WHITE, RED)),
        (two("RGBA", (0, 0, 0, 0), (254, 0, 0, 255)), {"format": "TIFF"}, (WHITE, RED)),
        (palette(RED, BLUE), {}, (RED, BLUE)),
        (palette(RED, BLUE), {"transparency": 0}, (WHITE, BLUE)),
        (palette(RED, BLACK), {"transparency": b"\xff\x33"}, (RED, (204,) * 3)),
        (palette(RED, BLUE), {"format": "GIF", "transparency": 1}, (RED, WHITE)),
        (palette(RED, BLUE), {"format": "GIF"}, (RED, BLUE)),
        (two("RGB", RED, BLUE), {"transparency": RED}, (WHITE, BLUE)),
        (two("L", 7, 9), {"transparency": 7}, (WHITE, (9,) * 3)),
        (two("1", 0, 1), {}, (BLACK, WHITE)),
        (two("1", 0, 1), {"format": "TIFF"}, (BLACK, WHITE)),
        (two("L", 7, 9), {}, ((7,) * 3, (9,) * 3)),
        (two("CMYK", (255, 0, 255, 0), (0, 0, 0, 255)), {"format": "TIFF"}, ((0, 255, 0), BLACK)),
    ],
)
def test_every_kind_of_image_has_its_pixels_over_the_background(image, options, expected):
    assert [tuple(pixel) for pixel in decode(image, **options)[0].tolist()] == list(expected)
    grey = decode(image, "L", **options)[0].tolist()
    assert grey == [Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0)) for colour in expected]


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (two("RGBA", (1, 2, 3, 0), (254, 0, 0, 255)), {}),
        (two("LA", (1, 0), (100, 255)), {}),
        (palette((1, 2, 3), BLUE), {"transparency": 0}),
    ],
)
def test_the_background_is_a_value_and_without_one_the_alpha_channel_is_ignored(image, options):
    assert tuple(decode(image, background=RED, **options)[0, 0]) == RED
    ignored = decode(image, background=None, **options)
    assert tuple(ignored[0, 0]) == ((1,) * 3 if image.mode == "LA" else (1, 2, 3))
    assert (ignored[0, 1] == decode(image, **options)[0, 1]).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_of_every_kind_have_the_colours_that_they_were_made_of(mode):
    colours = np.repeat(np.repeat(np.array([[(200, 30, 40), (20, 180, 60)]], np.uint8), 16, 0), 16, 1)
    image = Image.fromarray(colours).convert(mode)
    found = decode(image, format="JPEG", quality=98, subsampling=0).astype(int)
    assert np.abs(found - np.asarray(image.convert("RGB"))).max() <= 4


@pytest.mark.parametrize("options", [{"format": "GIF"}, {"format": "WEBP", "lossless": True}, {"format": "PNG"}])
def test_of_a_moving_picture_the_first_frame_is_taken(options):
    frames = [Image.new("RGB", (6, 5), colour) for colour in (RED, BLUE, BLACK)]
    assert (decode(frames[0], save_all=True, append_images=frames[1:], **options) == RED).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1", "I;16", "F"])
def test_every_kind_of_image_is_turned_upright(mode):
    image = Image.fromarray(np.array([[0, 0, 0], [255, 0, 0]], np.uint8))  # white at the bottom left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    deep = mode in LEVELS
    image = Image.fromarray(np.asarray(image).astype(LEVELS[mode])) if deep else image.convert(mode)
    pixels = decode(image, "L", range=(0.0, 255.0), format="TIFF", exif=exif)
    assert pixels.tolist() == [[255, 0], [0, 0], [0, 0]]


# --- deeper than 8 bits -----------------------------------------------------------------------------------------------


def write_scans(folder, values=SCAN, kind="<u2", suffix="tif", classes=("cat", "dog"), each=10):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(values.astype(kind)).save(folder / name / f"{i}.{suffix}")
    return folder


def folder(root, **values):
    return ImageFolder(**FOLDER | {"root": str(root)} | values)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("mode", "suffix"), [("I;16", "tif"), ("I;16", "png"), ("I;16B", "tif"), ("I", "tif")])
def test_twelve_bits_in_sixteen_keep_all_grey_levels(tmp_path, mode, suffix, channels):
    root = write_scans(tmp_path, kind=LEVELS[mode], suffix=suffix, each=4)
    with Image.open(root / "cat" / f"0.{suffix}") as image:
        assert image.mode == mode
    stats = {"channels": channels, "mean": (0.5,) * channels, "std": (0.5,) * channels, "validation_fraction": 0.2}
    before = folder(root, range=None, **stats).splits()["train"]
    train = folder(root, **stats).splits()["train"]
    assert train.decoding.range == (0.0, 4095.0)
    assert [len(np.unique(np.asarray(part.image(0)))) for part in (before, train)] == [16, 256]
    expected = np.rint(SCAN / 4095 * 255)
    assert (np.asarray(train.image(0)).reshape(64, 64, -1) == expected[:, :, None]).all()


@pytest.mark.parametrize(
    ("values", "kind", "range", "levels"),
    [
        (SCAN, "<u2", (0.0, 4095.0), (16, 256)),
        (SCAN // 2, "<u2", (0, 2047), (8, 256)),  # 11 bits
        (SCAN // 8, "<u2", (0, 511), (2, 256)),
        (SCAN * 16, "<u2", (0, 65535), (256, 256)),  # 12 bits that are shifted to the left
        (SCAN // 16, "<u2", (0, 255), (1, 256)),
        (SCAN + 30000, "<u2", (30000, 34095), (17, 256)),
        (SCAN.astype(int) - 1024, "<i4", (-1024, 3071), (None, 256)),  # Hounsfield units
        (SCAN.astype(int) * 10**5, "<i4", (0, 2**29 - 1), (None, 196)),
        (SCAN / 4095 * 2.5, "<f4", (0, 2.5), (3, 256)),
        (SCAN / 4095, "<f4", (0, 1), (256, 256)),
        (SCAN / 4095 - 0.5, "<f4", (-0.5, 0.5), (None, 256)),
        (SCAN * 0 + 5, "<f4", (5, 6), (1, 1)),
    ],
)  # fmt: skip
def test_the_range_is_the_bits_that_are_used_or_the_minimum_and_the_maximum(tmp_path, values, kind, range, levels):
    file = tmp_path / "x.tif"
    Image.fromarray(values.astype(kind)).save(file)
    examples = Files([file], np.array([0]), "L")
    assert find_range(examples) == pytest.approx(range)
    found = len(np.unique(np.asarray(examples.decoded(Decoding("L", None, tuple(map(float, range)))).image(0))))
    if levels[0] is None:
        with pytest.raises(DataError, match=r"none says what is white: give dataset\.range"):
            examples.image(0)
        assert found == levels[1]
    else:
        assert (len(np.unique(np.asarray(examples.image(0)))), found) == levels


def test_one_range_holds_for_all_images_whatever_each_of_them_has(tmp_path):
    names = []
    for i, top in enumerate((100, 4000)):
        names.append(tmp_path / f"{i}.png")
        Image.fromarray(np.array([[0, top]], dtype=np.uint16)).save(names[-1])
    examples = Files(names, np.array([0, 1]), "L")
    examples = examples.decoded(Decoding("L", None, find_range(examples)))
    assert [np.asarray(examples.image(i)).tolist() for i in (0, 1)] == [[[0, 6]], [[0, 249]]]
    Image.fromarray(np.array([[np.nan, -np.inf, np.inf, 5]], dtype=np.float32)).save(tmp_path / "x.tif")
    odd = Files([tmp_path / "x.tif"], np.array([0]), "L").decoded(Decoding("L", None, (0.0, 10.0)))
    assert np.asarray(odd.image(0)).tolist() == [[0, 0, 255, 128]]


def test_whole_numbers_and_floats_have_no_range_in_common(tmp_path):
    root = write_scans(tmp_path, each=4)
    for file in (root / "dog").iterdir():
        Image.fromarray(SCAN.astype(np.float32)).save(file)
    with pytest.raises(DataError, match=r"whole numbers and others of floats.*give dataset\.range"):
        folder(root).splits()
    assert folder(root, range=(0.0, 4095.0)).splits()["train"].decoding.range == (0.0, 4095.0)


def test_images_of_eight_bits_have_no_range_and_are_not_decoded_to_find_none(tmp_path, monkeypatch):
    root = write_scans(tmp_path, values=SCAN // 16, kind="u1", suffix="png")
    monkeypatch.setattr(Image.Image, "load", None)
    assert folder(root, verify=False).splits()["train"].decoding == Decoding("RGB", WHITE, None)


def test_the_range_does_not_depend_on_how_many_images_are_trained_on(tmp_path):
    root = write_scans(tmp_path)
    Image.fromarray(np.full((4, 4), 9000, np.uint16)).save(root / "cat" / "0.tif")
    ranges = {folder(root, train_examples=n).splits()["train"].decoding.range for n in (2, 5, 14)}
    assert len(ranges) == 1


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"background": "no such"}, "dataset.background=no such: no such colour: use white"),
        ({"range": (5.0, 5.0)}, r"dataset.range=\[5.0, 5.0\]: the value of black must be below"),
        ({"std": (0.1, 0.0, 0.1)}, r"dataset.std=\[0.1, 0.0, 0.1\]: each must be above 0"),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path, values, sentence):
    with pytest.raises(DataError, match=sentence):
        folder(write_scans(tmp_path, each=2), **values)


def test_the_rows_of_a_table_are_decoded_in_the_same_way(tmp_path, monkeypatch):
    own_cache(tmp_path, monkeypatch)
    pictures = [two("RGBA", (0, 0, 0, 0), (254, 0, 0, 255)), Image.fromarray(SCAN)] * 10
    hub_table(20, image=pictures, label=[0, 1] * 10).save_to_disk(tmp_path / "set")
    words = ["dataset=hf", f"dataset.path={tmp_path}/set", "dataset.test_split=null"]
    train = assemble(check(compose(words)[0]))["dataset"].splits()["train"]
    assert train.decoding == Decoding("RGB", WHITE, (0.0, 4095.0))
    glyph, scan = (next(i for i, label in enumerate(train.labels) if label == kind) for kind in (0, 1))
    assert np.asarray(train.image(glyph)).tolist() == [[list(WHITE), list(RED)]]
    assert len(np.unique(np.asarray(train.image(scan)))) == 256


def test_the_samples_of_shards_are_decoded_in_the_same_way(tmp_path):
    from webdataset import ShardWriter

    with ShardWriter(f"{tmp_path}/train-%03d.tar", maxcount=8, verbose=0) as writer:
        for number in range(24):
            file = io.BytesIO()
            (two("LA", (0, 0), (7, 255)) if number % 2 else Image.fromarray(SCAN)).save(file, "PNG")
            writer.write({"__key__": f"{number:06d}", "png": file.getvalue(), "cls": number % 2})
    words = ["dataset=webdataset", f"dataset.train={tmp_path}/train-*.tar", f"dataset.cache={tmp_path}/cache"]
    train = assemble(check(compose([*words, "dataset.background=black"])[0]))["dataset"].splits()["train"]
    assert train.decoding == Decoding("RGB", BLACK, (0.0, 4095.0))
    glyph = list(train.labels).index(1)
    assert np.asarray(train.image(glyph)).tolist() == [[[0] * 3, [7] * 3]]


def test_a_cache_of_decoded_images_has_a_key_for_each_background_and_range(tmp_path):
    root = write_scans(tmp_path / "images", each=2)
    part = Files(sorted(root.rglob("*.tif")), np.zeros(4, dtype=np.int64), "RGB")
    ways = [Decoding("RGB"), Decoding("RGB", WHITE), Decoding("RGB", RED), Decoding("RGB", WHITE, (0.0, 4095.0))]
    assert len({cache.key(part.decoded(way)) for way in ways}) == 4
    for way in ways:
        kept = cache.cache_images({"train": part.decoded(way)}, tmp_path / "cache", 0)["train"]
        assert (np.asarray(kept.image(0)) == np.asarray(part.decoded(way).image(0))).all()


def test_preprocess_decodes_as_it_is_told(tmp_path):
    Image.fromarray(SCAN).save(tmp_path / "x.png")
    values = {"size": (64, 64), "channels": 1, "crop": 1.0, "mean": [0.0], "std": [1.0]}
    pixels = Preprocess(**values, range=(0.0, 4095.0))(tmp_path / "x.png")
    torch.testing.assert_close(pixels[0], torch.from_numpy(np.rint(SCAN / 4095 * 255) / 255).float())
    Image.new("LA", (64, 64)).save(tmp_path / "y.png")
    assert Preprocess(**values, background=WHITE)(tmp_path / "y.png").unique().tolist() == pytest.approx([1.0])
    assert Preprocess(**values)(tmp_path / "y.png").unique().tolist() == [0.0]


# --- a training and what is done with it ------------------------------------------------------------------------------


def write_mixed(root, each=12):
    """Glyphs in the alpha channel, and scans of 12 bits; both classes have both."""
    for number, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(each):
            glyph = np.zeros((16, 16, 2), np.uint8)
            glyph[i % 8 :, 4 * number : 4 * number + 8, 1] = 255
            scan = SCAN[:16, :16] * (3 + number)
            image = Image.fromarray(scan) if i % 2 else Image.fromarray(glyph)
            image.save(root / name / f"{i}.png")
    return root


@pytest.mark.slow
def test_a_training_keeps_its_background_and_range_for_whatever_comes_later(tmp_path, capsys):
    root = write_mixed(tmp_path / "images")
    data = ["dataset=image_folder", f"dataset.root={root}"]
    words = [*data, "dataset.image_size=16", "dataset.evaluation_crop=1", "dataset.background=red", "patch=p4"]
    words += ["fit.steps=2", "fit.batch_size=8", "model.width=8", "model.depth=1", "model.heads=1", "tracking=off"]
    words += ["dataset.validation_fraction=0.2", f"system.runs={tmp_path}/runs", f"system.cache={tmp_path}/cache"]
    assert main(["train", *words]) == 0
    assert "deeper than 8 bits: 0 is black, 4095 is white" in capsys.readouterr().out
    (run,) = (tmp_path / "runs").iterdir()
    model = vitlab.load(run)
    assert model.preprocess.decoding == Decoding("RGB", (255, 0, 0), (0.0, 4095.0))
    image = Image.open(root / "cat" / "0.png")
    assert model.preprocess(image)[:, 0, 15].tolist() == pytest.approx([2.2489, -2.0357, -1.8044], abs=1e-3)  # red

    for file in root.rglob("*[13579].png"):  # other files, of 16 bits, do not change what the model is fed
        Image.fromarray(np.full((16, 16), 65535, np.uint16)).save(file)
    own = eval_inputs(run, model, training_dataset(run, changed_data=True)).splits
    assert own["test"].decoding == model.preprocess.decoding
    other = dataset_from_overrides([*data, "dataset.background=blue", "dataset.range=[0, 9]"])[0]
    new = eval_inputs(run, model, other, external=True).splits
    assert {part.decoding for part in new.values()} == {model.preprocess.decoding}
    assert main(["evaluate", str(run), "--changed-data"]) == 0
    assert main(["evaluate", str(run), *data]) == 0
    assert main(["predict", str(run), str(root / "cat" / "0.png"), "--save", str(tmp_path / "sheet.png")]) == 0


@pytest.mark.slow
def test_a_training_whose_pixels_vanish_says_so_in_one_line(tmp_path, capsys):
    root = write_mixed(tmp_path / "images")
    words = ["dataset=image_folder", f"dataset.root={root}", "dataset.image_size=16", "patch=p4", "fit.steps=1"]
    words += ["fit.batch_size=8", "model.width=8", "model.depth=1", "model.heads=1", "tracking=off"]
    words += ["dataset.validation_fraction=0.2", f"system.runs={tmp_path}/runs"]
    flat = r"nearly all pixels are the same: 99 % have the values 0 to 1\d of 255; look at them: vitlab data\n"
    assert main(["train", *words]) == 0
    assert "nearly all" not in capsys.readouterr().out
    assert main(["train", *words, "dataset.background=null", "dataset.range=null"]) == 0
    assert len(re.findall(flat, capsys.readouterr().out)) == 1
    (run,) = (path for path in (tmp_path / "runs").iterdir() if re.search(flat, (path / "log.txt").read_text()))
    assert vitlab.load(run).preprocess.decoding == Decoding("RGB")


@pytest.mark.parametrize(
    ("width", "size", "said"),
    [
        (32, 64, "most are enlarged from 32 to 64 pixels (dataset.image_size=32 takes them as they are)"),
        (33, 64, ""),
        (32, 32, ""),
    ],
)
def test_images_that_are_enlarged_to_twice_their_size_are_said(tmp_path, width, size, said):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(9):
            Image.new("RGB", (width, 40), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    Image.new("RGB", (300, 300)).save(tmp_path / "cat" / "large.png")
    data = folder(tmp_path, image_size=size)
    assert describe_enlarged(data.splits()["train"], data) == said
