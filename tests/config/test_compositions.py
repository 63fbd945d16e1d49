"""Any composition either trains or is refused with a sentence, whatever its values are; hypothesis draws them.

VITLAB_COMPOSITIONS=400 draws so many at random; without it the same few are drawn each time.
"""

import contextlib
import copy
import functools
import inspect
import io
import math
import os
import re
import tempfile
import typing
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitlab.__main__ import main
from vitlab.config.build import assemble
from vitlab.config.check import check, locate
from vitlab.config.compose import compose
from vitlab.config.groups import known_keys, menu
from vitlab.storage.run import Run
from vitlab.system.distributed import single_process
from vitlab.tracking import curves
from vitlab.training import recovery, schedule
from vitlab.training.loop import fit
from vitlab.training.setup import prepare

GROUPS = [g for g in menu() if g not in ("experiment", "system", "tracking")]
OPTIONS = {group: list(menu()[group]) for group in GROUPS} | {"dataset": ["digits", "synthetic"]}
OPTIONS["model/attention"] = ["full", "full", "full", "axial"]  # whose pool and position are seldom drawn too
OPTIONS["model/stem"] = ["convolution", "patch", "resnet_small"]  # others want patches larger than these images
NEEDS = ["model.width=8", "model.depth=1", "model.heads=1", "tracking=off", "fit.precision=fp32"]

# What trains in no time; of what is larger only the absurd is drawn, which no machine can hold.
LARGEST = {
    "model.width": 64, "model.depth": 4, "model.heads": 64, "model.registers": 64, "model.mlp.ratio": 64,
    "model.patch": 64, "dataset.image_size": 64, "dataset.examples": 512, "dataset.classes_count": 512,
    "dataset.channels": 8,
    "optimizer.iterations": 20,
}  # fmt: skip

COUNT = os.environ.get("VITLAB_COMPOSITIONS")


