"""Images whose classes a CSV beside them names: the layout of many competitions."""

import csv
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vitlab.config.errors import DataError, DatasetMissing
from vitlab.data.dataset import CustomDataset
from vitlab.data.datasets.image_files import ImageFiles
from vitlab.data.datasets.listing import data_folder, list_images
from vitlab.data.datasets.split_folders import choose, split_named
from vitlab.data.examples import Examples
from vitlab.data.labels import clean_label, listed, sort_labels, strip_zeros
from vitlab.storage.files import file_errors

TABLES = (".csv", ".tsv")
SEPARATORS = ",;\t|"
SEVERAL = Path("several images")  # that a name stands for
LABELS = ("label", "labels", "class", "class_name", "category", "target", "species", "breed", "diagnosis")


@dataclass(frozen=True)
class Table:
    """A CSV file as text: the names of its columns, or their numbers where its first line is a row, and its rows."""

    file: Path
    columns: list[str]
    rows: list[list[str]]

    def values(self, column: str) -> list[str]:
        index = self.columns.index(column)
        return [row[index] if index < len(row) else "" for row in self.rows]


@dataclass(kw_only=True)
class ImageCsv(CustomDataset, ImageFiles):
    """Image files anywhere below `root`, and a CSV there with a column of files and a column of labels.

    The CSV of each split is found by its name (train.csv, test.csv); one alone is that of the training images. A row
    names its file by a path, a name, or a name without suffix, which as a number may lack its leading zeros. A label is
    a text. A missing validation or test split is cut from the training images, stratified.

    Args:
        root: the directory.
        train: CSV of the training images, in `root` or an absolute path; `auto` finds it.
        validation: the same; None leaves such a CSV out.
        test: the same.
        image_column: column of the files; None takes the one whose values name images.
        label_column: column of the labels; None takes the only other one, or one that is called label, class, ...

    Raises:
        DatasetMissing: no such directory.
        DataError: it is not clear which file or column is meant, or rows and images do not go together.
    """

    name = "image_csv"
    hashed_paths = frozenset({"root"})

    train: str
    validation: str | None
    test: str | None
    image_column: str | None
    label_column: str | None

    @file_errors()
    def __post_init__(self) -> None:
        super().__post_init__()
        root = data_folder(self.root) if self.root is not None else None
        if root is None or not root.is_dir():
            raise DatasetMissing(
                "image_csv", [self.root], "Give the folder of the images and the CSV: dataset.root=PATH"
            )
        images = list_images(root, self.passed)
        tables = {split: read_table(file) for split, file in self.tables(root).items()}
        rows = {split: self.labelled(table, split, images) for split, table in tables.items()}
        named = {split: found for split, found in rows.items() if found is not None}
        used = named if self.for_evaluation else {"train": named["train"]}
        self.classes = sort_labels(label for found in used.values() for _, label in found)
        if len(self.classes) < 2 and not self.for_evaluation:
            names = ", ".join(self.classes)
            raise DataError(
                f"{tables['train'].file} has {len(self.classes)} class ({names}): a classifier needs at least 2"
            )
        for split, found in named.items():
            self.check_split(split, tables[split].file, sort_labels(label for _, label in found), self.classes)
        numbers = {label: number for number, label in enumerate(self.classes)}
        self.samples = {split: [(path, numbers[label]) for path, label in found] for split, found in named.items()}
        counts = Counter(path for found in named.values() for path, _ in found)
        if shared := [path for path, count in counts.items() if count > 1]:
            raise DataError(f"{root}: {len(shared)} images are in two CSV files, such as {shared[0]}: name each once")
        for path in set(images).difference(counts):
            self.passed.add("unlabelled", path.parent.name)

    def read(self) -> dict[str, Examples]:
        return {split: self.files(samples, f"the images of {split}") for split, samples in self.samples.items()}

    def tables(self, root: Path) -> dict[str, Path]:
        """The CSV of each split."""
        here = sorted(
            path for path in root.iterdir() if path.suffix.lower() in TABLES and not path.name.startswith(".")
        )
        chosen, files = {"train": self.train, "validation": self.validation, "test": self.test}, {}
        for split, name in chosen.items():
            if name not in (None, "auto"):
                files[split] = root / name
                if not files[split].is_file():
                    raise DataError(f"dataset.{split}={name}: there is no file {files[split]}: give a CSV in {root}")
                continue
            found = [path for path in here if split_named(path.stem)[0] == split]
            if split == "train" and not found:
                found = [path for path in here if split_named(path.stem)[0] is None and "submission" not in path.stem]
            if name == "auto" and len(found) > 1:
                choose(root, split, found)
            if name == "auto" and found:
                files[split] = found[0]
        if "train" not in files and not (self.for_evaluation and files):
            below = sorted(str(path) for suffix in TABLES for path in root.rglob(f"*{suffix}"))[:3]
            raise DataError(
                f"{root} has no CSV of training images ({listed([path.name for path in here]) or 'none at all'}): give"
                f" one with a row an image, dataset.train={below[0] if below else 'FILE'}"
            )
        return files

    def labelled(self, table: Table, split: str, images: list[Path]) -> list[tuple[Path, str]] | None:
        """The image and the label of each row; None where a CSV that was found by its name has no labels."""
        assert self.root is not None
        names, table, column = self.find_images(table, split, images)
        labels = self.find_labels(table, column, split)
        found: dict[Path, str] = {}
        for text, value in zip(table.values(column), table.values(labels) if labels else [], strict=labels is not None):
            label, path = clean_label(value), names.find(text)
            if path == SEVERAL:
                raise DataError(f"{table.file}: several images are called {text}: give their paths")
            if path is None or not label.strip():
                self.passed.add("rows", text if path is None else f"{text} has no label")
            elif found.setdefault(path, label) != label:
                raise DataError(
                    f"{table.file}: {text} has two labels, {found[path]} and {label}: give each image one, in one row"
                )
        if not found and self.is_optional(split):
            self.remarks.append(f"{table.file.name} has no labels")
            return None
        return list(found.items())

    def is_optional(self, split: str) -> bool:
        """Whether a CSV was found by its name alone, and may be one without labels."""
        return split != "train" and getattr(self, split) == "auto"

    def find_images(self, table: Table, split: str, images: list[Path]) -> "tuple[ImageNames, Table, str]":
        """The names of the images that a table is about, the table, and the column that holds such names."""
        root = data_folder(self.root or "")
        for pool in (of_split(images, root, split), images):
            names = ImageNames(pool, root)
            if any(names.find(text) for text in table.columns):  # no names of columns, but the first row
                numbers = [str(number) for number in range(1, len(table.columns) + 1)]
                table = Table(table.file, numbers, [table.columns, *table.rows])
            if self.image_column is not None and self.image_column not in table.columns:
                raise no_column("image_column", self.image_column, table)
            candidates = table.columns if self.image_column is None else [self.image_column]
            values = {column: table.values(column) for column in candidates}
            fitting = [
                c for c in candidates if 2 * sum(names.find(text) is not None for text in values[c]) > len(values[c])
            ]
            if fitting:  # the numbers of classes may be names of images too
                return names, table, max(fitting, key=lambda column: len(set(values[column])))
        raise DataError(
            f"{table.file}: no column names the images below {root} (such as {names.example}); the columns are"
            f" {listed(table.columns)}, the first row {listed(table.rows[0]) if table.rows else 'is missing'}: give"
            " dataset.image_column and dataset.root"
        )

    def find_labels(self, table: Table, images: str, split: str) -> str | None:
        """The column of the labels; None where there need not be one."""
        others = [column for column in table.columns if column not in ("", "Unnamed: 0", images)]
        for column in others:
            texts = set(table.values(column))
            if len({split_named(text)[0] for text in texts} | {None}) > 2 and all(split_named(t)[0] for t in texts):
                raise DataError(
                    f"{table.file}: the column {column} names splits ({', '.join(sorted(texts))}): make a CSV for each,"
                    " train.csv and test.csv, beside the images"
                )
        if self.label_column is not None:
            if self.label_column in others:
                return self.label_column
            if self.is_optional(split):
                return None
            raise no_column("label_column", self.label_column, table)
        usual = [column for column in others if column.lower() in LABELS]
        if len(others) == 1 or len(usual) == 1:
            return (usual or others)[0]
        if not others and self.is_optional(split):
            return None
        raise DataError(
            f"{table.file}: which column holds the labels? dataset.label_column={(usual or others or ['NAME'])[0]} or"
            f" another of {listed(others) or 'none'}"
        )


