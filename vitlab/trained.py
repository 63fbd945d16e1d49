"""Trained models: what a finished run is used for. Nothing in a run's folder is executed."""

import reprlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float
from torch import Tensor, nn

from vitlab import checkpoint, memory, train
from vitlab.config import MODELS, ConfigError, Node, build, check, compose, describes, locate, show
from vitlab.dataset.augment import evaluation
from vitlab.dataset.dataset import Dataset
from vitlab.dataset.examples import Examples
from vitlab.dataset.loader import Batch, Once, loader
from vitlab.dataset.preprocess import Normalise, Preprocess, to_pixels, upright
from vitlab.files import read_json, read_text
from vitlab.judge import Judgement, Witness
from vitlab.menu import CONF
from vitlab.model.vit import ViT
from vitlab.parallel import DTYPES, World, alone
from vitlab.run import Run

DATASETS = ("vitlab.dataset.",)  # what a stranger's dataset may name
MOST_BYTES, MOST_LETTERS = 100_000, 10_000  # of a config.yaml, and of a value there; vitlab's have some 3,000 and 80


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


class Plain(yaml.SafeLoader):
    """YAML of plain values: no aliases, which can grow without bound, and in a mapping different words alone."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self.refuse("it has an alias", self.peek_event())
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode) and len(node.value) > MOST_LETTERS:
            self.refuse(f"a value has {len(node.value):,} letters", node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag == "tag:yaml.org,2002:str"]
        if len(set(keys)) < len(node.value):
            self.refuse("a key stands twice, or is no word", node)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        value = super().construct_object(node, deep)
        plain = isinstance(value, dict | list | str | float | int | None)
        if not plain or (isinstance(value, int) and abs(value) >= 2**63):
            self.refuse("a value is neither a word, a number of 64 bits, a list nor a mapping", node)
        return value

    def refuse(self, problem: str, there: Any) -> None:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=there.start_mark)


def read_config(run: Run) -> Node:
    """The configuration of a run, as plain values: interpolations stay text, and nothing is built.

    Raises:
        ValueError: there is none, or it is none of vitlab's.
    """
    if not run.config.is_file():
        raise ConfigError(f"{run.folder} is not a run: it has no config.yaml")
    try:
        config = yaml.load(read_text(run.config, MOST_BYTES), Plain)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{run.config} cannot be read safely ({reason}{line}): train the run again") from error
    wanted = {"model": "_target_", "patch": "size", "dataset": "_target_", "fit": "evaluation_batch_size"}
    for section, key in wanted.items():
        if not isinstance(config, dict) or not isinstance(config.get(section), dict) or key not in config[section]:
            raise ConfigError(f"{run.config} is not the configuration of a run: it has no {section}.{key}")
        if key != "_target_" and not (type(value := config[section][key]) is int and value >= 1):
            raise ConfigError(f"{run.config}: {section}.{key}={show(value)}: expected a whole number, at least 1")
    return config


def recorded(run: Run) -> Node:
    """What a run's result.json says, whoever wrote it; a run that never wrote one was interrupted."""
    try:
        return read_json(run.folder / "result.json", MOST_BYTES)
    except FileNotFoundError:
        return {"status": "interrupted"}


def load(run: str | Path, device: str | torch.device = "cpu", *, classifies: bool = True) -> Trained:
    """The trained model of a run, with the weights that validation chose.

    Args:
        run: the run's folder.
        device: where the model goes: cpu, cuda, cuda:1 or auto.
        classifies: whether it must have learned the classes, and not only to represent images.

    Raises:
        ValueError: no run, no weights yet, no such device, or a file that cannot be read safely.
    """
    folder = Run(Path(run))
    config = read_config(folder)
    if not folder.best.is_file():
        raise ConfigError(f"{folder.folder} has no weights yet: train it first")
    device = device_named(device)
    with warnings.catch_warnings(action="ignore"):
        saved = checkpoint.load(folder.best)
    facts = facts_of(saved.get("facts"), folder.best)
    size, channels, classes = tuple(facts["image_size"]), facts["channels"], tuple(facts["classes"])
    shape: dict[str, Any] = {"image_size": size, "channels": channels, "classes": len(classes)}
    try:
        make = factory(config["model"], config["patch"]["size"])
        memory.check(make, **shape, device=device)
        model = make(**shape)
    except ConfigError:
        raise
    except Exception as error:  # what a stranger's values make of a model is anybody's guess
        raise ConfigError(f"{folder.config}: {told(error)}") from error
    try:
        fill(model, saved.get("model"))
        learned = model.objective.classifies
        with torch.no_grad():
            logits, _ = model.to(device).eval()(torch.zeros(1, channels, *size, device=device), intermediates=True)
        if logits.shape != (1, len(classes)) or not logits.isfinite().all():
            raise ValueError(f"a black image is not answered with {len(classes)} finite numbers")
    except Exception as error:
        raise ConfigError(
            f"{folder.best} does not fit {folder.config} ({told(error)}): get both again, or train the run again"
        ) from error
    if classifies and not learned:
        raise ConfigError(
            f"{folder.folder} has learned to fill in masked patches, and no classes: vitlab probe {folder.folder}, or"
            f" start another training from it, init={folder.folder}"
        )
    mean, std = ([float(value) for value in facts[key]] for key in ("mean", "std"))
    return Trained(
        model, classes, Preprocess(size=size, channels=channels, crop=float(facts["crop"]), mean=mean, std=std)
    )


