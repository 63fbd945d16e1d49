"""`vitlab data ...`: the images that a configuration feeds the model."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitlab.cli.exit import DONE, printable
from vitlab.cli.places import check_place
from vitlab.config.errors import DataError
from vitlab.config.own import command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitlab.training.recipe import TrainingSetup


SHOWN = 24  # images of the picture
SAMPLE = 2000  # training images whose pixels are measured
IMBALANCE = 10  # times more images in the largest class, which is said
NAMED = 5  # the most small classes that are named
LISTED = 20  # the most classes that are listed one by one
DESCRIPTION = """Shows what a configuration feeds the model: the size and class balance of each split, the pixels'
statistics, and a picture of the first training batch, each image as it is and as the model sees it."""


def main(words: list[str]) -> int:
    """Prints the statistics and draws the picture."""
    parser = argparse.ArgumentParser(prog="vitlab data", description=DESCRIPTION)
    parser.add_argument("overrides", nargs="*", metavar="group=option | key=value", help="as for vitlab train")
    parser.add_argument("--save", type=Path, default=Path("data.png"), metavar="FILE.png", help="the picture; data.png")
    options = parser.parse_intermixed_args(words)
    check_place("--save", options.save, ".png")
    from vitlab.config.build import assemble
    from vitlab.config.check import check
    from vitlab.config.compose import compose
    from vitlab.plotting import save
    from vitlab.system.distributed import single_process
    from vitlab.training.setup import prepare

    parts = assemble(check(compose(options.overrides)[0]))
    setup = prepare(**parts, dist=single_process())
    print(describe_data(setup))
    save(picture(setup), options.save)
    print(f"picture     {options.save}: each image as it is, and as the model sees it")
    print(f"next        {command('train', *options.overrides)}")
    return DONE


def describe_data(setup: "TrainingSetup") -> str:
    """The splits, their class balance, and the pixel statistics.

    Raises:
        DataError: all pixels are the same.
    """
    from vitlab.data.levels import count_levels, describe_enlarged, describe_flat, mean_and_std

    data, fit = setup.dataset, setup.fit
    size = f"{data.shape[0]}x{data.shape[1]} pixels, {data.channels} channel{'s' * (data.channels > 1)}"
    lines = [
        f"dataset     {len(data.classes):,} classes, {size}, mirrored: {'may be' if data.flip else 'never'}",
        f"source      {data.citation}",
        f"training    {setup.steps:,} steps of {fit.batch_size:,} images, {setup.steps / setup.steps_per_epoch:.4g}"
        f" epochs of {setup.steps_per_epoch:,.4g} steps",
        "",
        f"{'split':<12}{'images':>10}   images a class",
    ]
    counts = {name: np.bincount(part.labels, minlength=len(data.classes)) for name, part in setup.splits.items()}
    for name, count in counts.items():
        least, most = int(count.argmin()), int(count.argmax())
        span = f"{count[least]:,} ({data.classes[least]}) to {count[most]:,} ({data.classes[most]})"
        span = span if count[least] < count[most] else f"{count[most]:,}"
        lines.append(f"{name:<12}{count.sum():>10,}   {span}")
    if len(data.classes) <= LISTED:
        wide = max(12, *(len(name) + 2 for name in data.classes))
        lines += ["", f"{'class':<{wide}}" + "".join(f"{name:>12}" for name in counts)]
        for label, name in enumerate(data.classes):
            lines.append(f"{name:<{wide}}" + "".join(f"{count[label]:>12,}" for count in counts.values()))
    if setup.files:
        lines += ["", f"files       {printable(setup.files)}"]
    lines += describe_imbalance(setup, counts["train"])
    draw = np.random.default_rng(0).permutation(len(setup.splits["train"]))[:SAMPLE]
    looked_at = setup.splits["train"].take(np.sort(draw))
    seen, images = count_levels(looked_at, data), len(draw)
    (mean, std), levels = mean_and_std(seen), np.count_nonzero(seen, axis=1)
    if levels.max() == 1:
        raise DataError(
            f"all pixels of {images:,} training images are the same, {format_channels(mean)} of 1: look at a file;"
            " dataset.background is what transparent pixels lie over, dataset.range what is black and white in images"
            " deeper than 8 bits"
        )
    measured = f"mean {format_channels(mean)}, std {format_channels(std)} of {images:,} training images"
    lines += ["", f"pixels      {measured}; normalised by {format_channels(data.mean)}, {format_channels(data.std)}"]
    lines.append(f"levels      {' and '.join(dict.fromkeys(map(str, levels)))} of 256 are in use")
    if enlarged := describe_enlarged(looked_at, data):
        lines.append(f"size        {enlarged}")
    if setup.decoding.background is not None:
        lines.append(f"alpha       transparent pixels lie over {getattr(data, 'background', '')}")
    if setup.decoding.range is not None:
        lines.append("depth       deeper than 8 bits: {:.6g} is black, {:.6g} is white".format(*setup.decoding.range))
    if flat := describe_flat(seen):
        lines.append(f"warning     {flat}")
    return "\n".join(lines)


def describe_imbalance(setup: "TrainingSetup", images: np.ndarray) -> list[str]:
    """The classes with less than a tenth of the largest one's training images, and what to do about them."""
    few = [label for label in images.argsort(kind="stable") if images[label] * IMBALANCE <= images.max()]
    if not few:
        return []
    names = [f"{setup.dataset.classes[label]} ({images[label]:,})" for label in few[:NAMED]]
    more = f" and {len(few) - NAMED:,} more" if len(few) > NAMED else ""
    largest = f"{setup.dataset.classes[int(images.argmax())]} ({images.max():,})"
    small = printable(f"{', '.join(names)}{more}: at most a tenth of the training images of {largest}")
    lines = ["", f"imbalance   {small}"]
    if getattr(setup.loss, "class_weights", None) is None and setup.fit.sampling == "uniform":
        lines += [
            "            loss.class_weights=balanced weighs the classes alike, fit.sampling=balanced draws them alike;",
            "            fit.best=val/balanced_accuracy chooses the best weights by all classes alike",
        ]
    return lines


