"""`vitlab bench ...`: how fast a composition is, where its time goes, what it takes, and how both grow."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.cli.exit import DONE, FAILED, refuse
from vitlab.config.errors import ConfigError, OutOfMemory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vitlab.bench.steps import Work
    from vitlab.training.recipe import TrainingSetup

DESCRIPTION = """Measures a composition: a training step by its stages, inference, memory, FLOPs a second beside this
machine's own peak, and the start-up. Medians over rounds. Nothing is trained, and nothing is written without --out."""
MEASURED = {"training_ms": "training", "inference_ms": "inference", "memory_bytes": "memory"}


def main(words: list[str]) -> int:
    """Measures, prints as it goes, and writes bench.json and bench.png where it is told to."""
    parser = argparse.ArgumentParser(prog="vitlab bench", description=DESCRIPTION)
    parser.add_argument("overrides", nargs="*", metavar="group=option | key=value", help="as for vitlab train")
    parser.add_argument("--peers", action="store_true", help="beside timm, torchvision, transformers and vit-pytorch")
    parser.add_argument("--sweep", choices=("batch", "tokens", "width", "depth"), help="how the cost grows with it")
    parser.add_argument("--rounds", type=int, default=11, metavar="N", help="that are measured; 11")
    parser.add_argument("--warmup", type=int, default=2, metavar="N", help="rounds before them; 2")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where bench.json and bench.png go")
    options = parser.parse_intermixed_args(words)
    from vitlab.system.memory import out_of_memory

    try:
        bench(options)
    except (ValueError, OSError) as error:
        return refuse(error)
    except RuntimeError as error:
        if not (isinstance(error, OutOfMemory) or out_of_memory(error)):
            raise
        print(f"vitlab: {error}")
        return FAILED
    print(f"next        vitlab train {' '.join(options.overrides)}".rstrip())
    return DONE


def bench(options: argparse.Namespace) -> None:
    """Everything that is asked for, said as soon as it is known.

    Raises:
        ConfigError: a composition that cannot be, or cannot be compared.
    """
    for name, least in (("rounds", 1), ("warmup", 0)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name}={getattr(options, name)}: must be at least {least}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("vitlab bench under torchrun: it measures one process; start it without")
    import torch

    from vitlab.bench import bench
    from vitlab.bench.libraries import LIBRARIES, comparable
    from vitlab.bench.steps import peak_bytes, preload
    from vitlab.config.build import assemble, build
    from vitlab.config.check import check
    from vitlab.config.compose import compose
    from vitlab.model import count
    from vitlab.plotting import save
    from vitlab.storage.files import write_json
    from vitlab.system.distributed import join_processes
    from vitlab.system.hardware import describe
    from vitlab.training.setup import prepare

    composed, choices = compose(options.overrides)
    node = check(composed)
    if options.peers:
        comparable(node, choices)
    parts = assemble(node)
    preload(list(LIBRARIES) if options.peers else [])
    rounds = {"rounds": options.rounds, "warmup": options.warmup}
    with join_processes(parts["system"]) as dist:
        setup = prepare(**parts, dist=dist)
        if not setup.vit.objective.classifies:
            raise ConfigError("vitlab bench measures classification: leave model/objective=masked_patch out")
        if options.peers and len(set(setup.dataset.shape)) > 1:
            raise ConfigError(f"--peers with images of {setup.dataset.shape}: torchvision takes square ones alone")
        work = work_of(setup, node)
        result: dict[str, Any] = {
            "overrides": options.overrides,
            "config": node,
            "device": describe(dist.device),
            "torch": str(torch.__version__),
            "precision": setup.precision,
            "parameters": count.parameters(setup.vit),
            "tokens": setup.vit.grid.tokens,
            "flops_per_image": setup.flops,
            **rounds,
            **bench.composition(setup, **rounds),
        }
        result["memory_bytes"] = peak_bytes(work)
        alone = "" if dist.device.type == "cuda" else ", in a fresh process"
        print(told(result, f"{work.batch} images{alone}"))
        works = [work]
        if options.peers:
            plain = replace(work, make=build(undropped(node["model"])))
            works, counts, said = bench.alike([plain.of(name) for name in ("vitlab", *LIBRARIES)])
            print(compared(counts, said, work.batch))
            measured = bench.measure(works, **rounds)
            result["peers"] = {"parameters": counts, "said": said, "libraries": measured}
            print(table(measured))
        if options.sweep:
            print(f"\n{options.sweep:<8}{header('growth')}")
            libraries = [each.library for each in works]
            result["sweep"] = bench.grow(works[0], options.sweep, libraries, **rounds, say=Said())
            print(ended(result["sweep"], dist.device.type))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(options.out / "bench.json", result)
        save(draw(result), options.out / "bench.png")
        print(f"written     {options.out / 'bench.json'}, bench.png")


