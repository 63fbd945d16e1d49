"""A sweep file read and checked, with the line of each mistake.

By hand: pydantic was tried, and with the same messages saves one line in twenty.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import yaml

from vitlab.config.errors import ConfigError, SweepError, SweepFileError
from vitlab.config.groups import SWEEPS, is_known, known_keys, nearest
from vitlab.config.moved import current_key
from vitlab.config.overrides import key_of, merged, quoted, several, unpacked
from vitlab.config.own import add_folder, command
from vitlab.storage.files import file_errors, read_text
from vitlab.storage.metrics import COSTS, metric
from vitlab.sweep.question import (
    BASELINE,
    FOLD,
    PRETRAIN,
    Cell,
    Dimension,
    Expect,
    Question,
    Search,
    fits,
    slugs,
    source_of,
)


def cell(given: str) -> tuple[Question, Cell]:
    """The cell of `SWEEP/ARM` or `SWEEP/SCALE/ARM`; an arm is given by its name's slug.

    Raises:
        SweepError: there is none.
    """
    name, _, arm = given.rpartition("/")
    try:
        asked = read(find(name))
    except SweepFileError:
        raise
    except SweepError as error:
        sweep, _, scale = name.rpartition("/")
        if not sweep:
            raise SweepError(f"cell={given}: expected SWEEP/ARM or SWEEP/SCALE/ARM; {error}") from error
        asked = read(find(sweep), scale)
    cells = {each.name: each for each in asked.cells()}
    words = slugs(cells)
    if (found := words.get(arm)) is None:
        raise SweepError(
            f"cell={given}: {asked.name} has no cell {arm!r}{nearest(arm, words)} (there are {', '.join(words)})"
        )
    if (source := source_of(cells[found].overrides)) is not None:
        raise SweepError(
            f"cell={given} starts from {PRETRAIN}{source}, which the sweep trains before it:"
            f" {command('sweep', asked.name)}"
        )
    return asked, cells[found]


@file_errors()
def find(name: str) -> Path:
    """The sweep file of this path or name.

    Raises:
        SweepError: there is none, or several.
    """
    if (file := Path(name).expanduser()).is_file():
        return file
    there = sorted(SWEEPS.rglob("*.yaml"))
    found = [file for file in there if name in (file.stem, file.relative_to(SWEEPS).with_suffix("").as_posix())]
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(file.relative_to(SWEEPS).with_suffix("").as_posix() for file in found)
        raise SweepError(f"{name}: several sweeps are called that: say {names}")
    near = nearest(name, [file.stem for file in there])
    listed = ", ".join(file.stem for file in there)
    raise SweepError(f"{name}: there is no such file, and no sweep of that name{near} (there are {listed})")


def read(file: Path, scale: str | None = None) -> Question:
    """Reads a sweep file at one of its scales.

    Args:
        file: YAML.
        scale: name of the scale; None is the first of the file.

    Raises:
        SweepFileError: what is wrong, with its line.
    """
    reader = Reader(file)
    top = reader.mapping(reader.tree, "", (*KEYS, "baseline", "scale", "question", "source", "config_dir"))
    if "config_dir" in top:
        add_folder(file.parent / Path(reader.text(top["config_dir"], "config_dir")).expanduser())
    if "question" not in top:
        raise reader.wrong("", "question is missing: say in a sentence what is asked")
    scales = reader.mapping(top["scale"], "scale") if "scale" in top else {}
    if scale is not None and scale not in scales:
        raise SweepFileError(f"{file}: there is no scale {scale!r}; there is {', '.join(scales) or 'none'}")
    chosen = scale or next(iter(scales), "")
    more = (
        reader.mapping(scales[chosen], f"scale.{chosen}", (*KEYS, "baseline", "overrides", "duration"))
        if chosen
        else {}
    )
    at = {key: f"scale.{chosen}.{key}" if key in more else key for key in (*top, *more)}
    given = {**top, **more}

    def take(key: str, kind: Callable[..., Any], default: Any) -> Any:
        return kind(given[key], at[key]) if key in given else default

    axes, folds = take("axes", reader.axes, {}), take("folds", reader.folds, ())
    chosen_folds = axes.pop(FOLD, None)  # an axis of folds is one of repetitions
    found = Question(
        file=file,
        question=take("question", reader.text, ""),
        source=take("source", reader.text, ""),
        baseline=merged(take("baseline", reader.overrides, ()), take("overrides", reader.overrides, ()), folds),
        arms=take("arms", reader.arms, {}),
        pretrain=take("pretrain", reader.arms, {}),
        axes=axes,
        seeds=take("seeds", reader.seeds, (0, 1, 2)),
        folds=chosen_folds and tuple(reader.number(fold, f"{at['axes']}.{FOLD}", int) for fold in chosen_folds),
        metric=take("metric", reader.metric, "test/accuracy"),
        x=take("x", reader.axis, None),
        series=take("series", reader.series, {}),
        expect=take("expect", reader.expect, Expect()),
        margin=take("margin", reader.margin, None),
        search=take("search", reader.search, None),
        scale=chosen,
        duration=take("duration", reader.text, ""),
        lines={key.removeprefix(f"scale.{chosen}."): line for key, line in sorted(reader.lines.items())},
    )
    if not (
        found.arms or found.axes or found.search or folds or chosen_folds or ("seeds" in given and len(found.seeds) > 1)
    ):
        raise reader.wrong("", "nothing varies: give arms, axes, a search, folds, or several seeds")
    names = {cell.arm for cell in found.cells()}
    for name in found.expect.numbers:
        if name not in names:
            raise reader.wrong(at["expect"], f"expect.numbers: there is no arm {name!r}{nearest(name, names)}")
    if found.series and found.axes:
        raise reader.wrong(at["series"], "series: where there are axes, every arm is a series already: leave it out")
    there = [*(found.arms or names)]
    for name, arms in found.series.items():
        for arm in arms:
            if not any(fits(arm, each) for each in there):
                raise reader.wrong(
                    f"{at['series']}.{name}", f"series.{name}: there is no arm {arm!r}{nearest(arm, there)}"
                )
    for arm in there:
        if len(of := [name for name, arms in found.series.items() if any(fits(each, arm) for each in arms)]) > 1:
            raise reader.wrong(at["series"], f"series: {arm} is of {' and of '.join(of)}: an arm is of one series")
    if found.search and (found.pretrain or len(names) < len(found.cells())):
        raise reader.wrong(at["search"], "search: it goes with neither pretrain nor overrides of several values")
    several = found.search or found.pretrain or folds or chosen_folds or len(names) < len(found.cells())
    if not found.trains and several:
        raise reader.wrong(at["metric"], f"metric: {found.metric}: nothing is trained for it, so nothing can be chosen")
    for cell in found.cells():
        if (name := source_of(cell.overrides)) is not None and name not in found.pretrain:
            there = f"; there is {', '.join(found.pretrain)}" if found.pretrain else ""
            raise SweepFileError(f"{file}, line {cell.line}: init={PRETRAIN}{name}: there is no pretrain.{name}{there}")
    return found


KEYS = ("arms", "pretrain", "axes", "seeds", "folds", "metric", "x", "series", "expect", "margin", "search")


OLD_KEYS = {"first": "pretrain", "takes": "duration", "says": "finding", "of": "setting"}  # as first released -> now
HAVE_KEYS = re.compile(r"(scale\.[^.]+)?(^|\.|$)(expect)?")  # the paths under which those stand


def inside(path: str, key: yaml.Node) -> str:
    """The path of a key, by its present name."""
    name = OLD_KEYS.get(str(key.value), str(key.value)) if HAVE_KEYS.fullmatch(path) else str(key.value)
    return f"{path}.{name}" if path else name


class Reader:
    """The nodes of a YAML file as typed values; every error has the line.

    Scalars stay as they are written, so that `1e-3` and `on` are not converted.
    """

    def __init__(self, file: Path):
        self.file = file
        self.lines: dict[str, int] = {}
        try:
            tree = yaml.compose(read_text(file, 1_000_000), Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise SweepFileError(f"{file}, line {line}: this is no YAML ({error.problem or error})") from error
        except (yaml.YAMLError, RecursionError) as error:
            raise SweepFileError(f"{file}: this is no YAML ({error})") from error
        if tree is None:
            raise SweepFileError(f"{file} is empty: write a question, and arms or axes")
        self.tree = tree
        self.note(tree, "", 0)

    def note(self, node: Any, path: str, depth: int) -> None:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if depth > 20 or len(self.lines) > 100_000:
            raise SweepFileError(f"{self.file}, line {node.start_mark.line + 1}: nested too deeply, or too much")
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            inner = inside(path, key)
            self.lines[inner] = key.start_mark.line + 1
            self.note(value, inner, depth + 1)

    def wrong(self, path: str, what: str) -> SweepFileError:
        return SweepFileError(f"{self.file}, line {self.lines.get(path, 1)}: {what}")

    def mapping(self, node: Any, path: str, allowed: Collection[str] = ()) -> dict[str, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise self.wrong(path, f"{path or 'a sweep file'} is a mapping, `key: value` on each line")
        found: dict[str, Any] = {}
        for key, value in node.value:
            inner = inside(path, key)
            name = inner[len(path) + 1 :] if path else inner
            if name in found:
                raise self.wrong(inner, f"{inner} is there twice")
            if allowed and name not in allowed:
                raise self.wrong(inner, f"{inner}: there is no such key{nearest(name, allowed)}")
            found[name] = value
        return found

    def refuse_hydra(self, key: str, path: str) -> None:
        """Hydra runs what its own options name, so a file may not set them."""
        if "hydra" in key:
            raise self.wrong(path, f"{path}: {key}: options of Hydra itself are given on the command line alone")

    def text(self, node: Any, path: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self.wrong(path, f"{path}: expected words")
        return " ".join(str(node.value).split())

    def written(self, node: Any, path: str) -> str:
        """A value as it would be typed on the command line."""
        if isinstance(node, yaml.SequenceNode):
            return "[" + ",".join(self.written(each, path) for each in node.value) + "]"
        if isinstance(node, yaml.MappingNode):
            raise self.wrong(path, f"{path}: expected a value, not a mapping")
        value = str(node.value)
        return value if value or node.style else "null"

    def many(self, node: Any, path: str) -> tuple[str, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.wrong(path, f"{path}: expected a list, [a, b, c]")
        return tuple(self.written(each, path) for each in node.value)

    def overrides(self, node: Any, path: str) -> tuple[str, ...]:
        """A list of overrides, or several in one line, where a value may have spaces."""
        scalar = isinstance(node, yaml.ScalarNode)
        line = re.split(r"\s+(?=[+~]{0,2}[\w/.@]+=)", node.value.strip()) if scalar else ()
        words = tuple(filter(None, line)) if scalar else self.many(node, path)
        for word in () if words in (("null",), ("~",)) else words:
            if not re.match(r"[+~]{0,2}[\w/.@]+(=|$)", word) or ("=" not in word and not word.startswith("~")):
                raise self.wrong(path, f"{path}: {word!r} is no override: write group=option or key=value")
            self.refuse_hydra(word.partition("=")[0], path)
            if key_of(word) == "seed":
                raise self.wrong(path, f"{path}: {word}: seeds are given once for all cells, `seeds: [0, 1, 2]`")
        return () if words in (("null",), ("~",)) else tuple(each for word in words for each in unpacked(word))

    def arms(self, node: Any, path: str) -> dict[str, tuple[str, ...]]:
        found = {name: self.overrides(value, f"{path}.{name}") for name, value in self.mapping(node, path).items()}
        for name in found:
            if name == BASELINE or not name.strip() or not name.isprintable():
                raise self.wrong(f"{path}.{name}", f"{name!r} is no name for an arm: take another")
        return found

    def axes(self, node: Any, path: str) -> dict[str, tuple[str, ...]]:
        found = {key: self.many(value, f"{path}.{key}") for key, value in self.mapping(node, path).items()}
        for key, values in found.items():
            self.refuse_hydra(key, f"{path}.{key}")
            found[key] = tuple(quoted(each) if len(several(f"{key}={each}")) > 1 else each for each in values)
            if not values or len(set(values)) < len(values):
                raise self.wrong(f"{path}.{key}", f"{key}: expected different values, [a, b, c]")
            if key == "seed":
                raise self.wrong(f"{path}.{key}", "seeds are given as `seeds: [0, 1, 2]`")
        return found

    def number(self, written: str, path: str, kind: type = float) -> Any:
        try:
            return kind(written)
        except ValueError:
            name = "a whole number" if kind is int else "a number"
            raise self.wrong(path, f"{path}={written}: expected {name}") from None

    def seeds(self, node: Any, path: str) -> tuple[int, ...]:
        if isinstance(node, yaml.ScalarNode):
            count = self.number(node.value, path, int)
            found = tuple(range(count)) if 0 < count <= 10_000 else ()
        else:
            found = tuple(self.number(value, path, int) for value in self.many(node, path))
        if not found or len(set(found)) < len(found) or min(found) < 0:
            raise self.wrong(path, f"{path}: expected different seeds, such as [0, 1, 2], or how many")
        return found

    def folds(self, node: Any, path: str) -> tuple[str, ...]:
        return (f"dataset.folds={self.number(self.text(node, path), path, int)}",)

    def metric(self, node: Any, path: str) -> str:
        try:
            found = metric(self.text(node, path))
        except ConfigError as error:
            raise self.wrong(path, f"{path}: {error}") from None
        if found.source == "row":
            raise self.wrong(path, f"{path}: {found.name}: no result holds it, for it is of the rows of training alone")
        return found.name

    def axis(self, node: Any, path: str) -> str:
        key = current_key(self.text(node, path))
        if key in COSTS or is_known(key, known_keys()):
            return key
        raise self.wrong(path, f"{path}: {key}: expected one of {', '.join(COSTS)}, or a configuration key")

    def one_of(self, node: Any, path: str, options: Iterable[str]) -> Any:
        given = self.text(node, path)
        if given not in options:
            near = nearest(given, options)
            raise self.wrong(path, f"{path}: {given}: expected one of {', '.join(options)}{near}")
        return given

    def margin(self, node: Any, path: str) -> float:
        found = self.number(self.text(node, path), path)
        if not 0 < found < math.inf:
            raise self.wrong(
                path, f"{path}={found:g}: expected a number above 0: points of a share, or the metric's unit"
            )
        return found

    def series(self, node: Any, path: str) -> dict[str, tuple[str, ...]]:
        found = self.mapping(node, path)
        one = yaml.ScalarNode
        return {
            name: (self.text(of, f"{path}.{name}"),) if isinstance(of, one) else self.many(of, f"{path}.{name}")
            for name, of in found.items()
        }

    def expect(self, node: Any, path: str) -> Expect:
        if isinstance(node, yaml.ScalarNode):
            return Expect(finding=self.text(node, path))
        found = self.mapping(node, path, ("finding", "setting", "numbers"))
        numbers = self.mapping(found["numbers"], f"{path}.numbers") if "numbers" in found else {}
        return Expect(
            **{key: self.text(found[key], f"{path}.{key}") for key in ("finding", "setting") if key in found},
            numbers={
                name: self.number(self.text(value, f"{path}.numbers.{name}"), f"{path}.numbers.{name}")
                for name, value in numbers.items()
            },
        )

    def search(self, node: Any, path: str) -> Search:
        found = self.mapping(node, path, ("method", "trials", "space", "prune"))
        for key in ("method", "trials", "space"):
            if key not in found:
                raise self.wrong(path, f"{path}.{key} is missing")
        trials = self.number(self.text(found["trials"], f"{path}.trials"), f"{path}.trials", int)
        if not 0 < trials <= 100_000:
            raise self.wrong(f"{path}.trials", f"{path}.trials={trials}: expected 1 or more")
        space = self.mapping(found["space"], f"{path}.space")
        method = self.one_of(found["method"], f"{path}.method", ("tpe", "random", "grid", "sobol"))
        dimensions = tuple(self.dimension(key, value, f"{path}.space.{key}") for key, value in space.items())
        if odd := [each.key for each in dimensions if method == "grid" and each.kind != "choice"]:
            raise self.wrong(f"{path}.space.{odd[0]}", f"{odd[0]}: a grid takes values, [a, b, c], not a range")
        prune = self.one_of(found["prune"], f"{path}.prune", ("median", "asha", "none")) if "prune" in found else "none"
        return Search(method=method, trials=trials, space=dimensions, prune=prune)

    def dimension(self, key: str, node: Any, path: str) -> Dimension:
        self.refuse_hydra(key, path)
        if (
            not is_known(current_key(key), known_keys())
            and "/" not in key
            and key not in ("patch", "model", "optimizer")
        ):
            raise self.wrong(path, f"{key}: there is no such key{nearest(key, known_keys())}")
        if isinstance(node, yaml.SequenceNode):
            return Dimension(key=key, kind="choice", values=self.many(node, path))
        found = self.mapping(node, path, ("uniform", "log", "int", "choice"))
        if len(found) != 1:
            raise self.wrong(path, f"{path}: expected one of uniform: [a, b], log: [a, b], int: [a, b], or [a, b, c]")
        ((kind, value),) = found.items()
        values = self.many(value, f"{path}.{kind}")
        if kind != "choice":
            ends = [self.number(each, path, int if kind == "int" else float) for each in values]
            if len(ends) != 2 or not ends[0] < ends[1] or (kind == "log" and ends[0] <= 0):
                raise self.wrong(path, f"{path}: expected two ends, the lower first{', above 0' * (kind == 'log')}")
        return Dimension(key=key, kind=kind, values=values)  # ty: ignore[invalid-argument-type]
