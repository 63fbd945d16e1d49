"""Trained models: what a finished run is used for. Nothing in a run's folder is executed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from vitlab import checkpoint, train
from vitlab.config import MODELS, ConfigError, Node, build, check
from vitlab.dataset.augment import evaluation
from vitlab.dataset.dataset import Dataset
from vitlab.dataset.loader import Once, loader
from vitlab.dataset.preprocess import Normalise, Preprocess
from vitlab.model.vit import ViT
from vitlab.parallel import World
from vitlab.runs import Run


class Trained(nn.Module):
    """A trained model in evaluation mode, with what it needs to be used.

    `classes` are the class names, `preprocess` turns a PIL image or a file into what the model takes, and calling the
    model gives logits (b classes).
    """

    def __init__(self, model: ViT, classes: tuple[str, ...], preprocess: Callable[[Image.Image | str | Path], Tensor]):
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
        device: where the model goes.

    Raises:
        ValueError: no run, no weights yet, or a file that cannot be read safely.
    """
    folder = Run(Path(run))
    config = read_config(folder)
    if not folder.best.is_file():
        raise ConfigError(f"{folder.folder} has no weights yet: train it first")
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
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{folder.best} does not fit {folder.config} ({type(error).__name__}: {reason})") from error
    preprocess = Preprocess(
        size=size, channels=facts["channels"], crop=facts["crop"], mean=facts["mean"], std=facts["std"]
    )
    return Trained(model, tuple(str(name) for name in facts["classes"]), preprocess)


def evaluate(
    run: str | Path, *, root: str | None = None, device: str = "cpu"
) -> tuple[dict[str, float], dict[str, Any]]:
    """Validation and test scores of a run measured again, and its result.json; on the same device they are equal.

    Args:
        run: the run's folder.
        root: where the dataset's files lie now; None is where they lay.
        device: cpu or cuda.
    """
    folder = Run(Path(run))
    config, result = read_config(folder), folder.result()
    where = torch.device(device)
    model = load(run, where)
    node = dict(config["dataset"])
    if root is not None:
        node["root"] = root
    dataset = build(check(node, "dataset", ("vitlab.dataset.",)), ("vitlab.dataset.",))
    if not isinstance(dataset, Dataset):
        raise ConfigError(f"{folder.config}: dataset is a {type(dataset).__name__}")
    if tuple(dataset.classes) != model.classes:
        raise ConfigError(
            f"{folder.folder} was trained on {len(model.classes)} classes and the dataset has {len(dataset.classes)},"
            " or others: give the images that it was trained on, --root PATH"
        )
    precision = result.get("precision", "fp32")
    if precision not in train.DTYPES:
        raise ConfigError(f"{folder.folder}/result.json: no such precision, {precision!r}")
    normalise = Normalise(dataset.mean, dataset.std).to(where)
    scores: dict[str, float] = {}
    for name, examples in dataset.splits().items():
        if name != "train":
            order = Once(examples=len(examples), batch=int(config["fit"]["evaluation_batch_size"]))
            batches = loader(examples, evaluation(dataset), order)
            found = train.evaluate(model.model, batches, normalise, World(0, 1, where), precision)
            scores |= {f"{'val' if name == 'validation' else name}/{key}": value for key, value in found.items()}
    return scores, result
