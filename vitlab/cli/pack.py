"""The process of a pack: trains several runs together, as the sweep that started it says.

The sweep writes a line of JSON a command: `{"train": words, "name": name}` or `{"stop": name}`. This process writes one
for each run that has ended: `{"ended": name, "status": exit status}`. After the last command it ends with its last run.
"""

import json
import os
import queue
import signal
import sys
import threading
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TextIO

from vitlab.cli.exit import DONE, FAILED, bug_report, refuse
from vitlab.cli.run import training
from vitlab.config.compose import compose
from vitlab.config.errors import VitlabError
from vitlab.config.own import CURRENT, take, using
from vitlab.system.signals import Signals

if TYPE_CHECKING:
    from vitlab.training.loop import Updates
    from vitlab.training.pack import Pack, Pending


class Runner:
    """One run of the pack, which takes turns with the others.

    Args:
        name: what the sweep calls it.
        words: what is typed after `vitlab train`.
    """

    def __init__(self, name: str, words: list[str]):
        self.name, self.argv = name, ["vitlab", "train", *CURRENT.get().flags(), *words]
        self.signals, self.status = Signals(), DONE
        self.context = copy_context()
        self.update: Pending | None = None
        self.updates = self.updates_of(words)
        self.advance()

    def updates_of(self, words: list[str]) -> "Updates[int]":
        """The training as a generator, of which nothing has run yet."""
        return (yield from training(*compose(words), signals=self.signals))

    def advance(self, error: BaseException | None = None) -> None:
        """Goes on up to the next update, or the end; with an error of the last update, which the run answers."""
        sys.argv, self.update = self.argv, None
        try:
            if error is None:
                self.update = self.context.run(lambda: next(self.updates))
            else:
                self.context.run(self.updates.throw, error)
        except StopIteration as end:
            self.status = end.value
        except VitlabError as refused:
            self.status = refuse(refused)
        except Exception as bug:
            print(bug_report(bug), file=sys.stderr)
            self.status = FAILED


def main(words: list[str]) -> int:
    """Trains what the commands say; gives 128 + the signal that ended it, or 0."""
    from vitlab.data.dataset import read_once
    from vitlab.system.contention import WaitPolicy
    from vitlab.training.pack import Pack

    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as reports, Signals() as signals, read_once():
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what is printed goes with the errors
        commands: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=read, args=(sys.stdin, commands), name="commands", daemon=True).start()
        runners: list[Runner] = []
        pack, more = Pack(int(words[0])), True
        with WaitPolicy():
            while runners or (more and not signals.received):
                more = obey(commands, runners, wait=not runners) and more
                for runner in runners:
                    runner.signals.received = runner.signals.received or signals.received
                turn(pack, runners)
                for runner in [runner for runner in runners if runner.update is None]:
                    runners.remove(runner)
                    print(json.dumps({"ended": runner.name, "status": runner.status}), file=reports, flush=True)
    return 128 + signals.received if signals.received else DONE


def read(lines: TextIO, commands: "queue.Queue[dict[str, Any] | None]") -> None:
    """Passes on the commands of the sweep; None after the last."""
    for line in lines:
        commands.put(json.loads(line))
    commands.put(None)


def obey(commands: "queue.Queue[dict[str, Any] | None]", runners: list[Runner], *, wait: bool) -> bool:
    """Does what the commands that have come say; whether others may follow.

    Args:
        commands: of the sweep.
        runners: gains those that begin.
        wait: whether to wait a second for the first command.
    """
    with suppress(queue.Empty):
        while True:
            command = commands.get(timeout=1.0) if wait else commands.get_nowait()
            wait = False
            if command is None:
                return False
            if "train" in command:
                runners.append(Runner(command["name"], command["train"]))
            for runner in runners:
                if runner.name == command.get("stop"):
                    runner.signals.received = signal.SIGTERM
    return True


def turn(pack: "Pack", runners: list[Runner]) -> None:
    """One update of every run, and what follows it."""
    ready = [(runner, runner.update) for runner in runners if runner.update is not None]
    try:
        if ready:
            pack.step([update for _, update in ready])
        failure = None
    except Exception as error:
        failure = error
    for runner, _ in ready:
        runner.advance(failure)


if __name__ == "__main__":
    added, rest = take(sys.argv[1:])
    with using(added):
        sys.exit(main(rest))
