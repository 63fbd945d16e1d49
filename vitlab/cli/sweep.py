"""`vitlab sweep QUESTION`: trains every run of a question, and writes the answer."""

import argparse
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.cli.exit import DONE, FAILED, printable
from vitlab.cli.launch import Launcher, count
from vitlab.config.errors import ConfigError
from vitlab.config.groups import SWEEPS, is_known, known_keys, menu
from vitlab.config.overrides import complete, unpacked
from vitlab.config.own import command
from vitlab.report.conclude import MEASURED, answer_runs, compared, conclude
from vitlab.storage.files import make_folder, write_json
from vitlab.sweep import question
from vitlab.sweep.reader import find, read

if TYPE_CHECKING:
    from vitlab.sweep.plan import Plan

DESCRIPTION = """Asks a question: trains every cell of a sweep file with every seed, and writes the answer. What is
finished is not trained again, what was interrupted continues: run the same command again wherever it was stopped."""
EPILOG = """words:
  scale=NAME               one of the file's scales; by default the first
  seeds=0,1,2 or 0..15     instead of the file's
  launcher=NAME            packed: runs of one shape are trained as one batched model, a process a slot (the default
                           where there are more of them than slots); local: a process each, as many at once as slots;
                           serial: one after the other in this process; hydra: hydra/launcher=submitit_slurm, ...
  slots=N                  processes at once; one a GPU, or else one a core
  pack=N                   runs a process trains together, at most, with launcher=packed
  group=option key=value   of every run: fit.epochs=5 system.device=cpu tracking=off

vitlab sweep export QUESTION --wandb   writes it as a Weights & Biases sweep instead
"""
WORDS = ("scale", "seeds", "launcher", "slots", "pack")
MANY = 10_000  # seeds
LAUNCHERS = ("auto", "packed", "local", "serial", "hydra")


