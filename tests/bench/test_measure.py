"""Speed and memory, measured small; no time is asserted."""

import json
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image

from tests import processes  # noqa: F401 (its fork server is also that of fresh processes)
from vitlab.__main__ import main
from vitlab.bench import measure, steps
from vitlab.bench.libraries import LIBRARIES, Library, check_comparable
from vitlab.bench.timing import Stopwatch
from vitlab.cli.bench import without_dropout
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.model import count
from vitlab.model.vit import ViT
from vitlab.system.options import System
from vitlab.training.loss import CrossEntropy

TINY = ["dataset=synthetic", "dataset.examples=40", "dataset.image_size=8", "model.width=16", "model.depth=1"]
TINY += ["model.heads=2", "fit.batch_size=8"]
QUICK = ["--rounds", "2", "--warmup", "1"]


@pytest.fixture(autouse=True)
def _memory_is_known(monkeypatch):
    """No fresh process for each number; one test has them."""
    monkeypatch.setattr(measure, "peak_bytes", lambda work: 1_000_000 + 1000 * work.batch)
    monkeypatch.setattr(steps, "preload", lambda libraries: None)


@pytest.fixture
def work():
    node = check(compose(TINY)[0])
    return steps.Workload(
        make=partial(ViT, patch=2, width=16, depth=1, heads=2),
        image_size=(8, 8),
        channels=3,
        classes=10,
        batch=4,
        precision="fp32",
        device=torch.device("cpu"),
        loss=CrossEntropy(label_smoothing=0.0, class_weights=None),
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        system=System(**{k: v for k, v in node["system"].items() if k != "_target_"}),
        threads=1,
    )


def run(monkeypatch, *words):
    monkeypatch.setattr(steps, "peak_bytes", measure.peak_bytes)
    return main(["bench", *TINY, *QUICK, *words])


@pytest.mark.slow
def test_a_composition_is_measured_and_written(tmp_path, capsys, monkeypatch):
    assert run(monkeypatch, "--out", str(tmp_path / "out")) == 0
    result = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert result["startup_seconds"] > 0
    assert result["memory_bytes"] == 1_008_000
    assert result["rounds"] == 2
    training, inference = result["training"], result["inference"]
    assert len(training["ms_of_rounds"]) == len(inference["ms_of_rounds"]) == 2
    assert training["images"] == inference["images"] == 8
    for kind, passes in ((training, 3), (inference, 1)):
        assert kind["images_per_second"] == pytest.approx(8 / kind["ms"] * 1e3)
        pace = kind["images_per_second"] * passes * result["flops_per_image"]
        assert kind["flops_per_second"] == pytest.approx(pace)
        assert kind["share_of_peak"] == pytest.approx(pace / result["peak"]["flops_per_second"])
    said = capsys.readouterr().out
    for words in ("start-up", "images/s", "of the peak", "  backward", "next        vitlab train dataset=synthetic"):
        assert words in said


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["fit.accumulate=2", "augment.mixup=0.8"], ["fit.precision=bf16"]])
def test_the_stages_are_all_of_a_step(tmp_path, monkeypatch, words):
    assert run(monkeypatch, *words, "--out", str(tmp_path)) == 0
    training = json.loads((tmp_path / "bench.json").read_text())["training"]
    for whole, stages in zip(training["ms_of_rounds"], training["stages_ms_of_rounds"], strict=True):
        assert set(stages) == set(measure.STAGES)
        assert min(stages.values()) > 0
        assert sum(stages.values()) == pytest.approx(whole)
    assert sum(training["stages_ms"].values()) == pytest.approx(training["ms"])


def test_the_flops_are_those_counted_by_hand():
    model = ViT(image_size=8, channels=3, classes=10, patch=2, width=16, depth=1, heads=2)
    projection = 16 * (3 * 2 * 2) * 16  # 16 patches of 12 numbers
    block = 17 * 16 * (3 * 16 + 16 + 2 * 4 * 16) + 2 * 17 * 17 * 16  # dense layers; q k and weights v
    assert count.flops(model, (3, 8, 8)) == 2 * (projection + block + 16 * 10)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_peer_has_the_same_parameters_or_a_reason(work, name):
    pytest.importorskip(LIBRARIES[name].module)
    works, counts, said = measure.installed([work, replace(work, library=name)])
    if name == "vit-pytorch":
        assert said[name].startswith("+8 parameters: no bias of queries")  # 2 x 12 + 2 x 16 - 3 x 16
    else:
        assert counts[name] == counts["vitlab"]
        assert not said
    out = works[1].model()(torch.zeros(2, 3, 8, 8))
    assert getattr(out, "logits", out).shape == (2, 10)


