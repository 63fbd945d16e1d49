"""`vitlab COMMAND`: the entry point. Nothing heavy is imported before it is needed."""

import io
import itertools
import os
import re
import sys

COMMANDS = {
    "train": "train a Vision Transformer: vitlab train [group=option] [key=value] ...",
    "sweep": "train the runs of a question: vitlab sweep patch_size [scale=NAME] [key=value] ...; --dry lists them",
    "compare": "compare runs in a table with intervals, figures, a page: vitlab compare [SWEEP | RUN... | FOLDER]",
    "data": "show the images that a configuration feeds the model: vitlab data [group=option] [key=value] ...",
    "schedule": "draw the learning rates of a configuration: vitlab schedule [group=option] [key=value] ...",
    "bench": "measure speed and memory: vitlab bench [group=option] [key=value] ...; --peers, --sweep, --packed",
    "evaluate": "evaluate a trained run again, with calibration and confusions: vitlab evaluate RUN",
    "probe": "measure few-shot, linear and k-NN accuracy of frozen features: vitlab probe RUN",
    "predict": "predict the classes of images: vitlab predict RUN IMAGE...",
    "inspect": "draw attention, positions, filters and tokens of a trained run: vitlab inspect RUN [IMAGE...]",
    "export": "write a trained model as ONNX, for transformers, timm or torch: vitlab export RUN --to onnx",
    "sync": "upload offline runs to Weights & Biases: vitlab sync [RUN...]",
}
FLAGS = ("sweep", "project", "examples")  # of commands that have overrides too, and of keys the last word
USAGE = """vitlab: train Vision Transformers and answer questions about them

  vitlab COMMAND ...

{commands}

  vitlab COMMAND --help prints the options of a command; vitlab --version
  In every command: --config-dir FOLDER adds options of your own, --allow PACKAGE lets them name its classes."""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and gives its exit status.

    0 is done, 1 failed, 2 refused before anything was written (a VitlabError), and 128 + n left because of signal n
    with everything saved: 130 SIGINT, 138 SIGUSR1, 140 SIGUSR2, 143 SIGTERM.
    """
    from vitlab.cli.exit import refuse
    from vitlab.config import own
    from vitlab.config.errors import VitlabError

    try:
        added, words = own.take(sys.argv[1:] if arguments is None else arguments)
        with own.using(added):
            return run(words)
    except VitlabError as error:
        return refuse(error)


def run(words: list[str]) -> int:
    """Runs the command that the words begin with.

    Raises:
        VitlabError: it is refused, or there is no such command.
    """
    from importlib import import_module

    from vitlab.config.own import COMPOSING

    if "-sc" in words and words[0] != "train":  # the shell asks for completions, Hydra's way
        from vitlab.cli.complete import complete_line

        return complete_line(words, COMMANDS)
    command, rest = (words[0], words[1:]) if words else ("--help", [])
    if command in ("--help", "-h", "help"):
        print(USAGE.format(commands="\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())))
        return 0
    if command == "--version":
        from importlib.metadata import version

        print(f"vitlab {version('vitlab')}")
        return 0
    if command not in COMMANDS:
        from vitlab.config.errors import ConfigError
        from vitlab.config.groups import nearest

        raise ConfigError(
            f"there is no command {command!r}{nearest(command, [*COMMANDS, '--version'])} (vitlab --help)"
        )
    if command in COMPOSING:
        for word, following in itertools.pairwise([*rest, ""]):
            refuse_key(word, following)
    return import_module(f"vitlab.cli.{command}").main([flag(word) for word in rest])


def refuse_key(word: str, following: str) -> None:
    """Refuses a key that is written as a flag, `--lr 1e-3`, as other programs have it.

    Raises:
        ConfigError: it is one, and which override is meant.
    """
    found = re.fullmatch(r"--([\w-]+)(?:=(.*))?", word)
    if not found or found[1] in FLAGS:
        return
    from vitlab.config.errors import ConfigError
    from vitlab.config.groups import known_keys, menu

    name, known, groups = found[1].replace("-", "_"), known_keys(), menu()
    keys = [name] if name in groups else sorted(key for key in known if key.rpartition(".")[2] == name)
    if keys and not (found[2] and (name in groups or name in known)):  # which `flag` knows
        value = found[2] or (following if following and not re.match(r"-\D|.*=", following) else "VALUE")
        raise ConfigError(f"{word}: an override has no hyphens: {keys[0]}={value}")


def flag(word: str) -> str:
    """A word of the command line. Of a flag, `--save=~/sheet.png`, the shell leaves ~ as it is.

    Raises:
        ConfigError: an override with hyphens, as W&B's agent passes it.
    """
    if not (found := re.fullmatch(r"(--([\w/.]+(?:-\w+)*)=)(.*)", word, flags=re.DOTALL)):
        return word
    from vitlab.config.errors import ConfigError
    from vitlab.config.groups import is_known, known_keys, menu

    if "." in found[2] or found[2] in menu() or is_known(found[2], known_keys()):
        raise ConfigError(
            f"{word}: an override has no hyphens: {word[2:]} (in the command of a W&B sweep: ${{args_no_hyphens}})"
        )
    return found[1] + os.path.expanduser(found[3])  # noqa: PTH111 (it may be empty)


def use_utf8() -> None:
    """Makes texts and names of files UTF-8 in every locale; letters that the terminal lacks are replaced.

    Where Python decodes the names of files in another encoding, it is started anew in its UTF-8 mode.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        if streams:
            os.environ.setdefault("PYTHONIOENCODING", streams[0].encoding)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in streams:
        stream.reconfigure(errors="replace")


def console() -> int:
    """`main`, quiet where its reader has left (`vitlab train --help | head`); a bug asks to be reported."""
    use_utf8()
    try:
        return main()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("vitlab: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        from vitlab.cli.exit import bug_report

        print(bug_report(error), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(console())
