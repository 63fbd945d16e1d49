"""`vitlab inspect RUN [IMAGE ...]`: what a trained model looks at and has learned, in figures."""

import argparse
import csv
import re
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.cli.exit import DONE, FAILED, print_json, printable
from vitlab.config.errors import ConfigError
from vitlab.config.own import command

if TYPE_CHECKING:
    from vitlab.evaluation.inspection import Inspection
    from vitlab.evaluation.inspection_contents import Part
    from vitlab.evaluation.load import Trained

DESCRIPTION = """Looks into a trained run: attention of the class token (or of what is pooled) by layer and head, and
its rollout over images; attention distance and entropy; similarity of positions; filters of the patch projection; norm,
rank and CKA of the tokens by depth. In RUN/inspection/: a page, index.html, and each figure as PNG, SVG and CSV.
The images are test images of the run, evenly spaced, or those given. In fp32, a few images at a time."""
IMAGES = 128  # the paper's, of its figure 11
BESIDE = 12  # runs
SHOWN, CLOSELY = 24, 3  # images with their rollout, and those with the attention of each layer and head
RECORD, KINDS = "inspection.json", ("png", "svg", "csv")
FOLDER = "inspection"


def main(words: list[str]) -> int:
    """`vitlab inspect RUN [IMAGE ...]`: figures of a trained model's attention, positions, filters and tokens."""
    parser = argparse.ArgumentParser(prog="vitlab inspect", description=DESCRIPTION)
    parser.add_argument("run", type=Path, help="the run's folder, or weights of another library")
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="image files, folders and globs; test images of the run"
    )
    parser.add_argument(
        "--compare", nargs="+", type=Path, default=[], metavar="RUN", help="other runs, beside it and on one scale"
    )
    parser.add_argument(
        "--at", metavar="ROW,COLUMN", help="look from this patch, counted from 0,0, instead of the class token or pool"
    )
    parser.add_argument("--images", dest="count", type=int, metavar="N", help=f"how many test images; {IMAGES}")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="where the files go; RUN/inspection")
    parser.add_argument("--root", help="where the dataset's files lie now, if they have moved")
    parser.add_argument("--changed-data", action="store_true", help="although images or code have changed since")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps or auto")
    parser.add_argument("--wandb", action="store_true", help="the figures to the run in Weights & Biases as well")
    parser.add_argument("--json", action="store_true", help="one JSON document on the standard output, for programs")
    options = parser.parse_intermixed_args(words)
    at = parse_place(options.at) if options.at is not None else None
    if options.count is not None and (options.images or options.count < 1):
        why = "for test images, and images are given: leave it out" if options.images else "must be at least 1"
        raise ConfigError(f"--images {options.count}: {why}")
    if options.images and options.root is not None:
        raise ConfigError(f"--root {options.root} is for test images of the run, and images are given: leave it out")
    from vitlab.storage.foreign import results_folder

    place: Path = options.save or results_folder(options.run) / FOLDER
    earlier = check_folder(place)
    send = WandbSender(options.run, int(earlier.get("wandb_step") or 0)) if options.wandb else None

    from tqdm import tqdm

    from vitlab.evaluation.inspection import inspect
    from vitlab.evaluation.inspection_contents import contents
    from vitlab.evaluation.load import load
    from vitlab.system.contention import WaitPolicy

    names = name_runs([options.run, *options.compare])
    models = {
        name: load(folder, options.device, classifies=False, changed_data=options.changed_data)
        for folder, name in names.items()
    }
    used, read, lost = images_of(options, next(iter(models.values())))
    with (
        WaitPolicy(),
        tqdm(
            total=len(used) * len(models),
            unit="image",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            leave=False,
        ) as bar,
    ):
        runs = [
            inspect(name, model, len(used), read, at=at, shown=SHOWN, closely=CLOSELY, progress=bar.update)
            for name, model in models.items()
        ]
    parts = contents(runs)
    made = facts(options, runs, used) | ({"wandb_step": send.step} if send else {})
    written = write(place, parts, runs, made, earlier)
    if send:
        send({f"inspection/{part.key}": place / f"{part.key}.png" for part in parts})
    if options.json:
        print_json(written)
    else:
        files = f"files       {printable(place)}/  index.html, and png, svg and csv of each figure:"
        print("\n".join([*format_runs(runs), files, f"            {'  '.join(part.key for part in parts)}"]))
    return FAILED if lost else DONE


def parse_place(text: str) -> tuple[int, int]:
    """The row and the column of `3,5`.

    Raises:
        ConfigError: it is no such pair.
    """
    if not (found := re.fullmatch(r"(\d{1,6}),(\d{1,6})", text)):
        raise ConfigError(f"--at {text}: expected the row and the column of a patch, counted from 0, such as 0,3")
    return int(found[1]), int(found[2])