def test_other_numbers_of_parameters_are_not_explained_away(work, monkeypatch):
    monkeypatch.setitem(LIBRARIES, "timm", Library("torch.nn", lambda module, _: module.Linear(2, 2)))
    _, _, said = measure.installed([work, replace(work, library="timm")])
    assert "unexplained, so it is another model" in said["timm"]


def test_torchvision_takes_grey_images_too(work):
    works, counts, _ = measure.installed([replace(work, channels=1), replace(work, channels=1, library="torchvision")])
    assert len(works) == 2
    assert counts["torchvision"] == counts["vitlab"]


@pytest.mark.slow
def test_peers_are_measured_beside_ours_and_a_missing_one_is_said(tmp_path, capsys, monkeypatch):
    for name in ("transformers", "vit-pytorch"):
        monkeypatch.setitem(sys.modules, LIBRARIES[name].module, None)
    assert run(monkeypatch, "--peers", "--out", str(tmp_path)) == 0
    found, ways = (json.loads((tmp_path / "bench.json").read_text())[key] for key in ("peers", "ways"))
    assert list(ways["eager"]) == ["vitlab", "timm", "torchvision"]
    for one in ways["eager"].values():
        assert len(one["ms_of_rounds"]["training"]) == len(one["ms_of_rounds"]["inference"]) == 2
        assert {"training_ms", "inference_ms", "memory_bytes"} <= one.keys()
    said = capsys.readouterr().out
    assert "vit-pytorch not installed" in said
    assert "uv sync --group bench brings it" in said
    assert f"{found['parameters']['vitlab']:,} in vitlab, timm, torchvision" in said


def test_a_step_in_each_way_there_is_beside_the_peers(work, recorder):
    known = {"peak": {"flops_per_second": 1e9}, "flops_per_image": 10**6, "training": {"stages_ms": {"data": 1e-9}}}
    works, said = [replace(work, library=name) for name in ("vitlab", "timm")], {}
    found = measure.measure_ways(works, True, known, lambda way, *costs: said.update({way: costs}), rounds=2, warmup=1)
    assert list(said) == list(found) == ["eager", "captured"]
    assert "replay plain" in recorder.log
    for way, costs in found.items():
        for cost in costs.values():
            assert cost["images_per_second"] == pytest.approx(4 / cost["training_ms"] * 1e3)
            assert cost["share_of_peak"] == pytest.approx(12 / cost["training_ms"])  # 12e6 FLOPs at 1e9 a second
            limits = cost["limits_ms"]
            assert cost["limit"] == max(limits, key=limits.get) == "matrix products"
            assert (limits["launches"] > 0) == (way == "eager")
            assert limits["memory"] > 0
        assert said[way][1]["timm"]["training_ms"] == pytest.approx(
            costs["timm"]["training_ms"] / costs["vitlab"]["training_ms"]
        )


def test_a_captured_step_learns_as_the_eager_one(work, recorder):
    eager, captured = (steps.StepRunner(replace(work, captured=way)) for way in (False, True))
    captured.model.load_state_dict(eager.model.state_dict())
    captured.batch = eager.batch
    for runner in (eager, captured):
        for _ in range(6):
            runner.train()
            runner.infer()
    assert "replay plain" in recorder.log
    for one, two in zip(eager.model.parameters(), captured.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("compiled", "captures", "there"),
    [
        (False, False, ["eager"]),
        (True, False, ["eager", "compiled"]),
        (False, True, ["eager", "captured", "compiled", "both"]),
    ],
)
def test_the_ways_are_those_that_a_device_has(work, compiled, captures, there):
    asked = replace(
        work, system=replace(work.system, compile=compiled), device=torch.device("cuda" if captures else "cpu")
    )
    found = steps.ways(asked, captures)
    assert list(found) == there
    assert [bool(each.system.compile) for each in found.values()] == [name in ("compiled", "both") for name in there]
    assert [each.captured for each in found.values()] == [name in ("captured", "both") for name in there]