def work_of(setup: "TrainingSetup", node: dict[str, Any]) -> "Work":
    """The bare step of a composition."""
    import torch

    from vitlab.bench.steps import Work
    from vitlab.config.build import build

    return Work(
        make=build(node["model"]),
        image_size=setup.dataset.shape,
        channels=setup.dataset.channels,
        classes=len(setup.dataset.classes),
        batch=setup.fit.batch_size // setup.fit.accumulate,
        precision=setup.precision,
        device=setup.dist.device,
        loss=setup.loss,
        optimizer=build(node["optimizer"]),
        system=setup.system,
        threads=torch.get_num_threads(),
    )


def undropped(model: dict[str, Any]) -> dict[str, Any]:
    """A model's configuration without dropout, which each library has in other places."""
    return model | {"dropout": 0.0, "drop_path": 0.0, "attention": model["attention"] | {"dropout": 0.0}}


def told(result: dict[str, Any], memory_of: str) -> str:
    """A composition's numbers."""
    peak, stages = result["peak"], result["training"]["stages_ms"]
    lines = [
        f"machine     {result['device']}, {result['precision']}, torch {result['torch']}",
        f"peak        {giga(peak['flops_per_second'])}, matrix products of {peak['side']} x {peak['side']}",
        f"model       {result['parameters']:,} parameters, {result['tokens']:,} tokens,"
        f" {result['flops_per_image'] / 1e9:.4g} GFLOPs an image forward, three times that a training step",
        f"start-up    {result['startup_seconds']:.1f} s from the process's start to the first step ready",
        f"memory      {size(result['memory_bytes'])} for the model, its optimizer and training steps of {memory_of}",
        "",
        f"{'':<16}{'ms':>12}{'images/s':>12}{'GFLOP/s':>12}{'of the peak':>14}",
    ]
    for kind in ("training", "inference"):
        one = result[kind]
        lines.append(
            f"{kind:<16}{one['ms']:>12,.2f}{one['images_per_second']:>12,.1f}"
            f"{one['flops_per_second'] / 1e9:>12,.1f}{one['share_of_peak']:>14.1%}"
        )
        if kind == "training":
            whole = sum(stages.values())
            lines += [f"  {name:<14}{ms:>12,.2f}{ms / whole:>12.1%}" for name, ms in stages.items()]
    return "\n".join(lines)


def compared(counts: dict[str, int], said: dict[str, str], batch: int) -> str:
    """What is compared, and where it is not the same."""
    same = [name for name in counts if name not in said]
    return "\n".join(
        [
            f"\npeers       bare steps of {batch} images (forward, loss, backward, optimizer), no dropout, interleaved",
            f"parameters  {counts['vitlab']:,} in {', '.join(same)}",
            *(f"{name:<12}{words}" for name, words in said.items()),
            f"\n{'':<8}{header('by ours')}",
        ]
    )


def header(second: str) -> str:
    return f"{'':<14}" + "".join(f"{name:>14}{second:>9}" for name in ("training ms", "inference ms", "memory"))


def table(measured: dict[str, dict[str, Any]]) -> str:
    """A line a library, each number also by vitlab's."""
    from vitlab.bench.bench import ratio

    return "\n".join(
        line("", name, one, {key: ratio(measured, name, key) for key in MEASURED}) for name, one in measured.items()
    )


def line(place: str, name: str, one: dict[str, Any], beside: dict[str, float | None]) -> str:
    cells = [(size(one[key]) if key == "memory_bytes" else f"{one[key]:,.2f}", beside.get(key)) for key in MEASURED]
    numbers = "".join(f"{cell:>14}{'' if by is None else f'{by:.2f}':>9}" for cell, by in cells)
    return f"{place:<8}{name:<14}{numbers}"


class Said:
    """Prints the points of a sweep as they come, with how they grew from the one before."""

    def __init__(self) -> None:
        self.before: tuple[int, dict[str, dict[str, Any]]] | None = None

    def __call__(self, place: int, measured: dict[str, dict[str, Any]]) -> None:
        from vitlab.bench.bench import exponents

        for number, (name, one) in enumerate(measured.items()):
            grown: dict[str, float | None] = {}
            if self.before:
                last, then = self.before
                grown = {key: exponents((last, place), (then[name][key], one[key]))[0] for key in MEASURED}
            print(line("" if number else f"{place:,}", name, one, grown), flush=True)
        self.before = place, measured