def check_folder(place: Path) -> dict[str, Any]:
    """The record of an earlier inspection in a folder; empty where there is none.

    Raises:
        ConfigError: it holds something else, or is a link, or none can be there.
        StorageError: the record is damaged.
    """
    from vitlab.storage.files import read_json

    if place.is_symlink():
        raise ConfigError(f"{place} is a link, and what is written there would go elsewhere: remove it")
    if place.exists() and not place.is_dir():
        raise ConfigError(f"--save {place}: it is a file: give a folder")
    if (place / RECORD).is_file():
        return read_json(place / RECORD)
    if place.is_dir() and any(place.iterdir()):
        raise ConfigError(f"{place} holds other files than those of vitlab inspect: give another, --save FOLDER")
    return {}


class WandbSender:
    """Sends pictures to the W&B run of a finished run, at a step after its last one.

    Args:
        folder: of the run.
        before: the step of an earlier inspection.

    Raises:
        ConfigError: the run is not tracked, or cannot be here.
    """

    def __init__(self, folder: Path, before: int):
        from vitlab.config.build import build
        from vitlab.config.check import check
        from vitlab.evaluation.untrusted import read_config
        from vitlab.storage.run import Run

        self.run, ours = Run(folder), ("vitlab.tracking.",)
        self.config = read_config(self.run)
        self.tracking = build(check(self.config.get("tracking") or {}, "tracking", ours), ours)
        if getattr(self.tracking, "mode", "off") == "off":
            raise ConfigError(f"--wandb: {folder} was trained with tracking=off, and has no run in Weights & Biases")
        rows = self.run.rows()  # after the last one come the validation media
        self.step = max(before + 1, (int(rows[-1]["step"]) if rows else 0) + 2)

    def __call__(self, pictures: dict[str, Path]) -> None:
        from vitlab.tracking.wandb_mirror import Mirror

        mirror = Mirror(self.tracking, self.run, self.config)
        mirror.row({"step": self.step, **pictures})
        mirror.finish({})


def name_runs(folders: Sequence[Path]) -> dict[Path, str]:
    """The runs, each once, with names that say how they differ, or else those of their folders.

    Raises:
        ConfigError: one is not a run, or they are too many.
    """
    from vitlab.evaluation.untrusted import read_config
    from vitlab.storage.foreign import is_foreign
    from vitlab.storage.run import Run
    from vitlab.storage.runs_table import flatten

    folders = list({folder.resolve(): folder for folder in folders}.values())
    if len(folders) > BESIDE:
        raise ConfigError(f"--compare: {len(folders)} runs in all: a figure has room for {BESIDE}: leave some out")
    configs = [{} if is_foreign(folder) else dict(flatten(read_config(Run(folder)))) for folder in folders]
    keys = dict.fromkeys(key for config in configs for key in config if not key.startswith(("system.", "tracking.")))
    varied = [key for key in keys if len({str(config.get(key)) for config in configs}) > 1]
    varied = [key for key in varied if key.rpartition(".")[0] not in varied]  # another option has other keys
    named = [", ".join(f"{key}={config[key]}" for key in varied if key in config) for config in configs]
    if len(folders) == 1 or len(set(named)) < len(named) or max(map(len, named)) > 60 or not all(named):
        named = [str(folder) if len({f.name for f in folders}) < len(folders) else folder.name for folder in folders]
    return {folder: printable(name) for folder, name in zip(folders, named, strict=True)}


def images_of(options: argparse.Namespace, model: "Trained") -> tuple[list[Any], "Callable[[int], Any]", bool]:
    """The images that are looked at, what reads one of them by its number, and whether some could not be read.

    Raises:
        ConfigError: there is none.
    """
    if not options.images:
        import numpy as np

        from vitlab.evaluation.reevaluate import training_dataset

        dataset = training_dataset(options.run, root=options.root, changed_data=options.changed_data)
        test = dataset.splits(model.preprocess.decoding)["test"]
        chosen = test.sample(options.count or IMAGES)
        used = np.random.default_rng(0).permutation(chosen).tolist()  # the first ones, which are shown, of all classes
        return used, lambda number: test.image(used[number]), False
    from vitlab.data.datasets.listing import PassedOver
    from vitlab.data.examples import ignore_pillow_warnings
    from vitlab.evaluation.predict import find, load_image

    passed = PassedOver()
    paths, missing = find(options.images, passed)
    if passed:
        print(f"vitlab: passed over {printable(passed)}", file=sys.stderr)
    faults = dict.fromkeys(missing, "there is no image")
    with ignore_pillow_warnings():
        for path in paths:
            if isinstance(found := load_image(model, path, copy=False), str):
                faults[str(path)] = found
    for name, fault in faults.items():
        print(f"vitlab: {printable(name)}: {printable(fault)}", file=sys.stderr)
    readable = [path for path in paths if str(path) not in faults]
    if not readable:
        raise ConfigError("there is no image to look at: give image files, folders of them, or globs, or none of them")
    return readable, lambda number: readable[number], bool(faults)


