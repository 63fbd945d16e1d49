"""One training from its configuration to its printed summary."""

import logging
import os
import re
import shlex
import signal
import sys
import time
import traceback
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitlab.cli.exit import DONE, FAILED, bug_report, refuse
from vitlab.config import identity
from vitlab.config.build import assemble
from vitlab.config.check import check
from vitlab.config.errors import ConfigError, DataError, Interrupted, Node, RankLost, StorageError, VitlabError
from vitlab.config.groups import defaults
from vitlab.config.own import command

if TYPE_CHECKING:
    from vitlab.storage.run import Run
    from vitlab.system.signals import Signals
    from vitlab.training.loop import Updates

WAITED = (0.2, 5.0)  # share of a training, and seconds of it, from which waiting for images is said
TAGGED = ("experiment", "dataset", "model", "patch", "augment", "loss", "optimizer", "schedule")

log = logging.getLogger("vitlab")


def find_run(config: Node, choices: dict[str, str]) -> "Run":
    """The folder of a checked configuration's run, which may not be there yet."""
    from vitlab.storage.run import find

    return find(config["system"]["runs"], *identity.names(config, choices))


def run(node: Node, choices: dict[str, str]) -> int:
    """One training, from its configuration to its summary; gives its exit status."""
    try:
        return train(node, choices)
    except VitlabError as error:  # here, so that the other runs of a sweep go on
        return refuse(error)


def train(node: Node, choices: dict[str, str], *, reraise: bool = False) -> int:
    """`run` without its handler: what raises a VitlabError has trained nothing.

    Args:
        node: the configuration.
        choices: option of each group.
        reraise: whether what ends the training is raised, and not turned into an exit status.
    """
    from vitlab.training.loop import train_alone

    return train_alone(training(node, choices, reraise=reraise))


def training(
    node: Node, choices: dict[str, str], *, reraise: bool = False, signals: "Signals | None" = None
) -> "Updates[int]":
    """The same as a generator, which leaves each update to the caller; `signals` as for `training_loop`."""
    from vitlab.data.fingerprint import outdated
    from vitlab.system.distributed import detect_lost_rank, join_processes
    from vitlab.tracking.logs import logging_to
    from vitlab.training.batches import faster_input
    from vitlab.training.loop import training_loop
    from vitlab.training.setup import prepare

    config = check(node)
    parts = assemble(config)
    system = parts["system"]
    with join_processes(system) as dist, ExitStack() as stack:
        slug = identity.slug(config, choices)
        folder = find_run(config, choices)
        result = dist.run_on_rank0(folder.result)
        changed = dist.run_on_rank0(
            lambda: outdated(folder, config, parts["dataset"].fingerprint) if folder.has_begun() else ""
        )
        if changed and not (system.retrain or system.changed_data):
            raise DataError(
                f"{folder.folder} {changed}: system.retrain=true trains it anew and keeps the old"
                " folder, system.changed_data=true goes on all the same"
            )
        if result["status"] == "finished" and not system.retrain:
            came = summary(folder, result)
            if dist.is_rank0:
                also = f", and {changed}" if changed else ""
                print(f"This run is finished already{also}; system.retrain=true trains it anew.\n\n{came}")
            return DONE
        parts["tracking"] = with_names(parts["tracking"], slug, config, choices)
        setup = prepare(**parts, dist=dist)
        dist.run_on_rank0(lambda: claim(folder, system.retrain, stack, changed=bool(changed)))
        stack.enter_context(logging_to(folder.log if dist.is_rank0 else None, speak=dist.is_rank0))
        if changed and not system.retrain:
            log.warning("the run %s", changed)
        began = time.perf_counter()
        try:
            with detect_lost_rank(dist):
                result = yield from training_loop(setup, folder, config, signals)
        except Interrupted as leave:
            log.warning("%s:\n%s", leave, command_line())
            if reraise:
                raise
            return 128 + leave.signal
        except KeyboardInterrupt:
            log.warning("left at once; the same command goes on from the last checkpoint:\n%s", command_line())
            if reraise:
                raise
            return 128 + signal.SIGINT
        except RankLost as error:  # the first process may be the one that has gone: each speaks for itself
            print(
                f"vitlab: {error}; the same command goes on from the last checkpoint:\n{command_line()}",
                file=sys.stderr,
            )
            exit_at_once()
        except Exception as error:
            if dist.is_rank0:
                with suppress(StorageError):  # where the disk is full it says interrupted, which is true too
                    folder.write_result(
                        {
                            "status": "failed",
                            "error": str(error),
                            "seed": setup.seed,
                            "cell": identity.cell_identity(config),
                        }
                    )
            if reraise:
                raise
            message = f"vitlab: {error}" if isinstance(error, VitlabError) else bug_report(error)
            if isinstance(error, VitlabError) and os.environ.get("VITLAB_TRACEBACK"):
                message = f"{traceback.format_exc()}\n{message}"
            log.error("%s", message)
            if dist.size > 1:
                if not dist.is_rank0:
                    print(message, file=sys.stderr)
                exit_at_once()
            return FAILED
        log.info("\n%s", summary(folder, result, time.perf_counter() - began, faster_input(setup)))
    return DONE