def facts_of(said: Any, file: Path) -> Node:
    """What a checkpoint says about its model (`recipe.facts`), once it is known to be so.

    Raises:
        ValueError: something of it is missing or cannot be.
    """
    facts = said if isinstance(said, dict) else {}
    channels = facts["channels"] if type(facts.get("channels")) is int else 0

    def row(key: str, fits: Callable[[Any], bool], length: int | None = None) -> bool:
        values = facts.get(key)
        return isinstance(values, list) and len(values) == (length or len(values) or 1) and all(map(fits, values))

    def number(least: float, most: float) -> Callable[[Any], bool]:
        return lambda value: type(value) in (int, float) and least <= value <= most

    rules = {
        "image_size": ("two whole numbers", row("image_size", lambda v: type(v) is int and v >= 1, 2)),
        "channels": ("1 or 3", channels in (1, 3)),
        "classes": ("a list of words", row("classes", lambda v: type(v) is str)),
        "crop": ("a number above 0 and at most 1", number(1e-6, 1)(facts.get("crop"))),
        "mean": ("a finite number a channel", row("mean", number(-1e6, 1e6), channels)),
        "std": ("a positive number a channel", row("std", number(1e-6, 1e6), channels)),
    }
    for key, (wanted, fits) in rules.items():
        if not fits:
            value = " ".join(reprlib.repr(facts.get(key)).split())
            raise ConfigError(f"{file}: {key}={value}: expected {wanted}: get it again, or train the run again")
    return facts


def factory(node: Node, patch: int) -> Callable[..., ViT]:
    """The model that a stranger's configuration describes, yet to be made: a ViT of parts, and no other object.

    Raises:
        ValueError: it describes something else.
    """
    node = check(node, "model", MODELS)
    if not describes(node, Callable[..., ViT]):
        raise ConfigError(f"model: {node.get('_target_')} is refused: expected a factory of vitlab.model.vit.ViT")
    for key, part in node.items():  # a module that is made at once was never weighed
        if isinstance(part, dict) and not part.get("_partial_") and issubclass(locate(part["_target_"]), nn.Module):
            raise ConfigError(f"model.{key}: {part['_target_']} is refused: expected no module that is made already")
    return build(node, MODELS, patch=patch)


def fill(model: ViT, weights: Any) -> None:
    """Puts a stranger's weights into a model, once they are known to be plain, of its shapes, and finite.

    Raises:
        ValueError: they are not.
    """
    wanted, given = model.state_dict(), weights if isinstance(weights, dict) else {}
    for odd, verb in ((wanted.keys() - given.keys(), "lacks"), (given.keys() - wanted.keys(), "has, unasked for,")):
        if odd:
            raise ValueError(f"the checkpoint {verb} {len(odd)} tensors, such as {min(map(str, odd))}")
    for name, value in given.items():
        like = wanted[name]
        plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided and value.device.type == "cpu"
        if not plain or value.is_nested or value.dtype != like.dtype or value.shape != like.shape:
            found = f"{value.dtype} {tuple(value.shape)}" if plain and not value.is_nested else "no plain tensor"
            raise ValueError(f"{name} is {found}, not {like.dtype} {tuple(like.shape)}")
        if not value.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite")
    model.load_state_dict(given)


def told(error: Exception) -> str:
    """What an error says, in one line; of one that is not meant for users, its name as well."""
    said = " ".join(str(error).split())
    return said if isinstance(error, ValueError | OSError) and said else f"{type(error).__name__}: {said}"


@dataclass(frozen=True, kw_only=True)
class Served:
    """A dataset as a run's model takes it.

    Args:
        splits: of the dataset.
        batches: gives the images of some examples, once and in order.
        normalise: what the pixels go through, on the model's device.
        here: the device.
        precision: what the run was judged in.
    """

    splits: dict[str, Examples]
    batches: Callable[[Examples], Iterable[Batch]]
    normalise: Normalise
    here: World
    precision: str


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
    return scores, recorded(Run(Path(run)))


