"""The process of a pack: trains several runs together, as the sweep that started it says.

The sweep writes a line of JSON a command: `{"train": words, "name": name}` or `{"stop": name}`. This process writes one
for each run that has ended: `{"ended": name, "status": exit status, "error": message}`, the message where the run's own
log does not have it. After the last command it ends with its last run.
"""

import json
import logging
import os
import queue
import signal
import sys
import threading
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import torch

from vitlab.cli.exit import DONE, FAILED, bug_report, refuse
from vitlab.cli.run import training
from vitlab.config.compose import compose
from vitlab.config.errors import VitlabError
from vitlab.config.own import CURRENT, take, using
from vitlab.system.signals import Signals

if TYPE_CHECKING:
    from vitlab.training.loop import Updates
    from vitlab.training.pack import Pack, Pending

log = logging.getLogger("vitlab")


class Runner:
    """One run of the pack, which takes turns with the others.

    Args:
        name: what the sweep calls it.
        words: what is typed after `vitlab train`.
        threads: of torch, before the run sets its own.
    """

    def __init__(self, name: str, words: list[str], threads: int):
        self.name, self.argv = name, ["vitlab", "train", *CURRENT.get().flags(), *words]
        self.signals, self.status, self.error = Signals(), DONE, ""
        self.threads = threads
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
        self.use_threads()
        try:
            if error is None:
                self.update = self.context.run(lambda: next(self.updates))
            else:
                self.context.run(self.updates.throw, error)
        except StopIteration as end:
            self.status = end.value
        except VitlabError as refused:
            self.status, self.error = refuse(refused), f"vitlab: {refused}"
        except Exception as bug:
            self.status, self.error = FAILED, bug_report(bug)
            print(self.error, file=sys.stderr)
        self.threads = torch.get_num_threads()

    def use_threads(self) -> None:
        """Sets the number of threads of this run, which another one's end has set back."""
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)

    def report(self) -> str:
        """The line that is written when it has ended."""
        return json.dumps({"ended": self.name, "status": self.status, "error": self.error}) + "\n"


def main(words: list[str]) -> int:
    """Trains what the commands say; gives 128 + the signal that ended it, or 0."""
    from vitlab.data.dataset import read_once
    from vitlab.system.contention import WaitPolicy
    from vitlab.training.pack import Pack

    reports = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what is printed goes with the errors
    with Signals() as signals, read_once():
        log.setLevel(logging.INFO)  # also while one run has ended and others go on
        log.propagate = False
        commands: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=read, args=(sys.stdin.fileno(), commands), name="commands", daemon=True).start()
        runners: list[Runner] = []
        pack, more, threads = Pack(int(words[0])), True, torch.get_num_threads()
        with WaitPolicy():
            while runners or (more and not signals.received):
                more = obey(commands, runners, threads, wait=not runners) and more
                for runner in runners:
                    runner.signals.received = runner.signals.received or signals.received
                turn(pack, runners)
                for runner in [runner for runner in runners if runner.update is None]:
                    runners.remove(runner)
                    with suppress(BrokenPipeError):  # the sweep has ended
                        os.write(reports, runner.report().encode())
    return 128 + signals.received if signals.received else DONE


def read(file: int, commands: "queue.Queue[dict[str, Any] | None]") -> None:
    """Passes on the commands of the sweep; None after the last."""
    with open(file, "rb", buffering=0, closefd=False) as lines:  # a buffer's lock would be held when the process ends
        for line in lines:
            commands.put(json.loads(line))
    commands.put(None)


def obey(commands: "queue.Queue[dict[str, Any] | None]", runners: list[Runner], threads: int, *, wait: bool) -> bool:
    """Does what the commands that have come say; whether others may follow.

    Args:
        commands: of the sweep.
        runners: gains those that begin.
        threads: of torch, in this process.
        wait: whether to wait a second for the first command.
    """
    with suppress(queue.Empty):
        while True:
            command = commands.get(timeout=1.0) if wait else commands.get_nowait()
            wait = False
            if command is None:
                return False
            if "train" in command:
                runners.append(Runner(command["name"], command["train"], threads))
            for runner in runners:
                if runner.name == command.get("stop"):
                    runner.signals.received = signal.SIGTERM
    return True


def turn(pack: "Pack", runners: list[Runner]) -> None:
    """One update of every run, and what follows it."""
    ready = [(runner, runner.update) for runner in runners if runner.update is not None]
    try:
        if ready:
            ready[0][0].use_threads()
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
