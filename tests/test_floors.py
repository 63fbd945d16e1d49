"""Imports only go down, and nothing heavy is imported before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "vitlab"
FLOORS = [  # packages, from the ground up; those on one floor do not import each other
    {"config"},
    {"model"},
    {"system", "storage"},
    {"data", "plotting"},
    {"evaluation"},
    {"tracking"},
    {"training", "report"},
    {"sweep"},
    {"bench"},
    {"cli"},
    {"__main__", "__init__"},
]
MODULES = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path for path in ROOT.rglob("*.py")}


def floor(module):
    return next(number for number, packages in enumerate(FLOORS) if module.split(".")[1] in packages)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def used(module):
    """The modules of vitlab that one imports, at its top or inside a function."""
    return (set(imports(MODULES[module])) & set(MODULES)) - {module}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_only_go_down(module):
    package = module.split(".")[1]
    above = {other for other in used(module) if other.split(".")[1] != package and floor(other) >= floor(module)}
    assert not above


def test_no_two_files_import_each_other_in_a_circle():
    from graphlib import TopologicalSorter

    TopologicalSorter({module: used(module) for module in MODULES}).prepare()  # raises CycleError, which names them


@pytest.mark.parametrize("module", [m for m in sorted(MODULES) if m.startswith("vitlab.model.")])
def test_the_model_knows_torch_and_einops_alone(module):
    allowed = {
        "torch",
        "einops",
        "jaxtyping",
        "vitlab",
        "math",
        "typing",
        "collections",
        "contextlib",
        "contextvars",
        "dataclasses",
        "copy",
        "functools",
        "itertools",
    }
    assert {used.partition(".")[0] for used in imports(MODULES[module])} <= allowed
    ours = {used for used in imports(MODULES[module]) if used.startswith("vitlab.")}
    assert not {used for used in ours if not used.startswith(("vitlab.model", "vitlab.config.errors"))}


def test_timm_is_used_for_augmentation_and_schedules_alone():
    users = {m for m, path in MODULES.items() if '"timm.' in path.read_text() or "import timm" in path.read_text()}
    assert users <= {
        "vitlab.training.schedule",
        "vitlab.data.augment",
        "vitlab.data.mixing",
        "vitlab.system.lazy_imports",
        "vitlab.bench.libraries",
        "vitlab.evaluation.export.weights",  # reads what was written for it
        "vitlab.evaluation.export.usage",  # says so in a card
    }


def loaded(code):
    """The heavy packages that a fresh Python has imported after this code."""
    probe = "import sys; print([m for m in ('torch', 'hydra', 'wandb', 'timm', 'torchvision', 'torch._dynamo', 'sklearn', 'matplotlib', 'pandas') if m in sys.modules])"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", f"{code}\n{probe}"], capture_output=True, text=True, check=True)
    return set(ast.literal_eval(done.stdout.strip().split("\n")[-1]))


def test_listing_the_commands_imports_nothing_heavy():
    assert loaded("from vitlab.__main__ import main; main([]); main(['--help']); main(['train', '--help'])") == set()


@pytest.mark.slow
def test_the_lean_imports_leave_the_whole_packages_to_whoever_wants_them_later():
    code = """
from vitlab.system.lazy_imports import modules
(factory, scheduler) = modules("timm.data.transforms_factory", "timm.scheduler")
import torchvision, timm, timm.data, timm.scheduler
assert timm.create_model and torchvision.models.resnet18 and timm.data.create_transform
assert timm.scheduler.CosineLRScheduler
"""
    assert {"timm", "torchvision"} <= loaded(code)
