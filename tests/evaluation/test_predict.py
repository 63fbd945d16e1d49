"""What a trained run takes images for: any file, one by one."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.test_dataset import write_images
from tests.training.test_loop import fit
from vitlab.__main__ import main
from vitlab.evaluation import predict
from vitlab.evaluation.load import load
from vitlab.evaluation.reevaluate import measure, training_dataset

pytestmark = pytest.mark.usefixtures("no_curves")

MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "LA", "I;16", "LAB"]


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """A run on the digits: 8 x 8, grey."""
    run, _ = fit(tmp_path_factory.mktemp("grey"), "fit.steps=30", "optimizer.lr=0.02")
    return run


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """A run on a folder of colour images: 16 x 16, of the centre."""
    folder = tmp_path_factory.mktemp("colour")
    write_images(folder / "images", n=30)
    words = ["dataset=image_folder", f"dataset.root={folder}/images", "dataset.image_size=16", "patch=p4"]
    run, _ = fit(folder, *words, "dataset.train_examples=30")
    return run


def test_transparent_pixels_lie_over_white_where_the_training_images_had_none(grey):
    black = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    white = Image.new("L", (8, 8), 255)
    model = load(grey.folder)
    assert torch.equal(model.preprocess(black), model.preprocess(white))


@pytest.fixture
def digits(grey, tmp_path):
    """Six test digits as files, two in a folder below."""
    test = training_dataset(grey.folder).splits()["test"]
    (tmp_path / "deep").mkdir()
    for i in range(6):
        test.image(i).save(tmp_path / ("deep" if i > 3 else ".") / f"{i}.png")
    return tmp_path


def asked(run, *words, capsys):
    status = main(["predict", str(run.folder), *map(str, words), "--json"])
    said = capsys.readouterr()
    return status, json.loads(said.out), said.err


def test_an_images_probabilities_are_those_of_the_evaluation(grey, digits):
    model = load(grey.folder)
    part = measure(grey.folder, model, training_dataset(grey.folder), ["test"])["test"]
    for answer in predict.predict(model, [digits / f"{i}.png" for i in range(4)], top=10):
        i = int(answer.path.stem)
        assert answer.top[0][0] == model.classes[part.report.predicted[i]]
        assert answer.top[0][1] == pytest.approx(part.report.confidence[i], abs=1e-6)
        assert sum(probability for _, probability in answer.top) == pytest.approx(1)
        meant = dict(answer.top)[model.classes[part.report.labels[i]]]
        assert meant == pytest.approx(part.report.true_probability[i], abs=1e-6)


def test_files_of_an_image_folder_are_seen_as_in_its_evaluation(colour):
    model, dataset = load(colour.folder), training_dataset(colour.folder)
    part = measure(colour.folder, model, dataset, ["test"])["test"]
    answers = list(predict.predict(model, part.examples.paths, batch=5))
    assert [a.top[0][1] for a in answers] == pytest.approx(part.report.confidence.tolist(), abs=1e-5)


def test_files_folders_and_globs_give_each_image_once(digits, monkeypatch):
    monkeypatch.chdir(digits)
    found, lost = predict.find(["0.png", "deep", "[1-2].png", "**/*.png", "./0.png", "no.png", "*.gif"])
    assert [str(path) for path in found] == ["0.png", "deep/4.png", "deep/5.png", "1.png", "2.png", "3.png"]
    assert lost == ["no.png", "*.gif"]
    (digits / "[x].png").write_bytes((digits / "0.png").read_bytes())
    assert predict.find(["[x].png"]) == ([predict.Path("[x].png")], [])
    assert len(predict.find([str(digits)])[0]) == 7


def test_the_terminal_has_a_few_lines_an_image(grey, digits, capsys):
    assert main(["predict", str(grey.folder), str(digits / "0.png"), str(digits / "deep"), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 * 6
    assert lines[0] == str(digits / "0.png")
    shares = [float(line.split()[0].rstrip("%")) for line in lines[1:6]]
    assert shares == sorted(shares, reverse=True)
    assert main(["predict", str(grey.folder), "--top", "1", str(digits)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert main(["predict", str(grey.folder), str(digits / "0.png"), "--top", "99"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 11


def test_programs_get_one_json_document(grey, digits, capsys):
    status, said, err = asked(grey, digits, "--top", 2, capsys=capsys)
    assert (status, err) == (0, "")
    assert len(said["images"]) == 6
    assert [set(entry) for entry in said["images"][0]["top"]] == [{"class", "probability"}] * 2


def test_a_file_that_cannot_be_read_is_named_and_the_others_go_on(grey, digits, capsys):
    (digits / "bad.png").write_bytes(b"no image")
    whole = (digits / "0.png").read_bytes()
    (digits / "cut.png").write_bytes(whole[: len(whole) // 2])
    (digits / "dangling.png").symlink_to("nowhere")
    status, said, err = asked(grey, digits, digits / "dangling.png", "gone.png", capsys=capsys)
    assert status == 1
    wrong = {entry["file"].rpartition("/")[2]: entry["error"] for entry in said["images"] if "error" in entry}
    assert set(wrong) == {"bad.png", "cut.png", "dangling.png", "gone.png"}
    assert len(said["images"]) == 10
    assert err.count("vitlab: ") == len(err.splitlines()) == 5
    assert err.startswith("vitlab: passed over 1 link or device that leads to no file (dangling.png)\n")
    assert "bad.png: it is no image" in err


def test_an_image_that_is_too_big_for_pillow_is_a_sentence(grey, digits, capsys, monkeypatch):
    Image.new("L", (30, 30)).save(digits / "big.png")
    Image.new("L", (13, 13)).save(digits / "large.png")  # Pillow only warns of it
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    status, _, err = asked(grey, digits / "big.png", digits / "large.png", capsys=capsys)
    assert status == 1
    assert err.count("\n") == 1
    assert "big.png: it has more than 200 pixels" in err


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_every_mode_and_size_is_taken(request, kind, mode, tmp_path):
    model = load(request.getfixturevalue(kind).folder)
    path = tmp_path / ("x.jpg" if mode == "YCbCr" else "x.tif")  # as JPEGs are; Pillow 12 reads no such TIFF
    Image.new(mode, (50, 31)).save(path)
    (answer,) = predict.predict(model, [path], pictures=1)
    assert answer.top
    assert answer.picture is not None
    assert answer.picture.mode == "RGB"


def test_a_palette_with_transparency_and_a_moving_picture_are_taken(colour, tmp_path):
    model = load(colour.folder)
    frames = [Image.fromarray(np.full((20, 20), i * 90, np.uint8)).convert("P") for i in range(3)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "x.png", transparency=bytes([0, 100, 255]))
    assert all(answer.top for answer in predict.predict(model, predict.find([str(tmp_path)])[0]))


def test_a_turned_photograph_is_turned_upright(grey, digits, tmp_path):
    upright = Image.open(digits / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    model = load(grey.folder)
    one, two = predict.predict(model, [digits / "0.png", tmp_path / "turned.png"], pictures=2)
    assert one.top == two.top
    assert np.array_equal(one.picture, two.picture)


def test_the_size_of_a_batch_changes_no_answer(grey, digits):
    model, paths = load(grey.folder), predict.find([str(digits)])[0]
    one, all_of_them = (list(predict.predict(model, paths, batch=b, top=1)) for b in (1, 64))
    for a, b in zip(one, all_of_them, strict=True):
        assert a.path == b.path
        assert a.top[0][0] == b.top[0][0]
        assert a.top[0][1] == pytest.approx(b.top[0][1], abs=1e-6)


@pytest.mark.parametrize("count", [1, 6])
def test_the_contact_sheet_is_a_png(grey, digits, capsys, count):
    words = [str(digits / "0.png")] if count == 1 else [str(digits)]
    (digits / "sheet").mkdir()
    sheet = digits / "sheet" / "all.png"
    assert main(["predict", str(grey.folder), *words, "--save", str(sheet)]) == 0
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        assert min(image.size) > 200
    assert [file.name for file in sheet.parent.iterdir()] == ["all.png"]


def test_only_the_images_that_are_drawn_are_kept(grey, digits):
    answers = list(predict.predict(load(grey.folder), predict.find([str(digits)])[0], batch=4, pictures=3))
    assert [answer.picture is not None for answer in answers] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "nowhere: there is no image: give image files"),
        (["EMPTY"], "there is no image"),
        (["IMAGE", "--top", "0"], "--top 0: must be at least 1"),
        (["IMAGE", "--save", "x.jpg"], "ends in .png"),
        (["IMAGE", "--save", "gone/x.png"], "there is no folder gone"),
        (["IMAGE", "--save", "IMAGE"], "it is one of the images"),
        (["IMAGE", "--device", "gpu"], "no such device"),
        (["IMAGE", "--device", "cuda:9"], "torch sees"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_exit_status_2(grey, digits, capsys, words, sentence):
    (digits / "empty").mkdir()
    places = {"IMAGE": str(digits / "0.png"), "EMPTY": str(digits / "empty")}
    assert main(["predict", str(grey.folder), *(places.get(word, word) for word in words)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("vitlab: ")
    assert said.err.count("\n") == 1
    assert sentence in said.err


def test_a_folder_that_is_no_run_is_one_sentence(digits, capsys):
    assert main(["predict", str(digits), str(digits)]) == 2
    assert "is not a run" in capsys.readouterr().err


def test_names_that_are_no_text_can_be_printed(grey, digits, capsys):
    name = os.fsdecode(b"\xff\n.png")
    (digits / name).write_bytes((digits / "0.png").read_bytes())
    assert main(["predict", str(grey.folder), str(digits / name), "--save", str(digits / "s.png")]) == 0
    assert "\ufffd?.png\n" in capsys.readouterr().out


def test_predictions_on_a_gpu_are_those_of_the_cpu(grey, digits, accelerator):
    paths = predict.find([str(digits)])[0]
    dist, there = (list(predict.predict(load(grey.folder, d), paths)) for d in ("cpu", accelerator))
    for a, b in zip(dist, there, strict=True):
        assert a.top[0][0] == b.top[0][0]
        assert a.top[0][1] == pytest.approx(b.top[0][1], abs=1e-3)