def exit_at_once() -> None:
    """Ends this process of several as failed; to leave their group it would have to wait for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(FAILED)


def claim(folder: "Run", retrain: bool, stack: ExitStack, *, changed: bool) -> None:
    """Takes a run's folder for this process; with `retrain` a finished or an outdated one is set aside.

    Raises:
        ConfigError: the run has just been finished.
        StorageError: another process has the folder, or it cannot be written.
    """
    from vitlab.storage.lock import Lock
    from vitlab.storage.run import set_aside

    folder.create()
    stack.enter_context(Lock(folder.lock))
    finished = folder.result()["status"] == "finished"
    if finished and not retrain:
        raise ConfigError(f"{folder.folder} has just been finished by another process: type the same again")
    if retrain and (finished or changed):
        if os.name == "nt":  # Windows renames no folder in which a file is open
            stack.pop_all().close()
        print(f"The {'finished' if finished else 'interrupted'} run is kept as {set_aside(folder)}")
        folder.create()
        stack.enter_context(Lock(folder.lock))


def command_line() -> str:
    """The command, as one that can be run again."""
    words = shlex.join(sys.argv[1:])
    processes, machine = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if processes == 1:
        return f"vitlab {words}"
    return f"torchrun --nproc-per-node={machine} -m vitlab {words}"


def with_names(tracking: Any, slug: str, config: Node, choices: dict[str, str]) -> Any:
    """The tracking with a name, a group and tags: the runs of a cell are a group, options are tags."""
    taken = defaults()
    tags = [
        f"{group}={option}"
        for group, option in choices.items()
        if group in TAGGED or (group.startswith("model/") and taken.get(group) != option)
    ]
    return replace(
        tracking,
        name=tracking.name or slug,
        group=tracking.group or f"{re.sub(r'(-f[0-9]+)?-s[0-9]+$', '', slug)}-{identity.cell_identity(config)}",
        tags=tracking.tags or tuple(tag[:64] for tag in tags),  # W&B takes no longer ones
    )


def format_few_shot(result: dict[str, Any]) -> str:
    """The few-shot accuracies on test images; empty where none were measured."""
    from vitlab.storage.metrics import find

    known = [each for each in map(find, result) if each and each.count and each.higher_is_better]
    shown = [each for each in known if each.source == "test"]
    return ", ".join(f"{each.words.removeprefix('test ')} {each.form(result[each.name])}" for each in shown)


def format_best(result: dict[str, Any]) -> str:
    """Which weights the best ones are; and by which metric, where that is not the accuracy."""
    from vitlab.storage.metrics import SELECTED_BY, metric

    by = metric(result.get("best_by", SELECTED_BY.name))
    chosen = "" if by == SELECTED_BY else f", by {by.words.partition(' ')[2]} {by.format(result[by.name])}"
    return f"best, at step {result['best_step']} of {result['steps']}{chosen}"


def format_wait(result: dict[str, Any], faster: str) -> str:
    """How much of the training waited for its images, and what to change; empty where it was not much."""
    wait = result.get("data_wait", 0.0)
    if wait < WAITED[0] or wait * result["seconds"] < WAITED[1]:
        return ""
    return f"{wait:.0%} of the training waited for images" + (f"; faster with {faster}" if faster else "")


def summary(folder: Any, result: dict[str, Any], seconds: float | None = None, faster: str = "") -> str:
    """The result of a run, and the next commands; raises StorageError where result.json lacks something."""
    offline = bool(folder.offline_copies())
    try:
        took = f"{result['seconds']:.0f} s of training" + (
            f", {seconds:.0f} s in all" if seconds and seconds > result["seconds"] else ""
        )
        together = f", {packed} runs together" if (packed := result.get("packed", 1)) > 1 else ""
        spared = [f"{result[key]} {key}" for key in ("skipped", "rollbacks") if result.get(key)]
        following = (command("evaluate", folder.folder), command("predict", folder.folder, "IMAGE..."))
        if not result.get("classifies", True):
            following = (command("probe", folder.folder), command("train", f"init={folder.folder}"))
        lines = (
            f"run         {folder.folder}",
            f"validation  {result['val/accuracy']:.2%} ({format_best(result)})",
            f"test        {result['test/accuracy']:.2%}",
            *([f"few shots   {few}"] if (few := format_few_shot(result)) else []),
            f"time        {took}{together}, {result['images_per_second']:,.0f} images/s,"
            f" {result['parameters']:,} parameters",
            *([f"waiting     {wait}"] if (wait := format_wait(result, faster)) else []),
            *([f"not finite  updates {', '.join(spared)}"] if spared else []),
            *(f"{word:<12}{words}" for word, words in zip(("next", ""), following, strict=True)),
            *([f"            vitlab sync {folder.folder}      (to Weights & Biases)"] if offline else []),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{folder.folder}/result.json is damaged ({error}): move the run's folder away") from error
    return "\n".join(lines)
