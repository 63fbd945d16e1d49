"""Which folders of a directory are its splits, by their names and by what they hold."""

import re
from pathlib import Path
from shlex import quote
from typing import NoReturn

from vitlab.config.errors import DataError
from vitlab.data.datasets.listing import class_folders

WORDS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
NEUTRAL = ("", "set", "data", "dataset", "images", "image", "imgs", "img", "split", "folder")


Layout = tuple[dict[str, Path], list[Path]]  # folder of each split; folders beside the classes that are left out


def split_named(name: str) -> tuple[str | None, bool]:
    """The split that a folder's name says, if it says one, and whether it says nothing else: not so `test_tube`."""
    words = [re.sub("(set|data|images|imgs)$", "", word.lower()) for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)]
    found = {split for split, known in WORDS.items() if set(words) & set(known)}
    rest = set(words).difference(NEUTRAL, *WORDS.values())
    return (found.pop() if len(found) == 1 else None), not rest


def find_splits(root: Path, chosen: dict[str, str | None]) -> Layout:
    """The splits of a directory: `train/CLASS/` with others beside it, or the directory itself, with class folders.

    A folder is a split where its name says so and it holds class folders. Anything else that can be read in two ways
    is refused.

    Args:
        root: the directory.
        chosen: for each split `auto`, a folder (its path, or one in `root`), or None for none.

    Raises:
        DataError: it is not clear which folders are the splits, or there is no such folder.
    """
    given = {split: root / name for split, name in chosen.items() if name not in (None, "auto")}
    for split, folder in given.items():
        if not folder.is_dir():
            raise DataError(f"dataset.{split}={chosen[split]}: {folder} is no folder: give one in {root}, or a path")
    if "train" in given:
        return with_train(root, given["train"], given, chosen)
    inside = children(root)
    deeper = children(inside[0]) if len(inside) == 1 else []
    if deeper and (split_named(inside[0].name)[0] is None or any(is_split(folder, "train") for folder in deeper)):
        return find_splits(inside[0], chosen | {split: str(folder.absolute()) for split, folder in given.items()})
    named = [folder for folder in inside if is_split(folder, "train")]
    if len(named) > 1:
        choose(root, "train", named)
    if named:
        return with_train(root, named[0], given, chosen)
    return with_classes(root, inside, given, chosen)


def find_some_splits(root: Path, chosen: dict[str, str | None]) -> Layout:
    """As `find_splits`, for an evaluation: `validation/CLASS/` and `test/CLASS/` need no `train/` beside them."""
    try:
        return find_splits(root, chosen)
    except DataError:
        splits = [split for split in ("validation", "test") if chosen[split] == "auto"]
        found = {split: [folder for folder in children(root) if is_split(folder, split)] for split in splits}
        folders = {split: places[0] for split, places in found.items() if len(places) == 1}
        if not folders or max(map(len, found.values())) > 1:
            raise
        return folders, []


def with_train(root: Path, train: Path, given: dict[str, Path], chosen: dict[str, str | None]) -> Layout:
    """The layout of a directory whose training folder is known."""
    folders = {"train": train} | given
    if train.resolve() == root.resolve():
        return folders, []
    others = without(children(root), folders)
    for split in ("validation", "test"):
        here = [folder for folder in others if split_named(folder.name)[0] == split and chosen[split] == "auto"]
        deep = [folder for folder in here if children(folder)]
        if len(deep) > 1:
            choose(root, split, deep)
        if here and not deep:
            raise DataError(
                f"{here[0]} holds images without class folders: leave it out with dataset.{split}=null (it is then cut"
                f" from the training images), or sort it into class folders; {csv_hint(root)}"
            )
        if deep:
            folders[split] = deep[0]
    missing = [split for split in ("validation", "test") if chosen[split] == "auto" and split not in folders]
    doubtful = [folder for folder in without(others, folders) if split_named(folder.name)[0] is None]
    if len(folders) > 1 or chosen["train"] != "auto":
        classes = set(class_folders(unwrap(train)))
        doubtful = [folder for folder in doubtful if classes & set(class_folders(unwrap(folder)))]
    if doubtful and missing:
        names = ", ".join(folder.name for folder in doubtful[:5])
        raise DataError(
            f"{root} has {train.name}/, which looks like a split, and {names}: say which folders are the splits, such"
            f" as dataset.train={train.name} dataset.{missing[-1]}={doubtful[0].name} (null: none, a part of the"
            " training images is taken); or dataset.train=. where all of them are classes"
        )
    return folders, []


