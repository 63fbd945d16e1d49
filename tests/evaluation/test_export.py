"""What leaves vitlab computes what the model does, says how to load it, and names what a format has no place for."""

import contextlib
import io
import json
import re
from functools import partial

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from tests.training.test_loop import fit
from vitlab.__main__ import main
from vitlab.config.errors import ConfigError, DataError, StorageError
from vitlab.data.preprocess import Preprocess
from vitlab.evaluation.export import formats, graphs, images, weights
from vitlab.evaluation.export.formats import Interface
from vitlab.evaluation.export.usage import PIXELS
from vitlab.evaluation.load import Trained, load
from vitlab.evaluation.reevaluate import training_dataset
from vitlab.model.attention import Attention, Axial
from vitlab.model.head import TanhMlp
from vitlab.model.mlp import Mlp, SwiGlu
from vitlab.model.pool import Gap, Map
from vitlab.model.position import Learned1d, Learned2d, Position, Relative, Rope, SinCos2d
from vitlab.model.stem import Convolutions
from vitlab.model.vit import ViT
from vitlab.report.card import card, dataset_class
from vitlab.storage.run import Run

pytestmark = pytest.mark.usefixtures("no_curves")

BOTH, TIMM, HF, NONE = ("timm", "hf"), ("timm",), ("hf",), ()
TANH = partial(Mlp, gelu="tanh")


class Mine(Position):
    """A class of the user's own."""


CASES = [  # a composition; which of timm and transformers have it; and how it is named where one has not
    ({}, BOTH, ""),
    ({"position": Learned2d}, BOTH, ""),
    ({"position": SinCos2d, "mlp": TANH}, BOTH, ""),
    ({"position": Position, "pool": Gap}, BOTH, ""),
    ({"pool": Gap, "layer_scale": 0.1}, BOTH, ""),
    ({"layer_scale": 0.1, "mlp": partial(Mlp, ratio=3.3)}, BOTH, ""),
    ({"attention": partial(Attention, qkv_bias=False)}, BOTH, ""),
    ({"attention": partial(Attention, qkv_bias=False), "pool": Gap}, BOTH, ""),
    ({"channels": 3}, BOTH, ""),
    ({"epsilon": 1e-3}, HF, "model.epsilon=0.001"),
    ({"pool": Map}, TIMM, "Map as model/pool"),
    ({"registers": 2}, TIMM, "model.registers=2"),
    ({"registers": 2, "pool": Gap}, TIMM, "model.registers=2"),
    ({"mlp": SwiGlu}, TIMM, "SwiGlu as model/mlp"),
    ({"final_norm": False}, TIMM, "model.final_norm=false"),
    ({"image_size": (8, 12)}, TIMM, "image_size=8x12"),
    ({"pool": Map, "mlp": TANH}, NONE, "another MLP than that of model/pool=map"),
    ({"position": Rope}, NONE, "Rope as model/position"),
    ({"position": Relative}, NONE, "Relative as model/position"),
    ({"position": Mine}, NONE, "Mine as model/position"),
    ({"position": partial(Learned1d, at="every_block")}, NONE, "model.position.at=every_block"),
    ({"attention": Axial, "pool": Gap}, NONE, "Axial as model/attention"),
    ({"attention": partial(Attention, qk_norm=True)}, NONE, "model.attention.qk_norm=true"),
    ({"head": TanhMlp}, NONE, "TanhMlp as model/head"),
    ({"stem": Convolutions}, NONE, "Convolutions as model/stem"),
    ({"depth": 0, "pool": Gap}, NONE, "model.depth=0"),
]


