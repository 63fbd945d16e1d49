"""Dataset: the description of a set of labelled images, and its train, validation and test splits."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from math import ceil, floor
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import ImageColor

from vitlab.config.errors import ConfigError, DataError, Node
from vitlab.data.examples import Examples, Pixels, joined
from vitlab.data.fingerprint import fingerprint
from vitlab.data.labels import listed
from vitlab.data.pixel_range import find_range
from vitlab.data.preprocess import Decoding
from vitlab.data.split import stratified_folds, stratified_split
from vitlab.storage.files import file_errors
from vitlab.system.memory import check_fits

Size = int | tuple[int, int]
OWN_TEST = "this dataset has test images of its own, which folds would mix with those for training"
EVALUATION: ContextVar[bool] = ContextVar("EVALUATION", default=False)
READ: ContextVar[dict[str, dict[str, Any]] | None] = ContextVar("READ", default=None)  # of the dataset read last


@dataclass(kw_only=True)
class Dataset:
    """Base class of the datasets.

    To add one, write two files. `vitlab/data/datasets/NAME.py` has a subclass, decorated with
    `@dataclass(kw_only=True)`, that

    - sets `classes`, `channels`, `size`, `mean`, `std`, `flip` and `citation`: as class attributes where they are
      known, else in `__post_init__`, which ends or begins with `super().__post_init__()`;
    - declares its own options as fields without a default;
    - overrides `read`, which returns the images of each split as `Pixels` (an array of images of one size), `Files`
      (paths of image files) or an `Examples` of its own. `train` is required. Where `validation` is missing, it is cut
      from the training images; where `test` is missing, the dataset needs the option `test_fraction`.

    `conf/dataset/NAME.yaml` begins with a comment of one line, then has `_target_`, the eight options below, and the
    dataset's own, each with its default. `digits.py` and `digits.yaml` are a short example. Training, evaluation and
    all commands then know `dataset=NAME`. Raise `DatasetMissing` where the files are not found, `DataError` where they
    are damaged.

    Validation images depend on `split_seed` and not on the training seed, so that all seeds of an experiment are
    evaluated on the same images.

    Where there are few images, `folds=k` is k-fold cross-validation: all images outside of a validation split of the
    dataset's own are cut into k stratified parts. Part `fold` is the test split; of the others, validation and training
    images are taken as without folds. So each image is a test image of one fold. A dataset that has test images of its
    own refuses folds: its scores are those of other papers only on these.

    Args:
        image_size: side, or height and width, of the model's input in pixels; None is the native size.
        validation_fraction: fraction of the training images held out to choose hyper-parameters and checkpoints.
        train_fraction: fraction of the remaining images to train on, for studies of data size.
        train_examples: the same as a number of images; None is all.
        split_seed: seed of every split.
        folds: number of parts for cross-validation, 2 or more, in place of `test_fraction`; None is a single split.
        fold: number of the part that is the test split, 0 to `folds` - 1.
        evaluation_crop: fraction of each side kept by the center crop of evaluation; 1 keeps all.

    Raises:
        ConfigError: a fraction or number of images that no split can have.
        DatasetMissing: the files were not found.
    """

    classes: tuple[str, ...] = field(init=False)  # names, by label
    channels: int = field(init=False)  # 3 for colour, 1 for grey
    size: tuple[int, int] | None = field(init=False)  # height and width of images in memory; None: they vary
    mean: tuple[float, ...] = field(init=False)  # of the training pixels, each channel in 0 ... 1
    std: tuple[float, ...] = field(init=False)
    flip: bool = field(init=False)  # whether a horizontal flip keeps the class
    citation: str = field(init=False)

    licence: ClassVar[str] = ""  # of the images, where it is known for certain
    path_options: ClassVar[tuple[str, ...]] = ("root", "download")  # options that do not change the images
    hashed_paths: ClassVar[frozenset[str]] = frozenset()  # paths that do, however they are spelt
    in_shards: ClassVar[bool] = False  # whether only some orders of the images can be read fast (`Examples.shuffle`)
    published: ClassVar[tuple[int, int] | None] = None  # training images (with validation's) and classes

    image_size: Size | None
    validation_fraction: float
    train_fraction: float
    train_examples: int | None
    split_seed: int
    folds: int | None
    fold: int
    evaluation_crop: float

    def __post_init__(self) -> None:
        self.for_evaluation = EVALUATION.get()
        self.cut_remarks: dict[str, str] = {}  # by split
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(
                f"dataset.validation_fraction={self.validation_fraction}: must lie between 0 and 1, for the best"
                " checkpoint is chosen on validation images; 0.1 is usual"
            )
        if self.split_seed < 0:
            raise ConfigError(f"dataset.split_seed={self.split_seed}: must be 0 or more")
        if not 0 < self.train_fraction <= 1:
            raise ConfigError(f"dataset.train_fraction={self.train_fraction}: must be above 0 and at most 1")
        if self.train_examples is not None and self.train_fraction != 1:
            raise ConfigError(
                f"dataset.train_fraction={self.train_fraction} and dataset.train_examples={self.train_examples}:"
                " give one"
            )
        if self.folds is not None and self.folds < 2:
            raise ConfigError(
                f"dataset.folds={self.folds}: must be at least 2; 5 or 10 is usual, null is a single split"
            )
        if self.folds is not None and not hasattr(self, "test_fraction"):
            raise ConfigError(f"dataset.folds={self.folds}: {OWN_TEST}: leave it out, and vary the seed")
        if not 0 <= self.fold < (self.folds or 1):
            remedy = "give dataset.folds=K as well" if self.folds is None else f"use 0 to {self.folds - 1}"
            raise ConfigError(f"dataset.fold={self.fold} with dataset.folds={self.folds or 'null'}: {remedy}")
        if not 0 < self.evaluation_crop <= 1:
            raise ConfigError(f"dataset.evaluation_crop={self.evaluation_crop}: must be above 0 and at most 1")
        if self.size is None and self.image_size is None:
            raise ConfigError("dataset.image_size=null: these images have no size of their own: give one, such as 224")
        if min(self.shape) < 1:
            raise ConfigError(f"dataset.image_size={self.image_size}: must be at least 1 pixel")
        if not 0 < (fraction := getattr(self, "test_fraction", 0.2)) < 1:
            raise ConfigError(f"dataset.test_fraction={fraction}: must lie between 0 and 1; 0.2 is usual")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the model's input."""
        size = self.image_size if self.image_size is not None else self.size
        assert size is not None
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def passed_over(self) -> str:
        """What lies among the files and is in no split, and the classes that a split cut off has none of, in one line.

        Complete once `splits` has read them.
        """
        return "; ".join(self.cut_remarks.values())

    def read(self) -> dict[str, Examples]:
        """The images of `train`, and of `validation` and `test` where the dataset has such splits."""
        raise NotImplementedError(f"{type(self).__name__} has no read")

    @classmethod
    def planned(cls, **options: Any) -> "tuple[Dataset, int] | None":
        """A published dataset without its files, to plan a sweep with, and its number of training images.

        Args:
            options: arguments of the constructor.
        """
        if cls.published is None:
            return None
        images, classes = cls.published
        data = object.__new__(cls)
        vars(data).update(options, classes=tuple(str(number) for number in range(classes)))
        rest = images - round(images * data.validation_fraction)
        return data, data.train_examples or round(rest * data.train_fraction)

    def decoding(self, train: Examples) -> Decoding:
        """How image files become pixels.

        Args:
            train: the training images, before any are left out.
        """
        return Decoding("L" if self.channels == 1 else "RGB")

    def background_colour(self) -> tuple[int, int, int] | None:
        """What transparent pixels of images to predict lie over; None ignores the alpha channel."""
        return 255, 255, 255

    def splits(self, decoding: Decoding | None = None) -> dict[str, Examples]:
        """`train`, `validation` and `test`; images in memory are resized to `image_size`. See `read_once`.

        Args:
            decoding: how image files become pixels; None is the dataset's own.
        """
        return dict(self.once(repr(decoding), lambda: self.resized(self.cut(decoding))))

    def fingerprint(self) -> Node:
        """What `vitlab.data.fingerprint` says of the images as they are now. See `read_once`."""
        with file_errors():
            return self.once("fingerprint", lambda: fingerprint(self.classes, self.listed()))

    def once(self, what: str, make: Callable[[], Any]) -> Any:
        cache, key = READ.get(), repr(self)
        if cache is None:
            return make()
        if key not in cache:
            cache.clear()
        known = cache.setdefault(key, {})
        if what not in known:
            known[what] = make()
        return known[what]

    def describe_cut(self, split: str, part: Examples, pool: Examples) -> str:
        """The classes that a split has no image of, and what to do; empty where it has some of each.

        Args:
            split: its name.
            part: its images.
            pool: those that it was cut from.
        """
        images, there = (np.bincount(each.labels, minlength=len(self.classes)) for each in (pool, part))
        if not len(lacking := np.flatnonzero((images > 0) & (there == 0))):
            return ""
        least = ceil(100 / images[lacking].min() + 50 / len(pool)) / 100
        larger = f"dataset.{split}_fraction={least}, or " if least < 1 and self.folds is None else ""
        names = listed([self.classes[label] for label in lacking])
        return f"the {split} images have none of {names}: give {larger}more images of each class"

    def listed(self) -> dict[str, Examples]:
        """As `read`, for the fingerprint; to override where something cheaper tells the images from others."""
        return self.read()

    def cut(self, decoding: Decoding | None = None) -> dict[str, Examples]:
        """As `splits`, but images in memory have their own size yet: what the labels alone are wanted of.

        Args:
            decoding: as for `splits`.
        """
        with file_errors():
            splits = self.read()
        if self.for_evaluation and self.folds is None:
            splits = {name: part for name, part in splits.items() if len(part)}
            if not splits:
                raise DataError(f"there is no image with a class to evaluate: {self.passed_over or 'all are empty'}")
            decoding = decoding or self.decoding(next(iter(splits.values())))
            splits["all"] = joined(list(splits.values()))
            return {name: part.decoded(decoding) for name, part in splits.items()}
        if empty := [name for name, part in splits.items() if not len(part)]:
            raise DataError(f"the {empty[0]} split has no images: give it some, or leave it out")
        train = splits["train"]
        if self.folds is not None:
            if "test" in splits:
                remedy = "leave it out, or put the test images among those for training"
                raise ConfigError(f"dataset.folds={self.folds}: {OWN_TEST}: {remedy}")
            if self.folds > len(train):
                raise ConfigError(f"dataset.folds={self.folds}: there are {len(train)} images: use fewer")
            tested = stratified_folds(train.labels, self.folds, self.split_seed + 2) == self.fold
            pool = train
            splits["test"], train = train.take(np.flatnonzero(tested)), train.take(np.flatnonzero(~tested))
            self.cut_remarks["test"] = self.describe_cut("test", splits["test"], pool)
        for name, seed in (("test", self.split_seed + 2), ("validation", self.split_seed)):
            if name not in splits:
                option = f"{name}_fraction"
                fraction, pool = getattr(self, option), train
                splits[name], train = split_off(train, fraction, seed, f"dataset.{option}")
                self.cut_remarks[name] = self.describe_cut(name, splits[name], pool)
        self.cut_remarks = {name: words for name, words in self.cut_remarks.items() if words}
        decoding = decoding or self.decoding(train)
        wanted = self.train_examples if self.train_examples is not None else round(len(train) * self.train_fraction)
        if not 1 <= wanted <= len(train):
            raise ConfigError(
                f"dataset.train_examples={wanted}: there are {len(train)} training images: use 1 to {len(train)}"
            )
        splits["train"] = train.take(stratified_split(train.labels, wanted, self.split_seed + 1)[0])
        splits = {name: splits[name].decoded(decoding) for name in ("train", "validation", "test")}
        count, (height, width) = sum(len(p) for p in splits.values() if isinstance(p, Pixels)) or 1, self.shape
        what = f"dataset.image_size={height}x{width}: {count:,} image{'s' * (count > 1)} of it, held in memory, take"
        check_fits(count * self.channels * height * width, what, "use a smaller dataset.image_size")
        return splits

    def resized(self, splits: dict[str, Examples]) -> dict[str, Examples]:
        if self.for_evaluation and self.folds is None:
            return splits
        return {name: p.resized(self.shape) if isinstance(p, Pixels) else p for name, p in splits.items()}


