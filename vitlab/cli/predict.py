"""`vitlab predict RUN IMAGE...`: the classes that a trained run predicts for images."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vitlab.cli.exit import DONE, FAILED, print_json, printable
from vitlab.cli.places import check_place
from vitlab.config.errors import ConfigError

if TYPE_CHECKING:
    from vitlab.evaluation.predict import Prediction

DESCRIPTION = """Predicts the classes of images with a trained run, in fp32. Images are turned upright and resized as in
evaluation. A file that cannot be read is named, the others go on, and the exit status is 1."""


def main(words: list[str]) -> int:
    """`vitlab predict RUN IMAGE...`: the most probable classes of images."""
    parser = argparse.ArgumentParser(prog="vitlab predict", description=DESCRIPTION)
    parser.add_argument("run", help="the run's folder, or weights of another library")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, folders (and the folders in them) and globs"
    )
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes an image; 5")
    parser.add_argument("--json", action="store_true", help="one JSON document on the standard output, for programs")
    parser.add_argument("--save", type=Path, metavar="FILE.png", help="also draw the images and their classes")
    parser.add_argument("--changed-data", action="store_true", help="although code of your own has changed since")
    parser.add_argument("--device", default="auto", help="auto (default: CUDA where there is one), cpu, cuda or mps")
    options = parser.parse_intermixed_args(words)
    from tqdm import tqdm

    from vitlab.data.datasets.listing import PassedOver
    from vitlab.evaluation import predict
    from vitlab.evaluation.load import load
    from vitlab.evaluation.pictures import MOST
    from vitlab.storage.run import Run

    if not Run(Path(options.run)).config.is_file() and any(Run(Path(word)).config.is_file() for word in options.images):
        raise ConfigError("the run comes first: vitlab predict RUN IMAGE...")
    passed = PassedOver()
    paths, lost = predict.find(options.images, passed)
    check(options, paths, lost)
    if passed:
        print(f"vitlab: passed over {printable(passed)}", file=sys.stderr)
    model = load(options.run, options.device, changed_data=options.changed_data)
    faults = [predict.Prediction(path=Path(word), fault="there is no image") for word in lost]
    answers = predict.predict(model, paths, top=options.top, pictures=MOST if options.save else 0)
    few = len(paths) <= predict.BATCH
    done = []
    with tqdm(total=len(paths), unit="image", disable=few or not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        for fault in faults:
            tqdm.write(format_fault(fault), file=sys.stderr)
        for answer in answers:
            done.append(answer)
            if answer.fault:
                tqdm.write(format_fault(answer), file=sys.stderr)
            elif not options.json:
                tqdm.write(format_prediction(answer), file=sys.stdout)
            bar.update()
    if options.json:
        print_json({"run": str(options.run), "images": [as_json(answer) for answer in faults + done]})
    if options.save:
        draw(done, options.save, options.run)
    return FAILED if lost or any(answer.fault for answer in done) else DONE


def check(options: argparse.Namespace, paths: list[Path], lost: list[str]) -> None:
    """Raises ConfigError for options that are wrong."""
    if options.top < 1:
        raise ConfigError(f"--top {options.top}: must be at least 1")
    if not paths:
        raise ConfigError(f"{', '.join(lost)}: there is no image: give image files, folders of them, or globs")
    if options.save:
        check_place("--save", options.save, ".png")
        if options.save.resolve() in {path.resolve() for path in paths}:
            raise ConfigError(f"--save {options.save}: it is one of the images: give another name")


def format_fault(answer: "Prediction") -> str:
    return f"vitlab: {printable(answer.path)}: {printable(answer.fault)}"


def format_prediction(answer: "Prediction") -> str:
    """An image and its classes: a line each, or one line in all with --top 1."""
    if len(answer.top) == 1:
        ((name, probability),) = answer.top
        return f"{probability:7.2%}  {printable(name)}  {printable(answer.path)}"
    lines = (f"{probability:9.2%}  {printable(name)}" for name, probability in answer.top)
    return "\n".join((printable(answer.path), *lines))


def as_json(answer: "Prediction") -> dict[str, object]:
    if answer.fault:
        return {"file": str(answer.path), "error": answer.fault}
    top = [{"class": name, "probability": probability} for name, probability in answer.top]
    return {"file": str(answer.path), "top": top}


def draw(done: "list[Prediction]", path: Path, title: str) -> None:
    """The contact sheet of the images that could be read, at most as many as it holds."""
    from vitlab.evaluation import pictures
    from vitlab.plotting import save

    readable = [answer for answer in done if not answer.fault]
    drawn = [(answer.picture, answer) for answer in readable if answer.picture is not None]
    if not drawn:
        raise ConfigError(f"--save {path}: no image could be read, so there is nothing to draw")
    names = [printable(answer.path) for _, answer in drawn]
    top = [[(printable(name), probability) for name, probability in answer.top[:5]] for _, answer in drawn]
    save(pictures.predictions([picture for picture, _ in drawn], names, top, printable(title)), path)
    if len(drawn) < len(readable):
        print(f"vitlab: {printable(path)} shows the first {len(drawn)} of {len(readable)} images", file=sys.stderr)
