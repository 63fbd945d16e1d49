"""`vitlab evaluate RUN`: a trained run measured again."""

import argparse

from vitlab.commands import DONE, refuse


def main(words: list[str]) -> int:
    """`vitlab evaluate RUN`: the accuracy of a trained run, measured again."""
    parser = argparse.ArgumentParser(prog="vitlab evaluate", description="Measures a trained run again.")
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("--root", help="where the dataset's files lie now, if they have moved")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    options = parser.parse_args(words)
    from vitlab import trained

    try:
        scores, before = trained.evaluate(options.run, root=options.root, device=options.device)
    except (ValueError, OSError) as error:
        return refuse(error)
    for split, name in (("val", "validation"), ("test", "test")):
        accuracy, loss = scores[f"{split}/accuracy"], scores[f"{split}/loss"]
        same = "as" if accuracy == before.get(f"{split}/accuracy") else "not as"
        print(f"{name:<11} accuracy {accuracy:.6f}  loss {loss:.6f}  ({same} recorded)")
    return DONE
