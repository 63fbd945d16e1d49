"""The recipe, in small trainings."""

import json
import math
import os
import signal
import threading

import pytest
import torch
import yaml

import vitlab
from tests.config.test_check import check, compose
from vitlab.config.build import assemble
from vitlab.config.errors import Interrupted, NonFinite
from vitlab.data.examples import Pixels
from vitlab.data.preprocess import Normalize
from vitlab.storage import checkpoint
from vitlab.storage.run import Run, find
from vitlab.system.distributed import Distributed, join_processes
from vitlab.system.precision import resolve
from vitlab.system.signals import Signals
from vitlab.training import loop
from vitlab.training.batches import move_to_gpu, on_gpu, train_batches, train_inputs
from vitlab.training.loop import log
from vitlab.training.setup import prepare

SMALL = [
    "tracking=off",
    "dataset.train_examples=60",
    "model.width=16",
    "model.depth=2",
    "model.heads=2",
    "fit.batch_size=16",
    "fit.steps=8",
    "system.log_every=1",
    "fit.evaluate_every=1",
    "fit.precision=fp32",
]


ALONE = Distributed(0, 1, torch.device("cpu"))


def fit(tmp_path, *overrides, name="run", dist=ALONE):
    node = check(compose([*SMALL, f"system.runs={tmp_path}", *overrides])[0])
    setup = prepare(**assemble(node), dist=dist)
    run = Run(tmp_path / name)
    run.create()
    return run, loop.fit(setup, run, node)


def weights(run):
    return checkpoint.load(run.last)["model"]


def test_a_run_leaves_everything_that_is_promised(tmp_path):
    run, result = fit(tmp_path)
    assert json.loads((run.folder / "result.json").read_text()) == result
    expected = {
        "status", "val/accuracy", "val/loss", "test/accuracy", "test/loss", "best_step", "steps", "epochs", "seconds",
        "images_per_second", "data_wait", "parameters", "flops_per_image", "peak_memory_bytes", "seed",
    }  # fmt: skip
    assert expected <= set(result)
    assert result["status"] == "finished"
    assert 0 <= result["test/accuracy"] <= 1
    assert result["peak_memory_bytes"] > 2**20
    assert yaml.safe_load(run.config.read_text())["model"]["width"] == 16
    environment = json.loads(run.environment.read_text())
    assert {"packages", "git", "device", "command"} <= set(environment)
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert run.curves.read_bytes().startswith(b"\x89PNG")
    rows = run.rows()
    assert [row["step"] for row in rows] == list(range(1, 9))
    expected = {"epoch", "images", "lr", "train/loss", "images_per_second", "data_wait", "train/gradient_norm"}
    assert expected <= set(rows[0])
    assert 0 < result["data_wait"] < 0.9
    assert [row["step"] for row in rows if "val/accuracy" in row] == [4, 8]
    assert rows[-1]["training_flops"] == result["training_flops"] == 8 * rows[0]["training_flops"]
    assert 2.9 < result["training_flops"] / (result["flops_per_image"] * rows[-1]["images"]) < 3
    assert rows[-1]["lr"] == 0
    assert not list(run.folder.glob(".*"))


@pytest.mark.slow
def test_the_best_weights_are_those_of_the_best_validation(tmp_path):
    run, result = fit(tmp_path, "fit.steps=60", "optimizer.lr=0.02")
    scored = [row for row in run.rows() if "val/accuracy" in row]
    best = max(scored, key=lambda row: (row["val/accuracy"], -row["val/loss"]))
    assert result["best_step"] == best["step"]
    assert result["val/accuracy"] == best["val/accuracy"]
    assert checkpoint.load(run.best)["step"] == best["step"]


@pytest.mark.slow
def test_the_same_seed_gives_bit_equal_weights_and_another_does_not(tmp_path):
    varied = ["model.drop_path=0.2", "augment=flip_crop", "augment.mixup=0.2", "fit.ema_decay=0.9"]
    one, _ = fit(tmp_path, *varied, name="one")
    two, _ = fit(tmp_path, *varied, "system.workers=2", name="two")
    other, _ = fit(tmp_path, *varied, "seed=1", name="other")
    for key, value in weights(one).items():
        assert torch.equal(value, weights(two)[key]), key
    assert any(not torch.equal(value, weights(other)[key]) for key, value in weights(one).items())


