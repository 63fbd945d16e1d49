"""Packs, measured small; no time is asserted."""

import json

import pytest

from vitlab.__main__ import main
from vitlab.bench import packed
from vitlab.config.errors import OutOfMemory
from vitlab.training.pack import Pack

TINY = ["dataset=synthetic", "dataset.examples=40", "dataset.image_size=8", "model.width=16", "model.depth=1"]
TINY += ["model.heads=2", "fit.batch_size=8", "fit.steps=2", "fit.precision=fp32"]


def run(*words):
    return main(["bench", *TINY, "--rounds", "2", "--warmup", "1", *words])


@pytest.fixture
def calls(monkeypatch):
    """What computes the updates, in order."""
    made, step, plain = [], Pack.step, packed.train_step
    monkeypatch.setattr(Pack, "step", lambda pack, pending: (made.append(len(pending)), step(pack, pending)))
    monkeypatch.setattr(packed, "train_step", lambda *update: (made.append("alone"), plain(*update)))
    return made


def test_a_pack_is_timed_in_turn_with_the_plain_step_and_the_best_number_is_said(tmp_path, capsys, calls, monkeypatch):
    monkeypatch.setattr(packed, "best", lambda times: [*times][-1])
    assert run("--packed", "5,1", "--at-once=3", "--out", str(tmp_path)) == 0
    assert calls == ["alone"] * 3 + [*["alone"] * 5, 5] * 3
    result = json.loads((tmp_path / "bench.json").read_text())
    one, five = result["rows"]
    assert [one["runs"], one["at_once"], one["times_as_fast"]] == [1, 1, 1]
    assert [five["runs"], five["at_once"]] == [5, 3]
    together, alone = (sum(five["ms_of_rounds"][kind]) / 2 for kind in ("together", "alone"))
    assert five["ms"] == pytest.approx(together / 5)
    assert five["images_per_second"] == pytest.approx(5 * 8 / together * 1e3)
    assert five["times_as_fast"] == pytest.approx(alone / together)
    assert five["memory_bytes"] >= one["memory_bytes"] >= 0  # 0 where all fits into what was freed before
    said = capsys.readouterr().out
    assert "best        5 runs at a time: the most that were measured" in said
    assert f"a sweep     trains up to 16 together in each of {result['sweep']['processes']} processes; pack=5" in said
    assert "next        vitlab train dataset=synthetic" in said


@pytest.mark.parametrize(
    ("times", "number"),
    [
        ({1: 1.0, 4: 3.0, 16: 6.0, 64: 6.2}, 16),
        ({1: 1.0, 4: 1.04, 16: 1.04}, 1),
        ({4: 1.3, 16: 1.2, 64: 1.4}, 64),
        ({4: 0.9}, 1),
        ({}, 1),
    ],
)
def test_a_number_is_best_from_which_more_gain_less_than_five_percent(times, number):
    assert packed.best(times) == number


def test_a_pack_that_would_not_fit_ends_the_measurement_before_it_is_prepared(tmp_path, capsys, calls, monkeypatch):
    monkeypatch.setattr(packed, "free_memory", lambda device: 10**6)
    assert run("--packed=1,300,301", "--out", str(tmp_path)) == 0
    assert [row["runs"] for row in json.loads((tmp_path / "bench.json").read_text())["rows"]] == [1, 300]
    said = capsys.readouterr().out
    assert "300      300  does not fit: about " in said
    assert "more, of 1.0 MB that are free" in said
    assert "best        1 run at a time" in said
    assert set(calls) == {"alone"}


def test_a_pack_that_runs_out_of_memory_ends_the_measurement(capsys, monkeypatch):
    def fail(*_):
        raise OutOfMemory("out of memory with 2 models at once: use launcher=local")

    monkeypatch.setattr(Pack, "step", fail)
    assert run("--packed=2,4") == 0
    said = capsys.readouterr().out
    assert "2        2  does not fit: out of memory with 2 models at once" in said
    assert "4        4" not in said


def test_models_that_a_sweep_trains_alone_are_measured_and_the_reason_is_said(capsys, monkeypatch):
    monkeypatch.setattr("vitlab.sweep.packs.WORTH", {"cpu": 1.0, "accelerator": 1.0})
    assert run("--packed=2") == 0
    assert "a sweep     trains each run alone: one model fills the machine, with " in capsys.readouterr().out


def test_models_that_cannot_be_computed_as_one_are_refused(capsys, monkeypatch):
    monkeypatch.setattr(Pack, "step", lambda pack, pending: setattr(pack, "separate", [pending[0][0]]))
    assert run("--packed=2") == 2
    assert "--packed: these models cannot be computed as one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--packed=0,4"], "--packed=0,4: must be numbers of runs from 1 to 1024, as in 1,4,16,64"),
        (["--packed="], "--packed=: must be numbers of runs"),
        (["--packed=4,x"], "--packed=4,x: must be"),
        (["--packed=-4"], "--packed=-4: must be"),
        (["--packed=2.5"], "--packed=2.5: must be"),
        (["--packed=1025"], "--packed=1025: must be"),
        (["--packed=4", "--at-once=1"], "--at-once=1: must be at least 2"),
        (["--at-once=4"], "--at-once=4 is of --packed"),
        (["--packed=4", "--peers"], "--packed with --peers"),
        (["--packed=4", "--sweep=width"], "--packed with --sweep=width"),
        (["--packed=4", "--rounds=0"], "--rounds=0: must be at least 1"),
        (["--packed=4", "fit.auto_accumulate=true"], "--packed: fit.auto_accumulate=true may compute each batch in"),
        (["--packed=4", "system.activation_checkpointing=true"], "sets random generators back: leave that out"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(capsys, words, sentence):
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
