"""Fingerprint of a run's images and of the user's own code: tells whether they have changed since, and how."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vitlab.config.check import matches
from vitlab.config.errors import DataError, Node, StorageError
from vitlab.config.source import sources
from vitlab.data.examples import Examples
from vitlab.storage.files import read_json
from vitlab.storage.run import MOST_DATA, Run


def fingerprint(classes: Sequence[str], splits: Mapping[str, Examples]) -> Node:
    """What data.json holds: the classes, and of each split the images of each class, their bytes and a hash.

    The hash is of names and sizes where images are files, and of the pixels where they are in memory. Where they lie
    is no part of it: a copy on another disk has the same fingerprint.

    Args:
        classes: their names, by label.
        splits: as the dataset has them, before any is cut from the training images.
    """
    found: Node = {"classes": list(classes), "splits": {}}
    for name, part in splits.items():
        digest = hashlib.sha256(part.labels.tobytes())
        size = part.hash_contents(digest)
        images = dict(zip(classes, np.bincount(part.labels, minlength=len(classes)).tolist(), strict=True))
        found["splits"][name] = {"images": images, "bytes": size, "hash": digest.hexdigest()[:16]}
    return {"hash": hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16], **found}


def outdated(run: Run, config: Node, fingerprint_now: Callable[[], Node]) -> str:
    """Why a run is not what its configuration would train today: on other images, or with other code of the user's own.

    Args, returns, raises: as `changed_images`, in words that follow the run's name.
    """
    images = changed_images(run, fingerprint_now)
    parts = (f"was trained on other images; since then {images}" if images else "", changed_code(run, config))
    return ", and ".join(filter(None, parts))


def changed_code(run: Run, node: Node) -> str:
    """Which files of the user's own classes, of those that a node names, have changed since a run was trained.

    Empty where none has, and where it is not known: runs of vitlab's own classes, or of earlier versions.

    Raises:
        StorageError: data.json is damaged.
    """
    if not (now := sources(node)) or not os.path.lexists(run.data) or (before := read(run).get("code")) is None:
        return ""
    files = [file for file in now if before.get(file) != now[file]]
    verb = "has" if len(files) == 1 else "have"
    return f"was trained with other code: {' and '.join(files)} {verb} changed since" if files else ""


def changed_images(run: Run, fingerprint_now: Callable[[], Node]) -> str:
    """What has changed about the images since a run was trained on them, in words.

    Empty where nothing has, and where it is not known: runs of earlier versions have no fingerprint.

    Args:
        run: the run.
        fingerprint_now: of the images as they are now; only called where there is something to compare.

    Raises:
        DataError: the images are missing or damaged, and the run is not finished.
        StorageError: data.json is damaged.
    """
    if not os.path.lexists(run.data):
        return ""
    before = {key: value for key, value in read(run).items() if key != "code"}
    try:
        now = fingerprint_now()
    except DataError:
        if run.result()["status"] == "finished":  # its images may be gone
            return ""
        raise
    return "" if now == before else "; ".join(changes(before, now))


def read(run: Run) -> Node:
    """The fingerprint in a run's data.json, which somebody else may have written.

    Raises:
        StorageError: it is damaged.
    """
    found = read_json(run.data, MOST_DATA)
    whole = matches(found.get("classes"), list[str])[0] and isinstance(found.get("code", {}), dict)
    parts = found.get("splits")
    parts = list(parts.values()) if isinstance(parts, dict) else [None]
    for part in parts:
        images = part.get("images") if isinstance(part, dict) else None
        counts = [part.get("bytes"), *images.values()] if isinstance(images, dict) else [None]
        whole &= matches(counts, list[int])[0]
    if not whole:
        raise StorageError(f"{run.data} is damaged: remove it, if the images are those that the run was trained on")
    return found


def changes(before: Node, now: Node) -> list[str]:
    """The differences of two fingerprints in words."""
    gone = [name for name in before["classes"] if name not in set(now["classes"])]
    new = [name for name in now["classes"] if name not in set(before["classes"])]
    if len(gone) == len(new) == 1 and counts(before, gone[0]) == counts(now, new[0]):
        found = [f"class {gone[0]} is now called {new[0]}"]
    else:
        found = [f"{listed(names)} {word}" for names, word in ((gone, "gone"), (new, "new")) if names]
    if not found and before["classes"] != now["classes"]:
        found.append("the classes are in another order")
    splits = dict.fromkeys((*before["splits"], *now["splits"]))
    named, silent = len(splits) > 1, bool(found)
    for split in splits:
        where = f" in {split}" if named else ""
        one, other = (data["splits"].get(split) for data in (before, now))
        if one is None or other is None:
            images = sum((one or other)["images"].values())
            found.append(f"the {split} split of {images:,} images is {'new' if one is None else 'gone'}")
            continue
        more, size = sum(other["images"].values()) - sum(one["images"].values()), other["bytes"] - one["bytes"]
        if more:
            found.append(f"{abs(more):,} image{'s' * (abs(more) > 1)} {'more' if more > 0 else 'fewer'}{where}")
        elif size:
            found.append(f"as many images{where}, but {abs(size):,} bytes {'more' if size > 0 else 'fewer'}")
        elif one.get("hash") != other["hash"] and not silent:
            found.append(f"as many images{where}, but others")
    return found or ["its fingerprint"]


def counts(data: Node, name: str) -> dict[str, int]:
    """The images of a class in each split."""
    return {split: part["images"].get(name) for split, part in data["splits"].items()}


def listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"class{'es' * (len(names) > 1)} {', '.join(names[:most])}{more}"
