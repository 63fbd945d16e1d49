"""Labels as people write them, in folder names and in text."""

import unicodedata


def clean_label(text: str) -> str:
    """A label in Unicode's composed form (NFC), without a byte-order mark and spaces around it.

    An editor, a spreadsheet or another system may write the same name in several ways.
    """
    return unicodedata.normalize("NFC", text).strip("\ufeff \t\r\n\v\f\u00a0") or text
