"""`vitlab bench ...`: the speed and memory of a configuration, and how they grow."""

import argparse
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.cli.exit import DONE, FAILED
from vitlab.config.errors import ConfigError, OutOfMemory
from vitlab.config.own import command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitlab.bench.measure import Costs
    from vitlab.config.errors import Node


DESCRIPTION = """Measures a configuration: a training step by its stages, inference, memory, FLOPs a second beside the
peak of this machine, and the start-up time. Prints medians over rounds. Trains nothing, and writes nothing without
--out."""
BUSY = "busy        threads waited {delay:.2f} s a second for a core: too slow a time; measure again on a quiet machine"
MOST_RUNS = 1024  # of --packed, of which each is prepared
MOST_DELAY = 0.05  # seconds a second, of all threads
COSTS = {"training_ms": "training ms", "inference_ms": "inference ms", "memory_bytes": "memory"}


def main(words: list[str]) -> int:
    """Measures, and prints each result when it is known."""
    parser = argparse.ArgumentParser(prog="vitlab bench", description=DESCRIPTION)
    parser.add_argument("overrides", nargs="*", metavar="group=option | key=value", help="as for vitlab train")
    parser.add_argument("--peers", action="store_true", help="also timm, torchvision, transformers and vit-pytorch")
    parser.add_argument(
        "--sweep", choices=("batch", "tokens", "width", "depth"), help="how time and memory grow with it"
    )
    parser.add_argument(
        "--packed",
        metavar="N,N,...",
        help="instead, updates of so many runs trained together, as by a sweep: 1,4,16",
    )
    parser.add_argument("--at-once", type=int, metavar="N", help="with --packed: models computed in one product; all")
    parser.add_argument("--rounds", type=int, default=11, metavar="N", help="measured rounds; 11")
    parser.add_argument("--warmup", type=int, default=2, metavar="N", help="warm-up rounds; 2")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for bench.json, and bench.png of a --sweep")
    options = parser.parse_intermixed_args(words)
    from vitlab.system.memory import out_of_memory

    try:
        bench(options)
    except RuntimeError as error:
        if not (isinstance(error, OutOfMemory) or out_of_memory(error)):
            raise
        print(f"vitlab: {error}")
        return FAILED
    print(f"next        {command('train', *options.overrides)}")
    return DONE