def format_channels(values: "np.ndarray | tuple[float, ...]") -> str:
    words = [f"{value:.3f}" for value in values]
    return words[0] if len(words) == 1 else f"({', '.join(words)})"


def picture(setup: "TrainingSetup") -> "Figure":
    """The first training batch, each image as evaluation sees it and as the training does, with its label."""
    import torch
    from PIL import Image

    from vitlab.data.augment import eval_transform
    from vitlab.data.loader import View
    from vitlab.evaluation import pictures
    from vitlab.plotting import PALE
    from vitlab.training.batches import train_batches, train_inputs, training_order

    data = setup.dataset
    few = replace(setup, fit=replace(setup.fit, batch_size=min(SHOWN, setup.fit.batch_size), accumulate=1), steps=1)
    keys = next(iter(training_order(few, 0)))
    before, _ = View(setup.splits["train"], eval_transform(data), 0).__getitems__(keys)
    images, targets = train_inputs(few)(next(train_batches(few, 0)))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    after = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    gap = torch.full((*before.shape[:3], max(1, before.shape[3] // 16)), 255, dtype=torch.uint8)
    pairs = torch.cat((before, gap, after), dim=3).permute(0, 2, 3, 1).numpy()
    sheet = [Image.fromarray(pair[:, :, 0] if pair.shape[2] == 1 else pair) for pair in pairs]
    names, bars = [], []
    for target in targets:
        shares = [(int(i), float(target[i])) for i in target.argsort(descending=True)[:2]] if target.ndim else []
        names.append("" if target.ndim else data.classes[int(target)])
        bars.append([pictures.Bar(data.classes[i], share, PALE) for i, share in shares if share > 0])
    return pictures.sheet(sheet, names, bars, "as it is, and as the model sees it in training")
