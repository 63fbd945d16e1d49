"""`vitlab train`: a Hydra application, with errors in one sentence."""

import logging
import os
import shlex
import signal
import sys
import time
import traceback
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitlab import config as configuration
from vitlab.commands import DONE, FAILED, refuse
from vitlab.config import ConfigError, Node, assemble
from vitlab.menu import defaults, help_text

if TYPE_CHECKING:
    from vitlab.run import Run

HYDRA_FLAGS = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--version", "-sc", "--shell-completion")

TAGGED = ("experiment", "dataset", "model", "patch", "augment", "loss", "optimizer", "schedule")

CELL = "  vitlab train cell=SWEEP/ARM seed=0          one run of a sweep; cell=SWEEP/SCALE/ARM at one of its scales"

log = logging.getLogger("vitlab")


def main(words: list[str]) -> int:
    """Trains what the words ask for: one run, or with -m one for each combination."""
    if "--help" in words or "-h" in words:
        print(f"{help_text()}\n{CELL}")
        return DONE
    overrides = [word for word in words if not word.startswith("-")] if not set(HYDRA_FLAGS) & set(words) else []
    many = bool({"-m", "--multirun"} & set(words))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own reports hide which value was wrong
    try:
        given = configuration.complete(unfold(overrides, many=many), many=many)
        flags = [word for word in words if word not in overrides]
        from vitlab.commands.multirun import hydra_main, multirun

        return multirun(flags, given, words) if many else hydra_main([*flags, *given], many=False)
    except Exception as error:
        return refuse(configuration.explain(error, overrides))


def unfold(overrides: list[str], many: bool = False) -> list[str]:
    """The overrides, with those of a sweep's cell for `cell=SWEEP/ARM`.

    Raises:
        ValueError: there is no such cell, or several are asked for.
    """
    if not (named := [word for word in overrides if word.startswith("cell=")]):
        return overrides
    from vitlab import question

    if many or len(named) > 1:
        raise ConfigError(f"{' '.join(named)}: one cell a command; vitlab sweep trains all of them")
    asked, cell = question.cell(named[0].removeprefix("cell="))
    rest = [word for word in overrides if word not in named]
    apart = [word for word in rest if question.key_of(word) == "seed" or word.startswith("hydra")]
    cells = {each.name: each for each in asked.cells(word for word in rest if word not in apart)}
    tracked = [] if any(word.startswith("tracking.sweep=") for word in rest) else [f"tracking.sweep={asked.name}"]
    return [*cells[cell.name].overrides, *tracked, *apart]


def place(config: Node, choices: dict[str, str]) -> "Run":
    """Where a checked configuration's run is, or will be."""
    from vitlab.run import find

    name = f"{configuration.slug(config, choices)}-{configuration.identity(config)}"
    return find(config["system"]["runs"], name)


def run(node: Node, choices: dict[str, str]) -> int:
    """One training, from its configuration to its summary."""
    from vitlab import recipe, train
    from vitlab.parallel import Gone, together, world
    from vitlab.tracking import logging_to

    try:
        config = configuration.check(node)
        parts = assemble(config)
    except (ValueError, OSError) as error:
        return refuse(error)
    system = parts["system"]
    with world(system) as here, ExitStack() as stack:
        slug = configuration.slug(config, choices)
        folder = place(config, choices)
        try:
            result = here.ask(folder.result)
            if result["status"] == "finished" and not system.retrain:
                came = summary(folder, result)
                if here.first:
                    print(f"This run is finished already; system.retrain=true trains it anew.\n\n{came}")
                return DONE
            parts["tracking"] = called(parts["tracking"], slug, config, choices)
            ready = recipe.prepare(**parts, world=here)
            here.ask(lambda: claim(folder, system.retrain, stack))
        except (ValueError, OSError) as error:
            return refuse(error)
        stack.enter_context(logging_to(folder.log if here.first else None, speak=here.first))
        began = time.perf_counter()
        try:
            with together(here):
                result = train.fit(ready, folder, config)
        except train.Stopped as leave:
            log.warning("%s:\n%s", leave, typed())
            return 128 + leave.signal
        except KeyboardInterrupt:
            log.warning("left at once; the same command goes on from the last checkpoint:\n%s", typed())
            return 128 + signal.SIGINT
        except Gone as error:  # the first process may be the one that has gone: each speaks for itself
            print(f"vitlab: {error}; the same command goes on from the last checkpoint:\n{typed()}", file=sys.stderr)
            leave_alone()
        except Exception as error:
            if here.first:
                with suppress(OSError):  # where the disk is full it says interrupted, which is true too
                    folder.write_result(
                        {
                            "status": "failed",
                            "error": str(error),
                            "seed": ready.seed,
                            "cell": configuration.cell(config),
                        }
                    )
            expected = isinstance(error, ArithmeticError | ValueError | OSError | train.OutOfMemory)
            whole = os.environ.get("VITLAB_TRACEBACK") or not expected
            said = traceback.format_exc() if whole else f"vitlab: {error}"
            log.error("%s", said)
            if here.size > 1:
                if not here.first:
                    print(said, file=sys.stderr)
                leave_alone()
            return FAILED
        log.info("\n%s", summary(folder, result, time.perf_counter() - began))
    return DONE