def drawn(share):
    """How many examples are drawn, and how."""
    return settings(
        max_examples=math.ceil(share * int(COUNT or 60)),
        derandomize=COUNT is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class Enough(BaseException):
    """Two steps were trained, and the training goes on."""


@pytest.fixture(autouse=True)
def _two_steps(monkeypatch):
    """Trainings draw no figure, ask git for no commit, and end after two steps."""
    unlimited = schedule.Scheduler.set

    def limited(self, update):
        if update >= 2:
            raise Enough
        unlimited(self, update)

    monkeypatch.setattr(schedule.Scheduler, "set", limited)
    monkeypatch.setattr(curves, "draw", lambda *_: None)
    monkeypatch.setattr(recovery, "environment", lambda _: {})


def is_sentence(error):
    """Whether it is one line that names what was configured."""
    leaves = "|".join({key.rpartition(".")[2] for key in known_keys()})
    named = rf"\b({'|'.join(GROUPS)})\b[.=:/ ]|\b({leaves})=|_target_"
    arithmetic = type(error) in (ZeroDivisionError, OverflowError, FloatingPointError)
    return bool(not arithmetic and "\n" not in str(error) and re.search(named, str(error)))


# --- compositions as plain values ---------------------------------------------------------------------------------


def place_of(group):
    """The keys under which an option of a group stands."""
    return ["model", "patch"] if group == "patch" else group.split("/")


@functools.cache
def nodes():
    """The node of every option, as Hydra composes it; each composition has one option of every group."""
    found = {}
    for turn in range(max(map(len, OPTIONS.values()))):
        chosen = {group: options[turn % len(options)] for group, options in OPTIONS.items()}
        node, _ = compose([*(f"{group}={option}" for group, option in chosen.items()), *NEEDS])
        for group, option in chosen.items():
            found[group, option] = functools.reduce(dict.__getitem__, place_of(group), node)
        found["system", "tracking"] = {key: node[key] for key in ("system", "tracking")}
    return found


def leaves(node, path=()):
    """Every value that a user may set: where it is, and the type that its constructor asks for."""
    hints = {}
    if "_target_" in node:
        hints = inspect.signature(locate(node["_target_"]), eval_str=True).parameters
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        elif not key.startswith("_"):
            yield (*path, key), hints[key].annotation if key in hints else int


WHOLE = [0, 1, -1, 2, 3, 7, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**30, 10**400]
FRACTIONS = [0.0, -0.0, 1.0, 0.5, 2.5, -0.5, 5e-324, 1e-30, 1e-7, 0.999999999, 1e12, 1e30, 3e38, 1e308]
FRACTIONS += [math.nan, math.inf, -math.inf]
ODD = st.sampled_from(
    [*WHOLE, *FRACTIONS, "", "abc", "1", "auto", "none", "é", "a\nb", None, True, False]
) | st.sampled_from(
    [[], [0.5], [1, 1], [0.9, 0.1], [0.1, 0.9, 1.0], [None], [[]], ["a"], {}, {"a": 1}, {"_target_": "os.system"}]
)
# fmt: off
POLICIES = st.sampled_from([
    "rand-m9-mstd0.5-inc1", "rand", "rand-m", "rand-n0", "rand-m9-n99", "rand-m99999", "rand-p0.5", "rand-tweights",
    "original-mstd1", "originalr", "augmix-m3-w3", "augmix-w0", "augmix-d0", "augmix-a0", "augmix-b1", "3a", "3a-",
])
BITS = st.sampled_from([
    "0", "1", "2", "-1", "1e-3", "0.5", "1e400", "nan", "null", "true", "abc", "é", "[]", "[1,2]", "{}", "{a:1}", "''",
    "", " ", "'", '"', "{", "}", "[", "]", "(", ")", ",", ":", "=", "\\", "\n", "\t", "#", "$", "${", "*", "%", "@",
    "${seed}", "${model}", "${fit.clip}", "${nothing}", "${oc.env:HOME}", "${oc.env:NOTHING}", "${now:%Y}", "???",
    "range(1,3)", "choice(1,2)", "glob(*)", "int(3)", "float(a)", "shuffle(1,2)", "{_target_:os.system}", "x" * 300,
])
# fmt: on


def ordered(found):
    """Sorted, where that can be."""
    return sorted(found) if all(isinstance(value, int | float) for value in found) else found


def values(hint):
    """Values that this type allows, small ones and any."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(values(arguments[0]), min_size=1, max_size=3).map(ordered)
    if arguments:
        return st.one_of(values(a) for a in arguments)
    whole, fractions = st.sampled_from(WHOLE), st.sampled_from(FRACTIONS)
    known = {
        int: st.integers(0, 64) | whole | st.integers(-(2**70), 2**70),
        float: st.floats(0, 1) | st.floats(0, 100) | fractions | st.floats(),
        bool: st.booleans(),
        str: POLICIES,
        type(None): st.none(),
    }
    return known.get(hint, ODD)


def fits(key, value):
    """Whether it trains in no time, or never."""
    numbers = value if isinstance(value, list) else [value]
    most = LARGEST.get(key, math.inf)
    return not any(isinstance(n, int | float) and most < n <= 10**12 for n in numbers)


@st.composite
def compositions(draw):
    """An option of every group, shrunken, with up to three values of any kind."""
    node = {"seed": draw(st.integers(0, 3)), **copy.deepcopy(nodes()["system", "tracking"])}
    for group in sorted(GROUPS, key=len):  # model before what is inside it
        *above, name = place_of(group)
        option = nodes()[group, draw(st.sampled_from(OPTIONS[group]))]
        functools.reduce(dict.__getitem__, above, node)[name] = copy.deepcopy(option)
    patch, rows, columns = node["model"]["patch"], draw(st.integers(1, 4)), draw(st.integers(1, 4))
    most = max(1, 32 // patch)
    node["dataset"] |= {"image_size": [patch * min(rows, most), patch * min(columns, most)], "train_examples": 24}
    if "examples" in node["dataset"]:
        node["dataset"]["examples"] = 40
    heads = draw(st.sampled_from([1, 2, 3]))
    width = heads * draw(st.sampled_from([4, 8, 8, 6, 1]))
    node["model"] |= {"width": width, "depth": draw(st.sampled_from([1, 2])), "heads": heads}
    duration = draw(st.sampled_from([("steps", 2), ("steps", 2), ("epochs", 0.5), ("images", 16)]))
    node["fit"] |= {"epochs": None, "steps": None, "images": None, "batch_size": 8, duration[0]: duration[1]}
    node["system"]["workers"] = 0
    node["fit"]["precision"] = draw(st.sampled_from(["fp32"] * 6 + ["bf16", "fp16"]))
    found = [leaf for leaf in leaves(node) if leaf[0][0] not in ("system", "tracking")]
    for path, hint in draw(st.lists(st.sampled_from(found), max_size=3, unique_by=lambda leaf: leaf[0])):
        key = ".".join(path)
        value = draw(st.one_of(*[values(hint)] * 3, ODD).filter(lambda value, key=key: fits(key, value)))
        functools.reduce(dict.__getitem__, path[:-1], node)[path[-1]] = copy.deepcopy(value)
    return node


def end(node):
    """What becomes of a composition: `trained`, or the error that refused it."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        try:
            checked = check(node)
            setup = prepare(**assemble(checked), dist=single_process())
            run = Run(Path(folder) / "run")
            run.create()
            return "trained" if fit(setup, run, checked)["status"] == "finished" else "not finished"
        except Enough:
            return "trained"
        except (ValueError, OSError, ArithmeticError) as error:
            return error


@pytest.mark.slow
def test_a_composition_trains_or_is_refused_with_a_sentence():
    ends = Counter()

    @drawn(1)
    @given(compositions())
    def each(node):
        found = end(node)
        assert found == "trained" or is_sentence(found), repr(found)
        ends["trained" if found == "trained" else "refused"] += 1

    each()
    print(f"\ncompositions: {dict(ends)}")
    assert ends["trained"] >= ends.total() / 10


# --- compositions as words ----------------------------------------------------------------------------------------

KEYS = [key for key in known_keys() if not key.startswith(("system", "tracking")) and not key.endswith("download")]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)


