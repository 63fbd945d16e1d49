"""Tracking: what Weights & Biases is told, read back from its own files, and that it never hurts."""

import json
import math
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tests.training.test_loop import fit
from vitlab.__main__ import main
from vitlab.cli import run as run_module
from vitlab.config.build import assemble
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.identity import slug
from vitlab.system.host_copies import HostCopies
from vitlab.tracking import options, wandb_mirror
from vitlab.tracking.logs import log
from vitlab.tracking.tracker import Tracker
from vitlab.tracking.wandb_mirror import Mirror

pytestmark = pytest.mark.usefixtures("no_curves")


def offline_records(folder):
    """The records of an offline .wandb file, as wandb's own messages.

    wandb 0.31 reads such a file in its Go half alone. Its frame is LevelDB's log: a header of 7 bytes, then blocks of
    32 KiB with pieces of (checksum 4, length 2, kind 1) and data; kinds are whole, first, middle and last.
    """
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    place, record, records = 7, b"", []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            message = wandb_internal_pb2.Record()
            message.ParseFromString(record)
            records.append(message)
            record = b""
    return records


def history(records):
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            row = {}
            for item in record.history.item:
                *path, last = item.nested_key or [item.key]
                place = row
                for key in path:
                    place = place.setdefault(key, {})
                place[last] = json.loads(item.value_json)
            rows.append(row)
    return rows


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_mirror_has_every_row_and_several_runs_stay_several(tmp_path):
    overrides = ["tracking=offline", "tracking.project=test", "tracking.tags=[a,b]", "tracking.group=g"]
    runs = [fit(tmp_path, *overrides, f"seed={seed}", name=f"run{seed}") for seed in (0, 1)]
    names = set()
    for run, result in runs:
        records = offline_records(run.folder)
        (header,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
        names.add(header.run_id)
        assert header.project == "test"
        assert header.run_group == "g"
        assert list(header.tags) == ["a", "b"]
        assert header.display_name == run.folder.name
        configured = {u.key: json.loads(u.value_json) for u in header.config.update}
        assert configured["model"]["width"] == 16
        assert configured["seed"] == result["seed"]
        rows = history(records)
        assert [row["_step"] for row in rows] == [row["step"] for row in run.rows()]
        assert [row["train/loss"] for row in rows] == [row["train/loss"] for row in run.rows()]
        assert rows[-1]["val/accuracy"] == run.rows()[-1]["val/accuracy"]
        summary = {}
        for record in records:
            if record.WhichOneof("record_type") == "summary":
                summary |= {u.key or "/".join(u.nested_key): json.loads(u.value_json) for u in record.summary.update}
        assert summary["test/accuracy"] == result["test/accuracy"]
        assert summary["val/accuracy"] == result["val/accuracy"]
        best = {r.metric.name: r.metric.summary for r in records if r.WhichOneof("record_type") == "metric"}
        assert best["val/accuracy"].max
        assert not best["val/accuracy"].min
        assert best["val/loss"].min
    assert len(names) == 2


@pytest.mark.parametrize(
    ("gradient", "counted"), [([1.0, 2.0, 3.0], 3), ([1.0, math.nan, math.inf], 1), ([math.nan] * 3, 0)]
)
def test_histograms_are_of_the_moment_and_of_finite_numbers(gradient, counted):
    layer = torch.nn.Linear(3, 1, bias=False)
    layer.weight.grad, weights = torch.tensor([gradient]), layer.weight.detach().clone()
    tracker = SimpleNamespace(mirror=SimpleNamespace(tracking=SimpleNamespace(histograms=True)))
    Tracker.watch(tracker, layer, HostCopies(torch.device("cpu")))
    torch.nn.init.zeros_(layer.weight)  # the next step, before the mirror's thread draws
    layer.weight.grad.zero_()
    drawn = {name: value() for name, value in tracker.watched.items()}
    assert drawn["gradients/weight"][0].sum() == counted
    counts, edges = drawn["weights/weight"]
    assert counts.sum() == 3
    assert (edges[0], edges[-1]) == (weights.min(), weights.max())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_mirror_is_shown_mistakes_confusions_histograms_and_the_best_weights(tmp_path):
    run, result = fit(tmp_path, "tracking=offline", "tracking.histograms=true", "tracking.mistakes=5")
    records = offline_records(run.folder)
    rows = history(records)
    told = {key: row[key] for row in rows for key in row}
    table = told["validation/mistakes"]
    assert table["_type"] == "table-file"
    media = next(run.folder.glob("wandb/offline-run-*/files"))
    content = json.loads((media / table["path"]).read_text())
    assert content["columns"] == ["image", "true class", "predicted class", "probability", "index"]
    wrong = round(144 * (1 - result["val/accuracy"]))
    assert len(content["data"]) == min(5, wrong) > 0
    for _, true, predicted, probability, _ in content["data"]:
        assert true != predicted
        assert 0.1 <= probability <= 1
    assert [row[3] for row in content["data"]] == sorted((row[3] for row in content["data"]), reverse=True)
    confusion = json.loads((media / told["validation/confusion_table"]["path"]).read_text())
    assert sum(row[2] for row in confusion["data"]) == 144
    assert sum(row[2] for row in confusion["data"] if row[0] == row[1]) == 144 - wrong
    evaluated = [row for row in rows if "val/accuracy" in row]
    for kind in ("weights", "gradients"):
        drawn = [row[f"{kind}/head.output.weight"] for row in evaluated]
        assert [sum(d["values"]) for d in drawn] == [160] * len(evaluated)
    assert not any(key.startswith(("weights/", "gradients/")) for row in run.rows() for key in row)
    artifacts = [r.artifact for r in records if r.WhichOneof("record_type") == "artifact"]
    (images,) = [a.manifest.contents for a in artifacts if "validationmistakes" in a.name]
    pictures = [Path(entry.local_path) for entry in images if entry.path.endswith(".png")]
    assert len(pictures) == len(content["data"])
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.size == (8, 8)
    (kept,) = [a for a in artifacts if a.type == "model"]
    assert {entry.path for entry in kept.manifest.contents} == {"best.pt", "config.yaml"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_mirrors_views_can_be_left_out(tmp_path):
    off = ["tracking.mistakes=0", "tracking.confusion=false", "tracking.checkpoint=false", "tracking.system=false"]
    run, _ = fit(tmp_path, "tracking=offline", *off)
    records = offline_records(run.folder)
    assert not [r for r in records if r.WhichOneof("record_type") in ("artifact", "stats")]
    assert not [key for row in history(records) for key in row if key.startswith("validation/")]


def test_runs_are_called_by_what_they_are_and_seeds_are_a_group():
    def called(*overrides):
        node, choices = compose(["tracking=offline", *overrides])
        node = check(node)
        return run_module.with_names(assemble(node)["tracking"], slug(node, choices), node, choices)

    one, two, other = called("seed=0"), called("seed=1"), called("model/position=rope")
    assert (one.name, two.name) == ("digits-micro-p2-s0", "digits-micro-p2-s1")
    assert one.group == two.group != other.group
    assert one.group.startswith("digits-micro-p2-")
    folds = [called("dataset.folds=5", f"dataset.fold={fold}") for fold in (1, 2)]
    assert folds[0].group == folds[1].group != one.group
    assert folds[1].name == "digits-micro-p2-f2-s0"
    assert {"dataset=digits", "model=micro", "optimizer=adamw"} <= set(one.tags)
    assert "model/position=rope" in other.tags
    assert not any(tag.startswith("model/") for tag in one.tags)
    named = called("tracking.name=mine", "tracking.group=ours", "tracking.tags=[a]")
    assert (named.name, named.group, tuple(named.tags)) == ("mine", "ours", ("a",))
    assert called("experiment=fashion_mnist").name == "fashion-mnist-s0"


def test_sync_hands_over_what_was_not_uploaded_yet(tmp_path, capsys, monkeypatch):
    folders = []
    for name, uploaded in (("a", False), ("b", True), ("c", False)):
        folder = tmp_path / name / "wandb" / f"offline-run-20260101_000000-{name}"
        folder.mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("")
        (folder / f"run-{name}.wandb").write_bytes(b"")
        folders.append(folder)
        if uploaded:
            (folder / f"run-{name}.wandb.synced").write_bytes(b"")
    assert main(["sync", "--runs", str(tmp_path), "--dry-run"]) == 0
    assert capsys.readouterr().out == f"wandb sync {folders[0]} {folders[2]}\n"
    assert main(["sync", str(tmp_path / "b")]) == 0
    assert "Nothing to upload" in capsys.readouterr().out
    monkeypatch.setattr(options, "logged_in", lambda: False)
    assert main(["sync", str(tmp_path / "a")]) == 2
    assert "run `wandb login`" in capsys.readouterr().err
    assert main(["sync", str(tmp_path / "nothing")]) == 2
    assert "is not a run" in capsys.readouterr().err


def test_training_does_not_fall_with_its_tracking(tmp_path, monkeypatch, caplog):
    def broken(self):
        raise RuntimeError("wandb fell over")

    monkeypatch.setattr(Mirror, "start", broken)
    monkeypatch.setattr(log, "propagate", True)
    run, result = fit(tmp_path, "tracking=offline")
    assert result["status"] == "finished"
    assert len(run.rows()) == 8
    assert "wandb fell over" in caplog.text


def test_training_does_not_wait_for_a_mirror_that_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(Mirror, "start", lambda self: time.sleep(3600))
    monkeypatch.setattr(Mirror.finish, "__defaults__", (None, 0.2))
    began = time.perf_counter()
    _, result = fit(tmp_path, "tracking=offline")
    assert result["status"] == "finished"
    assert time.perf_counter() - began < 600


def test_off_starts_no_mirror(tmp_path):
    run, _ = fit(tmp_path, "tracking=off")
    assert not (run.folder / "wandb").exists()


def test_auto_is_offline_without_a_key_and_online_with_one(tmp_path, monkeypatch):
    import wandb

    modes = []

    class Stop(Exception):
        pass

    def init(mode, **_):
        modes.append(mode)
        raise Stop

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.delenv("WANDB_MODE")
    from vitlab.storage.run import Run

    auto = assemble(check(compose(["tracking=auto"])[0]))["tracking"]
    for key in (False, True):
        monkeypatch.setattr(wandb_mirror, "logged_in", lambda key=key: key)
        mirror = Mirror.__new__(Mirror)
        mirror.tracking, mirror.run, mirror.config = auto, Run(tmp_path), {}
        with pytest.raises(Stop):
            mirror.start()
    assert modes == ["offline", "online"]


def test_online_without_a_key_is_refused(monkeypatch):
    monkeypatch.setattr(options, "logged_in", lambda: False)
    with pytest.raises(ValueError, match="tracking=online needs a Weights & Biases key"):
        assemble(check(compose(["tracking=online"])[0]))
