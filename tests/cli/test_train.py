"""`vitlab train`: Hydra's own flags."""

import pytest
import yaml

from vitlab.__main__ import main


def printed(capsys, *words):
    assert main(["train", *words]) == 0
    return capsys.readouterr().out


def test_the_configuration_that_is_shown_is_the_one_that_would_be_trained(capsys):
    shown = yaml.safe_load(printed(capsys, "fit.steps=3", "--cfg", "job", "init=~/a (1)", "tracking=off"))
    assert (shown["fit"]["steps"], shown["fit"]["epochs"]) == (3, None)
    assert shown["init"]["weights"] == "~/a (1)"
    assert shown["tracking"]["mode"] == "off"


def test_a_multirun_shows_the_configuration_of_every_run(capsys):
    text = printed(capsys, "-m", "+experiment=glob(*vit)", "seed=0,1", "--cfg", "job", "--package", "model")
    runs = text.split("# vitlab train ")[1:]
    assert [run.splitlines()[0] for run in runs] == [
        f"+experiment={name} seed={seed}" for name in ("cifar10_vit", "cifar100_vit") for seed in (0, 1)
    ]
    assert all("patch: " in run for run in runs)


@pytest.mark.parametrize("word", ["patch=16", "seed=0,1", "hydra.mode=MULTIRUN"])
def test_what_cannot_be_trained_is_not_shown_either(word, capsys):
    assert main(["train", "--cfg", "job", word]) == 2
    assert capsys.readouterr().err.startswith(f"vitlab: {word}: ")
