"""`vitlab export RUN --to FORMAT`: a trained model for other programs, with a model card."""

import argparse
import sys
from pathlib import Path

from vitlab.cli.exit import DONE, printable
from vitlab.config.errors import ConfigError

DESCRIPTION = """Writes the weights that validation chose in another format, into a folder of its own, with a model card
(README.md). What a format cannot hold is refused. The result is run on test images and compared with the model before
it is kept; a folder that is there already is never written to."""


def main(words: list[str]) -> int:
    """Writes a folder with the model and its card."""
    parser = argparse.ArgumentParser(
        prog="vitlab export",
        description=DESCRIPTION,
        epilog="A sweep for Weights & Biases: vitlab sweep export QUESTION --wandb",
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="onnx, torch, hf, timm or safetensors")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where it goes; RUN/export/FORMAT")
    parser.add_argument(
        "--preprocess",
        action="store_true",
        help="of onnx and torch: pixels of 0 to 255 go in, and are normalized inside",
    )
    parser.add_argument("--probabilities", action="store_true", help="of onnx and torch: they come out, not logits")
    parser.add_argument("--root", metavar="PATH", help="where the run's images are, if they have moved")
    parser.add_argument(
        "--changed-data", action="store_true", help="although the images, or code of your own, have changed since"
    )
    options = parser.parse_intermixed_args(words)

    from vitlab.evaluation.export import formats, graphs, weights
    from vitlab.evaluation.export.images import pixels_of
    from vitlab.evaluation.export.usage import usage
    from vitlab.evaluation.load import load
    from vitlab.evaluation.untrusted import read_config
    from vitlab.report.card import card
    from vitlab.storage.files import whole_folder
    from vitlab.storage.metrics import si
    from vitlab.storage.run import Run

    run, to = Run(options.run), options.to
    if to not in formats.FORMATS:
        lines = ", ".join(f"{name} ({what})" for name, what in formats.FORMATS.items())
        raise ConfigError(f"--to {to}: there is no such format; there are {lines}")
    out = options.out or run.folder / "export" / to
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} is there already: give another place, --out FOLDER, or remove it first")
    if to == "onnx":
        graphs.check_onnx()
    interface = formats.Interface(preprocess=options.preprocess, probabilities=options.probabilities)
    read_config(run)  # refuses weights of other libraries, which `load` takes too
    trained = load(run.folder, changed_data=options.changed_data)
    formats.check(trained, to, interface)
    pixels, fault = pixels_of(run.folder, trained, root=options.root, changed_data=options.changed_data)
    if fault:
        print(f"vitlab: random pixels are compared: {printable(fault)}", file=sys.stderr)
    with whole_folder(out) as folder:
        match to:
            case "onnx":
                file, reader = graphs.write_onnx(trained, folder, interface)
            case "torch":
                file, reader = graphs.write_torch(trained, folder, interface)
            case "timm":
                file, reader = weights.write_timm(trained, folder)
            case "hf":
                file, reader = weights.write_hugging_face(trained, folder)
            case _:
                file, reader = weights.write_safetensors(trained, run, folder)
        if reader is None:
            said = "It was not run: transformers is not installed"
        else:
            difference = formats.compare(reader, trained, interface, pixels, file)
            of = f"{len(pixels)} {'random' if fault else 'test'} images"
            said = f"Its {interface.output} are those of the run for {of}, to {difference:.1g}"
        text = card(run, to, usage(trained, to, interface), interface.facts(trained), said)
        (folder / "README.md").write_text(text, encoding="utf-8", errors="replace")
        size = file.stat().st_size
    print(f"{to:<11} {printable(out / file.name)}  ({si(size, 'B')})")
    print(f"checked     {printable(said)}")
    print(f"card        {printable(out / 'README.md')}: data, recipe, results, how to load it")
    return DONE