class ImageNames:
    """Image files by what a row may call them: a path or the end of one, with or without suffix."""

    def __init__(self, images: Iterable[Path], root: Path):
        self.names: dict[str, Path] = {}
        self.numbers: dict[str, Path] = {}  # without their leading zeros
        self.example = "none"
        for path in images:
            relative = PurePosixPath(path.relative_to(root))
            self.example = relative.name
            for place in (relative, relative.with_suffix("")):
                tails = {"/".join(place.parts[start:]) for start in range(len(place.parts))}
                for name in tails:
                    self.names[name] = path if self.names.get(name, path) == path else SEVERAL
            number = strip_zeros(relative.stem)
            self.numbers[number] = path if self.numbers.get(number, path) == path else SEVERAL

    def find(self, text: str) -> Path | None:
        """The image that a row names; None where there is none, SEVERAL where it is not clear."""
        parts = [part for part in text.strip().replace("\\", "/").split("/") if part not in ("", ".")]
        for name in ("/".join(parts[start:]) for start in range(len(parts))):
            if name in self.names:
                return self.names[name]
        return self.numbers.get(strip_zeros(text.strip()))


def of_split(images: list[Path], root: Path, split: str) -> list[Path]:
    """The images in folders that are named as a split, if there are any; else those in no split's folder, or all."""
    splits = [{split_named(part)[0] for part in path.relative_to(root).parent.parts} - {None} for path in images]
    own = [path for path, names in zip(images, splits, strict=True) if split in names]
    return own or [path for path, names in zip(images, splits, strict=True) if not names] or images


def read_table(file: Path) -> Table:
    """A CSV file, with commas, semicolons, tabs or bars between its columns.

    Raises:
        DataError: it is empty, or no text in UTF-8.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            rows = [row for row in csv.reader(stream, delimiter=max(SEPARATORS, key=first.count)) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is no CSV in UTF-8 ({error}): save it as one") from error
    if not rows:
        raise DataError(f"{file} is empty: it should have a row an image, with its file and its label")
    return Table(file, [clean_label(column) for column in rows[0]], rows[1:])


def no_column(option: str, name: str, table: Table) -> DataError:
    return DataError(f"dataset.{option}={name}: {table.file} has no such column: give one of {listed(table.columns)}")
