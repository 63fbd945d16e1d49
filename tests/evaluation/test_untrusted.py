"""A run's folder, a checkpoint, an image that somebody else made: a right answer or one sentence, and nothing run.

Each case is asked through the commands that a user types, in a folder `home` whose every other file must stay as it is.
"""

import inspect
import io
import json
import os
import pickle
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import vitlab
from tests.test_stories import TINY
from vitlab.__main__ import main
from vitlab.data.datasets.listing import walk_images
from vitlab.data.examples import Files
from vitlab.evaluation import reevaluate
from vitlab.evaluation.load import load
from vitlab.model.attention import Attention
from vitlab.model.mlp import Mlp
from vitlab.model.pool import Map
from vitlab.model.position import Learned1d, Relative, Rope, SinCos2d
from vitlab.model.stem import Convolutions
from vitlab.model.vit import ViT
from vitlab.storage import checkpoint
from vitlab.system import footprint, memory
from vitlab.system.footprint import BLOCK, check_memory

pytestmark = pytest.mark.usefixtures("no_curves")

WORDS = [*TINY, "fit.precision=fp32", "system.runs=runs"]
MEMORY = 400  # MB that no case may take on top


class Evil:
    """Touches a file when it is unpickled, if anything of it is run."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


EVILS = {
    "os.system": Evil(os.system, "touch hacked"),
    "Popen": Evil(subprocess.Popen, ["touch", "hacked"]),
    "eval": Evil(eval, "open('hacked', 'w')"),
    "Path.touch": Evil(Path.touch, Path("hacked")),
    "torch.load": Evil(torch.load, "evil.pickle"),
}


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """The runs of a home in which a model was trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("once"))
        assert main(["train", *WORDS]) == 0
        return Path("runs").resolve()


@pytest.fixture
def home(trained_once, tmp_path, monkeypatch):
    """A home of one's own, with a file to keep, and `run`, which is a stranger's. No network, and half a minute."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    (home / "precious").write_text("mine\n")
    (home / "evil.pickle").write_bytes(pickle.dumps(EVILS["os.system"]))
    (whole,) = trained_once.iterdir()
    run = home / "runs" / whole.name
    run.mkdir(parents=True)
    for name in ("config.yaml", "result.json", "best.pt", "last.pt"):
        shutil.copy(whole / name, run)
    (home / "run").symlink_to(run)

    def no_network(*_):
        (home / "hacked-network").touch()
        raise OSError("there is no network here")

    def late(*_):
        raise AssertionError("half a minute is over")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield home
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def everything(home):
    """Every path of a home, with what is there."""
    waiting, found = [str(home)], {}
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                kind, held = entry.stat(follow_symlinks=False).st_mode, None
                if entry.is_symlink():
                    held = os.readlink(entry.path)  # noqa: PTH115
                elif entry.is_file():
                    held = Path(entry.path).read_bytes()
                elif entry.is_dir():
                    waiting.append(entry.path)
                found[entry.path] = (kind, held)
    return found


def outside(home, found):
    """Without what is in the run's folder."""
    run = str((home / "run").resolve())
    return {path: held for path, held in found.items() if not path.startswith(run)}


@pytest.fixture
def ask(home, capfd):
    """Types a command; nothing may have been run, written elsewhere, or taken much memory."""

    def typed(*words):
        before, peak = everything(home), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        capfd.readouterr()
        status = main([str(word) for word in words])
        said = capfd.readouterr()
        after = everything(home)
        assert not [path for path in after if "hacked" in Path(path).name and path not in before]
        assert outside(home, after) == outside(home, before)
        assert "Traceback" not in said.out + said.err
        assert all(letter.isprintable() or letter == "\n" for letter in said.out + said.err)
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 2**10 < MEMORY
        return status, said.out, said.err

    return typed


