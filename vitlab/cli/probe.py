"""`vitlab probe RUN`: few-shot, linear and k-NN accuracy of a trained run's frozen features."""

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.cli.exit import DONE, FAILED, print_json, printable
from vitlab.cli.places import free_place
from vitlab.config.errors import ConfigError, StorageError
from vitlab.config.own import command

if TYPE_CHECKING:
    from vitlab.data.dataset import Dataset
    from vitlab.evaluation.load import Trained
    from vitlab.evaluation.probe import Chosen
    from vitlab.evaluation.reevaluate import EvalInputs

DESCRIPTION = """Judges a trained run by its features, frozen: few-shot accuracy as in the paper (regularised least
squares on what stands before the last layer), and if asked logistic regression and nearest neighbours on all training
images, whose one hyper-parameter validation chooses. On the terminal and in RUN/probe.json. With dataset=NAME
dataset.KEY=VALUE ... it is evaluated on another dataset, of any classes. Of its own dataset the few images are training
images: 1-shot then measures how well training has separated the classes."""
MOST = 1000  # draws
SHOTS = (1, 5, 10, 25)  # the paper's


def main(words: list[str]) -> int:
    """`vitlab probe RUN`: few-shot, linear and nearest-neighbour accuracy of a frozen model."""
    parser = argparse.ArgumentParser(prog="vitlab probe", description=DESCRIPTION)
    parser.add_argument("run", help="the run's folder, or weights of another library")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="dataset=NAME", help="another dataset, as for vitlab train"
    )
    parser.add_argument(
        "--shots", metavar="K,K", help="training images a class; those of 1,5,10,25 that every class has"
    )
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="draws of those images; 5")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="what is answered; test")
    parser.add_argument("--linear", action="store_true", help="logistic regression on all training images as well")
    parser.add_argument("--knn", action="store_true", help="the vote of the nearest training images as well")
    parser.add_argument("--l2", type=float, help="of the least squares; 1024, as in the authors' code")
    parser.add_argument("--root", help="where the dataset's files lie now, if they have moved")
    parser.add_argument("--changed-data", action="store_true", help="although images or code have changed since")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps or auto")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images; 0")
    parser.add_argument("--json", action="store_true", help="one JSON document on the standard output, for programs")
    options = parser.parse_intermixed_args(words)
    from vitlab.evaluation import probe
    from vitlab.evaluation.load import load
    from vitlab.evaluation.reevaluate import (
        dataset_from_overrides,
        eval_inputs,
        moved_root,
        training_dataset,
        with_absolute_root,
    )
    from vitlab.storage.foreign import results_folder
    from vitlab.system.contention import WaitPolicy

    folder = Path(options.run)
    shots = SHOTS if options.shots is None else parse_shots(options.shots)
    if not 1 <= options.seeds <= MOST:
        raise ConfigError(f"--seeds {options.seeds}: must be at least 1 and at most {MOST:,}; 5 is usual")
    l2 = probe.L2 if options.l2 is None else options.l2
    if not 0 < l2 < math.inf:
        raise ConfigError(f"--l2 {l2}: must be above 0; the authors' code has 1024")
    if options.workers < 0:
        raise ConfigError(f"--workers {options.workers}: must be at least 0")
    root = moved_root(options.overrides, options.root)
    model, name = load(folder, options.device, classifies=False, changed_data=options.changed_data), ""
    if options.overrides and root is None:
        dataset, name = dataset_from_overrides(options.overrides, trains=True)
    else:
        dataset = training_dataset(folder, root=root, changed_data=options.changed_data)
    source = eval_inputs(folder, model, dataset, external=bool(name), workers=options.workers)
    if dataset.passed_over:
        print(f"vitlab: {printable(dataset.passed_over)}", file=sys.stderr)
    images, least = probe.fewest(source.splits["train"].labels, dataset.classes)
    if options.shots is None and images and (few := tuple(k for k in SHOTS if k <= images)) != SHOTS:
        said = f"--shots {','.join(map(str, few))} of {','.join(map(str, SHOTS))}"
        print(f"vitlab: {said}: class {printable(least)} has {images} training images", file=sys.stderr)
        shots = few
    probe.check(f"--shots {','.join(map(str, shots))}", shots, images, printable(least))

    of = with_absolute_root(options.overrides) if name else "of the run"
    named = "-".join(["probe", *[word for word in (name, options.split) if word not in ("", "test")]])
    file = results_folder(folder) / f"{named}.json"
    file = free_place(file, of, options.split) if name else file
    probing = Probing(model=model, source=source, dataset=dataset)
    with WaitPolicy():
        found = probing.probe(shots, options.seeds, options.split, l2, linear=options.linear, knn=options.knn)
    table = {"run": str(folder), "dataset": of, **found}
    if options.json:
        print_json({**table, "file": str(file)})
    else:
        print("\n".join(format_table(table)))
    from vitlab.storage.files import make_folder, write_json

    try:
        make_folder(file.parent)
        write_json(file, table)
    except StorageError as error:
        print(f"vitlab: {printable(error)}; the numbers are above", file=sys.stderr)
        return FAILED
    if not options.json:
        print(f"file        {printable(file)}")
        more = [flag for flag, asked in (("--linear", options.linear), ("--knn", options.knn)) if not asked]
        again = command("probe", printable(folder), *map(printable, options.overrides), *more)
        print(f"next        {again if more else command('evaluate', printable(folder))}")
    return DONE