@contextmanager
def read_once() -> Generator[None]:
    """Context in which equal datasets, one after the other, are read from disk once: for trainings in a row."""
    before = READ.set({})
    try:
        yield
    finally:
        READ.reset(before)


@contextmanager
def for_evaluation() -> Generator[None]:
    """Context in which a dataset is built whose images are all there to be evaluated on.

    Its splits are those on disk that hold images, of which any may be missing, and `all` of them together.
    """
    before = EVALUATION.set(True)
    try:
        yield
    finally:
        EVALUATION.reset(before)


def split_off(examples: Examples, fraction: float, seed: int, option: str) -> tuple[Examples, Examples]:
    """A stratified split of a fraction of the examples, and the rest; `option` is named in the error."""
    n = len(examples)
    count = round(n * fraction)
    if not 1 <= count < n:
        usable = f"{option}={ceil(100 / n) / 100 if count < 1 else floor(100 * (n - 1) / n) / 100}, or "
        raise ConfigError(
            f"{option}={fraction} would take {count} of {n} image{'s' * (n > 1)}, and must take and leave at least 1:"
            f" give {usable if n > 1 else ''}more images"
        )
    chosen, rest = stratified_split(examples.labels, count, seed)
    return examples.take(chosen), examples.take(rest)


@dataclass(kw_only=True)
class CustomDataset(Dataset):
    """Base class of the datasets of a user's own images.

    Args:
        test_fraction: fraction of the training images kept for the test where there is no test split.
        channels: 3 decodes to colour, 1 to grey.
        mean: mean of each channel of the training pixels, in 0 ... 1.
        std: standard deviation of each channel.
        flip: whether a horizontal flip keeps the class.
        background: colour that transparent pixels are laid over, by name or as '#rrggbb'; None ignores the alpha
            channel.
        range: values that are black and white where images are grey and deeper than 8 bits (16 or 32 bits, floats);
            auto is `find_range`'s; None goes by each image, see `to_uint8`.
    """

    size = None
    citation = "your own images"

    test_fraction: float
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    background: str | None
    range: Literal["auto"] | tuple[float, float] | None

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise DataError(f"dataset.channels={self.channels}: use 3 (colour) or 1 (grey)")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise DataError(
                    f"dataset.{name} has {len(values)} values for {self.channels} channels: give one a channel"
                )
        if min(self.std) <= 0:
            raise DataError(f"dataset.std={list(self.std)}: each must be above 0; vitlab data measures it")
        if isinstance(self.range, tuple) and not self.range[0] < self.range[1]:
            raise DataError(f"dataset.range={list(self.range)}: the value of black must be below that of white")
        self.background_colour()
        super().__post_init__()

    def background_colour(self) -> tuple[int, int, int] | None:
        """Red, green and blue of `background`."""
        if self.background is None:
            return None
        try:
            colour = ImageColor.getrgb(self.background)
        except ValueError:
            raise DataError(
                f"dataset.background={self.background}: no such colour: use white, black, '#808080', or null to ignore"
                " the alpha channel"
            ) from None
        return colour[0], colour[1], colour[2]

    def decoding(self, train: Examples) -> Decoding:
        limits = find_range(train) if self.range == "auto" else self.range
        return super().decoding(train)._replace(background=self.background_colour(), range=limits)
