"""The commands: one module a word after `vitlab`, each with `main(words) -> exit status`."""

import os
import sys

DONE, FAILED, REFUSED = 0, 1, 2


def refuse(error: Exception) -> int:
    """One sentence for a user's mistake; anything else is ours, and goes on as a traceback."""
    if not isinstance(error, ValueError | OSError):
        raise error
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"vitlab: {error}", file=sys.stderr)
    return REFUSED
