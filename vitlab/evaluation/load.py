"""Trained models, loaded from runs. Nothing in a run's folder is executed."""

import logging
import reprlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitlab.config.build import build
from vitlab.config.check import LARGEST, MODELS, check, describes, locate
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError, Node, VitlabError
from vitlab.config.own import Own, command, using
from vitlab.data.fingerprint import changed_code
from vitlab.data.preprocess import Preprocess
from vitlab.evaluation.untrusted import describe_error, read_config
from vitlab.model.vit import ViT
from vitlab.storage import checkpoint, foreign
from vitlab.storage.run import Run
from vitlab.system import footprint
from vitlab.system.hardware import device_named

log = logging.getLogger("vitlab")


class Trained(nn.Module):
    """A trained model in evaluation mode, with its class names and its preprocessing.

    `classes` are the class names, `preprocess` turns a PIL image or a file into what the model takes, and calling the
    model gives logits (b classes); with `intermediates` or `attention` also a dictionary of them (`ViT.inspect`).
    """

    def __init__(self, model: ViT, classes: tuple[str, ...], preprocess: Preprocess):
        super().__init__()
        self.model = model
        self.classes = classes
        self.preprocess = preprocess
        self.eval()

    def forward(self, images: Float[Tensor, "b c y x"], *, intermediates: bool = False, attention: bool = False) -> Any:
        if not (intermediates or attention):
            return self.model(images)
        logits, seen = self.model.inspect(images, attention=attention)
        return logits, {name: x for name, x in seen.items() if intermediates or name.startswith("attention_")}


def load(
    run: str | Path,
    device: str | torch.device = "cpu",
    *,
    classifies: bool = True,
    allow: Sequence[str] = (),
    changed_data: bool = False,
) -> Trained:
    """The trained model of a run, with the weights that validation chose; or one of another library.

    Args:
        run: the run's folder; or a file or folder of weights, as `init` takes it.
        device: where the model goes: cpu, cuda, cuda:1, mps or auto.
        allow: packages of your own whose classes the run names; they are imported, which runs their code.
        classifies: whether it must have learned the classes, and not only to represent images.
        changed_data: whether the files of those packages may have changed since the training.

    Raises:
        ConfigError: no run, no weights yet, no such device, or a file that cannot be read safely.
    """
    device = device_named(device)
    if foreign.is_foreign(Path(run).expanduser()):
        node, weights, facts, names = of_library(Path(run).expanduser(), classifies)
    else:
        node, weights, facts, names = of_run(Run(Path(run)))
    size, channels, classes = tuple(facts["image_size"]), facts["channels"], tuple(facts["classes"])
    shape: dict[str, Any] = {"image_size": size, "channels": channels, "classes": len(classes)}
    try:
        with using(Own(packages=tuple(allow))):
            make = factory(node)
            check_code(Run(Path(run)), node, changed_data=changed_data)
        footprint.check_memory(make, **shape, device=device)
        model = make(**shape)
    except VitlabError:
        raise
    except Exception as error:  # untrusted values may make a model fail in any way
        raise ConfigError(f"{names[0]}: {describe_error(error)}") from error
    try:
        fill(model, weights)
        learned = model.objective.classifies
        with torch.no_grad():
            logits = model.to(device).eval()(torch.zeros(1, channels, *size, device=device))
        if logits.shape != (1, len(classes)) or not logits.isfinite().all():
            raise ConfigError(f"the output for a black image is not {len(classes)} finite numbers")
    except Exception as error:
        raise ConfigError(
            f"{names[1]} does not fit {names[0]} ({describe_error(error)}): get them again, or train it again"
        ) from error
    if classifies and not learned:
        raise ConfigError(
            f"{run} was trained to predict masked patches, not classes: use"
            f" {command('probe', run)}, or start another training from it, init={run}"
        )
    mean, std = ([float(value) for value in facts[key]] for key in ("mean", "std"))
    preprocess = Preprocess(
        size=size,
        channels=channels,
        crop=float(facts["crop"]),
        mean=mean,
        std=std,
        background=facts["background"] and tuple(facts["background"]),
        range=facts["range"] and (float(facts["range"][0]), float(facts["range"][1])),
    )
    return Trained(model, classes, preprocess)


def of_run(run: Run) -> tuple[Node, Any, Node, tuple[str | Path, Path]]:
    """What `load` needs of a run: the node of its model, the weights, the facts, and the files that these are in.

    Raises:
        ConfigError: no run, no weights yet, or facts that cannot be.
        StorageError: a file that cannot be read safely.
    """
    config = read_config(run)
    if not run.best.is_file():
        raise ConfigError(f"{run.folder} has no weights yet: train it first")
    with warnings.catch_warnings(action="ignore"):
        saved = checkpoint.load(run.best)
    return (
        config["model"],
        checkpoint.model_weights(saved),
        facts_of(saved.get("facts"), run.best),
        (run.config, run.best),
    )