def test_accumulating_two_halves_is_one_whole_batch(tmp_path):
    plain = ["model.dropout=0", "fit.clip=null", "optimizer=sgd"]
    whole, _ = fit(tmp_path, *plain, name="whole")
    halves, _ = fit(tmp_path, *plain, "fit.accumulate=2", name="halves")
    torch.testing.assert_close(weights(whole), weights(halves), atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    varied = ["model.drop_path=0.2", "augment.mixup=0.2", "fit.ema_decay=0.9", "fit.steps=12"]
    whole, expected = fit(tmp_path, *varied, name="whole")

    class Asked(Signals):
        """A signal that comes in the sixth step."""

        count = 0

        @property
        def received(self):
            self.count += 1
            return signal.SIGTERM if self.count > 6 else 0

        @received.setter
        def received(self, _):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(loop, "Signals", Asked)
        with pytest.raises(Interrupted, match=r"stopped at step \d+ of 12"):
            fit(tmp_path, *varied, name="cut")
    run = Run(tmp_path / "cut")
    assert run.result()["status"] == "interrupted"
    run.metrics.write_text(run.metrics.read_text() + '{"step": 11, "lost": tr')  # what a crash leaves
    cut, result = fit(tmp_path, *varied, name="cut")
    for key, value in weights(whole).items():
        assert torch.equal(value, weights(cut)[key]), key
    assert [row["step"] for row in cut.rows()] == list(range(1, 13))
    assert result["test/loss"] == expected["test/loss"]


def test_a_signal_saves_and_leaves(tmp_path):
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Interrupted) as left:
        fit(tmp_path, "fit.steps=100000", "system.log_every=1000")
    assert left.value.signal == signal.SIGTERM
    run = Run(tmp_path / "run")
    assert run.result()["status"] == "interrupted"
    assert checkpoint.load(run.last)["step"] > 0
    assert not run.rows() or run.rows()[-1]["step"] <= checkpoint.load(run.last)["step"]


def test_one_batch_can_be_learned_by_heart(tmp_path):
    run, _ = fit(
        tmp_path,
        "fit=overfit",
        "fit.batch_size=8",
        "fit.precision=fp32",
        "model.dropout=0",
        "fit.steps=120",
        "fit.evaluate_every=1000",
    )
    rows = run.rows()
    assert rows[-1]["train/accuracy"] == 1.0
    assert rows[-1]["train/loss"] < 0.65  # label smoothing leaves 0.5
    assert len([row for row in rows if "val/accuracy" in row]) == 1


def test_early_stopping_waits_its_patience(tmp_path, caplog):
    _, result = fit(tmp_path, "optimizer.lr=1e-12", "optimizer.weight_decay=0", "fit.steps=400", "fit.patience=2")
    assert result["steps"] < 400


def test_a_loss_that_is_no_number_stops_with_the_step_the_rate_and_a_way_out(tmp_path):
    with pytest.raises(NonFinite, match=r"at step \d+ of 40, at a learning rate of .*smaller optimizer.lr"):
        fit(tmp_path, "optimizer=sgd", "optimizer.lr=1e20", "fit.clip=null", "fit.steps=40", "system.log_every=7")
    rows = Run(tmp_path / "run").rows()
    assert all(math.isfinite(row["train/loss"]) for row in rows)


def test_the_average_is_what_is_evaluated_and_kept(tmp_path):
    run, result = fit(tmp_path, "fit.ema_decay=0.5", "optimizer.lr=0.02", "fit.steps=20")
    best, last = checkpoint.load(run.best)["model"], weights(run)
    assert any(not torch.equal(best[key], last[key]) for key in best)
    if result["best_step"] == 20:
        average = checkpoint.load(run.last)["ema"]["average"]
        assert all(any(torch.equal(a, b) for b in best.values()) for a in average)


