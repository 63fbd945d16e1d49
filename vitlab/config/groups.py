"""The menu: what conf/ offers, read from its files without Hydra."""

import difflib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent.parent
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"  # in a wheel, or in a checkout

# Keys that set the same thing: an override of one sets the others to null.
ALTERNATIVES = (
    ("fit.epochs", "fit.steps", "fit.images"),
    ("schedule.warmup_fraction", "schedule.warmup_epochs", "schedule.warmup_steps"),
)

# Keys of a path or of a free text, whose value is what is typed: `123` and `[1]` too.
TEXTS = {
    *(f"dataset.{key}" for key in ("root", "path", "train", "validation", "test", "cache", "classes_file", "label")),
    *(f"dataset.{key}" for key in ("config", "revision", "image_column", "label_column")),
    *(f"dataset.{split}_split" for split in ("train", "validation", "test")),
    *("init.weights", "init.origin", "system.runs", "system.cache"),
    *(f"tracking.{key}" for key in ("project", "entity", "group", "name", "notes", "sweep")),
}


@cache
def menu(root: Path = CONF) -> dict[str, dict[str, str]]:
    """Every group, its options, and the first comment of each option's file."""
    groups: dict[str, dict[str, str]] = {}
    for file in sorted(root.rglob("*.yaml"), key=natural):
        if file.parent != root:
            lines = file.read_text().split("\n")
            first = lines[1] if lines[0].startswith("# @package") else lines[0]
            groups.setdefault(file.parent.relative_to(root).as_posix(), {})[file.stem] = first.removeprefix("# ")
    return groups


def natural(file: Path) -> list[Any]:
    """Sorts p4 before p16."""
    words = re.split(r"(\d+)", str(file.with_suffix("")))
    return [int(word) if word.isdigit() else word for word in words]


def defaults(root: Path = CONF) -> dict[str, str]:
    """The default option of each group."""
    found = {}
    for file, prefix in ((root / "train.yaml", ""), (root / "model" / "vit.yaml", "model/")):
        for group, option in re.findall(r'^  - (\w+): "?(\w+)', file.read_text(), flags=re.MULTILINE):
            found[prefix + group] = option
    return found


@cache
def known_keys(root: Path = CONF) -> dict[str, list[tuple[str, str]]]:
    """Every key that some option has, dotted, and the (group, option) pairs that have it."""
    found: dict[str, list[tuple[str, str]]] = {"seed": []}
    for group, options in menu(root).items():
        for option in options:
            text = (root / group / f"{option}.yaml").read_text()
            package = re.match(r"# @package (\w+)", text)
            node = package[1] if package else group.replace("/", ".")
            for key in re.findall(r"^([a-z_0-9]+):", text, flags=re.MULTILINE) if group != "experiment" else ():
                if key != "defaults":
                    found.setdefault(f"{node}.{key}", []).append((group, option))
    return found


@cache
def options(root: Path = CONF) -> dict[tuple[str, str], str]:
    """The option of a group that makes this class, where only one does and every option of the group has a class."""
    found: dict[tuple[str, str], list[str]] = {}
    for group, there in menu(root).items():
        texts = {option: (root / group / f"{option}.yaml").read_text() for option in there}
        targets = {option: re.search(r"^_target_: (.*)$", text, flags=re.MULTILINE) for option, text in texts.items()}
        if all(targets.values()):
            for option, target in targets.items():
                found.setdefault((group, target[1] if target else ""), []).append(option)
    return {key: names[0] for key, names in found.items() if len(names) == 1}


def is_known(key: str, known: Iterable[str]) -> bool:
    return any(k == key or k.startswith(f"{key}.") for k in known)


def nearest(word: str, words: Iterable[str]) -> str:
    """', did you mean ...?' where something is near: of the same group first, then of the same name."""
    words, (group, _, name) = list(words), word.rpartition(".")
    beside = {each.removeprefix(f"{group}."): each for each in words if group and each.startswith(f"{group}.")}
    if close := difflib.get_close_matches(name, beside, n=1):
        found = [beside[close[0]]]
    else:
        found = [each for each in words if each.rpartition(".")[2] == name] or difflib.get_close_matches(
            word, words, n=1, cutoff=0.75 if group else 0.5
        )
    return f"; did you mean {found[0]}?" if found else ""


def unknown_option(group: str, option: str, options: Iterable[str]) -> str:
    listed = ", ".join(options)
    remedy = f"; for a size of your own: model.patch={option}" if group == "patch" and option.isdigit() else ""
    if group == "patch" and f"p{option}" in options:
        remedy = f"; did you mean patch=p{option}?"
    return f"{group}={option}: there is no such option; {group} is one of {listed}{remedy or nearest(option, options)}"


def table() -> str:
    """Every group with a choice and its options as a table in Markdown, the default in bold."""
    taken = defaults()
    rows = ["| group | options |", "|--|--|"]
    for group, options in sorted(menu().items(), key=lambda item: item[0].split("/")):
        if len(options) == 1:
            continue
        names = " ".join(f"**{name}**" if taken.get(group) == name else name for name in options)
        rows.append(f"| `{'+' if group == 'experiment' else ''}{group}=` | {names} |")
    return "\n".join(rows)


def help_text() -> str:
    """The menu of groups and options, one line each."""
    lines = [
        "vitlab train [group=option] [key=value] ...   trains one Vision Transformer; with -m one for each combination",
        "",
    ]
    taken = defaults()
    for group, options in sorted(menu().items(), key=lambda item: item[0].split("/")):
        lines.append(f"{'+' if group == 'experiment' else ''}{group}=")
        lines += [f"  {'*' if taken.get(group) == name else ' '} {name:<14} {line}" for name, line in options.items()]
        lines.append("")
    lines += [
        "* is the default.",
        "seed=0, and any key of the options: model.width=96 optimizer.lr=3e-4 fit.epochs=10 dataset.train_examples=500",
        "",
        "  vitlab data, schedule, bench      the same words: what the model is fed, its learning rates, its speed",
        "  vitlab train --cfg job            the whole configuration, not trained",
        "  vitlab train -m patch=p1,p2,p4    one training an option",
        "  vitlab train --hydra-help         Hydra's own flags",
        '  eval "$(vitlab train -sc install=bash)"   completion with the tab key',
    ]
    return "\n".join(lines)


SWEEPS = HERE / "sweeps" if (HERE / "sweeps").is_dir() else HERE.parent / "sweeps"  # in a wheel, or in a checkout
