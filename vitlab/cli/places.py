"""Places that commands write to: refused before any work, and never one that holds another result."""

from itertools import count
from pathlib import Path

from vitlab.config.errors import ConfigError, StorageError

MOST = 100_000_000  # bytes of a report


def check_place(option: str, path: Path, suffix: str = "") -> None:
    """Refuses the path of a file that cannot be written.

    Args:
        option: the flag that gave it.
        path: of the file.
        suffix: that its name must have.

    Raises:
        ConfigError: another suffix, no such folder, or a folder in its place.
    """
    if suffix and path.suffix.lower() != suffix:
        raise ConfigError(
            f"{option} {path}: it will be a {suffix[1:].upper()}: give a name that ends in {suffix}, such as"
            f" {path.with_suffix(suffix) if path.name else f'picture{suffix}'}"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}: make it first")
    if path.is_dir():
        raise ConfigError(f"{option} {path}: it is a folder: give the name of a file in it")


def free_place(place: Path, dataset: object, split: str) -> Path:
    """The first of `place`, `place`-2, `place`-3, ... without a report of another dataset or split.

    Args:
        place: a report, or a folder that may hold some.
        dataset: the report's own.
        split: of the dataset.
    """
    from vitlab.storage.files import read_json

    def same(report: Path) -> bool:
        try:
            known = read_json(report, MOST)
        except StorageError:  # damaged: it is left as it is
            return False
        return (known.get("dataset"), known.get("split", split)) == (dataset, split)

    stem, suffix = place.name.removesuffix(".json"), ".json" * place.name.endswith(".json")
    for number in count(1):
        there = place.with_name(f"{stem}-{number}{suffix}") if number > 1 else place
        reports = [there] * there.exists() if suffix else list(there.glob("*.json"))
        if not there.is_symlink() and all(map(same, reports)):
            return there
    raise AssertionError