def test_operations_and_their_bytes_are_counted_but_not_those_of_views():
    from vitlab.bench.timing import Traffic

    x, y = torch.ones(10, 10), torch.ones(10, 10)
    with Traffic() as counted:
        (x.view(100)[:50] + y.view(100)[:50]).sum()
    assert counted.operations == 2
    assert counted.bytes == 4 * (3 * 50 + 50 + 1)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model/position=rope"], "--peers with model/position=rope: the other libraries only have the standard ViT"),
        (["model/pool=gap", "model/mlp=gelu_tanh"], "--peers with model.mlp.gelu=tanh model/pool=gap"),
        (["model.registers=2"], "--peers with model.registers=2"),
        (["optimizer=muon"], "--peers with optimizer=muon"),
        (["system.activation_checkpointing=true"], "only vitlab's model has it"),
        (["dataset.image_size=[8,12]"], "torchvision only takes square ones"),
        (["--rounds", "0"], "--rounds=0: must be at least 1"),
        (["patch=p7"], "patch=7 does not divide image_size=8x8"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(capsys, monkeypatch, words, sentence):
    assert run(monkeypatch, "--peers", *words) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_dropout_and_how_the_model_starts_do_not_hinder_a_comparison():
    words = ["model.dropout=0.3", "model.attention.dropout=0.2", "model/init=reference", "model.head.zero_init=false"]
    node, choices = compose(words)
    check_comparable(check(node), choices)
    assert without_dropout(node["model"])["attention"]["dropout"] == 0
    assert node["model"]["attention"]["dropout"] == 0.2


@pytest.mark.slow
@pytest.mark.parametrize("kind", measure.SWEEPS)
def test_a_sweep_measures_and_draws_how_the_cost_grows(tmp_path, capsys, monkeypatch, kind):
    assert run(monkeypatch, "--sweep", kind, "--out", str(tmp_path)) == 0
    found = json.loads((tmp_path / "bench.json").read_text())["sweep"]
    sizes, ours = found["sizes"], found["libraries"]["vitlab"]
    assert 5 <= len(sizes) <= 6
    assert sizes == sorted(set(sizes))
    assert {len(values) for values in ours.values()} == {len(sizes)}
    assert {len(values) for values in found["exponents"]["vitlab"].values()} == {len(sizes) - 1}
    with Image.open(tmp_path / "bench.png") as drawn:
        assert drawn.width > 200
    assert f"1 is proportional to {kind}" in capsys.readouterr().out


def test_the_points_of_a_sweep_are_around_the_composition(work):
    found = {kind: list(measure.sweep_points(work, kind)) for kind in measure.SWEEPS}
    assert found["batch"] == [1, 2, 4, 8, 16, 32]
    assert found["tokens"] == [5, 10, 17, 37, 65]  # squares of 2 3 4 6 8, and the class token
    assert found["width"] == [8, 16, 24, 32, 48]
    assert found["depth"] == [1, 2, 4, 8, 16]


def test_a_square_has_exponent_two_and_what_is_unknown_none():
    assert measure.exponent((2, 6), (12.0, 108.0)) == pytest.approx(2)
    assert measure.exponent((1, 2), (3.0, None)) is None
    assert measure.exponent((2, 4), (None, 5.0)) is None


@pytest.mark.slow
def test_a_point_that_does_not_fit_ends_a_sweep(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "peak_bytes", lambda work: 1 if work.batch < 4 else None)
    assert run(monkeypatch, "--sweep", "batch", "--out", str(tmp_path)) == 0
    found = json.loads((tmp_path / "bench.json").read_text())["sweep"]
    assert found["sizes"] == [1, 2]
    assert found["out_of_memory_at"] == 4
    said = capsys.readouterr().out
    assert "out of memory at 4" in said
    assert "memory      too much" in said


def test_the_largest_batch_is_looked_for_by_doubling(work, monkeypatch):
    monkeypatch.setattr(steps, "peak_bytes", lambda work: 1 if work.batch <= 50 else None)
    assert steps.largest_batch(work) == 32


@pytest.mark.slow
def test_memory_is_that_of_a_fresh_process_and_grows_with_the_batch(work):
    small, large = (steps.peak_bytes(replace(work, batch=batch)) for batch in (1, 2048))
    assert 0 < small < large


def test_a_stopwatch_gives_each_stage_its_time():
    watch = Stopwatch(torch.device("cpu"))
    for stage in ("data", "forward", "data"):
        watch.start(stage)
    assert set(watch.read()) == {"data", "forward"}
    assert watch.read() == {}


def test_a_gpu_is_timed(work, accelerator):
    there = replace(work, device=accelerator)
    found = measure.measure_steps([there], rounds=2, warmup=1)["vitlab"]
    assert found["training_ms"] > 0
    assert steps.peak_bytes(there) > 0