def leave_alone() -> None:
    """Ends this process of several as failed: to leave their group it would have to wait for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(FAILED)


def claim(folder: "Run", retrain: bool, stack: ExitStack) -> None:
    """Takes a run's folder for this process, a finished one's under a new name aside.

    Raises:
        ValueError: the run has just been finished, or the folder is not to be written to.
        OSError: another process has it, or it cannot be written.
    """
    from vitlab.lock import Lock
    from vitlab.run import set_aside

    folder.create()
    stack.enter_context(Lock(folder.lock))
    if folder.result()["status"] == "finished":
        if not retrain:
            raise ValueError(f"{folder.folder} has just been finished by another process: type the same again")
        print(f"The finished run is kept as {set_aside(folder)}")
        folder.create()
        stack.enter_context(Lock(folder.lock))


def typed() -> str:
    """The command as it was typed, to be typed again."""
    words = shlex.join(sys.argv[1:])
    processes, machine = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if processes == 1:
        return f"vitlab {words}"
    return f"torchrun --nproc-per-node={machine} -m vitlab {words}"


def called(tracking: Any, slug: str, config: Node, choices: dict[str, str]) -> Any:
    """The tracking with names where the user gave none: seeds of one configuration are a group, options are tags."""
    taken = defaults()
    tags = [
        f"{group}={option}"
        for group, option in choices.items()
        if group in TAGGED or (group.startswith("model/") and taken.get(group) != option)
    ]
    return replace(
        tracking,
        name=tracking.name or slug,
        group=tracking.group or f"{slug.rpartition('-')[0]}-{configuration.cell(config)}",
        tags=tracking.tags or tuple(tag[:64] for tag in tags),  # W&B takes no longer ones
    )


def few_shots(result: dict[str, Any]) -> str:
    """Its few-shot accuracies on test images, in words; empty where none were asked for."""
    found = {key: value for key, value in result.items() if key.startswith("test/") and key.endswith("-shot")}
    return ", ".join(f"{key.removeprefix('test/')} {value:.2%}" for key, value in found.items())


def summary(folder: Any, result: dict[str, Any], seconds: float | None = None) -> str:
    """What came out of a run, and what to type next; raises ValueError where result.json lacks something."""
    offline = any(folder.folder.glob("wandb/offline-run-*"))
    try:
        took = f"{result['seconds']:.0f} s of training" + (
            f", {seconds:.0f} s in all" if seconds and seconds > result["seconds"] else ""
        )
        spared = [f"{result[key]} {key}" for key in ("skipped", "rollbacks") if result.get(key)]
        following = (f"evaluate {folder.folder}", f"predict {folder.folder} IMAGE...")
        if not result.get("classifies", True):
            following = (f"probe {folder.folder}", f"train init={folder.folder}")
        lines = (
            f"run         {folder.folder}",
            f"validation  {result['val/accuracy']:.2%} (best, at step {result['best_step']} of {result['steps']})",
            f"test        {result['test/accuracy']:.2%}",
            *([f"few shots   {few}"] if (few := few_shots(result)) else []),
            f"time        {took}, {result['images_per_second']:,.0f} images/s, {result['parameters']:,} parameters",
            *([f"not finite  updates {', '.join(spared)}"] if spared else []),
            *(f"{word:<12}vitlab {command}" for word, command in zip(("next", ""), following, strict=True)),
            *([f"            vitlab sync {folder.folder}      (to Weights & Biases)"] if offline else []),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder.folder}/result.json is damaged ({error}): move the run's folder away") from error
    return "\n".join(lines)
