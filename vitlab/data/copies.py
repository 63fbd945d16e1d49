"""Copies: files with the same bytes in two splits, which make an accuracy too high."""

import hashlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vitlab.data.examples import Examples, Files
from vitlab.storage.files import file_errors

MOST_FILES = 200_000  # of all splits; with more nothing is compared, so that a training starts at once
MOST_BYTES = 256_000_000  # that are read to compare files


@file_errors()
def find_copies(splits: dict[str, Examples]) -> str:
    """What to say of files that are in two splits, byte by byte; empty where there are none.

    Only files of equal size are read, the sizes that the fewest files have first, and at most 256 MB in all.

    Args:
        splits: of a dataset; only `Files` are compared.
    """
    places = [(split, path) for split, part in splits.items() if isinstance(part, Files) for path in part.paths]
    if len(places) > MOST_FILES:
        return ""
    with ThreadPoolExecutor(8) as pool:  # a network disk answers several at once
        sizes = list(pool.map(lambda place: place[1].stat().st_size, places))
        groups = defaultdict(list)
        for place, size in zip(places, sizes, strict=True):
            groups[size].append(place)
        several = {size: group for size, group in groups.items() if len({split for split, _ in group}) > 1}
        left, chosen = MOST_BYTES, []
        for size, group in sorted(several.items(), key=lambda item: (len(item[1]), item[0])):
            left -= size * len(group)
            if left >= 0:
                chosen += group
        digests = pool.map(lambda place: hashlib.sha256(place[1].read_bytes()).digest(), chosen)
        equal: dict[bytes, dict[str, Path]] = defaultdict(dict)
        for (split, path), digest in zip(chosen, digests, strict=True):
            equal[digest].setdefault(split, path)
    copies = [list(found.items()) for found in equal.values() if len(found) > 1]
    if not copies:
        return ""
    (one, first), (other, second) = copies[0][:2]
    skipped = sum(map(len, several.values())) - len(chosen)
    unread = f" ({skipped:,} more files of equal sizes were not compared)" if skipped else ""
    return (
        f"{len(copies):,} file{'s are' if len(copies) > 1 else ' is'} in two splits with the same bytes, such as"
        f" {first} ({one}) and {second} ({other}){unread}: the accuracy is too high; remove one of each"
    )