def ended(sweep: dict[str, Any], device: str) -> str:
    """What the numbers of a sweep mean, and how far it went."""
    lines = [f"growth      the exponent between two lines: 1 is in step with the {sweep['kind']}, 2 with its square"]
    if sweep["out_of_memory_at"]:
        lines.append(f"ended       out of memory at {sweep['out_of_memory_at']:,}")
    if sweep["largest_batch"]:
        lines.append(
            "largest     batch that fits, by doubling: "
            + ", ".join(f"{name} {images:,}" for name, images in sweep["largest_batch"].items())
        )
    elif sweep["kind"] == "batch" and device == "cpu":
        lines.append("largest     batch that fits: not looked for on a CPU, whose memory is everybody's")
    return "\n".join(lines)


def size(value: int | None) -> str:
    """Bytes in words."""
    from vitlab.system.memory import format_bytes

    return "too much" if value is None else format_bytes(value)


def giga(pace: float) -> str:
    return f"{pace / 1e9:,.1f} GFLOP/s"


def draw(result: dict[str, Any]) -> "Figure":
    """The stages of a step; beside them what was compared, and what grew."""
    from vitlab.evaluation import pictures
    from vitlab.plotting import blank

    panels = [lambda axes: draw_stages(axes, result["training"]["stages_ms"])]
    if "peers" in result:
        panels.append(lambda axes: draw_peers(axes, result["peers"]["libraries"]))
    if "sweep" in result:
        panels += [
            lambda axes: draw_growth(axes, result["sweep"], "training_ms", 1.0, "ms a training step"),
            lambda axes: draw_growth(axes, result["sweep"], "memory_bytes", 1e6, "peak memory (MB)"),
        ]
    figure = blank(0.6 + 3.7 * max(2, len(panels)) * (0.5 if len(panels) == 1 else 1), 3.4)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axes)
        axes.spines[["top", "right"]].set_visible(False)
    model = result["config"]["model"]
    named = f"width {model['width']}, depth {model['depth']}, {result['tokens']} tokens, {result['precision']}"
    pictures.entitle(figure, named, result["device"])
    return figure


def draw_stages(axes: "Axes", stages: dict[str, float]) -> None:
    from vitlab.plotting import COLOURS

    bars = axes.bar(list(stages), list(stages.values()), color=COLOURS[0])
    axes.bar_label(bars, [f"{ms:.3g}" for ms in stages.values()], fontsize=8)
    axes.set(ylabel="ms of a training step")
    axes.tick_params(labelsize=8)


def draw_peers(axes: "Axes", measured: dict[str, dict[str, Any]]) -> None:
    from vitlab.bench.bench import ratio
    from vitlab.plotting import COLOURS

    for number, (key, label) in enumerate(MEASURED.items()):
        places = [place + (number - 1) * 0.27 for place in range(len(measured))]
        heights = [ratio(measured, name, key) or 0 for name in measured]
        axes.bar(places, heights, 0.25, color=COLOURS[number], label=label)
    axes.axhline(1, color="black", linewidth=0.7)
    axes.set_xticks(range(len(measured)), list(measured), fontsize=8, rotation=20)
    axes.set(ylabel="by vitlab's; less is better")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))


def draw_growth(axes: "Axes", sweep: dict[str, Any], key: str, unit: float, label: str) -> None:
    from matplotlib.ticker import LogFormatter, NullFormatter

    from vitlab.plotting import COLOURS, MARKS

    for number, (name, of) in enumerate(sweep["libraries"].items()):
        known: Sequence[tuple[int, float]] = [(x, y / unit) for x, y in zip(sweep["sizes"], of[key], strict=True) if y]
        if known:
            axes.plot(*zip(*known, strict=True), color=COLOURS[number], marker=MARKS[number], markersize=4, label=name)
    axes.set(xscale="log", yscale="log", xlabel=sweep["kind"], ylabel=label)
    axes.set_xticks(sweep["sizes"], [f"{x:,}" for x in sweep["sizes"]], fontsize=8)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.7)))
    axes.tick_params(labelsize=8, which="both")
    axes.grid(alpha=0.3)
    if len(sweep["libraries"]) > 1:
        axes.legend(frameon=False, fontsize=8)
