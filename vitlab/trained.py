"""Trained models: what a finished run is used for. Nothing in a run's folder is executed."""

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float
from torch import Tensor, nn

from vitlab import checkpoint, train
from vitlab.config import MODELS, ConfigError, Node, build, check, compose
from vitlab.dataset.augment import evaluation
from vitlab.dataset.dataset import Dataset
from vitlab.dataset.examples import Examples
from vitlab.dataset.loader import Batch, Once, loader
from vitlab.dataset.preprocess import Normalise, Preprocess, to_pixels, upright
from vitlab.judge import Judgement, Witness
from vitlab.model.vit import ViT
from vitlab.parallel import DTYPES, alone
from vitlab.runs import Run

DATASETS = ("vitlab.dataset.",)  # what a stranger's dataset may name


class Trained(nn.Module):
    """A trained model in evaluation mode, with what it needs to be used.

    `classes` are the class names, `preprocess` turns a PIL image or a file into what the model takes, and calling the
    model gives logits (b classes).
    """

    def __init__(self, model: ViT, classes: tuple[str, ...], preprocess: Preprocess):
        super().__init__()
        self.model = model
        self.classes = classes
        self.preprocess = preprocess
        self.eval()

    def forward(self, images: Float[Tensor, "b c y x"], **asked: bool) -> Any:
        return self.model(images, **asked)


def read_config(run: Run) -> Node:
    """The configuration of a run, as plain values: interpolations stay text, and nothing is built.

    Raises:
        ValueError: there is none, or it is none of vitlab's.
    """
    if not run.config.is_file():
        raise ConfigError(f"{run.folder} is not a run: it has no config.yaml")
    try:
        config = yaml.safe_load(run.config.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{run.config} cannot be read safely: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict) or not {"model", "patch", "dataset", "fit"} <= set(config):
        raise ConfigError(f"{run.config} is not the configuration of a run")
    return config


def load(run: str | Path, device: str | torch.device = "cpu") -> Trained:
    """The trained model of a run, with the weights that validation chose.

    Args:
        run: the run's folder.
        device: where the model goes: cpu, cuda, cuda:1 or auto.

    Raises:
        ValueError: no run, no weights yet, no such device, or a file that cannot be read safely.
    """
    folder = Run(Path(run))
    config = read_config(folder)
    if not folder.best.is_file():
        raise ConfigError(f"{folder.folder} has no weights yet: train it first")
    device = device_named(device)
    saved = checkpoint.load(folder.best, device)
    try:
        facts = saved["facts"]
        size = (int(facts["image_size"][0]), int(facts["image_size"][1]))
        model = build(
            check(config["model"], "model", MODELS),
            MODELS,
            patch=int(config["patch"]["size"]),
            image_size=size,
            channels=int(facts["channels"]),
            classes=len(facts["classes"]),
        )().to(device)
        model.load_state_dict(saved["model"])
        preprocess = Preprocess(
            size=size, channels=facts["channels"], crop=facts["crop"], mean=facts["mean"], std=facts["std"]
        )
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{folder.best} does not fit {folder.config} ({type(error).__name__}: {reason})") from error
    return Trained(model, tuple(str(name) for name in facts["classes"]), preprocess)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One split, and what a trained model made of it; `scores` are its `loss` and `accuracy` as training has them."""

    examples: Examples
    scores: dict[str, float]
    judgement: Judgement


def evaluate(
    run: str | Path, *, root: str | None = None, device: str = "cpu"
) -> tuple[dict[str, float], dict[str, Any]]:
    """Validation and test scores of a run measured again, and its result.json; on the same device they are equal.

    Args:
        run: the run's folder.
        root: where the dataset's files lie now; None is where they lay.
        device: cpu, cuda or auto.
    """
    found = measure(run, load(run, device), own(run, root=root), ("validation", "test"))
    short = {"validation": "val", "test": "test"}
    scores = {f"{short[split]}/{key}": value for split, part in found.items() for key, value in part.scores.items()}
    return scores, Run(Path(run)).result()


def own(run: str | Path, *, root: str | None = None) -> Dataset:
    """The dataset that a run was trained on. Nothing is downloaded for it, whatever the run's configuration says.

    Args:
        run: the run's folder.
        root: where the dataset's files lie now; None is where they lay.
    """
    folder = Run(Path(run))
    node = dict(read_config(folder)["dataset"])
    node |= {"download": False} if "download" in node else {}
    if root is not None:
        node["root"] = root
    return dataset_of(node, str(folder.config))


def other(words: Sequence[str]) -> tuple[Dataset, str]:
    """Another dataset, as `vitlab train` composes it of these overrides, and a name for it.

    Raises:
        ValueError: words that are about something else, or name no dataset.
    """
    if odd := [word for word in words if word.partition("=")[0].partition(".")[0] != "dataset"]:
        raise ConfigError(f"{odd[0]}: only the dataset of a trained run can be another: dataset=NAME dataset.KEY=VALUE")
    if not any(word.startswith("dataset=") for word in words):
        raise ConfigError(f"{words[0]}: say which dataset it is of: dataset=NAME {words[0]}")
    config, choices = compose(words)
    dataset, root = dataset_of(config["dataset"], " ".join(words)), config["dataset"].get("root")
    return dataset, f"{choices['dataset']}-{Path(root).resolve().name}" if root else choices["dataset"]


def dataset_of(node: Node, where: str) -> Dataset:
    """The dataset that a node describes: of vitlab's kinds, or refused."""
    dataset = build(check(node, "dataset", DATASETS), DATASETS)
    if not isinstance(dataset, Dataset):
        raise ConfigError(f"{where}: dataset is a {type(dataset).__name__}")
    return dataset


