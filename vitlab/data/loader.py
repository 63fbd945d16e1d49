"""Batches: which images a step sees is a function of (seed, step), how each looks of (seed, epoch, image)."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vitlab.data.augment import Transform
from vitlab.data.examples import Examples, Pixels
from vitlab.data.geometry import Geometry
from vitlab.data.preprocess import Normalize
from vitlab.data.seeding import reseed, seed_of, seeded

Key = tuple[int, int]  # (round, index): an image looks different in every round; an epoch is `repeats` rounds
Order = Callable[[np.random.Generator, int], np.ndarray]  # Examples.shuffle
Batch = tuple[UInt8[Tensor, "b c y x"], Int[Tensor, " b"]]
PADDING = -1  # the round, and then the label, of an image that fills a batch up and does not count


class View(Dataset):
    """Examples as a loader's workers read them: a whole batch at a time, each image with its own seed."""

    def __init__(self, examples: Examples, transform: Transform | Geometry | None, seed: int):
        self.examples = examples
        self.transform = transform
        self.seed = seed

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        if self.transform is None or isinstance(self.transform, Geometry):
            assert isinstance(self.examples, Pixels)
            turns, indices = np.array(keys).T
            pixels = self.examples.pixels
            pixels = pixels[torch.from_numpy(indices).to(pixels.device, non_blocking=True)]
            if self.transform is not None:
                pixels = self.transform(pixels, self.seed, turns.clip(min=0), indices)
            return pixels, torch.from_numpy(np.where(turns == PADDING, PADDING, self.examples.labels[indices]))
        images, labels = [], []
        with seeded(self.seed):
            for turn, index in keys:
                image, label = self.examples.item(index)
                reseed(self.seed, max(0, turn), index)
                images.append(torch.as_tensor(self.transform(image)))
                labels.append(PADDING if turn == PADDING else label)
        return torch.stack(images), torch.tensor(labels)


def local_indices(batch: int, rank: int, world_size: int) -> np.ndarray:
    """Which places of the global batch process `rank` of `world_size` has: a slice of its front, and the mirrored one.

    So the image that mixup pairs with another, as far from the batch's end as that one from its start, is in the same
    process, whatever their number.
    """
    share = batch // world_size
    front, back = share // 2, share - share // 2
    end = batch - rank * back
    return np.concatenate((np.arange(rank * front, (rank + 1) * front), np.arange(end - back, end)))


class TrainSampler(Sampler):
    """An endless walk through shuffled epochs, cut into batches; every batch is full and none is dropped.

    Place p of the walk is image `shuffle(seed, p // n)[p % n]` of n, so a batch may reach into the next epoch, and
    a run can go on from any step. Of each global batch a process takes its own part.

    With `repeats`, each image comes so many times, augmented differently (repeated augmentation, Hoffer et al. 2020).
    An epoch is n places all the same, so it shows n / repeats different images. The first copies of a batch's images
    come first in it, then the second ones: a process has copies of different images, and mixup pairs different ones.

    Args:
        examples: number of training images n.
        shuffle: order of an epoch, such as `Examples.shuffle`; None is any order, all equally likely.
        batch: images a step, over all processes.
        start: first step.
        stop: the step after the last.
        seed: of the shuffles.
        repeats: times that each image comes.
        rank: which process this is of `world_size`.
    """

    def __init__(
        self,
        *,
        examples: int,
        batch: int,
        start: int,
        stop: int,
        seed: int,
        shuffle: Order | None = None,
        repeats: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.examples = examples
        self.shuffle = shuffle or (lambda draw, _: draw.permutation(examples))
        self.batch = batch
        self.start = start
        self.stop = stop
        self.seed = seed
        self.repeats = repeats
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        mine = local_indices(self.batch, self.rank, self.world_size)
        known, order = -1, np.arange(0)
        for step in range(self.start, self.stop):
            walk: Sequence[int] = range(step * self.batch, (step + 1) * self.batch)
            if self.repeats > 1:
                walk = sorted(walk, key=lambda place: place % self.examples % self.repeats)
            keys = []
            for place in (walk[i] for i in mine):
                epoch, offset = divmod(place, self.examples)
                if epoch != known:
                    draw = np.random.default_rng(seed_of(self.seed, epoch))
                    known, order = epoch, self.shuffle(draw, max(1, self.batch // self.repeats))
                image, copy = divmod(offset, self.repeats)
                keys.append((epoch * self.repeats + copy, int(order[image])))
            yield keys


class EvalSampler(Sampler):
    """Every example once, in order; process `rank` of `world_size` takes every `world_size`-th.

    All processes have batches of the same sizes: one with an image less has its first a second time, as `AGAIN`; and
    if every batch is to be `full`, the last one as often as it takes.
    """

    def __init__(self, *, examples: int, batch: int, full: bool = False, rank: int = 0, world_size: int = 1):
        self.keys = [(0, index) for index in range(rank, examples, world_size)]
        share = -(-examples // world_size)
        self.keys += [(PADDING, 0)] * ((-(-share // batch) * batch if full else share) - len(self.keys))
        self.batch = batch

    def __len__(self) -> int:
        return -(-len(self.keys) // self.batch)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.keys), self.batch):
            yield self.keys[start : start + self.batch]


def loader(
    examples: Examples,
    transform: Transform | Geometry | None,
    batches: TrainSampler | EvalSampler,
    *,
    seed: int = 0,
    workers: int = 0,
    pin: bool = False,
) -> DataLoader:
    """A DataLoader of (pixels 0 ... 255, labels); `seed` is that of the transform's draws."""
    return DataLoader(
        View(examples, transform, seed),
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin,
        generator=torch.Generator().manual_seed(seed),  # the loader's own draw leaves the global one alone
        collate_fn=lambda batch: batch,
        multiprocessing_context="fork" if workers else None,
    )


def to_device(
    batches: Iterable[Batch], normalize: Normalize, device: torch.device
) -> Iterator[tuple[Float[Tensor, "b c y x"], Int[Tensor, " b"]]]:
    """Batches of pixels and labels as a model takes them: on its device, the pixels normalized.

    The workers of a DataLoader start at once, not at the first batch.
    """
    return (
        (normalize(pixels.to(device, non_blocking=True)), labels.to(device, non_blocking=True))
        for pixels, labels in iter(batches)
    )
