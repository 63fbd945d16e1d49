"""The commands: what each word after `vitlab` does, and its exit status."""

import argparse
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterable
from typing import Any

from vitlab import config as configuration
from vitlab.config import ConfigError, Node
from vitlab.menu import CONF, help_text

DONE, FAILED, REFUSED = 0, 1, 2
HYDRA_FLAGS = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--version", "-sc", "--shell-completion")

log = logging.getLogger("vitlab")


# --- vitlab train -------------------------------------------------------------------------------------------------


def train(words: list[str]) -> int:
    """`vitlab train`: a Hydra application, with errors in one sentence."""
    if "--help" in words or "-h" in words:
        print(help_text())
        return DONE
    overrides = [word for word in words if not word.startswith("-")] if not set(HYDRA_FLAGS) & set(words) else []
    many = bool({"-m", "--multirun"} & set(words))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own reports hide which value was wrong
    try:
        given = configuration.complete(overrides, many=many)
        if many:
            rehearse(given)
        return hydra_main([*(word for word in words if word not in overrides), *given], many)
    except Exception as error:
        return refuse(configuration.explain(error, overrides))


def hydra_main(words: list[str], many: bool) -> int:
    import hydra
    from hydra.core.hydra_config import HydraConfig

    outcomes: list[int] = []

    def app(composed: Any) -> None:
        node, choices = configuration.plain(composed, HydraConfig.get().runtime.choices)
        outcomes.append(run(node, choices))
        if many and outcomes[-1] >= 128:
            raise SystemExit(outcomes[-1])  # a signal asked to leave: the jobs that follow leave too

    typed = sys.argv
    sys.argv = [typed[0], *words]
    try:
        hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")(app)()
    finally:
        sys.argv = typed
    return max(outcomes, default=DONE)


def rehearse(overrides: list[str]) -> None:
    """Composes, checks and builds (on the meta device) every run of a multirun, before the first one starts."""
    import torch
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(overrides)
    for batch in BasicSweeper.split_arguments(parsed, None):
        for cell in batch:
            try:
                node, _ = configuration.compose(cell)
                parts = assemble(configuration.check(node))
                with torch.device("meta"):
                    data = parts["dataset"]
                    parts["model"](image_size=data.shape, channels=data.channels, classes=len(data.classes))
            except (ValueError, OSError) as error:
                raise ConfigError(f"[{' '.join(cell)}] {error}") from error


def assemble(config: Node) -> dict[str, Any]:
    """The objects of a checked configuration, as `train.prepare` takes them."""
    parts = {key: configuration.build(value) for key, value in config.items() if key not in ("patch", "seed", "model")}
    if config["seed"] < 0:
        raise ValueError(f"seed={config['seed']}: must be 0 or more")
    return {
        **parts,
        "model": configuration.build(config["model"], patch=config["patch"]["size"]),
        "seed": config["seed"],
    }


def run(node: Node, choices: dict[str, str]) -> int:
    """One training, from its configuration to its summary."""
    from vitlab import runs, train
    from vitlab.parallel import world
    from vitlab.tracking import logging_to

    try:
        config = configuration.check(node)
        parts = assemble(config)
    except (ValueError, OSError) as error:
        return refuse(error)
    system = parts["system"]
    with world(system) as here:
        name = f"{configuration.slug(config, choices)}-{configuration.identity(config)}"
        folder = runs.find(system.runs, name)
        result = folder.result()
        here.wait()
        if result["status"] == "finished" and not system.retrain:
            if here.first:
                print(f"This run is finished already; system.retrain=true trains it anew.\n\n{summary(folder, result)}")
            return DONE
        try:
            ready = train.prepare(**parts, world=here)
            if here.first:
                if result["status"] == "finished":
                    print(f"The finished run is kept as {runs.set_aside(folder)}")
                folder.create()
        except (ValueError, OSError) as error:
            return refuse(error)
        here.wait()
        with logging_to(folder.log if here.first else None, speak=here.first):
            began = time.perf_counter()
            try:
                result = train.fit(ready, folder, config)
            except train.Stopped as leave:
                log.warning("%s", leave)
                return 128 + leave.signal
            except Exception as error:
                if here.first:
                    folder.write_result({"status": "failed", "error": str(error), "seed": ready.seed})
                if isinstance(error, ArithmeticError | ValueError | OSError) and not os.environ.get("VITLAB_TRACEBACK"):
                    log.error("vitlab: %s", error)
                else:
                    log.error("%s", traceback.format_exc())
                return FAILED
            log.info("\n%s", summary(folder, result, time.perf_counter() - began))
    return DONE


def summary(folder: Any, result: dict[str, Any], seconds: float | None = None) -> str:
    """What came out of a run, and what to type next."""
    took = f"{result['seconds']:.0f} s of training" + (f", {seconds:.0f} s in all" if seconds else "")
    return "\n".join(
        (
            f"run         {folder.folder}",
            f"validation  {result['val/accuracy']:.2%} (best, at step {result['best_step']} of {result['steps']})",
            f"test        {result['test/accuracy']:.2%}",
            f"time        {took}, {result['images_per_second']:,.0f} images/s, {result['parameters']:,} parameters",
            f"next        vitlab evaluate {folder.folder}",
            "            vitlab train -m patch=p1,p2,p4      (the baseline with other patch sizes)",
        )
    )


def refuse(error: Exception) -> int:
    """One sentence for a user's mistake; anything else is ours, and goes on as a traceback."""
    if not isinstance(error, ValueError | OSError):
        raise error
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"vitlab: {error}", file=sys.stderr)
    return REFUSED


# --- vitlab evaluate ----------------------------------------------------------------------------------------------


def evaluate(words: list[str]) -> int:
    """`vitlab evaluate RUN`: the accuracy of a trained run, measured again."""
    parser = argparse.ArgumentParser(prog="vitlab evaluate", description="Measures a trained run again.")
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("--root", help="where the dataset's files lie now, if they have moved")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    options = parser.parse_args(words)
    from vitlab import trained

    try:
        scores, before = trained.evaluate(options.run, root=options.root, device=options.device)
    except (ValueError, OSError) as error:
        return refuse(error)
    for split, name in (("val", "validation"), ("test", "test")):
        accuracy, loss = scores[f"{split}/accuracy"], scores[f"{split}/loss"]
        same = "as" if accuracy == before.get(f"{split}/accuracy") else "not as"
        print(f"{name:<11} accuracy {accuracy:.6f}  loss {loss:.6f}  ({same} recorded)")
    return DONE


# --- completion ---------------------------------------------------------------------------------------------------


def complete_line(words: list[str], commands: Iterable[str]) -> int:
    """Answers the shell's question for completions; after `vitlab train` Hydra knows them."""
    line = os.environ.get("COMP_LINE", "")
    program, _, rest = line.partition(" ")
    command, space, overrides = rest.partition(" ")
    if "query" in "".join(words) and not (command == "train" and space):
        print(" ".join(name for name in commands if name.startswith(command)))
        return DONE
    os.environ["COMP_LINE"] = f"{program} {overrides}"
    return hydra_main(words, many=False)
