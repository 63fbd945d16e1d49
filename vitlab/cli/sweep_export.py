"""`vitlab sweep export QUESTION --wandb`: a sweep as Weights & Biases has them, whose agents call `vitlab train`."""

import argparse
import math
from pathlib import Path
from typing import Any

import yaml

from vitlab.cli.exit import DONE
from vitlab.cli.places import check_place
from vitlab.config.errors import ConfigError
from vitlab.config.groups import SWEEPS
from vitlab.config.overrides import key_of
from vitlab.config.own import CURRENT
from vitlab.storage.files import write_whole
from vitlab.storage.metrics import metric
from vitlab.sweep import question
from vitlab.sweep.question import FOLD, Dimension, Question
from vitlab.sweep.reader import find, read

METHODS = {"tpe": "bayes", "random": "random", "sobol": "random", "grid": "grid"}
DISTRIBUTIONS = {"log": "log_uniform_values", "uniform": "uniform", "int": "int_uniform"}


def main(words: list[str]) -> int:
    """Writes the sweep's YAML, and prints how to start an agent."""
    parser = argparse.ArgumentParser(
        prog="vitlab sweep export",
        usage="vitlab sweep export QUESTION --wandb [scale=NAME] [key=value ...] [--project NAME] [--out FILE]",
        description="Writes a sweep as a Weights & Biases sweep. Their runs are those of `vitlab sweep`: what one has"
        " trained, the other finds finished.",
    )
    parser.add_argument("question", help="a sweep file, or the name of one that ships")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--wandb", action="store_true", required=True, help="the only format so far")
    parser.add_argument("--project", default="vitlab", help="of W&B; vitlab")
    parser.add_argument("--out", type=Path, metavar="FILE", help="by default NAME-wandb.yaml")
    options = parser.parse_intermixed_args(words)
    if options.out:
        check_place("--out", options.out)
    scales = [word.partition("=")[2] for word in options.words if word.startswith("scale=")]
    asked = read(find(options.question), scales[-1] if scales else None)
    given = [word for word in options.words if not word.startswith("scale=")]
    written = wandb_sweep(asked, given) | {"project": options.project}
    path = options.out or Path(f"{asked.name}-wandb.yaml")
    text = yaml.safe_dump(written, sort_keys=False, allow_unicode=True)
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
    print(
        f"{path} is written. Start it with\n  wandb sweep {path}\nand on each machine what it prints: wandb agent ..."
    )
    return DONE


def wandb_sweep(asked: Question, words: list[str]) -> dict[str, Any]:
    """A sweep in W&B's schema, which knows no other keys.

    A parameter is a key where the cells are every combination of their values; else one parameter, `cell`, names them.

    Args:
        asked: the question.
        words: overrides of every run.

    Raises:
        ConfigError: a cell that cannot be composed, or starts from what is trained first.
    """
    from vitlab.sweep.plan import plan

    if asked.pretrain:
        raise ConfigError(
            f"{asked.name}: its arms start from {', '.join(asked.pretrain)}, which W&B would not train first"
        )
    cells = plan(asked, words, elsewhere=True).cells
    if len(cut := {cell.folds for cell in cells}) > 1:
        raise ConfigError(f"{asked.name}: its arms have different numbers of folds, of which W&B would try every one")
    folds = {FOLD: {"values": list(asked.folds or range(max(cut)))}} if max(cut) else {}
    by_key = [{key_of(word): word.partition("=")[2] for word in cell.overrides} for cell in cells]
    keys = dict.fromkeys(key for of_cell in by_key for key in of_cell)
    values = {key: list(dict.fromkeys(of_cell.get(key) for of_cell in by_key)) for key in keys}
    varied = {key: found for key, found in values.items() if len(found) > 1}
    product = math.prod(map(len, varied.values())) == len(cells) and all(None not in found for found in varied.values())
    fixed = [word for word in cells[0].overrides if key_of(word) not in varied]
    if asked.search is not None:
        parameters = {each.key: distribution(each) for each in asked.search.space}
    elif product:
        parameters = {key: {"values": [wandb_value(str(value)) for value in found]} for key, found in varied.items()}
    else:  # the question finds its cells again, and says what their runs belong to
        fixed, taken = words, {cell.name for cell in cells}
        name = asked.name if comes_with_vitlab(asked) else str(asked.file)
        name += f"/{asked.scale}" if asked.scale else ""
        names = question.slugs(cell.name for cell in asked.cells(words))
        parameters = {"cell": {"values": [f"{name}/{word}" for word, cell in names.items() if cell in taken]}}
    chosen = metric(asked.metric).per_evaluation
    return {
        "name": asked.name,
        "description": asked.question,
        "method": METHODS[asked.search.method] if asked.search else "grid",
        "metric": {"name": chosen.name, "goal": chosen.goal},
        "command": ["${env}", "vitlab", "train", *CURRENT.get().flags(), *fixed, "${args_no_hyphens}"],
        "parameters": {**parameters, **folds, "seed": {"values": list(asked.seeds)}},
        **({"run_cap": asked.search.trials} if asked.search else {}),
    }


def comes_with_vitlab(asked: Question) -> bool:
    """Whether the question is found by its name anywhere."""
    return asked.file.resolve().is_relative_to(SWEEPS.resolve())


def distribution(of: Dimension) -> dict[str, Any]:
    """One key of a search as W&B has it."""
    if of.kind == "choice":
        return {"values": [wandb_value(value) for value in of.values]}
    low, high = (int(end) if of.kind == "int" else float(end) for end in of.values)
    return {"distribution": DISTRIBUTIONS[of.kind], "min": low, "max": high}


def wandb_value(written: str) -> float | int | str:
    """A value as W&B may draw it: a number where it is one; else the very characters, which its agents type again."""
    for kind in (int, float):
        try:
            number = kind(written)
        except ValueError:
            continue
        return number if math.isfinite(number) else written
    return written
