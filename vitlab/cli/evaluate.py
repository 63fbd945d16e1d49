"""`vitlab evaluate RUN`: a trained run measured again, in numbers and pictures."""

import argparse
import csv
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.cli.exit import DONE, FAILED, print_json, printable
from vitlab.cli.places import free_place
from vitlab.config.errors import ConfigError, StorageError
from vitlab.storage.metrics import NONE, metric

if TYPE_CHECKING:
    from vitlab.evaluation.classification import ClassificationReport
    from vitlab.evaluation.reevaluate import Measured

DESCRIPTION = """Measures a trained run again: accuracy, classes, confusions, calibration and the worst mistakes, on the
terminal and in RUN/evaluation/. With dataset=NAME dataset.KEY=VALUE ... it is measured on another dataset of the same
classes, or some of them: on its test split, or where it has none, or with --split all, on all its images."""
FEW = 5  # confusions on the terminal
LISTED = 20  # the most classes that have a line on the terminal
WORST = 24  # mistakes in the picture


def main(words: list[str]) -> int:
    """`vitlab evaluate RUN`: the accuracy of a trained run, measured again, with its details."""
    parser = argparse.ArgumentParser(prog="vitlab evaluate", description=DESCRIPTION)
    parser.add_argument("run", help="the run's folder, or weights of another library")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="dataset=NAME", help="another dataset, as for vitlab train"
    )
    parser.add_argument(
        "--split",
        choices=("validation", "test", "both", "all"),
        help="of the run's own dataset both (default), validation or test; of another test (default), validation, both"
        " or all, its training images among them (default where there is no test split)",
    )
    parser.add_argument("--root", help="where the dataset's files lie now, if they have moved")
    parser.add_argument("--changed-data", action="store_true", help="although images or code have changed since")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps or auto")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images; 0")
    parser.add_argument("--json", action="store_true", help="one JSON document on the standard output, for programs")
    options = parser.parse_intermixed_args(words)
    from vitlab.evaluation.load import load
    from vitlab.evaluation.reevaluate import (
        dataset_from_overrides,
        measure,
        moved_root,
        training_dataset,
        with_absolute_root,
    )
    from vitlab.evaluation.untrusted import recorded
    from vitlab.storage.foreign import results_folder
    from vitlab.storage.run import Run
    from vitlab.system.contention import WaitPolicy

    run, name = Run(Path(options.run)), ""
    if options.workers < 0:
        raise ConfigError(f"--workers {options.workers}: must be at least 0")
    root, place = moved_root(options.overrides, options.root), results_folder(run.folder) / "evaluation"
    if place.is_symlink() or (place := place / "validation").is_symlink():
        raise ConfigError(f"{place} is a link, and what is written there would go elsewhere: remove it")
    model = load(run.folder, options.device, changed_data=options.changed_data)
    if options.overrides and root is None:
        dataset, name = dataset_from_overrides(options.overrides)
    else:
        dataset = training_dataset(run.folder, root=root, changed_data=options.changed_data)
    split = options.split or ("" if name else "both")
    splits = ("validation", "test") if split == "both" else (split,) if split else None
    with WaitPolicy():
        found = measure(run.folder, model, dataset, splits, external=bool(name), workers=options.workers)
    before, split = {} if name else recorded(run), list(found)[-1]
    of = with_absolute_root(options.overrides) if name else "of the run"
    folder = results_folder(run.folder) / "evaluation"
    if name or split == "validation":
        folder = folder / (name or split)
    folder = free_place(folder, of, split) if name else folder
    if dataset.passed_over:
        print(f"vitlab: {printable(dataset.passed_over)}", file=sys.stderr)

    facts: dict[str, Any] = {"run": str(run.folder), "dataset": of}
    tables = {key: {"loss": part.scores["loss"], **part.report.as_dict()} for key, part in found.items()}
    if options.json:
        print_json({**facts, **tables, "files": str(folder)})
    else:
        print("\n".join(format_scores(split, part.scores, None if name else before) for split, part in found.items()))
        described = [describe_images(split, found[split])] if name else []
        print("\n".join(["", *described, *format_report(split, found[split].report)]))
    try:
        written = write(folder, split, found[split], {**facts, "split": split, **tables[split]})
    except StorageError as error:
        print(f"vitlab: {printable(error)}; the numbers are above", file=sys.stderr)
        return FAILED
    if not options.json:
        print(f"files       {printable(folder)}/  {'  '.join(written)}")
    return DONE


def format_scores(split: str, scores: dict[str, float], before: dict[str, Any] | None) -> str:
    """A split's scores, and whether the run recorded the same ones; `before` is its result.json, if it has one."""
    text = f"{split:<11} accuracy {scores['accuracy']:.6f}  loss {scores['loss']:.6f}"
    if before is None:
        return text
    same = scores["accuracy"] == before.get(f"{'val' if split == 'validation' else split}/accuracy")
    return f"{text}  ({'as' if same else 'not as'} recorded)"


