"""A mistake in a class of the user's own is said in a sentence, and is never called a bug of vitlab."""

import sys
from pathlib import Path

import pytest

from vitlab import __main__ as entry
from vitlab.config.build import build
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError
from vitlab.config.own import Own, using

CODE = """
from typing import TYPE_CHECKING
from vitlab.model.attention import Attention
from vitlab.model.mlp import Mlp
from vitlab.model.pool import Cls, Pool
from vitlab.model.position import Position
from vitlab.model.stem import Stem
from vitlab.training.loss import Loss
if TYPE_CHECKING:
    from numpy import nosuch

class Row(Position):
    at = "stem"
    def __init__(self, *, width, head_width, grid, by: float = 1.0):
        super().__init__(width=width, head_width=head_width, grid=grid)
    def add(self, tokens): return tokens

class NoHeadWidth(Row):
    def __init__(self, *, width, grid): ...

class Asks(Row):
    def __init__(self, *, width, head_width, grid, more): ...

class Typo(Position):
    at = "stem"
    def __init__(self, *, width, head_width, grid):
        super().__init__(width=width, head_width=head_width, grid=grid)
    def addd(self, tokens): return tokens

class Empty(Attention): "Nothing."
class Other(Attention):
    def __init__(self, *, width, heads, output_dropout): super().__init__(width=width, heads=heads, qk_norm=True)
class NoForward(Pool):
    def __init__(self, *, width, heads): super().__init__(width=width, heads=heads)
    def forwrd(self, prefix, patches): return patches.mean(1)
class Two(Cls):
    prefix = 2
class Stray: ...
class NoLoss(Loss): ...
class Unread(Row):
    def __init__(self, *, width, head_width, grid, more: "nosuch"): ...

class Fails(Row):
    def add(self, tokens): return tokens + self.nosuch
class FailsInTorch(Row):
    def add(self, tokens): return tokens @ tokens
class NoInit(Row):
    def __init__(self, *, width, head_width, grid): self.grid = grid; self.p = __import__("torch").nn.Linear(1, 1)
class OtherShape(Row):
    def add(self, tokens): return tokens[..., 1:]
"""
TINY = ["model.width=8", "model.heads=1", "model.depth=1", "fit=debug", "fit.steps=1", "tracking=off"]


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """A package with these classes in the working directory, allowed."""
    monkeypatch.chdir(tmp_path)
    Path("owns").mkdir()
    Path("owns/parts.py").write_text(CODE)
    Path("owns/broken.py").write_text("import nonexisting\n")
    Path("owns/attribute.py").write_text("import os\nos.nonexisting\n")
    Path("owns/half.py").write_text("def (\n")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    with using(Own(packages=("owns",))):
        yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "owns"]:
        del sys.modules[name]


def config_with(slot, name, **more):
    """A configuration with a class of the package as its part, and with `partial=False` no factory."""
    config, _ = compose(TINY)
    node = {"_target_": f"owns.{name}", **({} if more.pop("partial", slot != "loss") is False else {"_partial_": True})}
    group, _, key = slot.rpartition(".")
    (config[group] if group else config)[key] = node | more
    return config


@pytest.mark.parametrize(
    ("slot", "name", "more", "words"),
    [
        ("model.position", "parts.Row", {"partial": False}, "add _partial_: true to the option's YAML"),
        ("loss", "parts.NoLoss", {"partial": True}, "leave _partial_ out of its YAML"),
        ("loss", "parts.NoLoss", {}, "owns.parts.NoLoss lacks forward"),
        ("model.position", "parts.Stray", {}, "not derived from vitlab.model.position.Position"),
        ("model.mlp", "parts.Row", {}, "not derived from vitlab.model.mlp.Mlp or vitlab.model.mlp.SwiGlu"),
        (
            "model.position",
            "parts.Typo",
            {},
            "nothing of vitlab.model.position.Position, .*did you mean add?",
        ),
        ("model.attention", "parts.Empty", {}, "overrides nothing of vitlab.model.attention.Attention"),
        ("model.pool", "parts.NoForward", {}, "overrides nothing of vitlab.model.pool.Pool.*did you mean forward?"),
        (
            "model.position",
            "parts.Row",
            {"buy": 1.0},
            "mean by.; owns.parts.Row has width, head_width, grid, by",
        ),
        ("model.position", "parts.Row", {"by": "x"}, "model.position.by=x: expected a number"),
        ("model.position", "parts.Unread", {}, "annotations of its __init__ cannot be read: name 'nosuch'"),
        ("model.position", "parts.Nowhere", {}, "owns.parts.Nowhere does not exist"),
        ("model.position", "nowhere.Row", {}, "owns.nowhere.Row does not exist: No module named 'owns.nowhere'"),
        ("model.position", "broken.Row", {}, "importing owns.broken failed: ModuleNotFoundError: .*'nonexisting'"),
        ("model.position", "attribute.Row", {}, "importing owns.attribute failed: AttributeError: .*'nonexisting'"),
        ("model.position", "half.Row", {}, "importing owns.half failed: SyntaxError: .*half.py, line 1"),
    ],
)
def test_a_class_that_cannot_be_the_part_is_refused(slot, name, more, words):
    config = config_with(slot, name, **more)
    with pytest.raises(ConfigError, match=words):
        check(config)


@pytest.mark.parametrize(
    ("slot", "name"),
    [("model.position", "parts.Row"), ("model.attention", "parts.Other"), ("model.pool", "parts.Two")],
)
def test_a_class_that_does_something_is_built(slot, name):
    model = build(check(config_with(slot, name))["model"])(image_size=8, channels=1, classes=10)
    assert any(type(part).__name__ == name.rpartition(".")[2] for part in model.modules())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NoHeadWidth", "unexpected keyword argument 'head_width': it is built with width, head_width, grid: let"),
        ("Asks", "missing a required.*argument: 'more': it is built with width, head_width, grid: let"),
    ],
)
def test_a_constructor_that_does_not_take_what_it_is_given_is_refused(name, words):
    make = build(check(config_with("model.position", f"parts.{name}"))["model"])
    with pytest.raises(ConfigError, match=words):
        make(image_size=8, channels=1, classes=10)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Fails", "the error is in {file}, line {line}: correct it there"),
        ("FailsInTorch", "the error is in {file}, line {line}: correct it there"),
        ("NoInit", "the error is in {file}, line {line}: correct it there"),
        ("OtherShape", "this is a bug of vitlab, or of owns: look there first."),
    ],
)
def test_an_error_of_an_own_class_is_not_called_a_bug_of_vitlab(name, words, monkeypatch, capsys):
    Path("my/model/position").mkdir(parents=True)
    Path("my/model/position/mine.yaml").write_text(f"# Mine.\n_target_: owns.parts.{name}\n_partial_: true\n")
    words_given = ["train", "--config-dir", "my", "--allow", "owns", "model/position=mine", *TINY]
    monkeypatch.setattr(entry.sys, "argv", ["vitlab", *words_given])
    assert entry.console() == 1
    said = "".join(capsys.readouterr())
    line = CODE.split("\n").index(f"class {name}(Row):") + 2
    assert words.format(file=Path("owns/parts.py").resolve(), line=line) in said
    assert "Traceback (most recent call last)" in said
    assert "bug of vitlab. Please" not in said
