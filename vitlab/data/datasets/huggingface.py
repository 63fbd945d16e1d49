"""Image-classification datasets of the Hugging Face hub, or local: parquet files, or folders of `save_to_disk`."""

import io
import re
import shlex
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitlab.config.errors import DataError, DatasetMissing
from vitlab.data.dataset import CustomDataset
from vitlab.data.datasets.split_folders import csv_hint
from vitlab.data.examples import Encoded, Examples, Found, one_line, open_image, unreadable
from vitlab.data.labels import clean_label
from vitlab.storage.files import file_errors

FORMATS = ("parquet", "arrow", "imagefolder", "webdataset", "cache")  # plain data: no code of a dataset is run


@dataclass(kw_only=True)
class HuggingFace(CustomDataset):
    """A dataset of the library `datasets` with an image and a class per row. Images are decoded on access.

    Args:
        path: `owner/name` on the hub; or a local parquet file, a folder of them, or a folder of `save_to_disk`.
        config: configuration of the dataset, where it has several; None is its default.
        revision: commit, branch or tag on the hub; only a commit always names the same images.
        image_column: column of the images.
        label_column: column of the classes: a ClassLabel, integers or strings.
        train_split: the dataset's name for the training split.
        validation_split: the same for validation; None takes a stratified split of the training images.
        test_split: the same for the test; None takes a stratified split of the training images.
        download: download from the hub; otherwise only local files are used, without a network connection.

    Raises:
        DatasetMissing: no such dataset, or no local copy.
        DataError: no such column, split or configuration, a damaged file, or `datasets` is not installed.
    """

    path_options = ("download",)
    hashed_paths = frozenset({"path"})

    path: str
    config: str | None
    revision: str | None
    image_column: str
    label_column: str
    train_split: str
    validation_split: str | None
    test_split: str | None
    download: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        names = {"train": self.train_split, "validation": self.validation_split, "test": self.test_split}
        tables = self.tables()
        if self.for_evaluation and self.train_split not in tables and {*names.values()} & {*tables}:
            del names["train"]
        self.split_tables = {
            split: self.table(tables, split, name) for split, name in names.items() if name is not None
        }
        named = [table for split, table in self.split_tables.items() if split == "train" or self.for_evaluation]
        self.values = list(dict.fromkeys(value for table in named for value in self.class_values(table)))
        self.classes = tuple(str(value) for value in self.values)
        if len(self.classes) < 2 and not self.for_evaluation:
            raise DataError(
                f"{self.path} has {len(self.classes)} class in dataset.label_column={self.label_column}: a classifier"
                " needs at least 2"
            )
        self.citation = next(iter(tables.values())).info.citation.strip() or f"Hugging Face dataset {self.path}"

    def tables(self) -> dict[str, Any]:
        """The splits as `datasets` loads them, by the dataset's own names."""
        try:
            from datasets import config
            from datasets.exceptions import DatasetNotFoundError
        except ImportError as error:
            raise DataError(
                "dataset=hf needs the library `datasets`, which is not installed: uv sync --extra hf, or"
                ' pip install "vitlab[hf]"'
            ) from error
        path = Path(self.path)
        with file_errors():
            local = path.exists()
        if not local and not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", self.path):
            raise DatasetMissing("hf", [path], "Give a file or folder that is there, or the hub's owner/name")
        options = {"path": self.path, "config": self.config, "revision": self.revision, "download": "true"}
        command = shlex.join(["vitlab", "train", "dataset=hf", *(f"dataset.{k}={v}" for k, v in options.items() if v)])
        try:
            with hub_access(self.download and not local):
                return self.load_local(path) if local else self.load_from_hub(command)
        except DataError:
            raise
        except (ConnectionError, DatasetNotFoundError) as error:
            if self.download:
                raise DataError(f"{self.path} could not be fetched from the hub: {one_line(error)}") from error
            raise DatasetMissing(self.path, [path, config.HF_DATASETS_CACHE], f"Get it with: {command}") from error
        except Exception as error:  # the reader of a damaged file raises anything
            remedy = "" if local or self.download else f"; to ask the hub: {command}"
            raise DataError(f"{self.path} cannot be read: {one_line(error.__cause__ or error)}{remedy}") from error

    def load_local(self, path: Path) -> dict[str, Any]:
        """A folder of `save_to_disk`, a parquet file, or a folder of parquet files."""
        import datasets

        if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(str(path))
            return dict(loaded) if isinstance(loaded, dict) else {self.train_split: loaded}
        if path.is_file():
            return self.prepare(datasets.load_dataset_builder("parquet", data_files={self.train_split: str(path)}))
        return self.prepare(datasets.load_dataset_builder(str(path.resolve()), self.config))

    def load_from_hub(self, command: str) -> dict[str, Any]:
        """A dataset of the hub, or its cached copy if that is of the requested revision."""
        import datasets

        builder = datasets.load_dataset_builder(self.path, self.config, revision=self.revision)
        commit = self.revision and (cached_commit(self.path, self.revision) or self.revision)
        if not self.download and commit not in (None, builder.hash):
            name = f"{self.path} at revision {self.revision}"
            raise DatasetMissing(name, [builder.cache_dir], f"Another one is there. Get this one with: {command}")
        return self.prepare(builder)

    def prepare(self, builder: Any) -> dict[str, Any]:
        """The tables of a builder of plain data, which keeps them in the library's cache."""
        formats = {kind.__module__.rpartition(".")[2] for kind in type(builder).__mro__}
        if not formats & set(FORMATS):
            supported = ", ".join(FORMATS[:-1])
            raise DataError(f"{self.path} is made of {type(builder).__name__} files: vitlab reads {supported}")
        builder.download_and_prepare()
        return {str(split): table for split, table in builder.as_dataset().items()}

    def table(self, tables: dict[str, Any], split: str, name: str) -> Any:
        """The table of one split, with its images not decoded."""
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
                there = ", ".join(columns)
                raise DataError(f"dataset.{key}={column}: {self.path} has no such column; it has {there}{self.hint}")
        kind = columns[self.image_column]
        if isinstance(kind, datasets.Image):
            return table.cast_column(self.image_column, datasets.Image(decode=False))
        encoded = isinstance(kind, dict) and "bytes" in kind
        if not encoded and getattr(kind, "dtype", "") not in ("binary", "large_binary"):
            raise self.wrong_column("image_column", "images", columns)
        return table

    @property
    def hint(self) -> str:
        """What else to do where a CSV lies beside the images."""
        return f"; {csv_hint(Path(self.path))}" if any(Path(self.path).glob("*.csv")) else ""

    def wrong_column(self, option: str, wanted: str, columns: dict[str, Any]) -> DataError:
        name = getattr(self, option)
        return DataError(
            f"dataset.{option}={name}: it holds {columns[name]}, not {wanted}; the columns are {', '.join(columns)}"
        )

    def labels(self, table: Any) -> list[Any]:
        """The label of each row; texts without spaces around them."""
        values = table.select_columns([self.label_column]).with_format("arrow")[:][self.label_column].to_pylist()
        return [clean_label(value) if isinstance(value, str) else value for value in values]

    def class_values(self, table: Any) -> list[Any]:
        """The names of a ClassLabel, or the sorted distinct values of the column."""
        kind = table.features[self.label_column]
        if names := getattr(kind, "names", None):
            return list(names)
        dtype = str(getattr(kind, "dtype", ""))
        if dtype not in ("string", "large_string", "bool") and "int" not in dtype:
            raise self.wrong_column("label_column", "classes", table.features)
        return sorted({value for value in self.labels(table) if value is not None})

    def read(self) -> dict[str, Examples]:
        return {split: self.examples(table, split) for split, table in self.split_tables.items()}

    def examples(self, table: Any, split: str) -> "Rows":
        named = getattr(table.features[self.label_column], "names", None)
        index = {value: i for i, value in enumerate(range(len(self.values)) if named else self.values)}
        labels = self.labels(table)
        if unknown := sorted({str(value) for value in labels if value not in index}):
            raise DataError(
                f"dataset.{split}_split: {self.path} has labels there that are no class of the training images:"
                f" {', '.join(unknown[:5])} (an unlabelled split has -1 or None): choose another split"
                f"{self.hint}"
            )
        return Rows(
            table=table,
            indices=np.arange(len(labels)),
            labels=np.array([index[value] for value in labels], dtype=np.int64),
            column=self.image_column,
            name=f"{self.path} {split}",
        )