def of_library(path: Path, classifies: bool) -> tuple[Node, Any, Node, tuple[str | Path, Path]]:
    """The same of a model of another library; what is only assumed of it is logged.

    Args:
        path: of its file or folder.
        classifies: whether it must have a head.

    Raises:
        ConfigError: it holds none, or one that vitlab's ViT cannot be.
    """
    found = foreign.read(path)
    if found.heads is None:
        raise ConfigError(f'{path} does not say how many heads it has: write {{"heads": 3}} or so into {found.note}')
    if "positions.0.table" not in found.weights:
        raise ConfigError(
            f"{path} has no table of positions, and does not say whether it has sines, RoPE or none in its place: start"
            f" a training from it, init={path} model/position=rope or so"
        )
    classes, weights = found.classes or ("unknown",), dict(found.weights)
    if not found.classes:
        if classifies:
            raise ConfigError(
                f"{path} has no head, it only represents images: use {command('probe', path, 'dataset=NAME')}, or"
                f" start a training from it, init={path}"
            )
        weights |= {"head.output.weight": torch.zeros(1, found.width), "head.output.bias": torch.zeros(1)}
    pixels = {key: list(each[: found.channels]) for key, each in zip(("mean", "std"), found.layout.pixels, strict=True)}
    facts = {"image_size": list(found.image_size), "channels": found.channels, "crop": found.layout.crop, **pixels}
    facts |= {key: found.said[key] for key in facts if key in found.said}
    if assumed := found.unsaid():
        log.warning("%s is %s; %s", path, found, assumed.removeprefix("; "))
    node = compose(found.options())[0]["model"]
    return node, weights, facts_of({**facts, "classes": list(classes)}, path), ("the ViT of these sizes", path)


def check_code(run: Run, node: Node, *, changed_data: bool) -> None:
    """Refuses a run whose node names classes of the user's own that have changed since, unless that is asked for.

    Raises:
        ConfigError: their files are others.
    """
    if not changed_data and (changed := changed_code(run, node)):
        raise ConfigError(
            f"{run.folder} {changed}: get back the code that it was trained with, or go on all the same, --changed-data"
            " (in Python changed_data=True)"
        )


def facts_of(saved: Any, file: Path) -> Node:
    """The checked `facts` of a checkpoint (`TrainingSetup.model_facts`).

    Raises:
        ConfigError: one of them is missing or out of its range.
    """
    facts = {"background": None, "range": None} | (saved if isinstance(saved, dict) else {})
    channels = facts["channels"] if type(facts.get("channels")) is int else 0

    def row(key: str, fits: Callable[[Any], bool], length: int | None = None) -> bool:
        values = facts.get(key)
        return isinstance(values, list) and len(values) == (length or len(values) or 1) and all(map(fits, values))

    def number(least: float, most: float) -> Callable[[Any], bool]:
        return lambda value: type(value) in (int, float) and least <= value <= most

    rules = {
        "image_size": ("two whole numbers", row("image_size", lambda v: type(v) is int and v >= 1, 2)),
        "channels": ("1 or 3", channels in (1, 3)),
        "classes": ("a list of strings", row("classes", lambda v: type(v) is str)),
        "crop": ("a number above 0 and at most 1", number(1e-6, 1)(facts.get("crop"))),
        "mean": ("a finite number per channel", row("mean", number(-1e6, 1e6), channels)),
        "std": ("a positive number per channel", row("std", number(1e-6, 1e6), channels)),
        "background": (
            "three whole numbers from 0 to 255",
            facts["background"] is None or row("background", lambda v: type(v) is int and 0 <= v <= 255, 3),
        ),
        "range": (
            "two numbers, the smaller one first",
            facts["range"] is None
            or (row("range", number(-LARGEST, LARGEST), 2) and facts["range"][0] < facts["range"][1]),
        ),
    }
    for key, (wanted, fits) in rules.items():
        if not fits:
            value = " ".join(reprlib.repr(facts.get(key)).split())
            raise ConfigError(f"{file}: {key}={value}: expected {wanted}: get it again, or train the run again")
    return facts


def factory(node: Node) -> Callable[..., ViT]:
    """The factory of the model that an untrusted configuration describes; anything but a ViT is refused.

    Raises:
        ConfigError: it describes another class.
    """
    node = check(node, "model", MODELS)
    if not describes(node, Callable[..., ViT]):
        raise ConfigError(f"model: {node.get('_target_')} is refused: expected a factory of vitlab.model.vit.ViT")
    for key, part in node.items():  # a module that is built at once escapes the memory check
        if isinstance(part, dict) and not part.get("_partial_") and issubclass(locate(part["_target_"]), nn.Module):
            raise ConfigError(f"model.{key}: {part['_target_']} is refused: expected a factory, not a module")
    return build(node, MODELS)


def fill(model: ViT, weights: Any) -> None:
    """Loads untrusted weights into a model after checking that they are plain tensors, of its shapes, and finite.

    Raises:
        ConfigError: they are not.
    """
    wanted, given = model.state_dict(), weights if isinstance(weights, dict) else {}
    for odd, verb in ((wanted.keys() - given.keys(), "lacks"), (given.keys() - wanted.keys(), "also has")):
        if odd:
            raise ConfigError(f"the checkpoint {verb} {len(odd)} tensors, such as {min(map(str, odd))}")
    for name, value in given.items():
        like = wanted[name]
        plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided and value.device.type == "cpu"
        if not plain or value.is_nested or value.dtype != like.dtype or value.shape != like.shape:
            actual = f"{value.dtype} {tuple(value.shape)}" if plain and not value.is_nested else "not a plain tensor"
            raise ConfigError(f"{name} is {actual}, not {like.dtype} {tuple(like.shape)}")
        if not value.isfinite().all():
            raise ConfigError(f"{name} has values that are NaN or infinite")
    model.load_state_dict(given)