@st.composite
def words(draw):
    """What might be typed: as often as not an option or a value, else anything."""
    if draw(st.booleans()):
        group = draw(st.sampled_from(GROUPS))
        plain = st.sampled_from([f"{group}={option}" for option in OPTIONS[group]])
        return draw(plain | st.builds("{}={}".format, st.sampled_from(KEYS), st.sampled_from(["0", "1", "2", "0.5"])))
    key = draw(st.sampled_from(KEYS) | st.sampled_from(GROUPS) | TEXT)
    sign = draw(st.sampled_from([""] * 6 + ["+", "++", "~", " "]))
    package = draw(st.sampled_from([""] * 10 + ["@model", "@fit", "@_global_", "@a.b", "@", ":model"]))
    equals = draw(st.sampled_from(["="] * 10 + ["", "=="]))
    options = st.sampled_from(OPTIONS.get(key, ["null"]))
    return sign + key + package + equals + draw(options | BITS | st.lists(BITS | TEXT, max_size=3).map("".join))


def status(folder, typed):
    """The exit status of a command, and what it said: all of it, and on the standard error."""
    out, err = io.StringIO(), io.StringIO()
    small = ["tracking=off", "dataset.train_examples=24", "model.width=8", "model.depth=1", "model.heads=1"]
    small += ["fit.steps=2", "fit.batch_size=8", "fit.precision=fp32", "system.workers=0", f"system.runs={folder}"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            return main(["train", *small, *typed]), out.getvalue() + err.getvalue(), err.getvalue()
        except Enough:
            return 0, out.getvalue() + err.getvalue(), err.getvalue()


TYPED = st.lists(words().filter(lambda word: not word.startswith("-")), min_size=1, max_size=2)


def explained(typed):
    """The exit status of a command that ended as it should: 0, or with a sentence."""
    with tempfile.TemporaryDirectory() as folder:
        found, said, error = status(folder, typed)
    assert "Traceback" not in said, said
    assert found in (0, 1, 2)
    if found == 1:
        assert "vitlab: " in said, said
    if found == 2:
        assert re.fullmatch(r"vitlab: [^\n]+\n", error), error
    return found


@pytest.mark.slow
def test_whatever_is_typed_trains_or_is_refused_with_a_sentence():
    ends = Counter()

    @drawn(1 / 2)
    @given(TYPED)
    def each(typed):
        ends["refused" if explained(typed) else "trained"] += 1

    each()
    print(f"\ncommands: {dict(ends)}")
    assert ends["trained"] >= ends.total() / 10