@dataclass(kw_only=True, eq=False)
class Rows(Encoded):
    """Images in the rows of a table, decoded on access.

    Args:
        table: a `datasets.Dataset` whose images are not decoded.
        indices: the row of each example (n,).
        labels: class of each (n,).
        column: column of the images.
        name: name of the table, for errors.
    """

    arrays = ("indices", "labels")

    table: Any
    indices: np.ndarray
    labels: np.ndarray
    column: str
    name: str

    def hash_contents(self, digest: Any) -> int:
        """Of the sizes of the images: the offsets of their column are read, and none of them."""
        import pyarrow as pa
        import pyarrow.compute as pc

        super().hash_contents(digest)
        found = []
        for chunk in self.table.data.column(self.column).chunks:
            cells = chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk
            lengths = pc.call_function("binary_length", [cells])
            sizes = pc.fill_null(lengths, -1).to_numpy(zero_copy_only=False).astype(np.int64)
            if (none := sizes < 0).any() and cells is not chunk:
                paths = [path or "" for path in chunk.field("path").filter(pa.array(none)).to_pylist()]
                sizes[none] = [Path(path).stat().st_size if Path(path).is_file() else -1 for path in paths]
            found.append(sizes)
        sizes = np.concatenate([np.zeros(0, np.int64), *found])
        digest.update(sizes.data)
        return int(sizes.clip(0).sum())

    def open(self, index: int, use: Callable[[Image.Image], Found]) -> Found:
        row = int(self.indices[index])
        cell = self.table[row][self.column]
        cell = cell if isinstance(cell, dict) else {"bytes": cell}
        try:
            if cell.get("bytes") is None and "://" in (cell.get("path") or "://"):
                raise DataError("no image is in the row, and none in a local file")  # a URL is not fetched
            file = Path(cell["path"]) if cell["bytes"] is None else io.BytesIO(cell["bytes"])
            return open_image(file, use)
        except (OSError, SyntaxError, ValueError) as error:
            raise unreadable(f"{self.name} row {row}", error, "repair it, or fetch the set again") from error


@contextmanager
def hub_access(allowed: bool) -> Generator[None]:
    """Context in which the hub's libraries raise instead of using the network, unless allowed."""
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


def cached_commit(path: str, revision: str) -> str | None:
    """The commit of a branch or tag when the hub was last asked, from the local cache."""
    from huggingface_hub import constants

    file = Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}" / "refs" / revision
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None