def parse_shots(text: str) -> tuple[int, ...]:
    """The numbers of `1,5,10`.

    Raises:
        ConfigError: they are none, or cannot be shots.
    """
    from vitlab.evaluation import probe

    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(f"--shots {text}: expected whole numbers with commas, such as 1,5,10,25") from None
    probe.check(f"--shots {text}", found)
    return found


@dataclass(frozen=True, kw_only=True)
class Probing:
    """A run's model, and the dataset that it is evaluated on."""

    model: "Trained"
    source: "EvalInputs"
    dataset: "Dataset"

    def features(self, examples: Any) -> Any:
        from vitlab.evaluation import probe
        from vitlab.model.objective import TrainingModel

        source = self.source
        return probe.features(TrainingModel(self.model.model), source.batches(examples), source.dist, source.precision)

    def probe(
        self, shots: tuple[int, ...], draws: int, split: str, l2: float, *, linear: bool, knn: bool
    ) -> dict[str, Any]:
        """Everything that was asked for, as JSON has it; each split's features are computed once.

        Args:
            shots: images a class.
            draws: of each number of them.
            split: whose images are answered.
            l2: of the least squares.
            linear: whether logistic regression is asked for; reads all training and validation images.
            knn: the same of nearest neighbours.
        """
        from vitlab.evaluation import probe

        began, parts = time.perf_counter(), self.source.splits
        train, classes = parts["train"], len(self.dataset.classes)
        drawn = probe.draw(train.labels, classes, max(shots), draws)
        read = {split: self.features(parts[split])}
        if linear or knn:
            read["train"] = self.features(train)
            read["validation"] = read.get("validation") or self.features(parts["validation"])
            support = read["train"].values[drawn]
        else:
            support = self.features(train.take(drawn.ravel())).values.reshape(*drawn.shape, -1)
        reading = time.perf_counter() - began
        scores = probe.few_shot(support, read[split], shots, l2)
        table: dict[str, Any] = {
            "split": split,
            "images": len(parts[split]),
            "training_images": len(train),
            "classes": classes,
            "width": int(support.shape[-1]),
            "precision": self.source.precision,
            "l2": l2,
            "few_shot": [
                {"shots": k, "accuracy": sum(each) / len(each), "std": probe.standard_deviation(each), "draws": each}
                for k, each in scores.items()
            ],
        }
        for key, asked, method in (("linear", linear, probe.linear), ("knn", knn, probe.neighbours)):
            if asked:
                table[key] = as_json(method(read["train"], read["validation"]), read[split])
        return table | {"seconds": {"features": reading, "all": time.perf_counter() - began}}


def as_json(chosen: "Chosen", test: Any) -> dict[str, float]:
    return {"value": chosen.value, "validation": chosen.validation, "accuracy": chosen.accuracy(test)}


def format_table(table: dict[str, Any]) -> list[str]:
    """The probes as a table, an accuracy a line."""
    few, split = table["few_shot"], table["split"]
    draws, took = len(few[0]["draws"]), table["seconds"]
    found = [f"{split:<11} accuracy      ({table['images']:,} images, {table['width']} features, frozen)"]
    for row in few:
        sd = "" if row["std"] is None else f" ± {100 * row['std']:.2f}"
        found.append(f"{row['shots']:>2}-shot{'':<4} {100 * row['accuracy']:6.2f}{sd} %")
    found[1] += (
        f"  (mean ± standard deviation of {draws} draws of the images)" if draws > 1 else "  (1 draw of the images)"
    )
    for key, name, letter in (("linear", "linear", "C"), ("knn", "k-NN", "k")):
        if key in table:
            chosen = table[key]
            where = "here" if split == "validation" else f"on validation, {chosen['validation']:.2%} there"
            how = f"{letter}={chosen['value']:g}, chosen {where}; {table['training_images']:,} training images"
            found.append(f"{name:<11} {100 * chosen['accuracy']:6.2f} %  ({how})")
    return [*found, f"time        {took['features']:.1f} s for the features, {took['all']:.1f} s in all"]
