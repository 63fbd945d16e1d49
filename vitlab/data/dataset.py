"""Dataset: facts about a set of labelled images, and its train, validation and test splits."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar

from vitlab.config.errors import ConfigError
from vitlab.data.examples import Examples, Pixels
from vitlab.data.split import stratified_split
from vitlab.system.memory import check_fits

Size = int | tuple[int, int]
KEPT: ContextVar[dict[str, dict[str, Examples]] | None] = ContextVar("KEPT", default=None)


@dataclass(kw_only=True)
class Dataset:
    """The contract. A kind states its facts and says in `read` where its images are; the splits are made here.

    Validation is a stratified slice of the training images, drawn by `split_seed`: never by the training seed, so that
    two seeds of one experiment are judged on the same images.

    Args:
        image_size: side, or height and width, that the model sees, in pixels; None is the native size.
        validation_fraction: share of the training images held out to choose hyper-parameters and checkpoints.
        train_fraction: share of what remains that is trained on, for studies of data size.
        train_examples: the same as a number of images; None is all.
        split_seed: seed of every split.
        evaluation_crop: share of each side kept by the centre crop of evaluation; 1 keeps all.

    Raises:
        ConfigError: a share or a number that no split can have.
        DatasetMissing: no files where they were looked for.
    """

    classes: tuple[str, ...] = field(init=False)
    channels: int = field(init=False)
    size: tuple[int, int] | None = field(init=False)  # native height and width, if they are all alike
    mean: tuple[float, ...] = field(init=False)  # of the training pixels, each channel in 0 ... 1
    std: tuple[float, ...] = field(init=False)
    flip: bool = field(init=False)  # whether a mirrored image keeps its class
    citation: str = field(init=False)

    path_options: ClassVar[tuple[str, ...]] = (
        "root",
        "download",
    )  # options of where the files are

    published: ClassVar[tuple[int, int] | None] = (
        None  # training images, with validation's, and classes of a whole copy
    )

    image_size: Size | None
    validation_fraction: float
    train_fraction: float
    train_examples: int | None
    split_seed: int
    evaluation_crop: float

    def __post_init__(self) -> None:
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
        if not 0 < self.evaluation_crop <= 1:
            raise ConfigError(f"dataset.evaluation_crop={self.evaluation_crop}: must be above 0 and at most 1")
        if self.size is None and self.image_size is None:
            raise ConfigError("dataset.image_size=null: these images have no size of their own: give one, such as 224")
        if min(self.shape) < 1:
            raise ConfigError(f"dataset.image_size={self.image_size}: must be at least 1 pixel")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width that the model sees."""
        size = self.image_size if self.image_size is not None else self.size
        assert size is not None
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def read(self) -> dict[str, Examples]:
        """The splits that the dataset comes with: `train`, and `validation` and `test` where it has them."""
        raise NotImplementedError(f"{type(self).__name__} has no read")

    @classmethod
    def planned(cls, **options: Any) -> "tuple[Dataset, int] | None":
        """A published dataset whose files are not there, to plan with and never to read, and its training images.

        Args:
            options: of the constructor.
        """
        if cls.published is None:
            return None
        images, classes = cls.published
        data = object.__new__(cls)
        vars(data).update(options, classes=tuple(str(number) for number in range(classes)))
        rest = images - round(images * data.validation_fraction)
        return data, data.train_examples or round(rest * data.train_fraction)

    def splits(self) -> dict[str, Examples]:
        """`train`, `validation` and `test`, resized where they are held in memory; see `read_once`."""
        kept, key = KEPT.get(), repr(self)
        if kept is None:
            return self.divided()
        if key not in kept:
            kept.clear()
            kept[key] = self.divided()
        return dict(kept[key])

    def divided(self) -> dict[str, Examples]:
        splits = self.read()
        train = splits["train"]
        if "validation" not in splits:
            count = round(len(train) * self.validation_fraction)
            splits["validation"], train = split_off(train, count, self.split_seed, "dataset.validation_fraction")
        wanted = self.train_examples if self.train_examples is not None else round(len(train) * self.train_fraction)
        if not 1 <= wanted <= len(train):
            raise ConfigError(
                f"dataset.train_examples={wanted}: there are {len(train)} training images: use 1 to {len(train)}"
            )
        splits["train"] = train.take(stratified_split(train.labels, wanted, self.split_seed + 1)[0])
        splits = {name: splits[name] for name in ("train", "validation", "test")}
        count, (height, width) = sum(len(p) for p in splits.values() if isinstance(p, Pixels)) or 1, self.shape
        what = f"dataset.image_size={height}x{width}: {count:,} image{'s' * (count > 1)} of it, held in memory, take"
        check_fits(count * self.channels * height * width, what, "use a smaller dataset.image_size")
        return {name: p.resized(self.shape) if isinstance(p, Pixels) else p for name, p in splits.items()}


@contextmanager
def read_once() -> Generator[None]:
    """While entered, the splits of a dataset that is asked for again and again are read once: trainings in a row."""
    before = KEPT.set({})
    try:
        yield
    finally:
        KEPT.reset(before)


def split_off(examples: Examples, count: int, seed: int, key: str) -> tuple[Examples, Examples]:
    """A stratified slice of `count` examples, and the rest; `key` is the option to blame."""
    if not 1 <= count < len(examples):
        raise ConfigError(f"{key} would take {count} of {len(examples)} images: take at least 1 and leave at least 1")
    chosen, rest = stratified_split(examples.labels, count, seed)
    return examples.take(chosen), examples.take(rest)
