"""Tracking: what Weights & Biases is told, read back from its own files, and that it never hurts."""

import json
import time

import pytest
from test_train import fit

from vitlab import config, tracking
from vitlab.config import check, compose
from vitlab.tracking import Mirror


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
            rows.append({(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item})
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
    assert len(names) == 2


def test_training_does_not_fall_with_its_tracking(tmp_path, monkeypatch, caplog):
    def broken(self):
        raise RuntimeError("wandb fell over")

    monkeypatch.setattr(Mirror, "start", broken)
    monkeypatch.setattr(tracking.log, "propagate", True)
    run, result = fit(tmp_path, "tracking=offline")
    assert result["status"] == "finished"
    assert len(run.rows()) == 8
    assert "wandb fell over" in caplog.text


def test_training_does_not_wait_for_a_mirror_that_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(Mirror, "start", lambda self: time.sleep(3600))
    monkeypatch.setattr(Mirror.finish, "__defaults__", (0.2,))
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
    from vitlab.runs import Run

    auto = config.assemble(check(compose(["tracking=auto"])[0]))["tracking"]
    for key in (False, True):
        monkeypatch.setattr(tracking, "logged_in", lambda key=key: key)
        mirror = Mirror.__new__(Mirror)
        mirror.tracking, mirror.run, mirror.config = auto, Run(tmp_path), {}
        with pytest.raises(Stop):
            mirror.start()
    assert modes == ["offline", "online"]


def test_online_without_a_key_is_refused(monkeypatch):
    monkeypatch.setattr(tracking, "logged_in", lambda: False)
    with pytest.raises(ValueError, match="tracking=online needs a Weights & Biases key"):
        config.assemble(check(compose(["tracking=online"])[0]))
