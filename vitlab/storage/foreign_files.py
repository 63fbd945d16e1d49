"""Files of other libraries' weights, read without running code, and what JSON files say beside them."""

import argparse
import json
import reprlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitlab.config.errors import ConfigError, Node
from vitlab.storage import checkpoint
from vitlab.storage.files import file_errors, read_json

IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")  # the weights in a folder of the Hugging Face Hub
SAID = ("heads", "epsilon", "gelu", "image_size", "mean", "std", "crop", "classes")  # what the user's JSON may say
GELUS = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}  # as Hugging Face calls them
MOST_JSON = 10_000_000  # bytes; with the names of 21,000 classes it has one


def contents(file: Path) -> Node:
    """What a file of weights holds: tensors by name, and what is saved beside them; no code in it is run.

    Raises:
        ConfigError: it is no such file.
        StorageError: it cannot be read.
    """
    with file_errors(file), file.open("rb"):
        pass
    try:
        if file.suffix == ".safetensors":
            return of_safetensors(file)
        if file.suffix == ".npz":
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as held:
                return {name: torch.from_numpy(held[name]) for name in held.files}
    except Exception as error:  # a damaged file can make its reader fail in any way
        raise ConfigError(f"{file} cannot be read ({checkpoint.reason(error)}): get it again") from error
    with torch.serialization.safe_globals([argparse.Namespace]):  # options of a training: values by name
        return checkpoint.load(file, zipped=zipfile.is_zipfile(file))


def of_safetensors(file: Path) -> Node:
    """The contents of a file of safetensors; of vitlab's own export in the layout of best.pt."""
    from safetensors import safe_open

    with safe_open(file, "pt") as held:
        ours = (held.metadata() or {}).get("vitlab")
        weights = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 (it is no dictionary)
    if ours is None:
        return weights
    facts = json.loads(ours)
    return {"model": weights, "facts": facts.get("facts") if isinstance(facts, dict) else None}


def check_tensor(path: Path, name: str, value: Any) -> None:
    """Raises ConfigError for what is no plain tensor of finite numbers, or seems larger than what it holds."""
    plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided and value.device.type == "cpu"
    if not plain or value.is_nested or not value.is_floating_point() or not value.numel():
        raise ConfigError(f"{path}: {name} is no tensor of numbers: get it again")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes() or not value.isfinite().all():
        raise ConfigError(f"{path}: {name} has values that are NaN, infinite or missing: get it again")


def note_of(path: Path) -> Path:
    """The JSON file in which the user may say what a file or a folder does not."""
    return path / "vitlab.json" if path.is_dir() else path.with_suffix(".json")


def known_facts(path: Path) -> Node:
    """What the configuration in a folder, and the user's JSON file, say of `SAID`.

    Raises:
        ConfigError: a value that cannot be.
    """
    said: Node = {}
    if path.is_dir() and (path / "config.json").is_file():
        said |= hub_facts(read_json(path / "config.json", MOST_JSON))
        pixels = path / "preprocessor_config.json"
        given = read_json(pixels) if pixels.is_file() else {}
        said |= {key: given[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in given}
    if (note := note_of(path)).is_file():
        mine = read_json(note, MOST_JSON)
        if odd := mine.keys() - set(SAID):
            raise ConfigError(f"{note}: {min(odd)} is not known: it may say {', '.join(SAID)}")
        said |= mine
    if type(size := said.get("image_size")) is int:
        said["image_size"] = [size, size]
    fits = {
        "heads": lambda v: type(v) is int and v >= 1,
        "epsilon": lambda v: type(v) in (int, float) and 0 < v < 1,
        "gelu": lambda v: v in GELUS.values(),
        "image_size": lambda v: type(v) is list and len(v) == 2 and all(type(side) is int and side >= 1 for side in v),
        "classes": lambda v: type(v) is list and all(type(name) is str for name in v),
    }
    for key, rule in fits.items():
        if key in said and not rule(said[key]):
            where = note if note.is_file() else path
            raise ConfigError(f"{where}: {key}={reprlib.repr(said[key])} cannot be: correct it")
    return said


def hub_facts(config: Node) -> Node:
    """The facts in a config.json of Hugging Face's, or of timm's with `model_args` and a `pretrained_cfg`."""
    found = {"heads": "num_attention_heads", "epsilon": "layer_norm_eps", "image_size": "image_size"}
    said = {key: config[name] for key, name in found.items() if name in config}
    if "hidden_act" in config:
        if (act := str(config["hidden_act"])) not in GELUS:
            raise ConfigError(f"hidden_act={act[:40]}: vitlab's MLPs have GELU: take weights of another model")
        said["gelu"] = GELUS[act]
    if isinstance(labels := config.get("id2label"), dict) and all(map(str.isdecimal, labels)):
        names = [str(labels[key]) for key in sorted(labels, key=int)]
        said |= {"classes": names} if names[:1] != ["LABEL_0"] else {}
    timm = config.get("pretrained_cfg")
    if isinstance(timm, dict):
        names = {"mean": "mean", "std": "std", "crop": "crop_pct"}
        said |= {key: timm[name] for key, name in names.items() if name in timm}
        said |= {"classes": names} if isinstance(names := timm.get("label_names"), list) else {}
    made = config.get("model_args")
    if isinstance(made, dict):
        said |= {"heads": made["num_heads"]} if "num_heads" in made else {}
        said |= {"gelu": "tanh"} if made.get("act_layer") == "gelu_tanh" else {}
    return said
