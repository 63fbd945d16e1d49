"""Evaluation of a trained run, on its own dataset or on an external one."""

import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from vitlab.config.build import build
from vitlab.config.check import check, describes
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError, DataError, DatasetMissing, Node, VitlabError
from vitlab.config.groups import CONF
from vitlab.config.own import command
from vitlab.data.augment import eval_transform
from vitlab.data.dataset import Dataset, for_evaluation
from vitlab.data.examples import Examples
from vitlab.data.fingerprint import changed_images
from vitlab.data.labels import listed
from vitlab.data.loader import EvalSampler, loader, to_device
from vitlab.data.preprocess import Normalize, Preprocess, to_pixels, upright
from vitlab.evaluation import evaluate as evaluation_of
from vitlab.evaluation.classification import ClassificationReport, PredictionRecorder
from vitlab.evaluation.load import Trained, check_code, load
from vitlab.evaluation.untrusted import describe_error, read_config, recorded
from vitlab.model.objective import TrainingModel
from vitlab.storage.foreign import is_foreign
from vitlab.storage.run import Run
from vitlab.system.distributed import Distributed, single_process
from vitlab.system.hardware import pins_memory
from vitlab.system.precision import DTYPES

BATCH = 64  # images of a step, for a model that no configuration of vitlab's belongs to
DATASETS = ("vitlab.data.",)  # prefixes of the classes that an untrusted dataset may name


@dataclass(frozen=True, kw_only=True)
class EvalInputs:
    """A dataset, preprocessed for a run's model.

    Args:
        splits: of the dataset.
        batches: normalized images and labels of some examples, once and in order, on the model's device.
        dist: this process and its device.
        precision: the one that the run was evaluated in.
    """

    splits: dict[str, Examples]
    batches: Callable[[Examples], Iterable[tuple[Tensor, Tensor]]]
    dist: Distributed
    precision: str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A trained model's evaluation on one split; `scores` are those that a training reports.

    `total` is the number of images in all splits of the dataset.
    """

    total: int
    examples: Examples
    scores: dict[str, Any]
    report: ClassificationReport


def evaluate(
    run: str | Path, *, root: str | None = None, device: str = "cpu", changed_data: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Validation and test scores of a run, computed again, and its result.json; they agree on the same device.

    Args:
        run: the run's folder.
        root: folder of the dataset's files; None is the recorded one.
        device: cpu, cuda or auto.
        changed_data: evaluates although the images or the code have changed since the run was trained.
    """
    dataset = training_dataset(run, root=root, changed_data=changed_data)
    measured = measure(run, load(run, device, changed_data=changed_data), dataset, ("validation", "test"))
    short = {"validation": "val", "test": "test"}
    scores = {f"{short[split]}/{key}": value for split, part in measured.items() for key, value in part.scores.items()}
    return scores, recorded(Run(Path(run)))


def training_dataset(run: str | Path, *, root: str | None = None, changed_data: bool = False) -> Dataset:
    """The dataset that a run was trained on. Nothing is downloaded for it.

    Args:
        run: the run's folder.
        root: folder of the dataset's files; None is the recorded one.
        changed_data: whether its images may have changed since.

    Raises:
        ConfigError: it is none of vitlab's, or lies at an address.
        ConfigError: its class is one of the user's own that has changed since.
        DataError: other images.
    """
    folder = Run(Path(run))
    if is_foreign(folder.folder):
        raise ConfigError(f"{run} does not say which images it was trained on: give a dataset, dataset=NAME, or images")
    node = dict(read_config(folder)["dataset"])
    for split in ("train", "validation", "test"):
        if ":" in str(node.get(split, "")).replace("::", ""):
            raise ConfigError(
                f"{folder.config}: dataset.{split}={node[split]} is an address, and nothing is fetched for a run's"
                " configuration: use"
                f" {command('evaluate', folder.folder, 'dataset=webdataset', f'dataset.{split}=...')}"
            )
    node |= {"download": False} if "download" in node else {}
    place = "path" if "path" in node else "root"  # dataset=hf has a path
    if root is not None and place not in node:
        raise ConfigError(
            f"--root {root}: the dataset of {folder.folder} has no folder of its own: leave it out, or give another"
            f" dataset, dataset=NAME dataset.root={root}"
        )
    node |= {place: root} if root is not None else {}
    if "cache" in node:  # an untrusted configuration may not say where shard indices are written
        node["cache"] = yaml.safe_load((CONF / "dataset" / "webdataset.yaml").read_text(encoding="utf-8"))["cache"]
    try:
        dataset = dataset_of(node, str(folder.config))
    except DatasetMissing as error:
        moved = "--root PATH" if place in node else "they are another dataset: dataset=NAME dataset.KEY=VALUE"
        raise DataError(
            f"the images that {folder.folder} was trained on are not there: looked for {error.looked}. If they have"
            f" moved, {moved}{f'. {error.remedy}' if 'download' in node else ''}"
        ) from error
    check_code(folder, node, changed_data=changed_data)
    if not changed_data and (changed := changed_images(folder, dataset.fingerprint)):
        raise DataError(
            f"{folder.folder} was trained on other images; since then {changed}: some that it is tested on may have"
            " been training images: give the folder of those it was trained on, --root PATH, or --changed-data to"
            " evaluate all the same"
        )
    return dataset


