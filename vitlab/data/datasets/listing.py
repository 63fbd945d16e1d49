"""Listing: the image files of a folder. It goes by their names, and counts what it passes over."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from vitlab.config.errors import DataError
from vitlab.data.labels import clean_label
from vitlab.storage.files import file_errors

DOCUMENTS = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")  # formats of Pillow's that are no images
SIGNATURES = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"RIFF")  # PNG, JPEG, GIF, TIFF, WebP
TEXTS = (".csv", ".html", ".json", ".log", ".md", ".tsv", ".txt", ".xml", ".yaml", ".yml")  # not worth a word
SYSTEM = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini", "lost+found", "$RECYCLE.BIN", "System Volume Information")
EXAMPLES = 3  # names of each kind that are said

KINDS = {  # what may be passed over: one, several
    "empty": ("folder without images", "folders without images"),
    "other": ("file that is no image Pillow reads", "files that are no images Pillow reads"),
    "hidden": ("hidden or system entry", "hidden or system entries"),
    "irregular": ("link or device that leads to no file", "links or devices that lead to no file"),
    "again": ("link to a folder that is read already", "links to folders that are read already"),
    "outside": ("image outside of the class folders", "images outside of the class folders"),
    "rows": ("row without an image or a label", "rows without an image or a label"),
    "unreadable": ("image that cannot be decoded", "images that cannot be decoded"),
    "unlabelled": ("image without a label", "images without a label"),
    "unused": ("image in a folder that is no split", "images in folders that are no split"),
}


class PassedOver(Counter[tuple[str, str]]):
    """How many entries were passed over, by kind (see `KINDS`) and name or suffix."""

    def add(self, kind: str, name: str, count: int = 1) -> None:
        self[kind, name] += count

    def __str__(self) -> str:
        parts = []
        for kind, words in KINDS.items():
            names = {name: count for (each, name), count in self.items() if each == kind and count}
            if total := sum(names.values()):
                more = ", ..." if len(names) > EXAMPLES else ""
                few = (name if name.isprintable() else ascii(name) for name in sorted(names)[:EXAMPLES])
                parts.append(f"{total:,} {words[total > 1]} ({', '.join(few)}{more})")
        return ", ".join(parts)


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of the image files that Pillow reads, in lower case."""
    from PIL import Image

    known = Image.registered_extensions().items()
    return frozenset(s for s, kind in known if kind in Image.OPEN and kind not in DOCUMENTS) | {".mpo"}


def walk_images(folder: str | Path, passed: PassedOver | None = None) -> Iterator[str]:
    """The image files below a folder, unordered; links are followed, and no folder is read twice.

    No regular file is stat-ed, and none is opened but those without a suffix.

    Args:
        folder: where to look.
        passed: counts what is passed over.
    """
    passed = PassedOver() if passed is None else passed
    folders, links, entered = (
        [os.fspath(folder)],
        [],
        set(),
    )  # a linked folder comes last: it may lie below this one too
    while folders or links:
        place = folders.pop() if folders else links.pop(links.index(min(links)))
        file = os.stat(place)  # noqa: PTH116 (speed)
        if (file.st_dev, file.st_ino) in entered:
            passed.add("again", os.path.basename(place))  # noqa: PTH119
            continue
        entered.add((file.st_dev, file.st_ino))
        with os.scandir(place) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    count_hidden(entry, passed)
                elif is_folder(entry):
                    (links if entry.is_symlink() else folders).append(entry.path)
                elif is_image(entry, passed):
                    yield entry.path


@file_errors()
def list_images(folder: Path, passed: PassedOver | None = None) -> list[Path]:
    """The image files below a folder, sorted by name, folder by folder."""
    return [Path(path) for path in sorted(walk_images(folder, passed), key=lambda path: path.replace(os.sep, "\0"))]


def has_images(folder: str | Path) -> bool:
    return next(walk_images(folder), None) is not None


@file_errors()
def class_folders(
    folder: Path, passed: PassedOver | None = None, skip: Iterable[Path] = ()
) -> dict[str, tuple[Path, ...]]:
    """The sub-folders that hold an image, by the name of the class, sorted; equal names (see `clean_label`) are one.

    Args:
        folder: their parent.
        passed: counts the other entries of the folder, and what the sub-folders without images hold.
        skip: sub-folders that are left out, and counted elsewhere.
    """
    found: dict[str, tuple[Path, ...]] = {}
    count, left_out, above = PassedOver() if passed is None else passed, {path.resolve() for path in skip}, None
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            place = Path(entry.path)
            if is_hidden(entry.name):
                count_hidden(entry, count)
            elif not is_folder(entry):
                if is_image(entry, count):
                    count.add("outside", entry.name)
            elif left_out and place.resolve() in left_out:
                continue
            elif entry.is_symlink() and place.resolve() in (above := above or enclosing(folder)):
                count.add("again", entry.name)
            elif has_images(place):
                name = clean_label(entry.name)
                found[name] = (*found.get(name, ()), place)
            else:
                count.add("empty", entry.name)
                if passed is not None:
                    list_images(place, passed)
    return dict(sorted(found.items()))


def enclosing(folder: Path) -> set[Path]:
    """A folder and those that it lies in."""
    real = folder.resolve()
    return {real, *real.parents}


def is_image(entry: os.DirEntry[str], passed: PassedOver) -> bool:
    """Whether an entry that is no folder is an image file; anything else is counted."""
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 (speed)
    if not is_file(entry):
        passed.add("irregular", entry.name)
        return False
    if suffix in suffixes() or (not suffix and has_signature(entry.path)):
        return True
    if suffix not in TEXTS:
        passed.add("other", suffix or entry.name)
    return False


def count_hidden(entry: os.DirEntry[str], passed: PassedOver) -> None:
    """Counts a hidden entry where images may be lost with it: a folder, or a file named as an image."""
    if is_folder(entry) or entry.name.lower().endswith(tuple(suffixes())):
        passed.add("hidden", entry.name)


def is_hidden(name: str) -> bool:
    """Whether a name is a system's own, such as .ipynb_checkpoints and macOS' ._photo.png."""
    return name.startswith(".") or name in SYSTEM


def is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # noqa: PTH112 (links in a circle too)


def is_file(entry: os.DirEntry[str]) -> bool:
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()  # noqa: PTH113 (links in a circle too)


def has_signature(path: str) -> bool:
    """Whether a file begins as an image of a usual kind does."""
    with open(path, "rb") as file:  # noqa: PTH123 (speed)
        return file.read(8).startswith(SIGNATURES)


def data_folder(root: str | Path) -> Path:
    """The folder that a user names; it need not exist.

    Raises:
        DataError: it is a file.
    """
    folder = Path(root)
    if folder.is_file():
        unpacked = folder.with_suffix("")
        archive = f"unpack it (unzip {folder} -d {unpacked}) and give dataset.root={unpacked}"
        remedy = archive if folder.suffix.lower() == ".zip" else "unpack it if it is an archive, or give its folder"
        raise DataError(f"dataset.root={root} is a file, and a folder is needed: {remedy}")
    return folder