def own(run: str | Path, *, root: str | None = None) -> Dataset:
    """The dataset that a run was trained on. Nothing is fetched for it, whatever the run's configuration says.

    Args:
        run: the run's folder.
        root: where the dataset's files lie now; None is where they lay.

    Raises:
        ValueError: it is none of vitlab's, or lies at an address.
    """
    folder = Run(Path(run))
    node = dict(read_config(folder)["dataset"])
    for split in ("train", "validation", "test"):
        if ":" in str(node.get(split, "")).replace("::", ""):
            raise ConfigError(
                f"{folder.config}: dataset.{split}={node[split]} is an address, and nothing is fetched because a folder"
                f" says so: name it yourself, vitlab evaluate {folder.folder} dataset=webdataset dataset.{split}=..."
            )
    node |= {"download": False} if "download" in node else {}
    node |= {"root": root} if root is not None else {}
    if "cache" in node:  # where indices of shards are written is not for a stranger to say
        node["cache"] = yaml.safe_load((CONF / "dataset" / "webdataset.yaml").read_text())["cache"]
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
    node = check(node, "dataset", DATASETS)
    if not describes(node, Dataset):
        raise ConfigError(f"{where}: dataset: {node['_target_']} is refused: expected one of vitlab's datasets")
    try:
        return build(node, DATASETS)
    except (ValueError, OSError):
        raise
    except Exception as error:  # what a stranger's values make of a dataset is anybody's guess
        raise ConfigError(f"{where}: dataset: {told(error)}") from error


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
    places = torch.from_numpy(order_of(dataset.classes, model.classes)) if foreign else torch.arange(len(model.classes))
    source = served(run, model, dataset, foreign=foreign, workers=workers)
    found = {}
    for split in splits:
        examples, witness = source.splits[split], Witness(model.model)
        labels: list[Tensor] = []
        named = mapped(source.batches(examples), places, labels)
        scores = train.evaluate(witness, named, source.normalise, source.here, source.precision, model.model.objective)
        judgement = Judgement.of(witness.probabilities(), torch.cat(labels), model.classes)
        found[split] = Measured(examples=examples, scores=scores, judgement=judgement)
    model.eval()
    return found


def served(run: str | Path, model: Trained, dataset: Dataset, *, foreign: bool = False, workers: int = 0) -> Served:
    """The splits of a dataset, and how their images come to a run's model.

    Args:
        run: the run's folder.
        model: from `load`.
        dataset: the run's own, or with `foreign` another, of any classes: its images go through what the run's own
            images went through.
        foreign: see `dataset`.
        workers: processes that read images.

    Raises:
        ValueError: not the run's own dataset, or a damaged run.
    """
    folder, ready = Run(Path(run)), model.preprocess
    config, precision = read_config(folder), recorded(folder).get("precision", "fp32")
    if precision not in tuple(DTYPES):
        raise ConfigError(
            f"{folder.folder}/result.json: precision={reprlib.repr(precision)}: expected one of {', '.join(DTYPES)}"
        )
    if not foreign and tuple(dataset.classes) != model.classes:
        raise ConfigError(
            f"{folder.folder} was trained on {len(model.classes)} classes and the dataset has {len(dataset.classes)},"
            " or others: give the images that it was trained on, --root PATH"
        )
    seen = (ready.resize.size, 1 if ready.mode == "L" else 3)
    if not foreign and (dataset.shape, dataset.channels) != seen:
        raise ConfigError(
            f"{folder.config}: the dataset's images are {dataset.shape} x {dataset.channels}, and the model takes"
            f" {seen[0]} x {seen[1]}: get the run's folder again, or train it again"
        )
    here = alone(next(model.parameters()).device)
    transform, normalise = evaluation(dataset), Normalise(dataset.mean, dataset.std)
    if foreign:
        transform, normalise = (
            (lambda image: to_pixels(ready.resize(upright(image, ready.mode)))),
            deepcopy(ready.normalise),
        )

    def batches(examples: Examples) -> Iterable[Batch]:
        once = Once(examples=len(examples), batch=int(config["fit"]["evaluation_batch_size"]))
        seen = examples.reduced(ready.resize.least)
        return loader(seen, transform, once, workers=workers, pin=here.device.type == "cuda")

    normalise = normalise.to(here.device)
    return Served(splits=dataset.splits(), batches=batches, normalise=normalise, here=here, precision=precision)


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