def main(words: list[str]) -> int:
    """Runs a sweep; 1 where a training failed."""
    if words[:1] == ["export"]:
        from vitlab.cli import sweep_export

        return sweep_export.main(words[1:])
    parser = argparse.ArgumentParser(
        prog="vitlab sweep",
        usage="vitlab sweep QUESTION [word ...] [--until POINTS] [--dry] [--retries N] [--wandb] [--publish]",
        description=DESCRIPTION,
        epilog=EPILOG + list_sweeps(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("question", help="a sweep file, or the name of one that comes with vitlab")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument(
        "--until",
        type=float,
        metavar="POINTS",
        help="adds seeds until every difference to the baseline is known to ± POINTS (of a loss or cost: units)",
    )
    parser.add_argument("--most-seeds", type=int, metavar="N", help="with --until: at most so many; 32")
    parser.add_argument("--dry", action="store_true", help="checks and lists every run, here or for elsewhere")
    parser.add_argument("--retries", type=int, default=0, metavar="N", help="how often a failed run is trained again")
    parser.add_argument("--wandb", action="store_true", help="the table and the figures to Weights & Biases as well")
    parser.add_argument("--publish", action="store_true", help="the answer beside the sweep file as well: NAME.md")
    return run_sweep(parser.parse_intermixed_args(words))


def list_sweeps() -> str:
    """The sweeps that come with vitlab, and their questions, for --help."""
    lines = []
    for file in sorted(SWEEPS.rglob("*.yaml")):
        found = re.search(r"^question: *(.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        lines.append(f"  {file.stem:<26} {found[1] if found else ''}")
    return "\nquestions that come with vitlab:\n" + "\n".join(lines)


def run_sweep(options: argparse.Namespace) -> int:
    given, overrides = split_words(options.words)
    asked = read(find(options.question), given.get("scale"))
    if "seeds" in given:
        asked = replace(asked, seeds=parse_seeds(given["seeds"]))
    launcher = given.get(
        "launcher", "hydra" if any(word.startswith("hydra/launcher") for word in overrides) else "auto"
    )
    if launcher not in LAUNCHERS:
        raise ConfigError(f"launcher={launcher}: one of {', '.join(LAUNCHERS)}")
    for name in ("slots", "pack"):
        if name in given and not (given[name].isdecimal() and int(given[name]) > 0):
            raise ConfigError(f"{name}={given[name]}: expected 1 or more")
    if "pack" in given and launcher not in ("auto", "packed"):
        raise ConfigError(f"pack={given['pack']} with launcher={launcher}: it is of launcher=packed: leave one out")

    from vitlab.sweep import local as local_launcher
    from vitlab.sweep import packs
    from vitlab.sweep import plan as planning
    from vitlab.sweep import seeds as seeding
    from vitlab.tracking.options import ignore_run_id

    for key in (word.partition("=")[0] for word in overrides):
        if not is_known(key, [*known_keys(), *menu()]) and (near := get_close_matches(key, WORDS, n=1, cutoff=0.8)):
            raise ConfigError(f"{key}: a sweep has no such word; did you mean {near[0]}?")
    complete(overrides, many=True)  # not the file's fault
    plan = planning.plan(asked, [word for word in overrides if not word.startswith("hydra")], elsewhere=options.dry)
    for words in plan.files:
        print(f"files       {printable(words)}")
    looks = planned_looks(plan, options)
    widest = seeding.with_seeds(plan, looks[-1]) if looks else plan
    device = plan.cells[0].config["system"]["device"]
    jobs = widest.jobs
    most = max(len(jobs), asked.search.trials if asked.search else 0)
    parts = local_launcher.slots(int(given["slots"]) if "slots" in given else None, most, device)
    changed = widest.outdated()
    size = int(given["pack"]) if "pack" in given else None
    seats = packs.seats(jobs, len(parts), device, launcher, size, asked.search)
    if options.dry:
        print_plan(plan, len(parts), changed, options.until, looks)
        if packed := packs.describe(jobs, len(parts), seats, asked.search.trials if asked.search else 0):
            print(packed)
        return DONE
    planning.set_changed_aside(changed, plan.cells[0].config)
    make_folder(plan.folder, "give another folder, system.runs=PATH")
    more = {"until": options.until, "looks": list(looks)} if looks else {}
    record: dict[str, Any] = plan.record() | {"own_seeds": "seeds" in given} | more
    write_json(plan.folder / "sweep.json", record)
    print(f"{asked.question}{at(asked, ' (', ')')}")
    page = None
    if options.publish:  # the answer at the first scale has the question's own name
        first = read(asked.file).scale == asked.scale
        page = asked.file.with_name(asked.name + ("" if first else f"-{asked.scale}") + ".md")
    if not asked.trains:
        print(f"{count(len(plan.cells), 'cell')} in {len(asked.seeds)} rounds")
        from vitlab.bench.cells import measure_cells

        write_json(plan.folder / MEASURED, {"lines": measure_cells(plan, lambda words: print(words, flush=True))})
        conclude(record, answer_runs(plan.folder), plan.folder, page=page, wandb=options.wandb)
        return DONE
    ignore_run_id()
    if launcher == "auto":
        launcher = "packed" if seats > 1 else "local" if len(parts) > 1 else "serial"
    launch = Launcher(
        kind=launcher, parts=parts, seats=seats, retries=options.retries, overrides=tuple(overrides), record=record
    )
    status = launch.train(plan)
    while looks and status == DONE and (number := seeds_to_add(record, plan)) is not None:
        plan = seeding.with_seeds(plan, number)
        record["seeds"] = list(plan.question.seeds)
        write_json(plan.folder / "sweep.json", record)
        status = launch.train(plan)
    if looks and status == FAILED:
        print("a training has failed: no seeds are added")
    if status >= 128:
        print(f"stopped; every training is saved. The same command continues:\nvitlab {shlex.join(sys.argv[1:])}")
        return status
    conclude(record, plan.runs, plan.folder, page=page, wandb=options.wandb)
    report_failures(launch.failures)
    return max(status, DONE)


def planned_looks(plan: "Plan", options: argparse.Namespace) -> tuple[int, ...]:
    """The numbers of seeds at which a sweep with --until is looked at; empty without."""
    from vitlab.sweep import seeds

    if options.until is None:
        if options.most_seeds is not None:
            raise ConfigError(f"--most-seeds {options.most_seeds}: no seeds are added: give --until POINTS as well")
        return ()
    most = seeds.MOST if options.most_seeds is None else options.most_seeds
    seeds.check_until(plan, options.until, most)
    return seeds.looks(len(plan.question.seeds), most)


def seeds_to_add(record: Mapping[str, Any], plan: "Plan") -> int | None:
    """The number of seeds to train up to; None where no more are wanted. Says what there is so far."""
    from vitlab.storage import runs_table
    from vitlab.sweep import seeds

    found, number = compared(dict(record), runs_table.runs(plan.runs)), len(record["seeds"])
    widths = seeds.widths(found)
    then = seeds.next_look(widths, record["until"], number, record["looks"])
    print(seeds.progress(widths, record["until"], number, then, found.metric), flush=True)
    return then


def split_words(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The words about the sweep itself, by name, and the overrides of its runs."""
    pairs = [word.partition("=") for word in words]
    mine = {key: value for key, _, value in pairs if key in WORDS}
    return mine, [each for word in words if word.partition("=")[0] not in mine for each in unpacked(word)]


def parse_seeds(text: str) -> tuple[int, ...]:
    ranges = [re.fullmatch(r"(\d+)(?:\.\.(\d+))?", each.strip()) for each in text.split(",")]
    spans = [range(int(each[1]), int(each[2] or each[1]) + 1) for each in ranges if each]
    found = [seed for span in spans for seed in span[: MANY + 1]]
    if not (all(ranges) and all(spans) and len(set(found)) == len(found) <= MANY):
        raise ConfigError(f"seeds={text}: expected up to {MANY:,} different seeds, such as seeds=0,1,2 or seeds=0..15")
    return tuple(found)


def at(asked: question.Question, before: str = "", after: str = "") -> str:
    return f"{before}scale={asked.scale}{after}" if asked.scale else ""


def report_failures(failures: list[Any]) -> None:
    """Prints each failed run, the end of its output, and its command."""
    for failure in failures:
        print(f"\n{failure.job} failed: {failure.reason}", file=sys.stderr)
        print("\n".join(f"  | {line}" for line in failure.tail.splitlines()), file=sys.stderr)
        print(f"  {failure.job.command}", file=sys.stderr)


def print_plan(
    plan: "Plan", slots: int, changed: Mapping[Path, str], until: float | None = None, looks: tuple[int, ...] = ()
) -> None:
    """Prints every run as a command, with its cost, and the time that earlier runs let expect.

    Args:
        plan: of the sweep.
        slots: trainings at once.
        changed: runs that are outdated, and why.
        until: half the width of an interval up to which seeds are added; None adds none.
        looks: numbers of seeds at which that is looked at.
    """
    from vitlab.storage import runs_table
    from vitlab.storage.metrics import si
    from vitlab.sweep import seeds
    from vitlab.sweep.duration import estimate
    from vitlab.sweep.progress import span

    if not plan.question.trains:
        print("\n".join((plan.question.question, plan.question.source, at(plan.question))))
        for cell in plan.cells:
            cost = f"{si(cell.parameters)} parameters, {si(cell.flops_per_image)} FLOPs an image"
            print(f"\n# {cell.name}: {cost}\n{command('bench', *cell.overrides)}")
        print(f"\n{count(len(plan.cells), 'cell')}, measured in {len(plan.question.seeds)} rounds; nothing is trained")
        return
    known = runs_table.runs(plan.runs) if plan.runs.is_dir() else None
    if known is not None:
        known = known[known["status"] == "finished"] if len(known) else None
    total, unknown, flops = 0.0, 0, 0.0
    print("\n".join(line for line in (plan.question.question, plan.question.source, at(plan.question)) if line))
    for cell in (*plan.pretrain, *plan.cells):
        guess = estimate(cell, known)
        cost = cell.training_flops
        time = f"{'time' if guess.seconds is None else f'{span(guess.seconds)} a run'} ({guess.source})"
        mark = " (baseline)" if cell.baseline and cell.name != question.BASELINE else ""
        print(
            f"\n# {cell.name}{mark}: {si(cell.parameters)} parameters,"
            f" {si(cell.flops_per_image)} FLOPs an image, {si(cost)} FLOPs a run, {time}"
        )
        for job in plan.jobs_of(cell):
            status = job.run.result()["status"] if job.run.folder.is_dir() else ""
            status = changed.get(job.run.folder, status)
            print(job.command + (f"   # {status}" if status else ""))
            if status != "finished":
                total, unknown, flops = total + (guess.seconds or 0), unknown + (guess.seconds is None), flops + cost
        if cell.baseline and (search := plan.question.search) is not None:
            space = "; ".join(f"{each.key} {each.kind} {', '.join(map(str, each.values))}" for each in search.space)
            print(
                f"\n# {search.trials} trials of one seed ({search.method}: {space}), each about as long as a run of the"
                f" baseline; then the best of them with {len(plan.question.seeds)} seeds"
            )
            more = search.trials + len(plan.question.seeds) - 1  # the best trial is one of them
            total, flops = total + more * (guess.seconds or 0), flops + more * cost
            unknown += more * (guess.seconds is None)
    runs = len(plan.jobs)
    time = f"{span(total)} of training, about {span(total / slots)} with {slots} at once" if total else "no time known"
    print(
        f"\n{count(runs, 'run')} of {count(len(plan.cells), 'cell')}; what is not finished takes {si(flops)} FLOPs,"
        f" {time}" + (f"; of {unknown} runs the time is not known" if unknown and total else "")
    )
    if words := seeds.planned_power(plan, known) if until is None else seeds.planned_looks(plan, known, until, looks):
        print(words)
