"""How a command ends: what the user can correct in one line, a bug with its traceback and a request to report it."""

import ast
import pickle
from pathlib import Path

import pytest

from vitlab import __main__ as entry
from vitlab.cli import data
from vitlab.config import errors
from vitlab.config.errors import DatasetMissing, Interrupted, NonFinite, VitlabError
from vitlab.storage.run import Run
from vitlab.training import loop

ROOT = Path(entry.__file__).parent
CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, VitlabError)]
ARGUMENTS = {DatasetMissing: ("mnist", ["data"], "Get it"), NonFinite: (3, 8, 0.1), Interrupted: (3, 8, 15, 2)}


def made(kind: type[VitlabError]) -> VitlabError:
    return kind(*ARGUMENTS.get(kind, ("seed=-1: must be 0 or more",)))


@pytest.mark.parametrize("kind", CLASSES)
def test_a_command_ends_with_any_error_of_the_tree_in_one_line(kind, monkeypatch, capsys):
    def main(_):
        raise made(kind)

    monkeypatch.setattr(data, "main", main)
    assert entry.main(["data"]) == 2
    assert capsys.readouterr().err == f"vitlab: {made(kind)}\n"


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_of_the_tree_is_handed_to_another_process_as_it_is(kind):
    error = made(kind)
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found), vars(found)) == (kind, str(error), vars(error))


@pytest.mark.parametrize("kind", [ValueError, OSError, RuntimeError, KeyError])
def test_a_bug_shows_its_traceback_and_asks_to_be_reported(kind, monkeypatch, capsys):
    def main(_):
        raise kind("stray")

    monkeypatch.setattr(data, "main", main)
    monkeypatch.setattr(entry.sys, "argv", ["vitlab", "data", "seed=3"])
    assert entry.console() == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert f"{kind.__name__}: " in said
    assert "report it, with the traceback above and the command: vitlab data seed=3\n" in said


def test_a_traceback_is_shown_of_a_users_error_too_where_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("VITLAB_TRACEBACK", "1")
    assert entry.main(["data", "no=such"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert "vitlab: no=such: there is no no" in said.splitlines()[-1]


def test_a_bug_in_a_training_fails_its_run_and_asks_to_be_reported(tmp_path, monkeypatch, capsys):
    def train_step(*_):
        raise ValueError("stray")

    monkeypatch.setattr(loop, "train_step", train_step)
    assert entry.main(["train", "fit=debug", "tracking=off", "system.device=cpu", f"system.runs={tmp_path}"]) == 1
    said = capsys.readouterr().out
    assert "ValueError: stray\n" in said
    assert "report it, with the traceback above and the command: vitlab " in said
    assert Run(next(tmp_path.glob("*/result.json")).parent).result()["status"] == "failed"


ALLOWED = {
    "wandb_value",
    "results_or_error",
    "turn",
}  # a value that is no number; a job that a launcher lost, whatever its error; an update that each run answers itself


def test_no_command_takes_a_bug_for_a_mistake_of_its_user():
    for file in [*(ROOT / "cli").glob("*.py"), ROOT / "__main__.py"]:
        tree = ast.parse(file.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name not in ALLOWED]
        handlers = [node for each in functions for node in own_nodes(each) if isinstance(node, ast.ExceptHandler)]
        for handler in handlers:
            caught = (
                {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)} if handler.type else BROAD
            )
            inside = list(ast.walk(handler))
            honest = any(isinstance(node, ast.Raise) or getattr(node, "id", "") == "bug_report" for node in inside)
            assert honest or not caught & BROAD, f"{file.name}, line {handler.lineno}"


BROAD = {"BaseException", "Exception", "ValueError", "OSError", "RuntimeError"}


def own_nodes(function: ast.FunctionDef):
    """The nodes of a function without those of the functions in it."""
    waiting = list(function.body)
    while waiting:
        yield (node := waiting.pop())
        waiting += [] if isinstance(node, ast.FunctionDef) else ast.iter_child_nodes(node)
