"""Batches: the images of a step are a function of (seed, step), their augmentation of (seed, epoch, image)."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vitlab.config.errors import VitlabError
from vitlab.data.augment import Transform
from vitlab.data.examples import Examples, Pixels
from vitlab.data.geometry import Geometry
from vitlab.data.preprocess import Normalize
from vitlab.data.seeding import reseed, seed_of, seeded

Key = tuple[int, int]  # (round, index): an image is augmented differently in every round; an epoch is `repeats` rounds
Order = Callable[[np.random.Generator, int], np.ndarray]  # Examples.shuffle
Read = tuple[UInt8[Tensor, "b c y x"], Int[Tensor, " b"]]
START_METHOD = "fork" if sys.platform == "linux" else "spawn"  # of workers; on macOS forks of a GPU's process crash
PADDING = -1  # the round and the label of an image that fills a batch up and is not counted


class View(Dataset):
    """Map-style dataset of examples and a transform; reads a batch at a time, each image with its own seed."""

    def __init__(self, examples: Examples, transform: Transform | Geometry | None, seed: int):
        self.examples = examples
        self.transform = transform
        self.seed = seed

    def __getitems__(self, keys: Sequence[Key]) -> Read:
        if self.transform is None or isinstance(self.transform, Geometry):
            assert isinstance(self.examples, Pixels)
            rounds, indices = np.array(keys).T
            pixels = self.examples.pixels
            pixels = pixels[torch.from_numpy(indices).to(pixels.device, non_blocking=True)]
            if self.transform is not None:
                pixels = self.transform.apply(pixels, self.transform.draws(self.seed, rounds.clip(min=0), indices))
            return pixels, torch.from_numpy(np.where(rounds == PADDING, PADDING, self.examples.labels[indices]))
        images, labels = [], []
        with seeded(self.seed):
            for round_, index in keys:
                image, label = self.examples.item(index)
                reseed(self.seed, max(0, round_), index)
                images.append(torch.as_tensor(self.transform(image)))
                labels.append(PADDING if round_ == PADDING else label)
        return torch.stack(images), torch.tensor(labels)


def local_indices(batch: int, rank: int, world_size: int) -> np.ndarray:
    """The indices of process `rank` in the global batch: a slice of its first half, and the mirrored slice.

    So an image and the one that mixup pairs it with, as far from the batch's end as that one from its start, are on the
    same process.
    """
    share = batch // world_size
    front, back = share // 2, share - share // 2
    end = batch - rank * back
    return np.concatenate((np.arange(rank * front, (rank + 1) * front), np.arange(end - back, end)))


def balanced_order(draw: np.random.Generator, labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Indices of n draws in random order, in which the classes differ by at most 1.

    All images of a class are drawn before one is drawn again; a class with more images than draws has a random part.
    """
    order = draw.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by class, in random order within each
    _, images = np.unique(labels, return_counts=True)
    draws = len(labels) // len(images) + (draw.permutation(len(images)) < len(labels) % len(images))
    first, start = np.cumsum(draws) - draws, np.cumsum(images) - images
    number = np.arange(len(labels)) - np.repeat(first, draws)  # of each draw within its class
    return draw.permutation(order[np.repeat(start, draws) + number % np.repeat(images, draws)])


