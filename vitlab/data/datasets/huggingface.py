"""Image-classification sets of the Hugging Face hub, and local copies of such: parquet files, or what was saved."""

import io
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitlab.config.errors import DataError, DatasetMissing
from vitlab.data.dataset import Dataset
from vitlab.data.datasets.image_folder import check_facts, with_test
from vitlab.data.examples import Examples, decode_image, unreadable

FORMATS = ("parquet", "arrow", "imagefolder", "webdataset", "cache")  # what is read: data, and never anyone's code


@dataclass(kw_only=True)
class HuggingFace(Dataset):
    """A set that the library `datasets` reads, with an image and a class a row. Images are decoded when asked for.

    Args:
        path: `owner/name` on the hub; or a local parquet file, a folder of them, or a folder of `save_to_disk`.
        config: which of the set's configurations, where it has several; None is its default.
        revision: commit, branch or tag on the hub; a commit alone is always the same images.
        image_column: column of the images.
        label_column: column of the classes: a ClassLabel, whole numbers or words.
        train_split: the set's name for its training images.
        validation_split: the same for validation; None takes a stratified slice of the training images.
        test_split: the same for the test; None takes a stratified slice of the training images.
        test_fraction: share of the training images that this slice takes.
        channels: 3 decodes to colour, 1 to grey.
        mean: of the training pixels, each channel in 0 ... 1.
        std: the same.
        flip: whether a mirrored image keeps its class.
        download: ask the hub; otherwise only what is on this machine is used, and the network is left alone.

    Raises:
        DatasetMissing: nothing there, or nothing on this machine.
        DataError: no such column, split or configuration, a damaged file, or `datasets` is not installed.
    """

    size = None
    path_options = ("download",)

    path: str
    config: str | None
    revision: str | None
    image_column: str
    label_column: str
    train_split: str
    validation_split: str | None
    test_split: str | None
    test_fraction: float
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    download: bool

    def __post_init__(self) -> None:
        check_facts(self)
        super().__post_init__()
        wanted = {"train": self.train_split, "validation": self.validation_split, "test": self.test_split}
        tables = self.tables()
        self.rows = {split: self.table(tables, split, name) for split, name in wanted.items() if name is not None}
        self.values = self.distinct(self.rows["train"])
        self.classes = tuple(str(value) for value in self.values)
        if len(self.classes) < 2:
            raise DataError(
                f"{self.path} has {len(self.classes)} class in dataset.label_column={self.label_column}: a classifier"
                " needs at least 2"
            )
        self.citation = next(iter(tables.values())).info.citation.strip() or f"Hugging Face dataset {self.path}"

    # --- what there is --------------------------------------------------------------------------------------------

    def tables(self) -> dict[str, Any]:
        """The splits as `datasets` has them, by their own names."""
        try:
            from datasets import config
            from datasets.exceptions import DatasetNotFoundError
        except ImportError as error:
            raise DataError(
                "dataset=hf needs the library `datasets`, which is not installed: uv sync --extra hf, or"
                ' pip install "vitlab[hf]"'
            ) from error
        place = Path(self.path).expanduser()
        local = place.exists()
        if not local and not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", self.path):
            raise DatasetMissing("hf", [place], "Give a file or folder that is there, or the hub's owner/name")
        given = {"path": self.path, "config": self.config, "revision": self.revision, "download": "true"}
        command = " ".join(["vitlab train dataset=hf", *(f"dataset.{k}={v}" for k, v in given.items() if v)])
        try:
            with network(self.download and not local):
                return self.opened(place) if local else self.fetched(command)
        except DataError:
            raise
        except (ConnectionError, DatasetNotFoundError) as error:
            if self.download:
                raise DataError(f"{self.path} could not be fetched from the hub: {sentence(error)}") from error
            raise DatasetMissing(self.path, [place, config.HF_DATASETS_CACHE], f"Get it with: {command}") from error
        except Exception as error:  # what a damaged file makes its reader raise is anybody's guess
            remedy = "" if local or self.download else f"; to ask the hub: {command}"
            raise DataError(f"{self.path} cannot be read: {sentence(error.__cause__ or error)}{remedy}") from error

    def opened(self, place: Path) -> dict[str, Any]:
        """A local copy: what `save_to_disk` wrote, a parquet file, or a folder of such."""
        import datasets

        if any((place / name).is_file() for name in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(str(place))
            return dict(found) if isinstance(found, dict) else {self.train_split: found}
        if place.is_file():
            return self.made(datasets.load_dataset_builder("parquet", data_files={self.train_split: str(place)}))
        return self.made(datasets.load_dataset_builder(str(place.resolve()), self.config))

    def fetched(self, command: str) -> dict[str, Any]:
        """A set of the hub, or what of it is in the cache of this machine: the revision asked for, and no other."""
        import datasets

        builder = datasets.load_dataset_builder(self.path, self.config, revision=self.revision)
        asked = self.revision and (ref(self.path, self.revision) or self.revision)
        if not self.download and asked not in (None, builder.hash):
            name = f"{self.path} at revision {self.revision}"
            raise DatasetMissing(name, [builder.cache_dir], f"Another one is there. Get this one with: {command}")
        return self.made(builder)

    def made(self, builder: Any) -> dict[str, Any]:
        """The tables that a builder makes of its files, once and for all, where these are plain data."""
        formats = {kind.__module__.rpartition(".")[2] for kind in type(builder).__mro__}
        if not formats & set(FORMATS):
            known = ", ".join(FORMATS[:-1])
            raise DataError(f"{self.path} is made of {type(builder).__name__} files: vitlab reads {known}")
        builder.download_and_prepare()
        return {str(split): table for split, table in builder.as_dataset().items()}

    def table(self, tables: dict[str, Any], split: str, name: str) -> Any:
        """One split, with its images as they are in the file."""
        import datasets

        if name not in tables:
            rest = "" if split == "train" else ", or null for a slice of the training images"
            raise DataError(
                f"dataset.{split}_split={name}: {self.path} has no such split; it has {', '.join(tables)}: give one"
                f" of them{rest}"
            )
        table, columns = tables[name].with_format(None), tables[name].features
        for key, column in (("image_column", self.image_column), ("label_column", self.label_column)):
            if column not in columns:
                raise DataError(f"dataset.{key}={column}: {self.path} has no such column; it has {', '.join(columns)}")
        kind = columns[self.image_column]
        if isinstance(kind, datasets.Image):
            return table.cast_column(self.image_column, datasets.Image(decode=False))
        if not (isinstance(kind, dict) and "bytes" in kind) and getattr(kind, "dtype", "") not in (
            "binary",
            "large_binary",
        ):
            raise DataError(
                f"dataset.image_column={self.image_column}: it holds {kind}, not images; the columns are"
                f" {', '.join(columns)}"
            )
        return table

    # --- classes --------------------------------------------------------------------------------------------------

    def column(self, table: Any) -> list[Any]:
        """The label of each row, as it is in the file."""
        return table.select_columns([self.label_column]).with_format("arrow")[:][self.label_column].to_pylist()

    def distinct(self, table: Any) -> list[Any]:
        """The names of a ClassLabel, or the distinct values, sorted."""
        kind = table.features[self.label_column]
        if names := getattr(kind, "names", None):
            return list(names)
        if getattr(kind, "dtype", "") not in ("string", "large_string", "bool") and "int" not in str(
            getattr(kind, "dtype", "")
        ):
            raise DataError(
                f"dataset.label_column={self.label_column}: it holds {kind}, not classes; the columns are"
                f" {', '.join(table.features)}"
            )
        return sorted({value for value in self.column(table) if value is not None})

    def read(self) -> dict[str, Examples]:
        splits: dict[str, Examples] = {split: self.examples(table, split) for split, table in self.rows.items()}
        return with_test(splits, self.test_fraction, self.split_seed)

    def examples(self, table: Any, split: str) -> "Rows":
        named = getattr(table.features[self.label_column], "names", None)
        places = {value: place for place, value in enumerate(range(len(self.values)) if named else self.values)}
        found = self.column(table)
        odd = sorted({str(value) for value in found if value not in places})
        if odd:
            raise DataError(
                f"dataset.{split}_split: {self.path} has labels there that are no class of the training images:"
                f" {', '.join(odd[:5])} (an unlabelled split has -1 or None): choose another split"
            )
        labels = np.array([places[value] for value in found], dtype=np.int64)
        mode = "RGB" if self.channels == 3 else "L"
        return Rows(table, np.arange(len(labels)), labels, self.image_column, mode, f"{self.path} {split}")


class Rows(Examples):
    """Images in the rows of a table, decoded when asked for.

    Args:
        table: a `datasets.Dataset` whose images are not decoded.
        indices: the row of each example (n,).
        labels: class of each (n,).
        column: of the images.
        mode: PIL's name of the mode each is converted to: "RGB" or "L".
        name: of the table, for complaints.
        min_size: see `Examples.reduced`.
    """

    def __init__(
        self,
        table: Any,
        indices: np.ndarray,
        labels: np.ndarray,
        column: str,
        mode: str,
        name: str,
        min_size: int | None = None,
    ):
        self.table = table
        self.indices = indices
        self.labels = labels
        self.column = column
        self.mode = mode
        self.name = name
        self.min_size = min_size

    def image(self, index: int) -> Image.Image:
        row = int(self.indices[index])
        cell = self.table[row][self.column]
        cell = cell if isinstance(cell, dict) else {"bytes": cell}
        try:
            if cell.get("bytes") is None and "://" in (cell.get("path") or "://"):
                raise DataError("no image is in the row, and none in a local file")  # the network is left alone
            file = Path(cell["path"]) if cell["bytes"] is None else io.BytesIO(cell["bytes"])
            return decode_image(file, self.mode, self.min_size)
        except (OSError, SyntaxError, ValueError) as error:
            remedy = "mend it, or fetch the set again"
            raise unreadable(f"{self.name} row {row}", error, remedy) from error

    def take(self, indices: np.ndarray) -> "Rows":
        rows, labels = self.indices[indices], self.labels[indices]
        return Rows(self.table, rows, labels, self.column, self.mode, self.name, self.min_size)


@contextmanager
def network(allowed: bool) -> Generator[None]:
    """Without leave, the hub's libraries raise where they would ask the network; their own setting is put back."""
    from datasets import config
    from huggingface_hub import constants

    settings = (config, constants)
    before = [setting.HF_HUB_OFFLINE for setting in settings]
    try:
        for setting in settings:
            setting.HF_HUB_OFFLINE = setting.HF_HUB_OFFLINE or not allowed
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.HF_HUB_OFFLINE = value


def ref(path: str, revision: str) -> str | None:
    """The commit that a branch or tag was when the hub was last asked, from its cache on this machine."""
    from huggingface_hub import constants

    file = Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}" / "refs" / revision
    return file.read_text().strip() if file.is_file() else None


def sentence(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
