"""`vitlab schedule ...`: the learning-rate curve of a configuration."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.cli.exit import DONE
from vitlab.cli.places import check_place
from vitlab.config.errors import ConfigError
from vitlab.config.own import command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 2000  # updates that are drawn
DESCRIPTION = """Draws the learning-rate curve of a configuration. The number of training images comes from the dataset,
or from --examples where its files are missing."""


def main(words: list[str]) -> int:
    """Prints the turning points and draws the curve."""
    parser = argparse.ArgumentParser(prog="vitlab schedule", description=DESCRIPTION)
    parser.add_argument("overrides", nargs="*", metavar="group=option | key=value", help="as for vitlab train")
    parser.add_argument("--examples", type=int, metavar="N", help="training images, instead of counting them")
    parser.add_argument(
        "--save", type=Path, default=Path("schedule.png"), metavar="FILE.png", help="the picture; schedule.png"
    )
    options = parser.parse_intermixed_args(words)
    check_place("--save", options.save, ".png")
    from vitlab.config.build import assemble
    from vitlab.config.check import check
    from vitlab.config.compose import compose
    from vitlab.plotting import save

    if options.examples is not None and options.examples < 1:
        raise ConfigError(f"--examples={options.examples}: must be at least 1")
    parts = assemble(check(compose(options.overrides)[0]))
    examples = options.examples or len(parts["dataset"].splits()["train"])
    updates, lrs, steps_per_epoch = curve(parts, examples)
    save(draw(updates, lrs, steps_per_epoch), options.save)
    highest = lrs[-1].index(max(lrs[-1]))
    steps = updates[-1] + 1
    print(f"training    {steps:,} steps, {steps / steps_per_epoch:.4g} epochs of {examples:,} images")
    print(f"first       {lrs[-1][0]:.4g} at step 1")
    print(f"peak        {lrs[-1][highest]:.4g} at step {updates[highest] + 1:,}")
    print(f"last        {lrs[-1][-1]:.4g} at step {steps:,}")
    if len(lrs) > 1:
        print(f"layers      {max(lrs[0]):.4g} at the peak of the first, {max(lrs[-1]):.4g} of the last")
    print(f"picture     {options.save}")
    print(f"next        {command('train', *options.overrides)}")
    return DONE


def curve(parts: dict[str, Any], examples: int) -> tuple[list[int], list[list[float]], float]:
    """Updates counted from 0, the rates of each distinct group over them, the slowest group first; steps an epoch."""
    import torch

    from vitlab.training.optimizer import build_optimizer

    fit, data = parts["fit"], parts["dataset"]
    steps, steps_per_epoch = fit.total(examples), examples / fit.batch_size
    with torch.device("meta"):
        model = parts["model"](image_size=data.shape, channels=data.channels, classes=len(data.classes))
    optimizer = build_optimizer(parts["optimizer"], model, layer_decay=fit.layer_decay, scale=fit.lr_factor())
    started = parts["schedule"].start(optimizer, steps, steps_per_epoch)
    steps_drawn = {round(i * (steps - 1) / (POINTS - 1)) for i in range(POINTS)} if steps > POINTS else range(steps)
    updates = sorted({*steps_drawn, max(0, parts["schedule"].warmup(steps, steps_per_epoch) - 1)})  # and the peak
    scales = sorted({group["lr_scale"]: group for group in optimizer.param_groups}.items())
    lrs: list[list[float]] = [[] for _ in scales]
    for update in updates:
        started.set(update)
        for found, (_, group) in zip(lrs, scales, strict=True):
            found.append(group["lr"])
    return updates, lrs, steps_per_epoch


def draw(updates: list[int], lrs: list[list[float]], steps_per_epoch: float) -> "Figure":
    """The curve over the steps, with the epochs above; one line a rate."""
    from vitlab.evaluation import pictures
    from vitlab.plotting import BLUE, blank

    figure = blank(7.5, 3.6)
    axes = figure.subplots()
    steps = [update + 1 for update in updates]
    for number, found in enumerate(lrs):
        last = number == len(lrs) - 1
        label = "last layer" if last else "first layer" if number == 0 else None
        axes.plot(steps, found, color=pictures.INK if last else BLUE, linewidth=2 if last else 1, label=label)
    if len(lrs) > 1:
        axes.legend(frameon=False)
    axes.set(xlabel="step", ylabel="learning rate", ylim=(0, None), xlim=(0, steps[-1]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    above = axes.twiny()
    above.set(xlim=(0, steps[-1] / steps_per_epoch), xlabel="epoch")
    above.spines["right"].set_visible(False)
    axes.grid(alpha=0.3)
    axes.spines["right"].set_visible(False)
    return figure