def trained(**options):
    options = {"image_size": (8, 8), "channels": 1, "depth": 2} | options
    vit = ViT(classes=5, patch=2, width=24, heads=3, **options)
    for parameter in vit.parameters():  # zero and one show nothing
        torch.nn.init.normal_(parameter, std=0.6)
    some = [0.3, 0.4, 0.5][: options["channels"]]
    preprocess = Preprocess(size=options["image_size"], channels=options["channels"], crop=1.0, mean=some, std=some)
    return Trained(vit, tuple("abcde"), preprocess)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two seeds of a cell; the first one."""
    folder = tmp_path_factory.mktemp("runs")
    fit(folder, "fit.steps=2", "model.depth=1", "seed=1", name="digits-s1-00000001")
    return fit(folder, "fit.steps=2", "model.depth=1", name="digits-s0-00000000")[0]


@pytest.fixture(scope="module")
def pixels(run):
    test = training_dataset(run.folder).splits()["test"]
    return test.pixels[:100]


def export(run, out, *words):
    """Writes a folder, and runs the code of its card on three images."""
    assert main(["export", str(run.folder), "--out", str(out), "--to", *words]) == 0
    model, test = load(run.folder), training_dataset(run.folder).splits()["test"]
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), flags=re.DOTALL)
    for index in (0, 1, 2):
        picture = test.image(index)
        picture.save(out / "image.png")
        with contextlib.chdir(out), contextlib.redirect_stdout(io.StringIO()) as said:
            exec(code, {})
        assert said.getvalue().strip() == model.classes[model(model.preprocess(picture)[None]).argmax()]
    return out


@pytest.mark.parametrize(("options", "holders", "name"), [case for case in CASES if case[2]])
def test_what_a_format_has_no_place_for_is_refused_by_name(options, holders, name):
    model = trained(**options)
    others = "--to onnx, torch" + "".join(f", {other}" for other in ("hf", "timm") if other in holders)
    for to in {"timm", "hf"} - {*holders}:
        with pytest.raises(ConfigError, match=f"has no .*{re.escape(name)}.*: use {others} or safetensors"):
            formats.check(model, to, Interface())


@pytest.mark.parametrize(("to", "write"), [("timm", weights.write_timm), ("hf", weights.write_hugging_face)])
def test_timm_and_transformers_have_the_logits_of_the_model(to, write, run, pixels, tmp_path, subtests):
    for options in (case[0] for case in CASES if to in case[1]):
        with subtests.test(**options):
            model, images = trained(**options), pixels
            images = images.expand(-1, len(model.preprocess.mean), -1, -1)
            images = torch.cat((images, images), dim=3)[..., : model.preprocess.resize.size[1]]
            formats.check(model, to, Interface())
            file, reader = write(model, tmp_path)
            assert formats.compare(reader, model, Interface(), images, file) < 1e-4
            assert model(model.preprocess.normalize(images)).std(dim=0).min() > 0.03  # it does look at the image
    model, again = load(run.folder), load(export(run, tmp_path / to, to))
    inputs = model.preprocess.normalize(pixels)
    torch.testing.assert_close(again(inputs), model(inputs), atol=1e-5, rtol=0)  # and so has vitlab
    assert (again.classes, again.preprocess.mean) == (model.classes, model.preprocess.mean)
    if to == "hf":
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        processor = AutoImageProcessor.from_pretrained(tmp_path / to)
        reader = AutoModelForImageClassification.from_pretrained(tmp_path / to)
        found = reader(**processor([*pixels], return_tensors="pt")).logits
        larger = training_dataset(run.folder).splits()["test"].image(0).resize((50, 50))
        resized = processor(larger, return_tensors="pt")["pixel_values"][0]
        assert (resized - model.preprocess(larger)).abs().max() < 0.02  # one level of 256, by other roundings
    else:
        import timm

        found = timm.create_model(f"local-dir:{tmp_path / to}", pretrained=True).eval()(inputs)
    torch.testing.assert_close(found, model(inputs), atol=1e-4, rtol=0)


def test_onnx_takes_pixels_in_batches_of_any_size_and_its_metadata_say_what_it_needs(run, pixels, tmp_path):
    folder = export(run, tmp_path / "onnx", "onnx", "--preprocess", "--probabilities")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    model = load(run.folder)
    expected = model(model.preprocess.normalize(pixels)).softmax(-1).detach().numpy()
    for batch in (1, 7, 100):
        (found,) = session.run(None, {"images": pixels[:batch].numpy()})
        assert np.abs(found - expected[:batch]).max() < 1e-4
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert facts["classes"] == [str(digit) for digit in range(10)]
    assert facts["mean"] == list(model.preprocess.mean)
    assert facts["std"] == list(model.preprocess.std)
    assert (facts["image_size"], facts["channels"], facts["crop"]) == ([8, 8], 1, 1.0)
    assert (facts["background"], facts["range"]) == ([255, 255, 255], None)
    assert (facts["input"], facts["output"]) == ("uint8 pixels, 0 to 255", "probabilities")


@pytest.mark.slow
def test_graphs_hold_what_other_formats_have_no_place_for(tmp_path):
    model = trained(position=Rope, mlp=SwiGlu, pool=Map, image_size=(8, 12), depth=1)
    some = torch.randint(256, (9, 1, 8, 12), dtype=torch.uint8)
    file, reader = graphs.write_onnx(model, tmp_path, Interface())
    assert formats.compare(reader, model, Interface(), some, file) < 1e-4


def test_a_torch_program_takes_normalized_images_and_gives_logits(run, pixels, tmp_path):
    facts = {"facts.json": ""}
    folder = export(run, tmp_path / "torch", "torch")
    program = torch.export.load(folder / "model.pt2", extra_files=facts).module()
    model = load(run.folder)
    for batch in (1, 100):
        inputs = model.preprocess.normalize(pixels[:batch])
        torch.testing.assert_close(program(inputs), model(inputs), atol=1e-4, rtol=0)
    assert json.loads(facts["facts.json"])["output"] == "logits"


def test_a_training_starts_from_exported_weights_whose_card_has_results_with_their_spread(run, tmp_path):
    folder = export(run, tmp_path / "weights", "safetensors")
    started, _ = fit(tmp_path, f"init={folder}/model.safetensors", "fit.steps=1", "model.depth=1", "optimizer.lr=0")
    one, two = load(run.folder).state_dict(), load(started.folder).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    text = (folder / "README.md").read_text()
    assert text.startswith('---\nlibrary_name: "vitlab"\n')
    assert "| licence of the images | CC BY 4.0 |" in text
    assert re.search(r"\| optimizer \| adamw, lr=0.005, ", text)
    (row,) = re.findall(r"\| test accuracy \(%\) \| (\S+) \| (\S+) ± (\S+) \| (\S+) … (\S+) \| 2 \|", text)
    results = [json.loads(file.read_text()) for file in run.folder.parent.glob("digits*/result.json")]
    assert float(row[0]) == pytest.approx(100 * run.result()["test/accuracy"], abs=0.01)
    assert float(row[1]) == pytest.approx(50 * sum(result["test/accuracy"] for result in results), abs=0.01)
    assert str(run.folder.parent) not in text


def test_a_card_of_an_unfinished_run_of_unknown_data_says_so(run, tmp_path):
    (tmp_path / "config.yaml").write_text(
        run.config.read_text().replace("vitlab.data.datasets.digits.Digits", "mine.Set")
    )
    facts = Interface().facts(load(run.folder))
    text = card(Run(tmp_path), "timm", "", facts, "It was not run")
    assert "The training is interrupted: there are no test scores yet." in text
    assert "| licence of the images | not known |" in text
    assert dataset_class("vitlab.dataset.digits.Digits").licence == "CC BY 4.0"  # its earlier name
    assert dataset_class("os.system") is None


def refused(capsys, *words):
    assert main(["export", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_done_is_one_sentence_and_writes_nothing(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = (run.folder, "--out", out, "--to")
    assert "--to tflite: there is no such format; there are onnx (" in refused(capsys, *words, "tflite")
    assert "--preprocess is for --to onnx and torch" in refused(capsys, *words, "hf", "--preprocess")
    assert "is not a run" in refused(capsys, tmp_path, "--to", "timm")
    assert "is not a run: give the run's folder" in refused(capsys, run.best, "--to", "timm", "--out", out)
    monkeypatch.setattr(formats, "TOLERANCE", -1.0)
    assert "its outputs differ from the model's" in refused(capsys, *words, "safetensors")
    monkeypatch.setattr(graphs, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert '--to onnx needs onnxscript: pip install "vitlab[onnx]"' in refused(capsys, *words, "onnx")
    assert not list(tmp_path.iterdir())
    out.mkdir()
    assert f"{out} is there already" in refused(capsys, *words, "timm")
    assert not list(out.iterdir())


def test_without_the_images_random_pixels_are_compared_and_that_is_said(run, tmp_path, capsys, monkeypatch):
    def gone(*_, root, **__):
        raise DataError("no images at /home/me")

    monkeypatch.setattr(images, "training_dataset", gone)
    assert main(["export", str(run.folder), "--to", "safetensors", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "random pixels are compared: no images at /home/me" in said.err
    assert "for 100 random images" in said.out
    assert "/home/me" not in (tmp_path / "out" / "README.md").read_text()
    assert "no images at" in refused(
        capsys, run.folder, "--to", "timm", "--out", tmp_path / "two", "--root", "elsewhere"
    )


def test_the_code_of_a_card_prepares_any_image_as_the_run_does(tmp_path):
    model = trained(channels=3, image_size=(8, 12))
    model.preprocess.resize.crop = 0.8
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8))
    picture.save(tmp_path / "image.png")
    prepare = "import numpy as np\nfrom PIL import Image\n" + PIXELS.format(
        mode="RGB", height=8, width=12, channels=3, crop=0.8
    )
    with contextlib.chdir(tmp_path):
        exec(prepare, found := {})
    pixels = torch.from_numpy(found["pixels"].copy())
    torch.testing.assert_close(model.preprocess.normalize(pixels)[0], model.preprocess(picture))


def test_a_difference_is_found(pixels, tmp_path):
    model = trained()
    file, reader = weights.write_timm(model, tmp_path)
    with pytest.raises(StorageError, match="differ from the model's by up to"):
        formats.compare(lambda inputs: reader(inputs) + 0.01, model, Interface(), pixels, file)