def facts(options: argparse.Namespace, runs: "Sequence[Inspection]", used: Sequence[Any]) -> dict[str, Any]:
    """How an inspection was made, as JSON has it."""
    words = [options.run, *options.images, *(["--compare", *options.compare] if options.compare else [])]
    words += [f"--{key}={value}" for key in ("at", "save", "root") if (value := getattr(options, key)) is not None]
    words += [f"--images={options.count}"] if options.count is not None else []
    return {
        "command": command("inspect", *map(printable, words)),
        "runs": [str(folder) for folder in (options.run, *options.compare)],
        "images": [str(each) for each in used] if options.images else f"{len(used)} test images, evenly spaced",
        "seen from": {run.name: run.read for run in runs if run.rollout is not None},
        "not drawn": {run.name: run.missing for run in runs if run.missing},
    }


def format_runs(runs: "Sequence[Inspection]") -> list[str]:
    """What is said on the terminal: a few numbers of each run, and what it has no figure of."""
    lines = []
    for run in runs:
        lines.append(f"run         {run.name}")
        size = f"{run.grid.height} x {run.grid.width} patches of {run.pixels[0]:g} x {run.pixels[1]:g} pixels"
        lines.append(f"images      {run.images:,}, {size}; from {run.read}" if run.rollout is not None
                     else f"images      {run.images:,}, {size}")  # fmt: skip
        if run.distance is not None and run.entropy is not None:
            first, last = (float(run.distance[layer].mean()) for layer in (0, -1))
            uniform = f" (uniform {run.uniform:.3g})" if run.uniform is not None else ""
            lines.append(f"distance    {first:.3g} pixels in the first layer, {last:.3g} in the last{uniform}")
        if "rank" not in run.missing:
            lines.append(f"rank        {run.rank[0]:.3g} before the first block, {run.rank[-1]:.3g} after the last")
        lines += [f"no figure   {', '.join(keys)}: {why}" for why, keys in run.reasons().items()]
    return lines


def write(
    folder: Path,
    parts: "Sequence[Part]",
    runs: "Sequence[Inspection]",
    made: dict[str, Any],
    earlier: dict[str, Any],
) -> dict[str, Any]:
    """Writes figures, tables, the page and the record into a folder; those of an earlier inspection go.

    Returns:
        The record.

    Raises:
        StorageError: the folder cannot be written.
    """
    from matplotlib import rc_context

    from vitlab.plotting import STYLE, save_one
    from vitlab.report.inspection import Drawn, page
    from vitlab.storage.files import file_errors, make_folder, write_json, write_whole

    make_folder(folder)
    record = {**made, "figures": [part.key for part in parts], "files": str(folder)}
    for key, kind in product(map(str, earlier.get("figures") or ()), KINDS):
        if re.fullmatch(r"[\w-]+", key):
            with file_errors(folder, "written", "give another folder, --save FOLDER"):
                (folder / f"{key}.{kind}").unlink(missing_ok=True)
    write_json(folder / RECORD, record)
    drawn = []
    for part in parts:
        with rc_context(STYLE):
            figure = part.draw()
        save_one(figure, folder / f"{part.key}.png")
        svg = save_one(figure, folder / f"{part.key}.svg").read_text(encoding="utf-8")
        drawn.append(Drawn(part.key, part.title, part.caption, svg))

        def rows(path: Path, part: "Part" = part) -> None:
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(part.header)
                writer.writerows(part.rows())

        write_whole(folder / f"{part.key}.csv", rows)
    from vitlab.evaluation.inspection_contents import COUNTED

    names = " and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    lines = [f"{run.name}: {', '.join(keys)}: {why}." for run in runs for why, keys in run.reasons().items()]
    said = {key: value if isinstance(value, str) else "\n".join(map(str, value)) for key, value in made.items()
            if key in ("command", "runs", "images")}  # fmt: skip
    text = page(f"Inside {names}", COUNTED, drawn, lines, said)
    write_whole(folder / "index.html", lambda path: path.write_text(text, encoding="utf-8"))
    return record