def one_sentence(answer, words="", status=2):
    """Holds an answer to be one line of complaint and nothing else; gives the line."""
    found, out, err = answer
    assert (found, out) == (status, "")
    assert err.startswith("vitlab: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert len(err) < 700
    assert words in err
    return err


# --- the configuration ------------------------------------------------------------------------------------------------


def edited(text, **values):
    """A configuration with other values; `a__b` is the key b of a."""
    config = yaml.safe_load(text)
    for key, value in values.items():
        *parents, last = key.split("__")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    return yaml.safe_dump(config)


def without(text, section, key):
    config = yaml.safe_load(text)
    del config[section][key]
    return yaml.safe_dump(config)


def part(target, partial=True, **values):
    return {"_target_": target, "_partial_": partial, **values}


HOME = "${oc.env:HOME}"
LAUGHS = "a0: &a0 [ha]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 30))
DEEP_VIT = part(
    "vitlab.model.vit.ViT", False, image_size=8, channels=1, classes=2, patch=2, width=8, depth=10**9, heads=1
)

POOL = "vitlab.model.pool.Cls"
CONFIGS = {  # what becomes of the configuration, and what is said of it
    "a tag that calls": (lambda t: "!!python/object/apply:os.system ['touch hacked']", "cannot be read safely"),
    "a tag that is made new": (lambda t: t + "x: !!python/object/new:os.system ['touch hacked']", "cannot be read"),
    "a tag that names a module": (lambda t: t + "x: !!python/module:antigravity\n", "cannot be read safely"),
    "the model calls": (lambda t: edited(t, model___target_="os.system"), "is refused"),
    "a part calls": (lambda t: t.replace("vitlab.model.mlp.Mlp", "subprocess.Popen"), "is refused"),
    "an argument calls": (
        lambda t: edited(t, model__attention__qkv_bias={"_target_": "os.system", "command": "touch hacked"}),
        "is refused",
    ),
    "a list of calls": (lambda t: edited(t, model__width=[{"_target_": "os.system"}]), "expected a whole number"),
    "a part of vitlab that is no model": (lambda t: t.replace(POOL, "vitlab.storage.run.Run"), "refused"),
    "a function of a model's module": (lambda t: t.replace("vitlab.model.pool.Cls", "vitlab.model.mlp.nn"), "refused"),
    "a module that there is not": (lambda t: t.replace("vitlab.model.pool", "vitlab.model..os"), "vitlab"),
    "a part as the model": (lambda t: edited(t, model___target_="vitlab.model.mlp.Mlp"), "model."),
    "a model made at once": (lambda t: edited(t, model___partial_=False), "model"),
    "a part made at once": (
        lambda t: edited(t, model__mlp=part("vitlab.model.mlp.Mlp", False, width=10**6)), "model.mlp",
    ),
    "a part of another slot": (lambda t: edited(t, model__mlp=part("vitlab.model.pool.Gap")), "model.mlp"),
    "a model as the weights' beginning": (lambda t: edited(t, model__init=DEEP_VIT), "model.init"),
    "a billion laughs": (lambda t: LAUGHS + t, "alias"),
    "a billion merges": (lambda t: MERGES + t, "cannot be read safely"),
    "a list in itself": (lambda t: t + "x: &x [*x]\n", "alias"),
    "lists in lists": (lambda t: "[" * 400, "cannot be read safely"),
    "mappings in mappings": (lambda t: t + "x: " + "{a: " * 2000, "cannot be read safely"),
    "a number of 5,000 digits": (lambda t: t + f"x: {'9' * 5000}\n", "cannot be read safely"),
    "a number of 9,000 hexadecimal digits": (lambda t: t + f"x: 0x{'f' * 9000}\n", "64 bits"),
    "a number to the base 60": (lambda t: t + f"x: 1{':59' * 3000}\n", "64 bits"),
    "a word of 20,000 letters": (lambda t: t + f"x: {'y' * 20_000}\n", "20,000 letters"),
    "two megabytes": (lambda t: t + "# filling\n" * 200_000, "more than 100,000 bytes"),
    "a zero byte": (lambda t: t + "x: a\0b\n", "cannot be read safely"),
    "another encoding": (lambda t: t.encode("utf-16"), "UTF-8"),
    "no text": (lambda t: bytes(range(256)), "UTF-8"),
    "nothing": (lambda t: "", "is not the configuration of a run"),
    "a list": (lambda t: "- model\n- patch\n", "is not the configuration of a run"),
    "a number for a section": (lambda t: edited(t, model=3), "it has no model._target_"),
    "a list for a section": (lambda t: edited(t, fit=[]), "it has no fit.evaluation_batch_size"),
    "a key that stands twice": (lambda t: t + "model: {}\n", "a key is given twice"),
    "keys that are no words": (lambda t: t + "{1: 2}: 3\n", "cannot be read safely"),
    "a key that is a number": (lambda t: edited(t, model__mlp={**part("vitlab.model.mlp.Mlp"), 3: 4}), "not a string"),
    "a date": (lambda t: edited(t, model__heads="X").replace("X", "2001-01-01"), "neither a string"),
    "bytes": (lambda t: edited(t, model__heads=b"\xff"), "neither a string"),
    "a set": (lambda t: t + "x: !!set {a, b}\n", "neither a string"),
    "an interpolation for a number": (lambda t: edited(t, model__patch=HOME), f"model.patch={HOME}: expected"),
    "a patch that is no node": (lambda t: edited(without(t, "model", "patch"), patch=[2]), "it has no model.patch"),
    "an interpolation for a width": (lambda t: edited(t, model__width=HOME), f"model.width={HOME}: expected"),
    "an interpolation for a class": (lambda t: edited(t, model___target_=HOME), f"{HOME} is refused"),
    "a terabyte of width": (lambda t: edited(t, model__width=10**6), "weights take 48.0 TB, and this machine has"),
    "a width without bounds": (lambda t: edited(t, model__width=2**62), "more than a million TB"),
    "a billion blocks": (lambda t: edited(t, model__depth=10**9), "weights take"),
    "registers for a terabyte": (lambda t: edited(t, model__registers=10**15), "weights take"),
    "a ratio for a terabyte": (lambda t: edited(t, model__mlp__ratio=1e12), "weights take"),
    "an infinite ratio": (lambda t: edited(t, model__mlp__ratio=float("inf")), "ratio"),
    "an epsilon that is no number": (lambda t: edited(t, model__epsilon=float("nan")), "epsilon"),
    "a negative width": (lambda t: edited(t, model__width=-8), "at least 1"),
    "no heads": (lambda t: edited(t, model__heads=0), "heads"),
    "a patch that does not divide": (lambda t: edited(t, model__patch=3), "patch=3 does not divide"),
    "a patch without bounds": (lambda t: edited(t, model__patch=2**62), "does not divide"),
    "a patch of true": (lambda t: edited(t, model__patch=True), "expected a whole number"),
    "an evaluation of no images": (lambda t: edited(t, fit__evaluation_batch_size=0), "at least 1"),
    "another model": (lambda t: edited(t, model__width=16), "does not fit"),
    "another depth": (lambda t: edited(t, model__depth=2), "the checkpoint lacks"),
    "a key that steers the terminal": (lambda t: edited(t, model___target_="\x1b[2J\nx"), "vitlab: _target_"),
    "an unknown key": (lambda t: edited(t, model__evil=1), "model.evil: there is no such key"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_strangers_configuration_is_refused_in_a_sentence(home, ask, kind):
    change, words = CONFIGS[kind]
    file = home / "run" / "config.yaml"
    text = change(file.read_text())
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    one_sentence(ask("evaluate", "run"), words)


DATASETS = {
    "a call": ({"_target_": "os.system", "command": "touch hacked"}, "is refused"),
    "a model": ({"_target_": "vitlab.model.mlp.Mlp", "width": 10**6}, "is refused"),
    "a factory": (part("vitlab.data.datasets.digits.Digits"), "is refused"),
    "a call in an option": ({"image_size": {"_target_": "os.system", "command": "touch hacked"}}, "is refused"),
    "images of 10 gigapixels": ({"image_size": 100_000}, "the model takes"),
    "images that the model does not take": ({"image_size": 16}, "the model takes"),
    "an image size of three": ({"image_size": [8, 8, 8]}, "image_size"),
    "a negative image size": ({"image_size": -8}, "at least 1 pixel"),
    "a negative seed": ({"split_seed": -1}, "vitlab: "),
    "a share that is no number": ({"validation_fraction": float("nan")}, "validation_fraction"),
    "an unknown option": ({"evil": "touch hacked"}, "no such key"),
}
COMMON = {"image_size": 8, "validation_fraction": 0.1, "train_fraction": 1.0, "train_examples": None, "split_seed": 0}
COMMON |= {"folds": None, "fold": 0, "evaluation_crop": 1.0}
FILES = COMMON | {"test_fraction": 0.2, "channels": 1, "mean": [0.5], "std": [0.5], "flip": False}
SETS = "vitlab.data.datasets"
SYNTHETIC = f"{SETS}.synthetic.Synthetic"
OTHERS = {
    "a part of a dataset": ({"_target_": f"{SETS}.download.ShardCache", "folder": "hacked", "limit": 1}, "no such key"),
    "a trillion examples": (
        {"_target_": SYNTHETIC, **COMMON, "examples": 10**12, "classes_count": 10, "channels": 1}, "this machine has",
    ),
    "a trillion classes": (
        {"_target_": SYNTHETIC, **COMMON, "examples": 10, "classes_count": 10**12, "channels": 1}, "this machine has",
    ),
    "a root elsewhere": (
        {"_target_": "vitlab.data.datasets.mnist.Mnist", **COMMON, "root": "../../../../etc", "download": True},
        "mnist's train-images",
    ),
    "a root in the environment": (
        {"_target_": "vitlab.data.datasets.mnist.Mnist", **COMMON, "root": "${oc.env:HOME}", "download": True},
        "${oc.env:HOME}",
    ),
    "a pickle that is no CIFAR": (
        {"_target_": f"{SETS}.torchvision_sets.Cifar10", **COMMON, "root": "data", "download": True}, "classes",
    ),
    "class folders that are not there": (
        {"_target_": "vitlab.data.datasets.image_folder.ImageFolder", **FILES, "root": "nowhere", "verify": True,
         "skip_corrupted": False},
        "nowhere",
    ),
    "images of other classes": (
        {"_target_": "vitlab.data.datasets.image_folder.ImageFolder", **FILES, "root": "pictures", "verify": False,
         "skip_corrupted": False},
        "classes",
    ),
    "a script of the hub's library": (
        {"_target_": f"{SETS}.huggingface.HuggingFace", **FILES, "path": "data", "config": None, "revision": None,
         "image_column": "image", "label_column": "label", "train_split": "train", "validation_split": None,
         "test_split": None, "download": True},
        "data",
    ),
}  # fmt: skip
SHARDS = {
    "_target_": "vitlab.data.datasets.webdataset.WebDataset",
    **FILES,
    "validation": None,
    "test": None,
    "image": ["png"],
}
SHARDS |= {"label": "cls", "classes_file": None, "lanes": 1, "window": 1, "cache": "stolen", "cache_bytes": None}
OTHERS |= {
    "shards from a command": (SHARDS | {"train": "pipe:touch hacked"}, "is an address"),
    "shards from the network": (SHARDS | {"train": "http://127.0.0.1/x.tar"}, "is an address"),
    "an address between braces": (SHARDS | {"train": "ht{tp:{//127.0.0.1/x.tar,y},z}"}, "is an address"),
    "shards from the network for the test": (SHARDS | {"train": "x.tar", "test": "a::gs://b/c.tar"}, "is an address"),
}


@pytest.mark.parametrize("kind", [*DATASETS, *OTHERS])
def test_a_strangers_dataset_is_refused_in_a_sentence(home, ask, kind):
    file = home / "run" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    values, words = {**DATASETS, **OTHERS}[kind]
    config["dataset"] = values if kind in OTHERS else config["dataset"] | values
    file.write_text(yaml.safe_dump(config))
    for place in ("data/cifar-10-batches-py", "pictures/x", "pictures/y"):
        (home / place).mkdir(parents=True)
    for name in ("data_batch_1", "batches.meta"):
        (home / "data/cifar-10-batches-py" / name).write_bytes(pickle.dumps(EVILS["os.system"]))
    (home / "data" / "data.py").write_text("import os\nos.system('touch hacked')\n")
    for name in "xy":
        Image.new("L", (8, 8)).save(home / "pictures" / name / "1.png")
    one_sentence(ask("evaluate", "run"), words)


def test_where_indices_of_shards_are_written_is_not_for_a_stranger_to_say(home, monkeypatch):
    file = home / "run" / "config.yaml"
    file.write_text(edited(file.read_text(), dataset=SHARDS | {"train": "x.tar"}))
    monkeypatch.setattr(reevaluate, "dataset_of", lambda node, where: node)
    assert reevaluate.training_dataset("run", changed_data=True)["cache"] == "~/.cache/vitlab/webdataset"


# --- what is there instead of a file ----------------------------------------------------------------------------------


def pipe(path):
    os.mkfifo(path)


INSTEAD = {
    "a folder": Path.mkdir,
    "a pipe": pipe,
    "a link in a circle": lambda path: path.symlink_to(path.name),
    "a link to endless zeros": lambda path: path.symlink_to("/dev/zero"),
    "a link to nowhere": lambda path: path.symlink_to("/nowhere/at/all"),
    "a link to a secret": lambda path: path.symlink_to(path.parents[2] / "precious"),
}


@pytest.mark.parametrize("name", ["config.yaml", "best.pt", "result.json"])
@pytest.mark.parametrize("kind", INSTEAD)
def test_what_is_no_file_is_refused_in_a_sentence(home, ask, name, kind):
    (home / "run" / name).unlink()
    INSTEAD[kind]((home / "run").resolve() / name)
    one_sentence(ask("evaluate", "run"), "run")


def test_a_run_without_a_result_is_measured_all_the_same(home, ask):
    (home / "run" / "result.json").unlink()
    status, out, err = ask("evaluate", "run")
    assert (status, err) == (0, "")
    assert out.count("not as recorded") == 2


RESULTS = {
    "a list": ('["finished"]', "no object"),
    "a word": ('"finished"', "no object"),
    "no JSON": ("{status: finished", "is damaged"),
    "lists in lists": ("[" * 90_000, "is damaged"),
    "a number of 5,000 digits": ('{"test/accuracy": ' + "9" * 5000 + "}", "result.json"),
    "twenty megabytes": ('{"x": "' + "y" * 20_000_000 + '"}', "more than 10,000,000 bytes"),
    "no text": (b"\xff\xfe{}", "UTF-8"),
    "a precision that there is not": ('{"precision": "fp\\u001b[31m8"}', "expected one of fp32"),
    "a precision that is a list": ('{"precision": ["fp32"]}', "expected one of fp32"),
    "a precision that is an object": ('{"precision": {"_target_": "os.system"}}', "expected one of fp32"),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_a_strangers_result_is_refused_in_a_sentence(home, ask, kind):
    text, words = RESULTS[kind]
    (home / "run" / "result.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    one_sentence(ask("evaluate", "run"), words)


def test_a_recorded_accuracy_that_cannot_be_is_not_as_recorded(home, ask):
    (home / "run" / "result.json").write_text('{"test/accuracy": NaN, "val/accuracy": ["1e999"]}')
    status, out, err = ask("evaluate", "run")
    assert (status, err) == (0, "")
    assert out.count("(not as recorded)") == 2


# --- the checkpoint ---------------------------------------------------------------------------------------------------


def saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def legacy(state):
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def archive(**members):
    """A zip file as TorchScript's are, or one that is none at all."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(f"archive/{name.replace('_', '.', 1)}", data)
    return buffer.getvalue()


def of_facts(**values):
    return lambda state: saved({**state, "facts": {**state["facts"], **values}})


def of_weights(key="head.output.weight", **values):
    """A checkpoint with another tensor in the place of one."""
    return lambda state: saved({**state, "model": {**state["model"], key: values["by"](state["model"][key])}})


class Odd(torch.Tensor):
    pass


def nested(weight):
    return torch.nested.nested_tensor([weight[0], weight[1]])


SAFELY = "is not a checkpoint that can be read safely"
CHECKPOINTS = {
    **{f"a pickle that calls {name}": (lambda s, e=evil: saved({**s, "x": e}), SAFELY) for name, evil in EVILS.items()},
    "a pickle in the facts": (of_facts(mean=EVILS["eval"]), SAFELY),
    "a pickle in the weights": (of_weights(by=lambda w: EVILS["os.system"]), SAFELY),
    "a pickle of old": (lambda s: legacy({**s, "x": EVILS["os.system"]}), SAFELY),
    "a bare pickle": (lambda s: pickle.dumps(EVILS["os.system"]), SAFELY),
    "a pickle in a zip file": (lambda s: archive(data_pkl=pickle.dumps(EVILS["eval"]), version="3"), SAFELY),
    "a program for TorchScript": (
        lambda s: archive(data_pkl=pickle.dumps({}), constants_pkl=pickle.dumps(()), version="3", code="x"), SAFELY,
    ),
    "nothing": (lambda s: b"", SAFELY),
    "no zip file": (lambda s: b"not a zip", SAFELY),
    "half": (lambda s: saved(s)[: len(saved(s)) // 2], SAFELY),
    "a list": (lambda s: saved([1, 2]), "it holds a list"),
    "no facts": (lambda s: saved({"model": s["model"]}), "image_size=None: expected two whole numbers"),
    "facts that are a list": (lambda s: saved({**s, "facts": [1]}), "image_size=None"),
    "an image without pixels": (of_facts(image_size=[0, 8]), "image_size=[0, 8]: expected"),
    "an image of one side": (of_facts(image_size=[8]), "image_size=[8]: expected"),
    "an image of words": (of_facts(image_size=["8", "8"]), "image_size"),
    "an image of truths": (of_facts(image_size=[True, True]), "image_size"),
    "an image of an exabyte": (of_facts(image_size=[10**9, 10**9]), "one image of 1 channels takes more than a"),
    "more tokens than memory": (of_facts(image_size=[40_000, 40_000]), "tokens in this model"),
    "four channels": (of_facts(channels=4), "channels=4: expected 1 or 3"),
    "true channels": (of_facts(channels=True), "channels=True"),
    "three channels of grey": (of_facts(channels=3), "mean"),
    "no classes": (of_facts(classes=[]), "classes=[]: expected a list of strings"),
    "classes of numbers": (of_facts(classes=[1, 2]), "classes=[1, 2]: expected"),
    "classes of one word": (of_facts(classes="abc"), "classes"),
    "more classes than weights": (of_facts(classes=["a"] * 11), "does not fit"),
    "a crop of nothing": (of_facts(crop=0.0), "crop=0.0: expected"),
    "a crop of more than all": (of_facts(crop=2), "crop=2: expected"),
    "a crop for petabytes": (of_facts(crop=1e-300), "crop=1e-300: expected"),
    "a mean that is no number": (of_facts(mean=[float("nan")]), "mean=[nan]: expected"),
    "an infinite mean": (of_facts(mean=[float("inf")]), "mean=[inf]: expected"),
    "too many means": (of_facts(mean=[0.5] * 3), "mean"),
    "a mean of tensors": (of_facts(mean=torch.zeros(1)), "mean=tensor([0.]): expected"),
    "a deviation of zero": (of_facts(std=[0.0]), "std=[0.0]: expected a positive number"),
    "a negative deviation": (of_facts(std=[-1.0]), "std=[-1.0]: expected"),
    "a deviation that vanishes": (of_facts(std=[1e-300]), "std=[1e-300]: expected"),
    "a background of two colours": (of_facts(background=[0, 0]), "background=[0, 0]: expected three whole numbers"),
    "a background brighter than white": (of_facts(background=[0, 0, 256]), "background=[0, 0, 256]: expected"),
    "a background in words": (of_facts(background="white"), "background='white': expected"),
    "a range of nothing": (of_facts(range=[5, 5]), "range=[5, 5]: expected two numbers, the smaller one first"),
    "a range without an end": (of_facts(range=[0, float("inf")]), "range=[0, inf]: expected"),
    "a range of words": (of_facts(range=["0", "1"]), "range=['0', '1']: expected"),
    "no weights": (lambda s: saved({**s, "model": {}}), "lacks"),
    "weights that are a list": (lambda s: saved({**s, "model": [1]}), "lacks"),
    "weights of another model": (lambda s: saved({**s, "model": {**s["model"], "evil": torch.ones(1)}}), "as evil"),
    "weights of no name": (lambda s: saved({**s, "model": {**s["model"], 3: torch.ones(1)}}), "such as 3"),
    "weights of another shape": (of_weights(by=lambda w: w.T.contiguous()), "head.output.weight is torch.float32"),
    "an exabyte out of one number": (of_weights(by=lambda w: torch.ones(1).expand(10**9, 10**9)), "head.output.weight"),
    "a tensor without memory": (of_weights(by=lambda w: w.to("meta")), "not a plain tensor"),
    "whole numbers": (of_weights(by=lambda w: w.long()), "torch.int64"),
    "complex numbers": (of_weights(by=lambda w: w.to(torch.complex64)), "torch.complex64"),
    "numbers of 64 bits": (of_weights(by=lambda w: w.double()), "torch.float64"),
    "a sparse tensor": (of_weights(by=lambda w: w.to_sparse()), "not a plain tensor"),
    "a tensor of tensors": (of_weights(by=nested), SAFELY),
    "a word for a tensor": (of_weights(by=lambda w: "w"), "not a plain tensor"),
    "a tensor of another class": (of_weights(by=lambda w: w.as_subclass(Odd)), SAFELY),
    "a weight that is no number": (of_weights(by=lambda w: w.fill_(float("nan"))), "NaN or infinite"),
    "an infinite weight": (of_weights(by=lambda w: w.fill_(float("-inf"))), "NaN or infinite"),
    "weights that answer with no number": (of_weights(key="blocks.0.mlp.branch.contract.bias",
                                                      by=lambda w: w.fill_(3e38)), "finite numbers"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*(Sparse|nested|prototype)")
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_strangers_checkpoint_is_refused_in_a_sentence(home, ask, kind):
    change, words = CHECKPOINTS[kind]
    file = home / "run" / "best.pt"
    file.write_bytes(change(checkpoint.load(file)))
    one_sentence(ask("predict", "run", "precious"), words)


@pytest.mark.parametrize("kind", EVILS)
def test_loading_in_python_runs_nothing_either(home, kind):
    file = home / "run" / "best.pt"
    file.write_bytes(saved({**checkpoint.load(file), "x": EVILS[kind]}))
    with pytest.raises(ValueError, match=SAFELY):
        vitlab.load("run")
    (home / "run" / "config.yaml").write_text("!!python/object/apply:os.system ['touch hacked']")
    with pytest.raises(ValueError, match="cannot be read safely"):
        vitlab.load("run")
    assert not [path for path in everything(home) if "hacked" in path]


NAMES = ["../../precious", "/etc/passwd", "\x1b[2J\x1b]0;owned\x07", "a\nvitlab: all is well\n", "\u202eevil", "-rf ~"]
NAMES += ["\ud800", "$(touch hacked)", "`touch hacked`", "x" * 300]


def test_a_class_may_be_called_anything_and_is_printed_harmlessly(home, ask):
    file = home / "run" / "best.pt"
    state = checkpoint.load(file)
    file.write_bytes(saved({**state, "facts": {**state["facts"], "classes": NAMES}}))
    Image.new("L", (8, 8)).save(home / "x.png")
    status, out, err = ask("predict", "run", "x.png", "--top", "10", "--save", home / "run" / "sheet.png")
    assert (status, err) == (0, "")
    assert out.count("\n") == 11
    assert "../../precious" in out
    status, out, _ = ask("predict", "run", "x.png", "--top", "10", "--json")
    assert {entry["class"] for entry in json.loads(out)["images"][0]["top"]} == set(NAMES)
    one_sentence(ask("evaluate", "run"), "the dataset")


# --- where things are written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "target", "words"),
    [
        ("evaluation", "..", []),
        ("evaluation", ".", []),
        ("evaluation", "/", []),
        ("evaluation", "../../elsewhere", []),
        ("evaluation", "/nowhere/at/all", []),
        ("evaluation", "evaluation", []),
        ("evaluation/validation", "../../..", ["--split", "validation"]),
    ],
)
def test_an_evaluation_that_leads_out_of_the_run_is_refused_before_it_is_measured(home, ask, link, target, words):
    (home / "elsewhere").mkdir()
    (home / "run" / link).parent.mkdir(exist_ok=True)
    (home / "run" / link).symlink_to(target)
    one_sentence(ask("evaluate", "run", *words), "evaluation")
    assert not [*(home / "elsewhere").iterdir()]


def test_a_link_in_the_place_of_what_is_written_is_replaced_and_not_followed(home, ask):
    folder = home / "run" / "evaluation"
    folder.mkdir()
    for name in ("test.json", "confusion.csv", "confusion.png", "calibration.png", "mistakes.png"):
        (folder / name).symlink_to(home / "precious")
        (folder / f".{name}.part").symlink_to(home / "precious")
    status, _, err = ask("evaluate", "run")
    assert (status, err) == (0, "")
    assert not [file for file in folder.iterdir() if file.is_symlink()]


def test_a_contact_sheet_replaces_a_link_and_does_not_follow_it(home, ask):
    Image.new("L", (8, 8)).save(home / "x.png")
    for name in ("sheet.png", ".sheet.png.part"):
        (home / "run" / name).symlink_to(home / "precious")
        assert ask("predict", "run", "x.png", "--save", "run/sheet.png")[0] == 0
        assert not (home / "run" / "sheet.png").is_symlink()


# --- images -----------------------------------------------------------------------------------------------------------

DIGIT = np.random.default_rng(3).integers(0, 16, (8, 8), dtype=np.uint8) * 17  # what is in every image that can be read


def png(width, height, depth, colours, rows, *chunks):
    """A PNG, put together by hand."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*pair) for pair in chunks) + body + chunk(b"IEND", b"")


def rows(pixels):
    """The lines of a PNG, unfiltered; `pixels` (rows, bytes)."""
    return b"".join(b"\0" + line.tobytes() for line in pixels)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


GREY = Image.fromarray(DIGIT)
COLOUR = GREY.convert("RGB")
CLEAR = Image.fromarray(np.stack([DIGIT, DIGIT, DIGIT, np.full_like(DIGIT, 255)], axis=-1))
PALETTE = GREY.convert("P")
FRAMES = [Image.new("L", (8, 8), shade) for shade in (10, 200)]
DEEP = DIGIT.astype(">u2") * 257
ZEROS = zlib.compress(bytes(100_000_000))
BIG_TEXT = (b"zTXt", b"bomb\0\0" + ZEROS)
SOUND = png(8, 8, 8, 0, rows(DIGIT))

RIGHT = {  # files that show the digit, each in its own way
    "grey": SOUND,
    "colour": encoded(COLOUR, "PNG"),
    "colour and transparency": encoded(CLEAR, "PNG"),
    "grey and transparency": encoded(CLEAR.convert("LA"), "PNG"),
    "a palette": encoded(PALETTE, "PNG"),
    "a moving GIF": encoded(PALETTE, "GIF", save_all=True, append_images=FRAMES),
    "a moving PNG": encoded(GREY, "PNG", save_all=True, append_images=FRAMES),
    "a moving WebP": encoded(COLOUR, "WEBP", lossless=True, save_all=True, append_images=FRAMES),
    "16 bits of grey": png(8, 8, 16, 0, rows(DEEP)),
    "16 bits of colour": png(8, 8, 16, 2, rows(np.repeat(DEEP, 3, axis=1))),
    "16 bits of grey in a TIFF": encoded(Image.fromarray(DIGIT.astype(np.uint16) * 257), "TIFF"),
    "32 bits that are 8": encoded(Image.fromarray(DIGIT.astype(np.int32)), "TIFF"),
    "32 bits that are 16": encoded(Image.fromarray(DIGIT.astype(np.int32) * 257), "TIFF"),
    "floats up to 1": encoded(Image.fromarray(DIGIT.astype(np.float32) / 255), "TIFF"),
    "floats up to 255": encoded(Image.fromarray(DIGIT.astype(np.float32)), "TIFF"),
    "a BMP": encoded(GREY, "BMP"),
    "inks": encoded(Image.merge("CMYK", [Image.new("L", (8, 8))] * 3 + [GREY.point(lambda v: 255 - v)]), "TIFF"),
    "a PPM": encoded(COLOUR, "PPM"),
    "a WebP": encoded(COLOUR, "WEBP", lossless=True),
    "a turned TIFF": encoded(GREY.transpose(Image.Transpose.ROTATE_90), "TIFF", exif=turned(6)),
    "a turned PNG": encoded(GREY.transpose(Image.Transpose.ROTATE_90), "PNG", exif=turned(6)),
    "a mirrored PNG": encoded(GREY.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "PNG", exif=turned(2)),
    "a transposed PNG": encoded(GREY.transpose(Image.Transpose.TRANSPOSE), "PNG", exif=turned(5)),
    "an orientation that there is not": encoded(GREY, "PNG", exif=turned(99)),
    "a damaged EXIF": png(8, 8, 8, 0, rows(DIGIT), (b"eXIf", b"II*\0\xff\xff\xff\xff")),
    "an EXIF that is none": png(8, 8, 8, 0, rows(DIGIT), (b"eXIf", b"evil")),
    "a short text": png(8, 8, 8, 0, rows(DIGIT), (b"tEXt", b"note\0\x1b[2J")),
    "the largest image there is, behind it": SOUND + png(60_000, 60_000, 8, 0, b""),
}

WRONG = {  # files that cannot be read, and what is said of them
    "nothing": (b"", "it is no image"),
    "words": (b"touch hacked", "it is no image"),
    "a web page": (b"<html><script>alert(1)</script></html>", "it is no image"),
    "an SVG": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "it is no image"),
    "a pickle": (pickle.dumps(EVILS["os.system"]), "it is no image"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(touch hacked) run\n", "it "),
    "too many pixels": (png(60_000, 60_000, 8, 0, b""), "it has more than 178,956,970 pixels"),
    "too many pixels in a GIF": (b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"\x2c", "it "),
    "no pixels": (png(0, 0, 8, 0, b""), "it "),
    "no pixels in a GIF": (b"GIF89a" + bytes(7) + b"\x2c" + bytes(9) + b"\x02\x02\x44\x01\0;", "it "),
    "no pixels in a PPM": (b"P5 0 8 255\n", "it "),
    "a text of 100 megabytes": (png(8, 8, 8, 0, rows(DIGIT), BIG_TEXT), "it cannot be read"),
    "negative floats": (
        encoded(Image.fromarray(DIGIT.astype(np.float32) - 9), "TIFF"),
        "it cannot be read (its pixels are -9 to",
    ),
    "endless floats": (
        encoded(Image.fromarray(np.full((8, 8), np.inf, np.float32)), "TIFF"),
        "it cannot be read (its pixels are inf to",
    ),
    "floats that are no numbers": (
        encoded(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"),
        "it cannot be read (its pixels are nan",
    ),
    "32 bits of an unknown white": (
        encoded(Image.fromarray(DIGIT.astype(np.int32) << 20), "TIFF"),
        "it cannot be read (its pixels are",
    ),
    **{
        f"half a {kind}": (whole[: len(whole) // 2], "it cannot be read")
        for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
        for whole in [encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)), kind)]
    },
}


@pytest.fixture(scope="module")
def model(trained_once):
    (run,) = trained_once.iterdir()
    return load(run)


@pytest.mark.parametrize("kind", RIGHT)
def test_an_image_of_any_kind_is_seen_as_what_it_shows(model, tmp_path, kind):
    (tmp_path / "x.png").write_bytes(RIGHT[kind])
    assert torch.equal(model.preprocess(tmp_path / "x.png"), model.preprocess(GREY))


def test_images_of_all_kinds_have_the_same_answer(home, ask):
    for number, data in enumerate(RIGHT.values()):
        (home / f"{number}.png").write_bytes(data)
    status, out, err = ask("predict", "run", "*.png", "--json")
    assert (status, err) == (0, "")
    first, *others = [entry["top"] for entry in json.loads(out)["images"]]
    for other in others:
        assert [row["class"] for row in other] == [row["class"] for row in first]
        assert [row["probability"] for row in other] == pytest.approx([row["probability"] for row in first])
    assert len(others) == len(RIGHT) - 1


def test_a_photograph_in_inks_is_nearly_what_it_shows(home, ask, model):
    smooth = Image.linear_gradient("L").resize((64, 64))
    smooth.convert("CMYK").save(home / "x.jpg", quality=95)
    assert (model.preprocess(home / "x.jpg") - model.preprocess(smooth)).abs().max() < 0.3
    assert ask("predict", "run", "x.jpg")[0] == 0


@pytest.mark.parametrize("kind", WRONG)
def test_an_image_that_cannot_be_read_is_named_in_a_sentence(home, ask, kind):
    data, words = WRONG[kind]
    (home / "x.png").write_bytes(data)
    one_sentence(ask("predict", "run", "x.png"), f"vitlab: x.png: {words}", status=1)


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1), (100_000, 8), (3, 3), (1, 1)])
def test_only_the_middle_of_a_long_image_is_scaled(home, ask, size):
    Image.new("L", size, 90).save(home / "x.png")
    status, _, err = ask("predict", "run", "x.png", "--save", "run/sheet.png")
    assert (status, err) == (0, "")


PLACES = {**INSTEAD, "a link to a file": lambda path: path.symlink_to(path.parent / "precious")}
PLACES["a link to a secret"] = lambda path: path.symlink_to("/etc/hostname")


@pytest.mark.parametrize("kind", PLACES)
def test_what_is_no_image_file_is_named_in_a_sentence(home, ask, kind):
    PLACES[kind](home / "x.png")
    status = 2 if kind == "a folder" else 1
    one_sentence(ask("predict", "run", "x.png"), "x.png: ", status)


def test_a_folder_of_traps_gives_its_images_and_names_the_others(home, ask):
    """Pipes, links in a circle and to devices are no images there; names are printed harmlessly."""
    traps = home / "traps"
    traps.mkdir()
    for name, place in INSTEAD.items():
        if name != "a link to a secret":
            place(traps / f"{name}.png")
    names = ["\x1b[2J.png", "new\nline.png", "-rf.png", "$(touch hacked).png", os.fsdecode(b"\xff.png"), "\u202e.png"]
    for name in names:
        GREY.save(traps / name)
    status, out, err = ask("predict", "run", "traps", "--top", "1")
    assert status == 0
    assert err.startswith("vitlab: passed over 4 links or devices that lead to no file (a link in a circle.png, ")
    assert err.count("\n") == 1
    assert out.count("\n") == len(names)


def test_folders_in_folders_are_searched_however_deep_they_are(tmp_path):
    deep = tmp_path.joinpath(*["d"] * 150)
    deep.mkdir(parents=True)
    (deep / "x.png").touch()
    before = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(len(inspect.stack(0)) + 100)
        assert list(walk_images(tmp_path)) == [str(deep / "x.png")]
    finally:
        sys.setrecursionlimit(before)


def test_a_dataset_of_bombs_is_refused_in_a_sentence(home, ask):
    file = home / "run" / "config.yaml"
    values = {**FILES, "root": "pictures", "verify": False, "skip_corrupted": False}
    file.write_text(
        edited(file.read_text(), dataset={"_target_": "vitlab.data.datasets.image_folder.ImageFolder", **values})
    )
    for name in "0123456789":
        (home / "pictures" / name).mkdir(parents=True)
        for i in range(3):
            (home / "pictures" / name / f"{i}.png").write_bytes(WRONG["too many pixels"][0])
    one_sentence(ask("evaluate", "run"), "may be an attack on the memory")
    file.write_text(edited(file.read_text(), dataset__verify=True))
    one_sentence(ask("evaluate", "run"), "is not a readable image")


def test_what_pillow_finds_odd_is_not_printed(home, ask, monkeypatch):
    (home / "x.png").write_bytes(encoded(PALETTE, "PNG", transparency=bytes(range(200))))
    (home / "y.png").write_bytes(RIGHT["a damaged EXIF"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # of 64 it warns
    with warnings.catch_warnings(record=True, action="always") as said:
        assert ask("predict", "run", "x.png", "y.png")[0] == 0
        assert Files([home / "x.png"], np.array([0]), "L").image(0).size == (8, 8)
    assert not said


# --- going on with a stranger's training ------------------------------------------------------------------------------


def written(name, data):
    return lambda run: (run / name).write_bytes(data)


def linked(name):
    return lambda run: ((run / name).unlink(missing_ok=True), (run / name).symlink_to(run.parents[1] / "precious"))


TRAININGS = {
    "a link for the log": linked("log.txt"),
    "a link for the lock": linked("lock"),
    "a link for a checkpoint": linked("last.pt"),
    "a link for a half-written checkpoint": linked(".last.pt.part"),
    "a link for W&B": linked("wandb"),
    "a result that is a list": written("result.json", b"[1]"),
    "a result that is no text": written("result.json", b"\xff\xfe"),
}


@pytest.mark.parametrize("kind", TRAININGS)
def test_a_training_does_not_go_on_in_a_folder_of_traps(home, ask, kind):
    (home / "run" / "result.json").unlink()
    TRAININGS[kind]((home / "run").resolve())
    status, out, err = ask("train", *WORDS)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith("vitlab: ")


@pytest.mark.parametrize("data", [saved({"step": 1, "x": EVILS["os.system"]}), b"not a zip"])
def test_a_training_believes_no_checkpoint_that_calls(home, ask, data):
    for name in ("last.pt", "previous.pt", "best.pt"):
        (home / "run" / name).write_bytes(data)
    (home / "run" / "result.json").unlink()
    status, _, err = ask("train", *WORDS)
    assert status in (0, 1)
    assert err.count("\n") <= 2


# --- what no machine can hold -----------------------------------------------------------------------------------------


def vit(**values):
    return partial(ViT, **{"patch": 2, "width": 16, "depth": 3, "heads": 2} | values)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["dataset.image_size=100000"],
            "dataset.image_size=100000x100000: 543 images of it, held in memory, take 5.4 TB",
        ),
        (
            ["dataset=synthetic", "dataset.examples=1000000000000"],
            "dataset.examples=1000000000000: 1200000000000 images",
        ),
    ],
)
def test_images_that_no_machine_can_hold_are_refused_with_their_number(home, ask, words, sentence):
    one_sentence(ask("train", *WORDS, *words), sentence)


@pytest.mark.parametrize(
    ("values", "options", "sentence"),
    [
        (
            {"width": 10**6},
            {"copies": 4},
            "weights, gradients and optimizer state take 576.0 TB, and this machine has 1.0 TB",
        ),
        ({"width": 10**8}, {}, "model.width=100000000 model.depth=3: the weights take 40,000.0 TB"),
        ({"depth": 10**8}, {}, "model.width=16 model.depth=100000000: the weights take 4.3 TB"),
        ({"patch": 1}, {"image_size": (3000, 3000)}, "3000x3000 is 9,000,001 tokens"),
        ({"patch": 1}, {"image_size": (300, 300), "batch": 64}, "64 images of 90,001 tokens at once: a training step"),
        (
            {"attention": partial(Attention, kernel="fused")},
            {"image_size": (400, 400), "batch": 10**5},
            "40,001 tokens",
        ),
        ({"position": SinCos2d}, {"image_size": (30_000, 30_000)}, "tokens"),
        ({"position": Rope}, {"image_size": (30_000, 30_000)}, "tokens"),
        ({"position": Relative}, {"image_size": (30_000, 30_000)}, "tokens"),
        ({"stem": Convolutions}, {"image_size": (30_000, 30_000)}, "tokens"),
    ],
)
def test_a_model_that_no_machine_can_hold_is_refused_with_its_number(monkeypatch, values, options, sentence):
    monkeypatch.setattr(memory, "total_memory", lambda device: 10**12)
    shape = {"image_size": (8, 8), "channels": 1, "classes": 10}
    with pytest.raises(ValueError, match=sentence):
        check_memory(vit(**values), **shape | options)


SHAPES = [
    {},
    {"position": Rope, "width": 32},
    {"position": SinCos2d},
    {"position": Relative},
    {"position": partial(Learned1d, at="every_block")},
    {"stem": Convolutions, "patch": 4},
    {"pool": Map, "registers": 3, "layer_scale": 1e-5},
    {"mlp": partial(Mlp, ratio=0.1), "depth": 1},
    {"attention": partial(Attention, kernel="fused")},
]


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("values", SHAPES)
def test_what_is_counted_is_the_weights_and_at_most_what_a_step_keeps(monkeypatch, values, half, recomputed):
    """So that nothing is refused that would run."""
    counted = []
    monkeypatch.setattr(footprint, "check_fits", lambda size, *_: counted.append(size))
    make, shape = vit(**values), {"image_size": (16, 24), "channels": 1, "classes": 10}
    check_memory(make, **shape, batch=5, half=half, recomputed=recomputed)
    model, kept = make(**shape), {}
    weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert counted[-2] - BLOCK * len(model.blocks) == weights

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", enabled=half):
        logits = model(torch.randn(5, 1, 16, 24))
        peak = sum(storage.nbytes() for place, storage in kept.items() if place not in own)
        if recomputed:  # the input of each block, and what the last one keeps when it is computed again
            kept.clear()
            tokens = torch.randn(5, model.grid.tokens, make.keywords["width"])
            model.blocks[-1](tokens, model.position(0))
            peak = len(model.blocks) * tokens.nbytes
            peak += sum(storage.nbytes() for place, storage in kept.items() if place not in own)
    assert logits.shape == (5, 10)
    assert 0 < counted[-1] <= peak