def describe_images(split: str, part: "Measured") -> str:
    """Which images of another dataset were measured."""
    report, rest = part.report, part.total - len(part.report.labels)
    which = "all images" if split == "all" else f"the {split} split"
    count = f"{len(report.labels):,}" + (f" of {part.total:,} (--split all measures all)" if rest else "")
    classes, there = report.classes, [name for name, n in zip(report.classes, report.examples, strict=True) if n]
    if len(there) == len(classes):
        return f"images      {which}: {count}, of all {len(classes)} classes"
    named = ", ".join(there[:FEW]) + (", ..." if len(there) > FEW else "")
    some = f"{len(there)} of the run's {len(classes)} classes {'is' if len(there) == 1 else 'are'} in it ({named})"
    return printable(f"images      {which}: {count}; {some}")


def format_report(split: str, report: "ClassificationReport") -> list[str]:
    """The interval, the means over the classes, the calibration error, and the hardest classes of a split."""
    low, high = report.interval
    share = f"{low:.2%} to {high:.2%}"
    images = f"{len(report.labels):,}{'' if split == 'all' else f' {split}'} images"
    lines = [f"interval    {share}  (95 % confidence interval of the accuracy, from {images})"]
    if report.top5 is not None:
        lines.append(f"top-5       {report.top5:.2%}")
    averages = [(metric(f"test/{name}"), value) for name, value in report.averages.items()]
    lines.append("by class    " + ", ".join(f"{of.words.removeprefix('test ')} {of.format(v)}" for of, v in averages))
    lines.append(f"ECE         {report.ece:.2%}  (calibration error; 0 is best)")
    accuracies, examples = report.per_class, report.examples
    if hard := [i for i in report.hardest(FEW) if accuracies[i] < 1]:
        if len(report.classes) > LISTED:
            each = (f"{report.classes[i]} {accuracies[i]:.1%} of {examples[i]:,}" for i in hard)
            lines.append("hardest     " + ", ".join(each))
        pairs = (f"{pair.true} taken for {pair.predicted} ({pair.examples:,})" for pair in report.confusions(FEW))
        lines.append("confused    " + ", ".join(pairs))
    if len(report.classes) > LISTED:
        lines.append(f"classes     precision, recall and F1 of each of {len(report.classes):,} are in {split}.json")
    else:
        lines += format_classes(report)
    return [printable(line) for line in lines]


def format_classes(report: "ClassificationReport") -> list[str]:
    """A table of precision, recall and F1 of each class, those with the most images first."""
    keys = ("precision", "recall", "f1")
    wide = max(12, *(len(name) + 2 for name in report.classes))
    lines = ["", f"{'class':<{wide}}{'images':>10}" + "".join(f"{key.replace('f1', 'F1'):>12}" for key in keys)]
    for row in sorted(report.class_rows, key=lambda row: -row["images"]):
        cells = (NONE if row[key] is None else f"{row[key]:.2%}" for key in keys)
        lines.append(f"{row['class']:<{wide}}{row['images']:>10,}" + "".join(f"{cell:>12}" for cell in cells))
    return [*lines, ""]


def write(folder: Path, split: str, part: "Measured", table: dict[str, Any]) -> list[str]:
    """Writes the report of a split into a folder; returns the names of the files."""
    from vitlab.evaluation import pictures
    from vitlab.plotting import save
    from vitlab.storage.files import make_folder, write_json, write_whole

    names = tuple(printable(name) for name in part.report.classes)
    report, title = replace(part.report, classes=names), printable(f"{table['run']}, {split}")
    make_folder(folder)
    write_json(folder / f"{split}.json", table)

    def rows(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["true class (rows), predicted class (columns)", *report.classes])
            writer.writerows([name, *row] for name, row in zip(report.classes, report.confusion.tolist(), strict=True))

    write_whole(folder / "confusion.csv", rows)
    save(pictures.confusion(report, title), folder / "confusion.png")
    save(pictures.calibration(report, title), folder / "calibration.png")
    written = [f"{split}.json", "confusion.csv", "confusion.png", "calibration.png"]
    worst = report.mistakes(WORST)
    if not worst:
        (folder / "mistakes.png").unlink(missing_ok=True)  # of weights that were there before
        return written
    title = f"{title}: wrong predictions with the highest probability"
    images = [pictures.small(part.examples.image(mistake.index)) for mistake in worst]
    save(pictures.mistakes(images, worst, title), folder / "mistakes.png")
    return [*written, "mistakes.png"]