@pytest.mark.parametrize(
    ("overrides", "peak", "words"),
    [
        ([], 5e-3, "learning rate 0.005 at its peak"),
        (
            ["fit.lr_scaling=linear", "fit.lr_batch_size=32"],
            2.5e-3,
            "learning rate 0.0025 at its peak: 0.005 x 0.5, linear in the batch, 16 / 32",
        ),
        (["fit.lr_scaling=sqrt", "fit.lr_batch_size=64"], 2.5e-3, "0.005 x 0.5, sqrt in the batch, 16 / 64"),
        (["fit.layer_decay=0.5"], 5e-3, "0.000625 in the first layer (fit.layer_decay=0.5)"),
    ],
)
def test_what_became_of_the_learning_rate_is_said(tmp_path, monkeypatch, caplog, overrides, peak, words):
    monkeypatch.setattr(log, "propagate", True)
    with caplog.at_level("INFO", "vitlab"):
        run, _ = fit(tmp_path, *overrides)
    assert words in caplog.text
    assert max(row["lr"] for row in run.rows()) == pytest.approx(peak)


@pytest.mark.parametrize("optimizer", ["schedulefree", "muon"])
def test_the_kept_weights_are_those_that_were_judged(tmp_path, optimizer):
    from vitlab.evaluation.reevaluate import evaluate

    run, result = fit(tmp_path, f"optimizer={optimizer}", "optimizer.lr=0.02", "fit.steps=20")
    scores, _ = evaluate(run.folder)
    assert scores["val/accuracy"] == result["val/accuracy"]
    assert scores["val/loss"] == result["val/loss"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_train_on_a_cpu_too(tmp_path, precision):
    run, result = fit(tmp_path, f"fit.precision={precision}", "fit.steps=4")
    assert result["precision"] == precision
    assert all(value.dtype == torch.float32 for value in weights(run).values())


def test_automatic_precision_is_bf16_where_it_is_native(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert resolve("auto", cpu) == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "avx2": True})
    assert resolve("auto", cpu) == "fp32"
    assert resolve("bf16", cpu) == "bf16"


def test_images_lie_on_the_gpu_where_they_fit_and_are_used_there(monkeypatch):
    gpu = Distributed(0, 1, torch.device("cuda"))
    free = {"bytes": 1000}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free["bytes"], 0))
    monkeypatch.setattr(Pixels, "to", lambda self, device: device.type)

    def moved(*overrides, dist=gpu):
        parts = assemble(check(compose([*SMALL, *overrides])[0]))
        splits = parts["dataset"].splits()
        found = move_to_gpu(splits, parts["dataset"], parts["augment"], parts["system"], dist)
        assert found == splits or set(found.values()) == {"cuda"}
        return found != splits

    assert not moved()
    with pytest.raises(ValueError, match=r"system.resident=true, but they take 0.0 GB of 0.0 GB that are free"):
        moved("system.resident=true")
    free["bytes"] = 10**9
    assert moved()
    assert moved("system.resident=true")
    assert not moved("system.resident=false")
    assert not moved(dist=ALONE)
    assert not moved("augment=randaugment")
    with pytest.raises(ValueError, match=r"augmented one after the other, which a CPU does"):
        moved("augment=randaugment", "system.resident=true")
    with pytest.raises(ValueError, match=r"system.workers=2 cannot read a GPU's memory"):
        moved("system.workers=2", "system.resident=true")


@pytest.mark.cuda
@pytest.mark.parametrize("augment", ["none", "flip_crop"])
def test_images_on_the_gpu_are_augmented_as_those_in_memory(augment):
    seen = []
    for resident in ("true", "false"):
        node = check(compose([*SMALL, f"augment={augment}", f"system.resident={resident}"])[0])
        setup = prepare(**assemble(node), dist=Distributed(0, 1, torch.device("cuda")))
        assert on_gpu(setup.splits["train"]) == (resident == "true")
        images, labels = train_inputs(setup)(next(train_batches(setup, 3)).to(setup.dist.device))
        seen.append((images.cpu(), labels.cpu()))
    for one, two in zip(*seen, strict=True):
        assert torch.equal(one, two)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecates
