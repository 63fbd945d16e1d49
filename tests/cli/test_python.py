"""Trainings from Python and in a notebook."""

import json
import logging
import os
import random
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import vitlab
from vitlab.config.errors import ConfigError
from vitlab.config.groups import CONF
from vitlab.training import loop

TINY = ("model.width=8", "model.depth=1", "model.heads=1", "fit.batch_size=64", "tracking=off", "system.workers=0")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def state():
    """What a training could leave changed in its process."""
    log = logging.getLogger("vitlab")
    signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    randoms = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())  # noqa: NPY002
    logs = (log.level, log.propagate, list(log.handlers))
    return (
        dict(os.environ),
        list(sys.argv),
        signals,
        randoms,
        logs,
        torch.get_num_threads(),
        GlobalHydra.instance().hydra,
    )


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: vitlab.train(["patch=p4"]), r"each override is an argument: vitlab.train\("),
        (lambda: vitlab.train("patch=p4 fit.epochs=5"), "several overrides in one: give each as a word of its own"),
        (lambda: vitlab.compare([]), "no run is named: give runs"),
        (lambda: vitlab.compare([1]), r"\[1\]: give a table, vitlab.runs"),
        (lambda: vitlab.compare(3), "3: give a table, vitlab.runs"),
        (lambda: vitlab.compare(pd.DataFrame()), "the table has no column run: give lines of vitlab.runs"),
        (lambda: vitlab.compare("nowhere"), "nowhere is no run and no folder of runs"),
        (lambda: vitlab.compare("empty"), "there is no run to compare"),
    ],
)
def test_a_call_that_cannot_be_is_refused_in_a_sentence(call, sentence, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=sentence):
        call()
    assert not (tmp_path / "runs").exists()


def test_folders_of_runs_and_runs_are_compared_by_their_names():
    first, second = (vitlab.train(*TINY, "fit.steps=1", f"seed={seed}") for seed in range(2))
    whole = vitlab.compare(vitlab.runs("runs"))
    for named in ("runs", Path("runs"), ["runs"], [first.folder, str(second.folder)]):
        assert [row.score for row in vitlab.compare(named).rows] == [row.score for row in whole.rows]
    assert vitlab.compare(first.folder).rows[0].score.n == 1


def test_a_training_is_an_object_with_its_result_and_leaves_its_process_as_it_was(tmp_path, capsys):
    GlobalHydra.instance().hydra = mine = object()
    try:
        before = state()
        run = vitlab.train(*TINY, "fit.steps=2", "system.threads=2", "system.log_every=1")
        assert state() == before
        assert GlobalHydra.instance().hydra is mine
    finally:
        GlobalHydra.instance().hydra = None
    assert run.result == json.loads((run.folder / "result.json").read_text())
    assert run.result["status"] == "finished"
    assert list(run.history()["step"]) == [1, 2]
    assert run.curves()._repr_png_().startswith(b"\x89PNG")
    assert run.model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert f"{run.result['test/accuracy']:.2%}" in repr(run)
    assert "<table>" in run._repr_html_()
    command = json.loads((run.folder / "environment.json").read_text())["command"]
    assert command == ["vitlab", "train", *TINY, "fit.steps=2", "system.threads=2", "system.log_every=1"]
    capsys.readouterr()
    assert vitlab.train(*TINY, "fit.steps=2").result == run.result
    assert "This run is finished already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "sentence"),
    [("patch=p3", "there is no such option"), ("model.heads=3", "does not divide"), ("-m", "write group=option")],
)
def test_a_refusal_is_the_error_itself_and_writes_nothing(tmp_path, word, sentence):
    before = state()
    with pytest.raises(ConfigError, match=sentence):
        vitlab.train(*TINY, "fit.steps=1", word)
    assert state() == before
    assert not list(tmp_path.iterdir())


def test_a_failure_is_raised_too(monkeypatch):
    monkeypatch.setattr(loop, "train_step", lambda *_: 1 / 0)
    before = state()
    with pytest.raises(ZeroDivisionError):
        vitlab.train(*TINY, "fit.steps=1")
    assert state() == before


def test_what_is_interrupted_is_saved_and_continues(monkeypatch, capsys):
    step, words = loop.train_step, (*TINY, "fit.steps=6")
    seen = []

    def interrupted(training, *batch):
        seen.append(training.step)
        step(training, *batch)
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop, "train_step", interrupted)
    before = state()
    with pytest.raises(KeyboardInterrupt, match="stopped at step 2 of 6"):
        vitlab.train(*words)
    assert state() == before
    assert "vitlab train model.width=8" in capsys.readouterr().out
    assert vitlab.train(*words).result["steps"] == 6
    assert seen == [0, 1, 2, 3, 4, 5]


def test_another_thread_trains_too():
    found = []
    thread = threading.Thread(target=lambda: found.append(vitlab.train(*TINY, "fit.steps=1")))
    thread.start()
    thread.join()
    assert found[0].result["steps"] == 1


def test_options_of_ones_own_are_given_as_on_the_command_line(tmp_path):
    (tmp_path / "mine" / "schedule").mkdir(parents=True)
    (tmp_path / "mine" / "schedule" / "flat.yaml").write_text((CONF / "schedule" / "constant.yaml").read_text())
    found = vitlab.train("--config-dir=mine", "schedule=flat", *TINY, "fit.steps=1")
    assert found.result["steps"] == 1
    with pytest.raises(ConfigError, match="there is no such option"):
        vitlab.train("schedule=flat", *TINY, "fit.steps=1")


@pytest.mark.slow
def test_a_notebook_trains_shows_is_interrupted_and_goes_on(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    words = ", ".join(map(repr, (*TINY, "system.log_every=1", "fit.steps=400")))
    cells = [
        f"import os, signal, threading, vitlab\nrun = vitlab.train({', '.join(map(repr, TINY))}, 'fit.steps=30')\nrun",
        "run.curves()",
        "from pathlib import Path\n"
        "def stop():\n"
        "    while sum(path.stat().st_size > 0 for path in Path('runs').glob('*/metrics.jsonl')) < 2: pass\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        f"threading.Thread(target=stop).start()\nvitlab.train({words})",
        f"vitlab.train({words}).result['steps']",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.cells[2].metadata["tags"] = ["raises-exception"]
    NotebookClient(book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    first, curves, stopped, resumed = (cell.outputs for cell in book.cells)
    bars = [out.data["text/plain"] for out in first if out.output_type == "display_data"]
    assert len(bars) == 1
    assert "30/30" in bars[0]
    assert sum(len(out.text.splitlines()) for out in first if out.output_type == "stream") < 15
    assert "<table>" in first[-1].data["text/html"]
    assert curves[-1].data["image/png"]
    assert stopped[-1].ename == "KeyboardInterrupt"
    assert "the same command continues it" in stopped[-1].evalue
    assert resumed[-1].data["text/plain"] == "400"