def measure(
    run: str | Path, model: Trained, dataset: Dataset, splits: Sequence[str], *, foreign: bool = False, workers: int = 0
) -> dict[str, Measured]:
    """What a run's model makes of these splits of a dataset.

    Args:
        run: the run's folder.
        model: from `load`.
        dataset: the run's own, or with `foreign` another of the same classes: their order may differ, and the images
            go through what the run's own images went through.
        splits: of `validation` and `test`.
        foreign: see `dataset`.
        workers: processes that read images.

    Raises:
        ValueError: other classes, or a damaged run.
    """
    folder = Run(Path(run))
    config, precision = read_config(folder), folder.result().get("precision", "fp32")
    if precision not in DTYPES:
        raise ConfigError(f"{folder.folder}/result.json: no such precision, {precision!r}")
    if not foreign and tuple(dataset.classes) != model.classes:
        raise ConfigError(
            f"{folder.folder} was trained on {len(model.classes)} classes and the dataset has {len(dataset.classes)},"
            " or others: give the images that it was trained on, --root PATH"
        )
    here = alone(next(model.parameters()).device)
    places = torch.from_numpy(order_of(dataset.classes, model.classes))
    transform, normalise, ready = evaluation(dataset), Normalise(dataset.mean, dataset.std), model.preprocess
    if foreign:
        transform, normalise = (
            (lambda image: to_pixels(ready.resize(upright(image, ready.mode)))),
            deepcopy(ready.normalise),
        )
    parts = dataset.splits()
    found = {}
    for split in splits:
        examples, witness = parts[split], Witness(model.model)
        once = Once(examples=len(examples), batch=int(config["fit"]["evaluation_batch_size"]))
        batches = loader(examples, transform, once, workers=workers, pin=here.device.type == "cuda")
        labels: list[Tensor] = []
        named = mapped(batches, places, labels)
        scores = train.evaluate(witness, named, normalise.to(here.device), here, precision)
        judgement = Judgement.of(witness.probabilities(), torch.cat(labels), model.classes)
        found[split] = Measured(examples=examples, scores=scores, judgement=judgement)
    model.eval()
    return found


def mapped(batches: Iterable[Batch], places: Tensor, labels: list[Tensor]) -> Iterator[Batch]:
    """The batches with the labels that a model knows, which are also put into `labels`."""
    for pixels, of_batch in batches:
        labels.append(places[of_batch])
        yield pixels, labels[-1]


def order_of(classes: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """The place of each class in the order that a model knows.

    Raises:
        ValueError: the names are not the same.
    """
    place, theirs = {name: number for number, name in enumerate(known)}, set(classes)
    more, less = [name for name in classes if name not in place], [name for name in known if name not in theirs]
    if more or less:
        lists = ((more, "has classes that the run does not know"), (less, "lacks classes of the run"))
        said = [f"{words} ({listed(names)})" for names, words in lists if names]
        raise ConfigError(f"the dataset {' and '.join(said)}: give one with the same {len(known)} class names")
    return np.array([place[name] for name in classes])


def listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def device_named(name: str | torch.device) -> torch.device:
    """The device of this name; auto is a GPU where there is one.

    Raises:
        ValueError: no such device, or not here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name}: there is no such device: use auto, cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name}: vitlab runs on cpu and cuda: use one of them")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name}: torch sees {torch.cuda.device_count()} CUDA devices here: use cpu or auto")
    return device
