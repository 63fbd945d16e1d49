"""The card of a model that leaves vitlab: Markdown, with the header that the Hugging Face hub reads."""

import json
from collections.abc import Sequence
from typing import Any

from vitlab.config.check import locate
from vitlab.config.errors import Node, StorageError
from vitlab.config.moved import current_name
from vitlab.data.dataset import Dataset
from vitlab.report.answer import escaped, interval, mean_sd
from vitlab.report.comparison import ROOTS, compare
from vitlab.storage import runs_table
from vitlab.storage.files import read_json
from vitlab.storage.metrics import NONE, duration, find, si
from vitlab.storage.run import MOST_DATA, Run

LIBRARIES = {"hf": "transformers", "timm": "timm", "onnx": "onnx", "torch": "pytorch", "safetensors": "vitlab"}
FEW = 20  # classes that are named
SHOWN = ("mean", "std", "crop", "background", "range")
HIDDEN = ("dataset", "system", "tracking")  # of the configuration: paths, and what cannot change a result


def card(run: Run, to: str, code: str, facts: dict[str, Any], checked: str) -> str:
    """The card of a run's model.

    Args:
        run: the run; its neighbours of the same cell give the spread of its results.
        to: the format, of `LIBRARIES`.
        code: Python that loads the model.
        facts: the preprocessing and the class names (`Interface.facts`).
        checked: how the written model was compared with the trained one; a sentence.
    """
    line, config = runs_table.read(run)
    kind = dataset_class(str(runs_table.parse(run.config).get("dataset", {}).get("_target_")))
    classes = [escaped(name) for name in facts["classes"]]
    data, title = str(config.get("dataset", "")), escaped(run.folder.resolve().name)
    height, width = facts["image_size"]
    size = f" of {si(line['parameters'])} parameters" if "parameters" in line else ""
    named = ", ".join(classes[:FEW]) + (f" and {len(classes) - FEW} more" if len(classes) > FEW else "")
    header: Node = {"library_name": LIBRARIES[to], "pipeline_tag": "image-classification"}
    header |= {"tags": ["image-classification", "vision-transformer", "vit", "vitlab"], "metrics": ["accuracy"]}
    return "\n\n".join([
        "---\n" + "\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items()) + "\n---",
        f"# {title}",
        f"A Vision Transformer{size}, trained with vitlab to tell {len(classes)} classes of {escaped(data)} apart in"
        f" images of {height}x{width} pixels ({'grey' if facts['channels'] == 1 else 'colour'}). {escaped(checked)}.",
        "## How to load it",
        f"In this folder, beside an `image.png`:\n```python\n{code}\n```",
        f"It takes {facts['input']}, and gives {facts['output']}. Before that vitlab turns images upright (EXIF),"
        f" {transparency(facts)}, resizes the shorter side (bicubic), and takes {facts['crop']:.4g} of each side around"
        " the center. Of images of another shape other libraries may round that by a pixel.",
        table(["what goes in", "value"], [(key, shown(facts[key])) for key in SHOWN]),
        "## Data",
        table(["data", ""], [
            ("dataset", data),
            ("source", getattr(kind, "citation", "") or NONE),
            ("licence of the images", getattr(kind, "licence", "") or "not known"),
            ("options", ", ".join(options_of(config, kind))),
            ("classes", f"{len(classes)}"),
            *((f"images, {split}", f"{count:,}") for split, count in images(run).items()),
            ("test images", shown(line.get("test_images"))),
        ]),
        f"Classes: {named}.",
        "## Recipe",
        table(["group", "options"], recipe(config)),
        "## Results",
        *results(run, line),
        "## Intended use",
        "Research and teaching: to compare models and recipes, and to classify images like those of its data. It knows"
        f" these {len(classes)} classes alone, gives one of them for any image, and was not measured on images from"
        " elsewhere, for fairness, or against attacks: measure it on your own (`vitlab evaluate RUN dataset=...`)"
        " before you rely on it.",
        "## Licence",
        "The weights have the licence that whoever publishes them gives them; none is stated here. Mind that of the"
        " images, above.",
    ]) + "\n"  # fmt: skip


def dataset_class(target: str) -> type[Dataset] | None:
    """The class of vitlab's dataset of this name; None for any other."""
    target = current_name(target)
    found = locate(target) if target.startswith("vitlab.data.") else None
    return found if isinstance(found, type) and issubclass(found, Dataset) else None


def options_of(config: dict[str, Any], kind: type[Dataset] | None) -> list[str]:
    """The options of the dataset but its paths; those of an unknown class may all be paths."""
    paths = (*kind.path_options, *kind.hashed_paths) if kind else ()
    keys = [key.partition(".")[2] for key in config if key.startswith("dataset.") and kind]
    return [
        f"{key}={config[f'dataset.{key}']}" for key in keys if key not in paths and config[f"dataset.{key}"] is not None
    ]


def transparency(facts: dict[str, Any]) -> str:
    background = facts["background"]
    return "leaves transparency out" if background is None else f"lays transparent pixels over the colour {background}"


def table(heads: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, ["---"] * len(heads), *([escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def shown(value: Any) -> str:
    return NONE if value is None else json.dumps(value)


def images(run: Run) -> dict[str, int]:
    """The images of each split that the dataset itself has, before any is cut from the training images."""
    try:
        splits = read_json(run.data, MOST_DATA)["splits"]
        return {str(name): sum(part["images"].values()) for name, part in splits.items()}
    except (StorageError, KeyError, TypeError, AttributeError):  # earlier runs have none
        return {}


def recipe(config: dict[str, Any]) -> list[tuple[str, str]]:
    """What can change a result, a line a group; options that are null are left out."""
    groups: dict[str, list[str]] = {}
    for key, value in config.items():
        root, _, name = key.partition(".")
        if root in ROOTS - {*HIDDEN} and value is not None and key != "init.weights":
            groups.setdefault(root, []).append(f"{name}={value}" if name else str(value))
    return [(root, ", ".join(options)) for root, options in sorted(groups.items())] + [
        ("seed", shown(config.get("seed")))
    ]


def results(run: Run, line: dict[str, Any]) -> list[str]:
    """The scores of the run, with their spread over the runs beside it that differ by the seed or fold alone."""
    if line.get("status") != "finished":
        return [f"The training is {line.get('status')}: there are no test scores yet."]
    store = runs_table.runs(run.folder.resolve().parent)
    cell = store[store["cell"] == line["cell"]]
    known = [key for key in line if key.startswith(("test/", "val/")) and find(key)]
    found = [compare(cell, metric=name) for name in sorted(known, key=lambda name: name != "test/accuracy")]
    rows = []
    for metric, (row,) in ((each.metric, each.rows) for each in found):
        mean = (mean_sd(row.score, metric), interval(row.score, metric))
        rows.append((metric.heading, metric.cell(line[metric.name]), *mean, row.n))
    return [
        table(["metric", "this run", "mean ± deviation", "95 % interval", "n"], rows),
        f"Mean and standard deviation are over the n {found[0].unit('s')} in the folder of the run. It was trained in"
        f" {duration(line.get('seconds'))} on {escaped(str(line.get('device')))}; validation chose the weights, and the"
        " test images were read once, at the end.",
        "\n".join(f"- {escaped(note)}" for note in found[0].notes),
    ]