@dataclass(kw_only=True, eq=False)
class TrainSampler(Sampler):
    """Batch sampler over an endless sequence of shuffled epochs; every batch is full and no image is dropped.

    Position p of the sequence is image `shuffle(seed, p // n)[p % n]` of n, so a batch may reach into the next epoch,
    and a run can resume from any step. Each process takes its part of the global batch (`local_indices`).

    With `repeats`, each image comes that often, augmented differently (repeated augmentation, Hoffer et al. 2020). An
    epoch still has n images, so n / repeats different ones. The first copies of a batch's images come first, then the
    second ones, so that the images of a process and the pairs of mixup are different images.

    With `labels`, an epoch is n draws in which every class comes equally often (`balanced_order`), and each draw is
    augmented differently.

    Args:
        examples: number of training images n.
        batch: global batch size.
        start: first step.
        stop: the step after the last.
        seed: seed of the shuffles.
        shuffle: makes the permutation of an epoch, such as `Examples.shuffle`; None is a uniform one.
        repeats: copies of each image.
        labels: the class of each image, where classes are drawn equally often.
        rank: rank of this process.
        world_size: number of processes.
    """

    examples: int
    batch: int
    start: int
    stop: int
    seed: int
    shuffle: Order | None = None
    repeats: int = 1
    labels: Int[np.ndarray, " n"] | None = None
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        for rounds, images in self.arrays():
            yield list(zip(rounds.tolist(), images.tolist(), strict=True))

    def arrays(self) -> Iterator[tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]]:
        """The rounds and the images of each step."""
        local = local_indices(self.batch, self.rank, self.world_size)
        orders: dict[int, np.ndarray] = {}
        for step in range(self.start, self.stop):
            positions = np.arange(step * self.batch, (step + 1) * self.batch)
            if self.repeats > 1:
                positions = positions[np.argsort(positions % self.examples % self.repeats, kind="stable")]
            positions = positions[local]
            epochs, offsets = np.divmod(positions, self.examples)
            draws, copies = np.divmod(offsets, self.repeats)
            images = np.empty_like(positions)
            touched = range(step * self.batch // self.examples, ((step + 1) * self.batch - 1) // self.examples + 1)
            orders = {epoch: orders[epoch] if epoch in orders else self.order(epoch) for epoch in touched}
            for epoch, order in orders.items():
                where = epochs == epoch
                images[where] = order[draws[where]]
            yield epochs * self.repeats + copies if self.labels is None else positions, images

    def order(self, epoch: int) -> Int[np.ndarray, " n"]:
        """The images of an epoch."""
        draw = np.random.default_rng(seed_of(self.seed, epoch))
        if self.labels is not None:
            return balanced_order(draw, self.labels)
        if self.shuffle is None:
            return draw.permutation(self.examples)
        return self.shuffle(draw, max(1, self.batch // self.repeats))


class EvalSampler(Sampler):
    """Batch sampler over every example once, in order; process `rank` takes every `world_size`-th.

    All processes have batches of the same sizes: a process with fewer images repeats its first one with the round
    `PADDING`. With `full`, the last batch is filled up in the same way.
    """

    def __init__(self, *, examples: int, batch: int, full: bool = False, rank: int = 0, world_size: int = 1):
        self.keys = [(0, index) for index in range(rank, examples, world_size)]
        count = math.ceil(examples / world_size)
        self.keys += [(PADDING, 0)] * ((math.ceil(count / batch) * batch if full else count) - len(self.keys))
        self.batch = batch

    def __len__(self) -> int:
        return math.ceil(len(self.keys) / self.batch)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.keys), self.batch):
            yield self.keys[start : start + self.batch]


class Loader(DataLoader):
    """A DataLoader that raises a worker's VitlabError as the worker did, without the traceback that torch adds."""

    def __iter__(self) -> Any:
        return self.unwrap(super().__iter__())  # the workers start now

    def unwrap(self, batches: Iterator[Read]) -> Iterator[Read]:
        try:
            yield from batches
        except VitlabError as error:
            kind = type(error)
            raise kind(str(error).rpartition(f"{kind.__name__}: ")[2].strip()) from error


def as_is(batch: Any) -> Any:
    """The collation of batches that are whole already."""
    return batch


def loader(
    examples: Examples,
    transform: Transform | Geometry | None,
    batches: TrainSampler | EvalSampler,
    *,
    seed: int = 0,
    workers: int = 0,
    pin: bool = False,
) -> DataLoader:
    """A DataLoader of (pixels 0 ... 255, labels); `seed` is the transform's."""
    return Loader(
        View(examples, transform, seed),
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin,
        generator=torch.Generator().manual_seed(seed),  # keeps the loader off the global generator
        collate_fn=as_is,
        multiprocessing_context=START_METHOD if workers else None,
    )


def to_device(
    batches: Iterable[Read], normalize: Normalize, device: torch.device
) -> Iterator[tuple[Float[Tensor, "b c y x"], Int[Tensor, " b"]]]:
    """Batches of pixels and labels as a model takes them: on its device, the pixels normalized.

    The workers of a DataLoader start when this is called, before the first batch.
    """
    return (
        (normalize(pixels.to(device, non_blocking=True)), labels.to(device, non_blocking=True))
        for pixels, labels in iter(batches)
    )