def moved_root(words: Sequence[str], root: str | None) -> str | None:
    """The folder that `--root`, or `dataset.root=PATH` and no dataset, says a run's own images have moved to.

    Raises:
        ConfigError: both a folder and another dataset.
    """
    if root is not None and words:
        raise ConfigError(f"--root {root} is for the run's own dataset: give dataset.root=PATH for another")
    alone = len(words) == 1 and words[0].startswith(("dataset.root=", "dataset.path="))
    return words[0].partition("=")[2] if alone else root


def with_absolute_root(words: Sequence[str]) -> list[str]:
    """The overrides with `dataset.root` as an absolute path, which tells datasets apart wherever they are read from."""
    parts = [word.partition("=") for word in words]
    return [f"{key}={Path(value).resolve()}" if key == "dataset.root" else f"{key}={value}" for key, _, value in parts]


def dataset_from_overrides(words: Sequence[str], *, trains: bool = False) -> tuple[Dataset, str]:
    """Another dataset, as `vitlab train` composes it of these overrides, and a name for it.

    Args:
        words: the overrides.
        trains: whether its training images are needed, as for a probe; if not, see `for_evaluation`.

    Raises:
        ConfigError: overrides of another group, or of no dataset.
    """
    if bare := [word for word in words if "=" not in word and Path(word).expanduser().exists()]:
        raise ConfigError(f"{bare[0]}: which dataset is it? dataset=image_folder {quote(f'dataset.root={bare[0]}')}")
    if odd := [word for word in words if word.partition("=")[0].partition(".")[0] != "dataset"]:
        raise ConfigError(f"{odd[0]}: only the dataset of a trained run can be another: dataset=NAME dataset.KEY=VALUE")
    if not any(word.startswith("dataset=") for word in words):
        raise ConfigError(f"{words[0]}: the dataset is missing: give dataset=NAME {words[0]}")
    config, choices = compose(words)
    with nullcontext() if trains else for_evaluation():
        dataset, root = dataset_of(config["dataset"], " ".join(words)), config["dataset"].get("root")
    return dataset, f"{choices['dataset']}-{Path(root).resolve().name}" if root else choices["dataset"]


def dataset_of(node: Node, where: str) -> Dataset:
    """The dataset that a configuration node describes; only vitlab's own classes are allowed."""
    node = check(node, "dataset", DATASETS)
    if not describes(node, Dataset):
        raise ConfigError(f"{where}: dataset: {node['_target_']} is refused: expected one of vitlab's datasets")
    try:
        return build(node, DATASETS)
    except VitlabError:
        raise
    except Exception as error:  # untrusted values may make a dataset fail in any way
        raise ConfigError(f"{where}: dataset: {describe_error(error)}") from error


def measure(
    run: str | Path,
    model: Trained,
    dataset: Dataset,
    splits: Sequence[str] | None = None,
    *,
    external: bool = False,
    workers: int = 0,
) -> dict[str, Measured]:
    """The scores and the classification report of a run's model on each of these splits.

    Args:
        run: the run's folder.
        model: from `load`.
        dataset: the run's own, or with `external` another of the same classes or some of them, in any order; it is
            preprocessed as the run's own.
        splits: of `validation` and `test`, or of an external dataset `all`; None is `test`, or `all` where there is
            no test split.
        external: see `dataset`.
        workers: processes that read images.

    Raises:
        ConfigError: other classes, no such split, or a damaged run.
    """
    source = eval_inputs(run, model, dataset, external=external, workers=workers)
    splits = splits or (("test",) if "test" in source.splits else ("all",))
    if lacking := [split for split in splits if split not in source.splits]:
        own = f"; all is of another dataset: {run} was trained on most of its own" if lacking[0] == "all" else ""
        raise ConfigError(
            f"--split {lacking[0]}: the dataset has no such split; it has {', '.join(source.splits)}: give one of them,"
            f" or leave --split out{own}"
        )
    places = torch.arange(len(model.classes))
    if external:
        used = np.unique(np.concatenate([source.splits[split].labels for split in splits]))
        places = torch.from_numpy(order_of(dataset.classes, model.classes, used))
    measured, total = {}, sum(len(part) for name, part in source.splits.items() if name != "all")
    for split in splits:
        examples, recorder = source.splits[split], PredictionRecorder(TrainingModel(model.model))
        labels: list[Tensor] = []
        named = mapped(source.batches(examples), places.to(source.dist.device), labels)
        scores = evaluation_of.evaluate(recorder, named, source.dist, source.precision, model.model.objective)
        report = ClassificationReport.of(recorder.probabilities(), torch.cat(labels), model.classes)
        measured[split] = Measured(total=total, examples=examples, scores=scores, report=report)
    model.eval()
    return measured


