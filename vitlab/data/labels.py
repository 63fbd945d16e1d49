"""Labels as people write them, in folder names and in text."""

import unicodedata
from collections.abc import Iterable, Sequence


def clean_label(text: str) -> str:
    """A label in Unicode's composed form (NFC), without a byte-order mark and spaces around it.

    An editor, a spreadsheet or another system may write the same name in several ways.
    """
    return unicodedata.normalize("NFC", text).strip("\ufeff \t\r\n\v\f\u00a0") or text


def is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def strip_zeros(text: str) -> str:
    """A label without the leading zeros of a number: 007 is 7."""
    return str(int(text)) if is_number(text) else text


def sort_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels in order; numbers in numeric order, where all are."""
    labels = set(labels)
    return tuple(sorted(labels, key=int if all(map(is_number, labels)) else None))


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names in a sentence; of many the first, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