@pytest.mark.parametrize("way", ["true", "graphs"])
def test_a_compiled_training_on_cuda_is_the_plain_one(tmp_path, way):
    dist = Distributed(0, 1, torch.device("cuda"))
    plain, _ = fit(tmp_path, name="plain", dist=dist)
    compiled, _ = fit(tmp_path, f"system.compile={way}", name="compiled", dist=dist)
    for one, two in zip(weights(plain).values(), weights(compiled).values(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)


def test_durations_are_epochs_steps_or_images():
    def total(*overrides):
        return assemble(check(compose(["fit.batch_size=16", *overrides])[0]))["fit"].total(100)

    assert total("fit.epochs=2") == 13
    assert total("fit.epochs=0.5") == 4
    assert total("fit.steps=9") == 9
    assert total("fit.images=170") == 11


def test_a_trace_of_the_first_steps_is_written_when_asked_for(tmp_path):
    run, _ = fit(tmp_path, "system.profile_steps=2", "fit.steps=4")
    assert json.loads((run.folder / "trace.json").read_text())["traceEvents"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["fit.batch_size=61"], "there are 60 training images"),
        (["fit.accumulate=3"], "use a multiple of 3"),
        (["schedule.warmup_steps=8"], "the training has 8"),
        (["patch=p4", "model.heads=3"], "heads=3 does not divide"),
        (["patch=p7"], "patch=7 does not divide image_size=8x8: use one of 1, 2, 4, 8"),
        (["model.width=12", "model.heads=6", "model/position=rope"], "RoPE"),
        (["fit.steps=0"], "fit.steps=0"),
        (["fit.ema_decay=1.0"], "fit.ema_decay=1.0"),
        (["fit.clip=-1"], "fit.clip=-1.0"),
        (["fit.patience=0"], "fit.patience=0"),
        (["dataset=mnist", "dataset.root=nowhere"], "mnist's train-images-idx3-ubyte.* is not there"),
        (["dataset.train_examples=5"], "there are 5 training images"),
        (["system.device=cuda:9"], "torch sees"),
        (["system.device=gpu"], "no such device"),
        (["system.workers=-1"], "system.workers=-1"),
        (["system.workers=100000"], "must be at most 1,024"),
        (["dataset.split_seed=-1"], "dataset.split_seed=-1"),
        (["optimizer.lr=-1"], "optimizer.lr=-1.0: must be from 0 to 1e.30: leave it out, or give such a value"),
        (["fit.layer_decay=0"], "fit.layer_decay=0.0"),
        (["fit.lr_batch_size=0"], "fit.lr_batch_size=0"),
        (["augment.repeats=0"], "augment.repeats=0"),
        (["augment=randaugment", "augment.color_jitter=0.4"], "the policy changes colours itself"),
        (["augment.auto_augment=rand-q"], "augment.auto_augment"),
        (["augment=randaugment", "augment.batched=true"], "augment.auto_augment=rand-m9.* is for one image"),
        (["system.compile=graphs"], "CUDA graphs need a GPU"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path, overrides, sentence):
    with pytest.raises((ValueError, OSError), match=sentence):
        fit(tmp_path / "new", *overrides)
    assert not (tmp_path / "new").exists()


def test_evaluating_again_gives_the_same_accuracy_to_the_last_digit(tmp_path):
    run, result = fit(tmp_path, "fit.steps=30", "optimizer.lr=0.02")
    from vitlab.evaluation.reevaluate import evaluate

    scores, before = evaluate(run.folder)
    assert {key: before[key] for key in scores} == scores
    assert before == result


def test_a_loaded_run_has_its_classes_and_its_preprocessing(tmp_path):
    run, _ = fit(tmp_path)
    model = vitlab.load(run.folder)
    assert model.classes == tuple("0123456789")
    assert not model.training
    data = assemble(check(compose([])[0]))["dataset"]
    test = data.splits()["test"]
    batch = torch.stack([model.preprocess(test.image(i)) for i in range(5)])
    assert batch.shape == (5, 1, 8, 8)
    torch.testing.assert_close(batch, Normalize(data.mean, data.std)(test.pixels[:5]))
    with torch.no_grad():
        assert model(batch).shape == (5, 10)


class Evil:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def test_loading_never_runs_code_from_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, _ = fit(tmp_path)
    good = run.config.read_text()
    for text in (
        good.replace("vitlab.model.vit.ViT", "os.system"),
        good.replace("vitlab.model.mlp.Mlp", "subprocess.Popen"),
        good.replace("_target_: vitlab.model.pool.Cls", "_target_: vitlab.cli.run.run"),
        "!!python/object/apply:os.system ['touch hacked']",
        "model: &x [*x]",
        "just words",
        "",
    ):
        run.config.write_text(text)
        with pytest.raises(ValueError, match=r"refused|cannot be read|not the config"):
            vitlab.load(run.folder)
    run.config.write_text(good)
    torch.save({"model": {}, "facts": Evil()}, run.best)
    with pytest.raises(ValueError, match="not a checkpoint that can be read safely"):
        vitlab.load(run.folder)
    run.best.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="not a checkpoint that can be read safely"):
        vitlab.load(run.folder)
    assert not (tmp_path / "hacked").exists()