def eval_inputs(
    run: str | Path, model: Trained, dataset: Dataset, *, external: bool = False, workers: int = 0
) -> EvalInputs:
    """The splits of a dataset, preprocessed for a run's model.

    Args:
        run: the run's folder.
        model: from `load`.
        dataset: the run's own, or with `external` another, of any classes; it is preprocessed as the run's own.
        external: see `dataset`.
        workers: processes that read images.

    Raises:
        ConfigError: not the run's own dataset, or a damaged run.
    """
    folder, ready = Run(Path(run)), model.preprocess
    batch, precision = BATCH, "fp32"
    if not is_foreign(folder.folder):
        batch = int(read_config(folder)["fit"]["evaluation_batch_size"])
        precision = recorded(folder).get("precision", "fp32")
    if precision not in tuple(DTYPES):
        raise ConfigError(
            f"{folder.folder}/result.json: precision={reprlib.repr(precision)}: expected one of {', '.join(DTYPES)}"
        )
    if not external and tuple(dataset.classes) != model.classes:
        raise ConfigError(
            f"{folder.folder} was trained on {len(model.classes)} classes and the dataset has {len(dataset.classes)},"
            " or others: give the images that it was trained on, --root PATH"
        )
    seen = (ready.resize.size, 1 if ready.decoding.mode == "L" else 3)
    if not external and (dataset.shape, dataset.channels) != seen:
        raise ConfigError(
            f"{folder.config}: the dataset's images are {dataset.shape} x {dataset.channels}, and the model takes"
            f" {seen[0]} x {seen[1]}: get the run's folder again, or train it again"
        )
    dist = single_process(next(model.parameters()).device)
    transform, normalize = eval_transform(dataset), Normalize(dataset.mean, dataset.std)
    if external:
        transform, normalize = (
            partial(external_pixels, ready),
            deepcopy(ready.normalize),
        )
    normalize = normalize.to(dist.device)

    def batches(examples: Examples) -> Iterable[tuple[Tensor, Tensor]]:
        once = EvalSampler(examples=len(examples), batch=batch)
        seen = examples.reduced(ready.resize.min_size)
        pixels = loader(seen, transform, once, workers=workers, pin=pins_memory(dist.device))
        return to_device(pixels, normalize, dist.device)

    return EvalInputs(splits=dataset.splits(ready.decoding), batches=batches, dist=dist, precision=precision)


def external_pixels(ready: Preprocess, image: Image.Image) -> Tensor:
    return to_pixels(ready.resize(upright(image, ready.decoding)))


def mapped(
    batches: Iterable[tuple[Tensor, Tensor]], places: Tensor, labels: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches with their labels in the order of the model's classes; those are also appended to `labels`."""
    for images, of_batch in batches:
        mapped_labels = places[of_batch]
        labels.append(mapped_labels.cpu())
        yield images, mapped_labels


def order_of(classes: Sequence[str], known: Sequence[str], used: np.ndarray) -> np.ndarray:
    """The index of each class of a dataset among a model's classes; -1 for one that is unknown and not used.

    Args:
        classes: of the dataset.
        known: the model's.
        used: the classes, by their index in `classes`, that have images.

    Raises:
        ConfigError: one of these is unknown.
    """
    place = {name: number for number, name in enumerate(known)}
    if unknown := [classes[i] for i in used if classes[i] not in place]:
        raise ConfigError(
            f"the dataset has classes that the run lacks ({listed(unknown)}): give one of its {len(known)} classes, or"
            f" of some of them ({listed(known)}), by these names"
        )
    return np.array([place.get(name, -1) for name in classes])