def with_classes(root: Path, inside: list[Path], given: dict[str, Path], chosen: dict[str, str | None]) -> Layout:
    """The layout of a directory of class folders."""
    unused = [folder for folder in inside if (split := split_named(folder.name))[1] and is_left_out(split[0], chosen)]
    classes = [folder for folder in without(inside, given) if folder not in unused]
    names = [split_named(folder.name) for folder in classes]
    kinds = {split for split, _ in names if split}
    clear = {split for split, plain in names if split and plain}
    if any(split != "train" and children(f) for f, (split, _) in zip(classes, names, strict=True) if split):
        raise DataError(
            f"{root} has {', '.join(str(folder) for folder in classes[:5])} and no train/: put the training images in"
            f" {root / 'train'}, or name their folder, dataset.train=FOLDER; or dataset.train=. where all are classes"
        )
    if "train" in kinds and len(kinds) > 1 and all(split for split, _ in names):
        raise DataError(
            f"{', '.join(str(folder) for folder in classes)} hold images without class folders: sort the images into"
            f" train/CLASS/; {csv_hint(root)}; or dataset.train=. where these folders are the classes"
        )
    if odd := sorted(clear - {"train"}):
        folder = next(folder for folder in classes if split_named(folder.name) == (odd[0], True))
        raise DataError(
            f"{folder} may be a class or {odd[0]} images without classes: leave it out with dataset.{odd[0]}=null, or"
            " give dataset.train=. to make it a class"
        )
    inner = set(class_folders(classes[0])) if len(classes) > 1 else ()
    if len(inner) > 1 and all(set(class_folders(folder)) == inner for folder in classes[1:]):
        raise DataError(
            f"{root}: {len(classes)} folders ({', '.join(folder.name for folder in classes[:3])}) all hold the same"
            f" folders of images ({', '.join(sorted(inner)[:3])}), as splits do: say which is which, dataset.train="
            f"{classes[0].name} dataset.test={classes[-1].name}; or dataset.train=. where they are the classes"
        )
    return {"train": root} | given, unused


def without(folders: list[Path], known: dict[str, Path]) -> list[Path]:
    """The folders that are none of the known ones."""
    real = {folder.resolve() for folder in known.values()}
    return [folder for folder in folders if folder.resolve() not in real]


def is_left_out(split: str | None, chosen: dict[str, str | None]) -> bool:
    return split is not None and chosen[split] is None


def is_split(folder: Path, split: str) -> bool:
    """Whether a folder's name says that it is this split, and it holds class folders."""
    return split_named(folder.name)[0] == split and bool(children(folder))


def children(folder: Path) -> list[Path]:
    """The sub-folders that hold an image, sorted by name."""
    return sorted(place for places in class_folders(folder).values() for place in places)


def unwrap(folder: Path, known: tuple[str, ...] = ()) -> Path:
    """The folder itself, or where it holds nothing but one folder of class folders, such as train/train/, that one.

    Args:
        folder: of a split.
        known: the classes; a folder of this name is a class.
    """
    while len(inside := children(folder)) == 1 and inside[0].name not in known and children(inside[0]):
        folder = inside[0]
    return folder


def csv_hint(root: Path) -> str:
    return f"where a CSV names the class of each image, use dataset=image_csv {quote(f'dataset.root={root}')}"


def choose(root: Path, split: str, folders: list[Path]) -> NoReturn:
    names = [folder.name for folder in folders]
    raise DataError(
        f"{root} has {' and '.join(names)}, and both may be the {split} images: name one, dataset.{split}={names[0]}"
    )