def test_a_run_is_found_by_what_identifies_it_whatever_it_is_called(tmp_path):
    (tmp_path / "other-name-0123abcd").mkdir()
    assert find(tmp_path, "digits-micro-0123abcd").folder.name == "other-name-0123abcd"
    assert find(tmp_path, "digits-micro-99999999").folder.name == "digits-micro-99999999"


def test_a_checkpoint_is_whole_or_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    checkpoint.save(path, {"a": torch.ones(3)})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, {"a": torch.zeros(3)})
    assert torch.equal(checkpoint.load(path)["a"], torch.ones(3))
    assert [f.name for f in tmp_path.iterdir()] == ["x.pt"]


def test_alone_the_world_is_one_process():
    system = assemble(check(compose([])[0]))["system"]
    with join_processes(system) as dist:
        assert (dist.rank, dist.size) == (0, 1)
        assert dist.all_reduce_sum(torch.ones(2)).tolist() == [1, 1]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_a_training_on_a_gpu(tmp_path, precision, accelerator):
    words = (f"fit.precision={precision}", "fit.steps=30", f"system.device={accelerator.type}")
    _, result = fit(tmp_path, *words, dist=Distributed(0, 1, accelerator))
    assert math.isfinite(result["test/loss"])


def test_a_metric_that_an_objective_names_is_summed_logged_and_resumed(tmp_path, monkeypatch):
    """A training metric is one line where it is computed; checkpoints from before it still resume."""
    from vitlab.model.objective import Classify

    plain = Classify.losses

    def losses(self, outputs, targets, loss):
        mean, metrics = plain(self, outputs, targets, loss)
        return mean, metrics | {"confidence": outputs.detach().softmax(dim=-1).amax(dim=-1).double()}

    words = ["system.log_every=3", "fit.evaluate_every=100", "fit.steps=9"]
    whole, _ = fit(tmp_path, *words, name="whole")
    with monkeypatch.context() as patch:
        patch.setattr(
            loop, "Signals", type("Soon", (Signals,), {"received": property(lambda self: 15, lambda self, _: None)})
        )
        with pytest.raises(Interrupted):
            fit(tmp_path, *words, name="cut")
    monkeypatch.setattr(Classify, "losses", losses)
    cut, _ = fit(tmp_path, *words, name="cut")
    first, *rows = cut.rows()
    assert all(0.1 <= row["train/confidence"] <= 1 for row in rows)
    for one, two in zip(rows, whole.rows()[1:], strict=True):
        assert one["train/loss"] == two["train/loss"]
        assert one["train/accuracy"] == two["train/accuracy"]
    assert first["train/confidence"] > 0  # of the steps since the resume
