"""The menu: what conf/ offers, read from its files without Hydra."""

import difflib
import json
import re
import shlex
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from vitlab.config.errors import ConfigError
from vitlab.config.own import CURRENT

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


def roots() -> tuple[Path, ...]:
    """The folders that options come from: `conf/`, and the user's own."""
    return (CONF, *CURRENT.get().folders)


@cache
def option_files(folders: tuple[Path, ...]) -> dict[str, dict[str, Path]]:
    """The file of each option, by group; a folder of the user's own is searched in the folders of these groups alone.

    Raises:
        ConfigError: an option of the user's own has the name of one of vitlab's, or is about Hydra itself.
    """
    groups: dict[str, dict[str, Path]] = {}
    for file in sorted(CONF.rglob("*.yaml"), key=natural):
        if file.parent != CONF:
            groups.setdefault(file.parent.relative_to(CONF).as_posix(), {})[file.stem] = file
    for folder in folders:
        found = [(group, file) for group in groups for file in sorted((folder / group).glob("*.yaml"), key=natural)]
        for group, file in found if folder != CONF else ():
            if file.stem in groups[group]:
                raise ConfigError(f"{file}: there is an option {group}={file.stem} already: give it another name")
            groups[group][file.stem] = file
        if not found:
            there = [each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")]
            near = next((hint for name in there if (hint := nearest(name, groups))), "")
            raise ConfigError(
                f"{folder} holds no option: expected GROUP/OPTION.yaml, such as optimizer/mine.yaml{near}"
            )
    for group, options in groups.items():
        for file in options.values():
            if not file.is_relative_to(CONF):
                check_own(file, group, groups)
    return groups


def check_own(file: Path, group: str, groups: dict[str, dict[str, Path]]) -> None:
    """Refuses an option of the user's own that would set something of Hydra's, which runs what it names.

    A defaults list could bring in a file that is no option and was not checked: it may name options alone.

    Raises:
        ConfigError: it does, or it cannot be read.
    """
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        tree = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    lines = [line.strip() for line in text.splitlines()]
    packages = [line.partition("@package")[2].strip() for line in lines if re.match(r"#\s*@", line)]
    known = {"_global_", "_group_", *(group.replace("/", ".") for group in groups)}
    if "hydra" in json.dumps(tree, default=str) or not known.issuperset(packages):
        raise ConfigError(f"{file}: an option may set nothing outside vitlab's groups, such as hydra: leave that out")
    for entry in (tree.get("defaults") or ()) if isinstance(tree, dict) else ():
        if entry != "_self_" and not refers_to(entry, group, groups):
            raise ConfigError(f"{file}: defaults: {entry}: there is no such option: write `- override /GROUP: OPTION`")


def refers_to(entry: Any, group: str, groups: dict[str, dict[str, Path]]) -> bool:
    """Whether an entry of a defaults list names options alone: `override /GROUP: OPTION`, or `OPTION` of its group."""
    if isinstance(entry, dict) and len(entry) == 1:
        ((key, names),) = entry.items()
        path = re.sub(r"^((override|optional)\s+)*", "", str(key))
    else:
        path, _, names = f"./{entry}".rpartition("/") if "/" not in str(entry) else str(entry).rpartition("/")
    place = path.removeprefix("/") if path.startswith("/") else f"{group}/{path}".removesuffix("/.")
    return all(str(name) in groups.get(place, ()) for name in (names if isinstance(names, list) else [names]))


def menu() -> dict[str, dict[str, str]]:
    """Every group, its options, and the first comment of each option's file."""
    return menu_of(roots())


@cache
def menu_of(folders: tuple[Path, ...]) -> dict[str, dict[str, str]]:
    return {
        group: {option: first_comment(file) for option, file in there.items()}
        for group, there in option_files(folders).items()
    }


def first_comment(file: Path) -> str:
    lines = [line for line in file.read_text(encoding="utf-8").split("\n") if not line.startswith("# @package")]
    return lines[0].removeprefix("# ") if lines and lines[0].startswith("#") else ""


def natural(file: Path) -> list[Any]:
    """Sorts p4 before p16."""
    words = re.split(r"(\d+)", str(file.with_suffix("")))
    return [int(word) if word.isdigit() else word for word in words]


def defaults(root: Path = CONF) -> dict[str, str]:
    """The default option of each group."""
    found = {}
    for file, prefix in ((root / "train.yaml", ""), (root / "model" / "vit.yaml", "model/")):
        for group, option in re.findall(r'^  - (\w+): "?(\w+)', file.read_text(encoding="utf-8"), flags=re.MULTILINE):
            found[prefix + group] = option
    return found


def known_keys() -> dict[str, list[tuple[str, str]]]:
    """Every key that some option has, dotted, and the (group, option) pairs that have it."""
    return keys_of(roots())


@cache
def keys_of(folders: tuple[Path, ...]) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {"seed": []}
    for group, there in option_files(folders).items():
        for option, file in there.items():
            text = file.read_text(encoding="utf-8")
            package = re.match(r"# @package (\w+)", text)
            node = package[1] if package else group.replace("/", ".")
            for key in re.findall(r"^([a-z_0-9]+):", text, flags=re.MULTILINE) if group != "experiment" else ():
                if key != "defaults":
                    found.setdefault(f"{node}.{key}", []).append((group, option))
    return found


def options() -> dict[tuple[str, str], str]:
    """The option of a group that makes this class, where only one does and every option of the group has a class."""
    return options_of(roots())


@cache
def options_of(folders: tuple[Path, ...]) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], list[str]] = {}
    for group, there in option_files(folders).items():
        texts = {option: file.read_text(encoding="utf-8") for option, file in there.items()}
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
    if group == "dataset" and Path(option).expanduser().exists():
        at = f"dataset.root={shlex.quote(option)}"
        remedy = f"; for a folder of images dataset=image_folder {at}, with a CSV of labels dataset=image_csv {at}"
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
        "  vitlab train --config-dir FOLDER  options of your own, in a folder like conf/; with --allow PACKAGE",
        "                                    they may name its classes (in every command)",
        "  vitlab train --hydra-help         Hydra's own flags",
        '  eval "$(vitlab train -sc install=bash)"   completion with the tab key',
    ]
    return "\n".join(lines)


SWEEPS = HERE / "sweeps" if (HERE / "sweeps").is_dir() else HERE.parent / "sweeps"  # in a wheel, or in a checkout
