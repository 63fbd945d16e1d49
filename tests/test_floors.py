"""Imports only go down, and nothing heavy is imported before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "vitlab"
FLOORS = [
    {"vitlab.lean", "vitlab.files", "vitlab.memory", "vitlab.lock", "vitlab.journal", "vitlab.menu", "vitlab.moved"},
    {"vitlab.model.*", "vitlab.dataset.*", "vitlab.interrupt", "vitlab.profile"},
    {"vitlab.config", "vitlab.parallel", "vitlab.run", "vitlab.optim", "vitlab.question"},
    {"vitlab.checkpoint", "vitlab.ema"},
    {"vitlab.judge", "vitlab.pictures", "vitlab.probe"},
    {"vitlab.schedule", "vitlab.loss", "vitlab.meter", "vitlab.tracking", "vitlab.curves", "vitlab.start"},
    {"vitlab.recipe"},
    {"vitlab.store"},
    {"vitlab.estimate"},
    {"vitlab.comparison"},
    {"vitlab.figures"},
    {"vitlab.page", "vitlab.search_figures"},
    {"vitlab.answer"},
    {"vitlab.board", "vitlab.launch"},
    {"vitlab.sweep"},
    {"vitlab.search"},
    {"vitlab.state"},
    {"vitlab.train"},
    {"vitlab.trained", "vitlab.predict", "vitlab.peers"},
    {"vitlab.bare"},
    {"vitlab.bench", "vitlab.bench_resume", "vitlab.readme", "vitlab.remote"},
    {"vitlab.measure"},
    {"vitlab.commands.*", "vitlab.commands.__init__"},
    {"vitlab.__main__", "vitlab.__init__"},
]


def name(path):
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)


def floor(module):
    for number, modules in enumerate(FLOORS):
        if module in modules or any(m.endswith("*") and module.startswith(m[:-1]) for m in modules):
            return number
    raise AssertionError(f"{module} stands on no floor")


MODULES = {name(path): path for path in ROOT.rglob("*.py") if path.name != "__init__.py" or path.parent == ROOT}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_only_go_down(module):
    for used in set(imports(MODULES[module])) & set(MODULES) - {module}:
        same_room = used.rpartition(".")[0] == module.rpartition(".")[0]
        assert floor(used) < floor(module) or (floor(used) == floor(module) and same_room), used


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
        "dataclasses",
        "copy",
        "functools",
    }
    assert {used.partition(".")[0] for used in imports(MODULES[module])} <= allowed
    assert not {u for u in imports(MODULES[module]) if u.startswith("vitlab.") and not u.startswith("vitlab.model")}


def test_timm_is_used_for_augmentation_and_schedules_alone():
    users = {m for m, path in MODULES.items() if '"timm.' in path.read_text() or "import timm" in path.read_text()}
    assert users <= {"vitlab.schedule", "vitlab.dataset.augment", "vitlab.lean", "vitlab.peers"}


def loaded(code):
    """The heavy packages that a fresh Python has imported after this code."""
    probe = "import sys; print([m for m in ('torch', 'hydra', 'wandb', 'timm', 'torchvision', 'torch._dynamo', 'sklearn', 'matplotlib', 'pandas') if m in sys.modules])"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", f"{code}\n{probe}"], capture_output=True, text=True, check=True)
    return set(ast.literal_eval(done.stdout.strip().split("\n")[-1]))


def test_listing_the_commands_imports_nothing_heavy():
    assert loaded("from vitlab.__main__ import main; main([]); main(['--help']); main(['train', '--help'])") == set()


def test_the_lean_imports_leave_the_whole_packages_to_whoever_wants_them_later():
    code = """
from vitlab.lean import modules
(factory, scheduler) = modules("timm.data.transforms_factory", "timm.scheduler")
import torchvision, timm, timm.data, timm.scheduler
assert timm.create_model and torchvision.models.resnet18 and timm.data.create_transform
assert timm.scheduler.CosineLRScheduler
"""
    assert {"timm", "torchvision"} <= loaded(code)