def bench(options: argparse.Namespace) -> None:
    """Measures what the options ask for.

    Raises:
        ConfigError: the configuration is wrong, or cannot be compared with the other libraries.
    """
    for name, least in (("rounds", 1), ("warmup", 0)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name}={getattr(options, name)}: must be at least {least}")
    numbers = runs_together(options)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("vitlab bench under torchrun: it measures one process: start it without")
    import torch

    from vitlab.bench import measure
    from vitlab.bench.libraries import LIBRARIES, check_comparable
    from vitlab.bench.steps import peak_bytes, preload, ways, workload
    from vitlab.config.build import assemble, build
    from vitlab.config.check import check
    from vitlab.config.compose import compose
    from vitlab.model import count
    from vitlab.plotting import save
    from vitlab.storage.files import make_folder, write_json
    from vitlab.system import graphs
    from vitlab.system.contention import Delay
    from vitlab.system.distributed import join_processes
    from vitlab.system.hardware import describe
    from vitlab.training.checks import why_not_captured
    from vitlab.training.recipe import Recipe
    from vitlab.training.setup import prepare

    composed, choices = compose(options.overrides)
    config = check(composed)
    if options.peers:
        check_comparable(config, choices)
    if options.packed:
        bench_packed(options, config, numbers)
        return
    parts = assemble(config)
    preload(list(LIBRARIES) if options.peers else [])
    if options.out:
        make_folder(options.out)
    rounds = {"rounds": options.rounds, "warmup": options.warmup}
    with join_processes(parts["system"]) as dist:
        setup = prepare(**parts, dist=dist)
        data = setup.dataset
        if not setup.vit.objective.classifies:
            raise ConfigError("vitlab bench measures classification: leave model/objective=masked_patch out")
        if options.peers and len(set(data.shape)) > 1:
            raise ConfigError(f"--peers with images of {data.shape}: torchvision only takes square ones")
        shape = {"image_size": data.shape, "channels": data.channels, "classes": len(data.classes)}
        work = workload(config, shape, setup.fit.batch_size // setup.fit.accumulate, dist.device)
        delay = Delay()
        result: dict[str, Any] = {
            "overrides": options.overrides,
            "config": config,
            "device": describe(dist.device),
            "torch": str(torch.__version__),
            "precision": setup.precision,
            "parameters": count.parameters(setup.vit),
            "tokens": setup.vit.grid.tokens,
            "flops_per_image": setup.flops,
            **rounds,
            **measure.measure_stages(setup, **rounds),
            "delay": delay.rate(),
            "memory_bytes": peak_bytes(work),
        }
        fresh = ", in a fresh process" if dist.device.type == "cpu" else ""
        print(summary(result, f"{work.batch} images{fresh}"))
        reason = why_not_captured(Recipe(**parts), dist, setup.precision)
        works, captures = [work], dist.device.type in graphs.DEVICES and not reason
        if options.peers:
            plain = replace(work, make=build(without_dropout(config["model"])))
            works = [replace(plain, library=name) for name in ("vitlab", *LIBRARIES)]
            works, parameters, notes = measure.installed(works)
            print(f"\npeers       training steps of {work.batch} random images, without dropout, in turn")
            same = ", ".join(name for name in parameters if name not in notes)
            print(f"parameters  {parameters['vitlab']:,} in {same}")
            print("".join(f"{name:<12}{note}\n" for name, note in notes.items()), end="")
            result["peers"] = {"parameters": parameters, "notes": notes}
        if options.peers or len(ways(work, captures)) > 1:
            print(f"\n{table_header('way', 'ratio')}{'images/s':>11}{'peak':>7}  limit")
            result["ways"] = measure.measure_ways(works, captures, result, print_costs, **rounds)
        if options.sweep:
            print(f"\n{table_header(options.sweep, 'growth')}")
            libraries = [each.library for each in works]
            found = measure.measure_growth(works[0], options.sweep, libraries, print_costs, **rounds)
            result["sweep"] = found
            print(f"growth      the exponent between two lines: 1 is proportional to {options.sweep}, 2 quadratic")
            if found["out_of_memory_at"]:
                print(f"ended       out of memory at {found['out_of_memory_at']:,}")
            if found["largest_batch"]:
                largest = ", ".join(f"{name} {images:,}" for name, images in found["largest_batch"].items())
                print(f"largest     batch that fits, by doubling: {largest}")
    if options.out:
        write_json(options.out / "bench.json", result)
        if options.sweep:
            save(draw(result), options.out / "bench.png")
        print(f"written     {options.out / 'bench.json'}{', bench.png' if options.sweep else ''}")


def runs_together(options: argparse.Namespace) -> list[int]:
    """The numbers of --packed.

    Raises:
        ConfigError: there are none, or they do not go with the other options.
    """
    if options.packed is None:
        if options.at_once is not None:
            raise ConfigError(f"--at-once={options.at_once} is of --packed: add --packed=1,4,16,64, or leave it out")
        return []
    if other := "--peers" if options.peers else f"--sweep={options.sweep}" if options.sweep else "":
        raise ConfigError(f"--packed with {other}: they are measured one at a time: leave one out")
    words = options.packed.split(",")
    numbers = [int(word) if word.strip().isdecimal() else 0 for word in words]
    if not all(1 <= number <= MOST_RUNS for number in numbers):
        raise ConfigError(f"--packed={options.packed}: must be numbers of runs from 1 to {MOST_RUNS}, as in 1,4,16,64")
    if options.at_once is not None and options.at_once < 2:
        raise ConfigError(f"--at-once={options.at_once}: must be at least 2, or left out for all")
    return numbers


def bench_packed(options: argparse.Namespace, config: "Node", numbers: list[int]) -> None:
    """Measures runs computed together, and prints what a sweep would do.

    Raises:
        ConfigError: their models cannot be computed as one.
    """
    import torch

    from vitlab.bench.cells import MIN_GAIN
    from vitlab.bench.packed import measure_packs
    from vitlab.config.build import build
    from vitlab.storage.files import make_folder, write_json
    from vitlab.system.contention import Delay
    from vitlab.system.distributed import join_processes
    from vitlab.system.hardware import describe

    if options.out:
        make_folder(options.out)
    with join_processes(build(config["system"])) as dist:
        known = {"device": describe(dist.device), "torch": str(torch.__version__)}
        print("machine     {device}, torch {torch}".format(**known))
        delay, times = Delay(), {"at_once": options.at_once, "rounds": options.rounds, "warmup": options.warmup}
        found = measure_packs(config, numbers, dist, print_pack, **times)
        result = {"overrides": options.overrides, "config": config, **known, **times, "delay": delay.rate(), **found}
    print("\nas fast     images a second, divided by those of the same number one after the other, in turn")
    print("memory      at its peak so far, with the images")
    print(f"model       {result['parameters']:,} parameters, {result['precision']}, {result['images']} images a batch")
    if result["delay"] > MOST_DELAY:
        print(BUSY.format(**result))
    best, sweep = found["best"], found["sweep"]
    last = best == max((row["runs"] for row in found["rows"] if "failed" not in row), default=1)
    why = "the most that were measured" if last else f"more of them gain less than {MIN_GAIN - 1:.0%} in speed"
    print(f"best        {best} run{'s' * (best > 1)} at a time: {why}")
    if sweep["alone"]:
        print(f"a sweep     trains each run alone: {sweep['alone']}")
    else:
        other = f"; pack={best} makes it {best}" if 1 < best != sweep["together"] else ""
        print(f"a sweep     trains up to {sweep['together']} together in each of {sweep['processes']} processes{other}")
    if options.out:
        write_json(options.out / "bench.json", result)
        print(f"written     {options.out / 'bench.json'}")


def print_pack(rows: list[dict[str, Any]]) -> None:
    """Prints the line of the last number of runs, below a header."""
    if len(rows) == 1:
        print(f"\n{'runs':>6}{'at once':>9}{'ms a run':>11}{'images/s':>11}{'as fast':>10}{'memory':>12}")
    row = rows[-1]
    line = f"{row['runs']:>6}{row['at_once']:>9}"
    if "failed" in row:
        print(f"{line}  does not fit: {row['failed']}")
        return
    line += f"{row['ms']:>11,.2f}{row['images_per_second']:>11,.0f}{row['times_as_fast']:>9.2f}x"
    print(f"{line}{format_memory(row['memory_bytes']):>12}", flush=True)


def without_dropout(model: dict[str, Any]) -> dict[str, Any]:
    """A model's configuration without dropout, which each library has in other places."""
    return model | {"dropout": 0.0, "drop_path": 0.0, "attention": model["attention"] | {"dropout": 0.0}}


def summary(result: dict[str, Any], memory_of: str) -> str:
    """The machine, the model, and the time of a training step and of inference."""
    peak, stages = result["peak"], result["training"]["stages_ms"]
    lines = [
        f"machine     {result['device']}, {result['precision']}, torch {result['torch']}",
        f"peak        {peak['flops_per_second'] / 1e9:,.1f} GFLOP/s, matrix products of side {peak['side']}",
        f"model       {result['parameters']:,} parameters, {result['tokens']:,} tokens,"
        f" {result['flops_per_image'] / 1e9:.4g} GFLOPs an image forward, three times that a training step",
        f"start-up    {result['startup_seconds']:.1f} s from the start of the process to the first step",
        f"memory      {format_memory(result['memory_bytes'])} for the model, its optimizer and steps of {memory_of}",
        *([BUSY.format(**result)] if result["delay"] > MOST_DELAY else []),
        "",
        f"{'':<16}{'ms':>12}{'images/s':>12}{'GFLOP/s':>12}{'of the peak':>14}",
    ]
    for kind in ("training", "inference"):
        row = result[kind]
        lines.append(
            f"{kind:<16}{row['ms']:>12,.2f}{row['images_per_second']:>12,.1f}"
            f"{row['flops_per_second'] / 1e9:>12,.1f}{row['share_of_peak']:>14.1%}"
        )
        if kind == "training":
            lines += [f"  {name:<14}{ms:>12,.2f}{ms / row['ms']:>12.1%}" for name, ms in stages.items()]
    return "\n".join(lines)


def table_header(first: str, second: str) -> str:
    """The header of `print_costs`; `second` is the meaning of the number beside each cost."""
    return f"{first:<10}{'':<12}" + "".join(f"{name:>13}{second:>7}" for name in COSTS.values())


def print_costs(size: object, costs: "Costs", beside: "Costs") -> None:
    """Prints a line for each library: its costs, and a number beside each."""
    for name, cost in costs.items():
        cells = []
        for key in COSTS:
            number = beside.get(name, {}).get(key)
            cell = format_memory(cost[key]) if key == "memory_bytes" else f"{cost[key]:,.2f}"
            cells.append(f"{cell:>13}{'' if number is None else f'{number:.2f}':>7}")
        if "limit" in cost:
            cells.append(f"{cost['images_per_second']:>11,.0f}{cost['share_of_peak']:>7.1%}  {cost['limit']}")
        print(f"{size:<10}{name:<12}{''.join(cells)}", flush=True)


def format_memory(size: int | None) -> str:
    from vitlab.system.memory import format_bytes

    return "too much" if size is None else format_bytes(size)


def draw(result: dict[str, Any]) -> "Figure":
    """The growth of time and memory, on logarithmic axes."""
    from matplotlib.ticker import LogFormatter, NullFormatter

    from vitlab.evaluation import pictures
    from vitlab.plotting import COLOURS, MARKS, blank, dress

    sweep, model, figure = result["sweep"], result["config"]["model"], blank(8, 3.4)
    panels = {"training_ms": (1.0, "ms a training step"), "memory_bytes": (1e6, "peak memory (MB)")}
    for axes, (key, (unit, label)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for (name, costs), color, mark in zip(sweep["libraries"].items(), COLOURS, MARKS, strict=False):
            values = [value / unit if value else math.nan for value in costs[key]]
            axes.loglog(sweep["sizes"], values, color=color, marker=mark, markersize=4, label=name)
        axes.set(xlabel=sweep["kind"], ylabel=label)
        axes.set_xticks(sweep["sizes"], [f"{size:,}" for size in sweep["sizes"]])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.7)))
        dress(axes)
        axes.legend(frameon=False)
    title = f"width {model['width']}, depth {model['depth']}, {result['tokens']} tokens, {result['precision']}"
    pictures.entitle(figure, title, result["device"])
    return figure
