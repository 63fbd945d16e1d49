"""Names of classes and files in any alphabet, in locales and on terminals that lack their letters."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from vitlab import __main__ as entry
from vitlab.cli.exit import print_json
from vitlab.plotting import blank, save
from vitlab.storage.files import json_text, name_text, read_json, write_json

CLASSES = (b"\xe9t\xe9", "été".encode(), "数据".encode())  # the first is in Latin-1, which is no UTF-8
NAMES = {r"\xe9t\xe9", "été", "数据"}
COMMANDS = """
import sys
from vitlab.__main__ import main, use_utf8
use_utf8()
data = ["dataset=image_folder", "dataset.root='données'", "dataset.image_size=16", "patch=p4", "fit.batch_size=8"]
data += ["dataset.validation_fraction=0.2", "model.width=8", "model.depth=1", "model.heads=1", "tracking=off"]
def run(*words):
    print("##", main(list(words)), flush=True)
run("train", *data, "fit.steps=2")
import os
(run_folder,) = os.listdir("runs")
run_folder = "runs/" + run_folder
run("evaluate", run_folder)
run("predict", run_folder, "données", "--save", "sheet.png")
run("predict", run_folder, "données", "--json")
run("data", *data)
run("compare", "runs")
"""


@pytest.fixture
def images(tmp_path):
    draw = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + "/données/".encode() + name))
        folder.mkdir(parents=True)
        for i in range(10):
            pixels = draw.integers(0, 80, (16, 16, 3)) + 80 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"数{i}.png")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("locale", "shown"),
    [
        ({"LC_ALL": "C"}, "?t?"),
        ({"LC_ALL": "POSIX", "PYTHONIOENCODING": "latin-1"}, "été"),
    ],
)
def test_every_command_works_in_every_locale_and_writes_utf_8(images, locale, shown):
    file = images / "commands.py"
    file.write_text(COMMANDS, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONIO"))}
    environment |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(Path.cwd()), **locale}
    command = [sys.executable, "-W", "error::UserWarning", str(file)]
    done = subprocess.run(command, cwd=images, env=environment, capture_output=True, timeout=300, check=False)
    said = done.stdout.decode(locale.get("PYTHONIOENCODING", "utf-8"))
    assert done.returncode == 0, said + done.stderr.decode(errors="replace")
    assert [line for line in said.splitlines() if line.startswith("##")] == ["## 0"] * 6
    assert shown in said
    assert "Traceback" not in said + done.stderr.decode(errors="replace")
    document = json.loads(said.split("## 0\n")[3])
    assert {top["class"] for image in document["images"] for top in image["top"]} == NAMES
    assert (images / "sheet.png").exists()
    assert (images / "data.png").exists()

    (run,) = (images / "runs").glob("image-folder-*")
    assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["dataset"]["root"] == "données"
    assert "root: données" in (run / "config.yaml").read_text(encoding="utf-8")
    assert "数据" in (run / "evaluation" / "test.json").read_text(encoding="utf-8")
    with (run / "evaluation" / "confusion.csv").open(encoding="utf-8", newline="") as table:
        assert {row[0] for row in list(csv.reader(table))[1:]} == NAMES


def test_a_name_that_is_not_utf_8_is_a_text_of_its_own():
    assert [name_text(os.fsdecode(name)) for name in CLASSES] == [r"\xe9t\xe9", "été", "数据"]


def test_json_has_letters_as_they_are_where_the_encoding_has_them(tmp_path, monkeypatch):
    value = {"class": "数据", "n": [1.5, None]}
    write_json(tmp_path / "x.json", value)
    assert '"class": "数据"' in (tmp_path / "x.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "x.json") == value
    undecodable = {"file": os.fsdecode(b"\xe9.png")}
    write_json(tmp_path / "x.json", undecodable)
    assert read_json(tmp_path / "x.json") == undecodable
    assert r"\u6570\u636e" in json_text(value, "latin-1")
    assert "été" in json_text("été", "latin-1")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    print_json(value)
    terminal.flush()
    assert json.loads(terminal.buffer.getvalue()) == value


def test_what_a_terminal_lacks_is_replaced(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    entry.use_utf8()
    print("loss 1.2 ± 0.1 of été", flush=True)
    assert terminal.buffer.getvalue() == b"loss 1.2 ? 0.1 of ?t?\n"


def test_python_is_started_anew_once_where_names_of_files_are_not_utf_8(monkeypatch):
    started = []
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "vitlab", "train", "x"])
    monkeypatch.setattr(os, "execv", lambda *words: started.append(words))
    monkeypatch.setenv("PYTHONUTF8", "0")
    entry.use_utf8()
    assert started == [(sys.executable, [sys.executable, "-m", "vitlab", "train", "x"])]
    assert os.environ["PYTHONUTF8"] == "1"
    entry.use_utf8()
    assert len(started) == 1


def test_letters_that_the_font_lacks_are_drawn_without_a_warning(tmp_path):
    figure = blank(2, 2)
    figure.subplots().set_title("数据 été 🙂 हिन्दी")
    save(figure, tmp_path / "x.png")  # a warning is an error in tests
    assert (tmp_path / "x.png").stat().st_size > 1000
