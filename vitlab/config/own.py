"""Options and classes of the user's own: folders of YAML files, and packages whose classes these may name.

Both come from the command line (or from the caller in Python) alone: `--config-dir FOLDER`, `hydra.searchpath=[...]`,
and `--allow PACKAGE`. A stored run, a sweep file and an option cannot allow anything.
"""

import importlib.util
import re
import shlex
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

from vitlab.config.errors import ConfigError


@dataclass(frozen=True)
class Own:
    """What the user added.

    Args:
        folders: absolute; each is laid out as `conf/` is.
        packages: names of packages whose classes a configuration may name.
    """

    folders: tuple[Path, ...] = ()
    packages: tuple[str, ...] = ()

    def flags(self) -> list[str]:
        """The command line that adds the same in another process."""
        folders = [word for folder in self.folders for word in ("--config-dir", str(folder))]
        return [*folders, *(word for package in self.packages for word in ("--allow", package))]

    def searchpath(self) -> list[str]:
        """The override that tells Hydra of the folders."""
        paths = ",".join("'file://" + str(folder).replace("'", r"\'") + "'" for folder in self.folders)
        return [f"hydra.searchpath=[{paths}]"] if paths else []


NOTHING = Own()
CURRENT: ContextVar[Own] = ContextVar("CURRENT", default=NOTHING)


def add_folder(folder: Path) -> None:
    """Adds a folder to the present context."""
    now = CURRENT.get()
    CURRENT.set(replace(now, folders=tuple(dict.fromkeys((*now.folders, own_folder(folder))))))


@contextmanager
def using(own: Own) -> Generator[None]:
    """Context in which these folders and packages are added to those of the context around it.

    Raises:
        ConfigError: no such folder, or no package that can be allowed.
    """
    now = CURRENT.get()
    folders = (*now.folders, *(own_folder(folder) for folder in own.folders))
    path = sys.path
    if own.packages:
        sys.path = [*path, str(Path.cwd())]  # last, so that it hides no installed package
    try:
        packages = (*now.packages, *(own_package(name) for name in own.packages))
        token = CURRENT.set(Own(tuple(dict.fromkeys(folders)), tuple(dict.fromkeys(packages))))
        try:
            yield
        finally:
            CURRENT.reset(token)
    finally:
        sys.path = path


def take(words: Iterable[str]) -> tuple[Own, list[str]]:
    """What a command line adds, and its other words.

    Raises:
        ConfigError: a flag without its value, or an address that is no folder.
    """
    folders: list[Path] = []
    packages: list[str] = []
    rest, left = [], iter(words)
    for word in left:
        flag, equals, value = word.partition("=")
        if flag in ("--config-dir", "-cd", "--allow"):
            value = value if equals else next(left, "")
            if not value or value.startswith("-"):
                raise ConfigError(f"{flag} needs a value: {flag} {'PACKAGE' if flag == '--allow' else 'FOLDER'}")
            packages += [value] if flag == "--allow" else []
            folders += [Path(value)] if flag != "--allow" else []
        elif flag.lstrip("+") == "hydra.searchpath":
            folders += [folder_of(address) for address in re.split(r"\s*,\s*", value.strip("[] ")) if address]
        else:
            rest.append(word)
    return Own(tuple(folders), tuple(packages)), rest


def folder_of(address: str) -> Path:
    """The folder of an element of Hydra's search path: file://PATH, pkg://PACKAGE, or a path."""
    scheme, found, path = address.strip("'\" ").rpartition("://")
    if found and scheme == "pkg":
        top, *below = path.split(".")
        spec = importlib.util.find_spec(top) if top else None  # of the first name alone: nothing is imported for it
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"hydra.searchpath: {address}: there is no such package: install it, or give file://PATH")
        return Path(spec.submodule_search_locations[0], *below)
    if found and scheme != "file":
        raise ConfigError(f"hydra.searchpath: {address}: expected file://PATH or pkg://PACKAGE")
    return Path(path)


def own_folder(path: Path) -> Path:
    folder = path.expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {path}: there is no such folder: give one that is laid out as conf/ is")
    if (folder / "hydra").exists():
        raise ConfigError(f"{folder / 'hydra'} is refused: options of Hydra itself are given on the command line")
    return folder


def own_package(name: str) -> str:
    if not all(part.isidentifier() for part in name.split(".")) or not remedy(name):
        raise ConfigError(f"--allow {name}: give the name of a package of your own, which its classes are in")
    top = name.partition(".")[0]
    if (
        top not in sys.modules and importlib.util.find_spec(top) is None
    ):  # of the first name alone: nothing is imported for it
        raise ConfigError(f"--allow {name}: there is no package {top}: install it, or be in the folder that it lies in")
    return name


def remedy(target: str) -> str:
    """How to allow the class of a package of the user's own; empty where that is none."""
    package = target.partition(".")[0]
    ours = package in ("vitlab", "torch") or package in sys.stdlib_module_names or not package.isidentifier()
    python = f'(of vitlab.load: allow=["{package}"])'
    return "" if ours else f"; if you trust the package {package}, add --allow {package} {python}"


COMPOSING = ("train", "sweep", "data", "schedule", "bench")  # commands that read options


def command(name: str, *words: object, flags: Iterable[str] | None = None) -> str:
    """A command to be printed, with the flags that add what the present one adds; a stored run needs no options.

    Args:
        name: of the command.
        words: after it.
        flags: those that `shown_flags` gave earlier, instead of those of now.
    """
    added, given = list(shown_flags() if flags is None else flags), [str(word) for word in words]
    if name in COMPOSING:
        return shlex.join(["vitlab", name, *added, *given])
    packages = [word for pair in zip(added[::2], added[1::2], strict=True) for word in pair if pair[0] == "--allow"]
    return shlex.join(["vitlab", name, *given, *packages])


def shown_flags() -> list[str]:
    """The flags of now, folders of the working directory by their short name."""
    here = Path.cwd()
    return [
        str(Path(word).relative_to(here)) if Path(word).is_absolute() and Path(word).is_relative_to(here) else word
        for word in CURRENT.get().flags()
    ]


def is_own(target: str) -> bool:
    """Whether a dotted name is one of a package that the user allowed."""
    return target.startswith(allowed_packages())


def allowed_packages() -> tuple[str, ...]:
    """Prefixes of the classes that the user allowed."""
    return tuple(f"{package}." for package in CURRENT.get().packages)
