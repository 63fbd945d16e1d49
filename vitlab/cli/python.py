"""`vitlab.train`: a training from Python or a notebook."""

import html
import signal
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.cli.hydra_task import isolated
from vitlab.cli.run import find_run
from vitlab.cli.run import train as train_run
from vitlab.cli.train import unfold
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.errors import ConfigError, Interrupted
from vitlab.config.own import take, using
from vitlab.storage.metrics import SELECTED_BY, find
from vitlab.storage.run import Run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from vitlab.evaluation.load import Trained


@dataclass(frozen=True)
class Training:
    """A finished training.

    Args:
        folder: of the run.
        result: contents of its result.json: `test/accuracy`, `val/accuracy`, `seconds` ...
        allow: packages of one's own whose classes it names.
    """

    folder: Path
    result: dict[str, Any]
    allow: tuple[str, ...] = ()

    @cached_property
    def model(self) -> "Trained":
        """The model with the weights that validation chose, as `vitlab.load` gives it."""
        from vitlab.evaluation.load import load

        return load(self.folder, allow=self.allow, changed_data=True)  # `train` has looked

    def history(self) -> "pd.DataFrame":
        """The rows of metrics.jsonl: step, epoch, lr, and what was measured."""
        from vitlab.storage.runs_table import history

        return history(self.folder)

    def curves(self) -> "Figure":
        """Training and validation loss and accuracy against epochs; a notebook shows it."""
        from vitlab.tracking.curves import curves

        return curves(Run(self.folder).rows(), self.folder.name)

    def lines(self) -> dict[str, str]:
        """The scores of the result, each as it is printed."""
        names = (self.result.get("best_by", SELECTED_BY.name), SELECTED_BY.name, "test/accuracy", "seconds")
        return {each.words: each.format(self.result.get(each.name)) for each in map(find, names) if each}

    def __repr__(self) -> str:
        return f"Training({self.folder}, {', '.join(f'{words} {value}' for words, value in self.lines().items())})"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{words}</th><td>{value}</td></tr>" for words, value in self.lines().items())
        return f"<table><tr><th>run</th><td><code>{html.escape(str(self.folder))}</code></td></tr>{rows}</table>"


def train(*overrides: str) -> Training:
    """Trains what `vitlab train` with the same words trains, in this process: the same run in the same folder.

    A finished run is found finished, and an interrupted one continues. Interrupting the cell of a notebook (or Ctrl-C)
    saves a checkpoint first; the same call then continues.

    Args:
        overrides: such as "patch=p4", "fit.epochs=5"; or "cell=SWEEP/ARM"; "--allow=PACKAGE", "--config-dir=FOLDER".

    Raises:
        VitlabError: what is refused, or failed: see `vitlab.config.errors`.
        KeyboardInterrupt: it was interrupted, and everything is saved.
    """
    if odd := [word for word in overrides if not isinstance(word, str)]:
        raise ConfigError(f'{odd[0]!r}: each override is an argument: vitlab.train("patch=p4", "seed=1")')
    argv = sys.argv
    sys.argv = ["vitlab", "train", *overrides]  # which the run records, and prints where it can be continued
    try:
        added, words = take(overrides)
        with using(added), isolated():
            config, choices = compose(unfold(words))
            run = find_run(check(config), choices)
            train_run(config, choices, reraise=True)
    except Interrupted as leave:
        if leave.signal == signal.SIGINT:  # which ends the cell, and a loop around this call
            raise KeyboardInterrupt(str(leave)) from None
        raise
    finally:
        sys.argv = argv
    return Training(run.folder, run.result(), added.packages)
