"""The store as a table: what the files of a run say, and no harm from those that say nonsense."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from vitlab.config.moved import added
from vitlab.storage import runs_table
from vitlab.storage.lock import Lock
from vitlab.storage.run import Run, set_aside

CONFIG = {
    "dataset": {"_target_": "vitlab.data.datasets.digits.Digits", "image_size": None},
    "patch": {"size": 2},
    "model": {
        "position": {"_target_": "vitlab.model.position.Learned1d", "_partial_": True, "at": "stem"},
        "_target_": "vitlab.model.vit.ViT",
        "_partial_": True,
        "width": 48,
    },
    "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.005, "betas": [0.9, 0.999]},
    "fit": {"_target_": "vitlab.training.recipe.Fit", "batch_size": 32},
    "seed": 3,
}
RESULT = {
    "status": "finished",
    "test/accuracy": 0.9,
    "steps": 100,
    "flops_per_image": 1000,
    "precision": "fp32",
    "cell": "ce11ce11",
    "seed": 3,
    "extra": {"nested": 1},
}
ENVIRONMENT = {"packages": {"vitlab": "0.1.0", "torch": "2.15.0"}, "git": {"commit": "abc", "dirty": True}}


def make(root, name="digits-micro-p2-s3-757786fc", config=CONFIG, result=RESULT, environment=ENVIRONMENT):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False))
    for file, value in (("result.json", result), ("environment.json", environment)):
        if value is not None:
            (folder / file).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def test_a_run_is_one_line_of_result_configuration_and_code(tmp_path):
    folder = make(tmp_path)
    (folder / "data.json").write_text('{"hash": "0123abcd"}')
    (line,) = runs_table.runs(tmp_path).to_dict("records")
    assert line.pop("written") >= "2020"
    assert np.isnan(line.pop("error"))
    assert line == {
        "run": str(folder),
        "name": folder.name,
        "cell": "ce11ce11",
        "seed": 3,
        "status": "finished",
        "commit": "abc",
        "dirty": True,
        "vitlab": "0.1.0",
        "torch": "2.15.0",
        "data": "0123abcd",
        "code": "{}",
        "images": 3200,
        "training_flops": 3 * 1000 * 3200,
        "test/accuracy": 0.9,
        "steps": 100,
        "flops_per_image": 1000,
        "precision": "fp32",
        "dataset": "digits",
        "dataset.image_size": None,
        "model": "ViT",
        "model.position": "learned_1d",
        "model.position.at": "stem",
        "model.width": 48,
        "model.patch": 2,
        "optimizer": "adamw",
        "optimizer.lr": 0.005,
        "optimizer.betas": "[0.9, 0.999]",
        "fit": "Fit",
        "fit.batch_size": 32,
        **{f"{group}.{key}": of for group in ("dataset", "fit") for key, of in added(group, CONFIG[group]).items()},
    }


def test_null_and_absent_are_not_the_same(tmp_path):
    make(tmp_path, "a-00000000")
    make(tmp_path, "b-00000001", CONFIG | {"dataset": {"_target_": "vitlab.data.datasets.digits.Digits"}})
    null, absent = runs_table.runs(tmp_path)["dataset.image_size"]
    assert null is None
    assert np.isnan(absent)


def test_what_is_no_run_and_what_was_set_aside_is_left_out(tmp_path):
    make(tmp_path, "z-00000000")
    make(tmp_path, "a-00000001")
    make(tmp_path, ".hidden-00000002")
    make(tmp_path, "no-run").joinpath("config.yaml").unlink()
    set_aside(Run(make(tmp_path, "old-00000003")))
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    assert runs_table.runs(tmp_path)["name"].tolist() == ["a-00000001", "z-00000000"]


def test_an_empty_folder_is_a_table_without_lines_and_a_missing_one_is_refused(tmp_path):
    assert {"run", "cell", "seed", "status"} <= set(runs_table.runs(tmp_path).columns)
    assert runs_table.runs(tmp_path).empty
    with pytest.raises(ValueError, match="is not there: train something"):
        runs_table.runs(tmp_path / "nothing")


def test_a_run_says_how_it_stands(tmp_path):
    make(tmp_path, "a", result=None)
    make(tmp_path, "b", result={"status": "pruned"})
    make(tmp_path, "c", result={"status": "failed", "error": "out of memory"})
    folder = make(tmp_path, "d", result={"status": "interrupted"})
    with Lock(folder / "lock"):
        table = runs_table.runs(tmp_path)
    assert table["status"].tolist() == ["interrupted", "pruned", "failed", "running"]
    assert table["error"][2] == "out of memory"
    assert runs_table.runs(tmp_path)["status"][3] == "interrupted"


def test_a_run_that_does_not_know_its_cell_is_told_it(tmp_path):
    from vitlab.config.identity import cell_identity

    make(tmp_path, "old", result={"status": "finished"})
    make(tmp_path, "odd", CONFIG | {"dataset": {"_target_": "os.system"}}, result={"status": "finished"})
    make(tmp_path, "without", {"seed": 1}, result={"status": "finished"})
    table = runs_table.runs(tmp_path).set_index("name")
    assert table["cell"]["old"] == cell_identity(CONFIG)
    assert table["cell"][["odd", "without"]].isna().all()


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    "config",
    [
        "",
        "[1, 2]",
        "a: [",
        "a: !!python/object/apply:os.system ['touch owned']",
        "x: " + "9" * 5000,
        "when: 2020-13-45",
        "? [a, b]\n: 1\n? {c: d}\n: 2",
        BOMB,
        MERGES,
        "x: &x [*x]",
        "[" * 49_999,
        "- " * 49_999,
        "? " * 49_999,
        "- - - - - -\t" * 8_000,
        "x" * 200_000,
        "\n".join(f"k{i}: 1" for i in range(3000)),
    ],
    ids=lambda text: text[:12].strip() + f" {len(text)}",
)
def test_a_damaged_configuration_is_a_line_that_says_so(tmp_path, config):
    make(tmp_path, "a-00000000")
    make(tmp_path, "b-00000001", config)
    table = runs_table.runs(tmp_path)
    assert table["status"].tolist() == ["finished", "damaged"]
    assert "config.yaml" in table["error"][1]
    assert table["cell"].tolist() == ["ce11ce11"] * 2, "result.json knows it still"


def test_bytes_that_are_no_text_and_files_that_never_end_are_damaged(tmp_path):
    (make(tmp_path, "a") / "config.yaml").write_bytes(b"\xff\xfe")
    pipe = make(tmp_path, "b") / "config.yaml"
    pipe.unlink()
    os.mkfifo(pipe)
    (make(tmp_path, "c") / "config.yaml").unlink()
    (tmp_path / "c" / "config.yaml").symlink_to("/dev/zero")
    assert runs_table.runs(tmp_path)["status"].tolist() == ["damaged"] * 3


@pytest.mark.parametrize("result", ["", "[]", "{}", '{"status": 1}', "[" * 50_000, '{"status": ' + "1" * 5000 + "}"])
def test_a_damaged_result_is_a_line_that_says_so(tmp_path, result):
    make(tmp_path, result=result)
    (line,) = runs_table.runs(tmp_path).to_dict("records")
    assert line["status"] == "damaged"
    assert "result.json is damaged" in line["error"]
    assert line["model.width"] == 48


def test_a_result_of_odd_values_harms_its_own_line_alone(tmp_path):
    make(tmp_path, "a")
    odd = {
        "status": "finished",
        "run": "elsewhere",
        "cell": 5,
        "seed": 1e400,
        "steps": "many",
        "flops_per_image": 10**900,
        "test/accuracy": "NaN",
        "model.width": "wide",
        "name": "other",
    }
    make(tmp_path, "b", result=json.dumps(odd), environment="[]")
    make(tmp_path, "c", result=RESULT | {"flops_per_image": 10**30}, environment={"git": 5, "packages": []})
    table = runs_table.runs(tmp_path)
    assert table["name"].tolist() == ["a", "b", "c"]
    assert table["run"][1] == str(tmp_path / "b")
    assert table["model.width"][0] == 48
    assert table["test/accuracy"][0] == 0.9
    assert table["training_flops"][0] == 3 * 1000 * 3200
    assert np.isnan(table["commit"][2])


def test_the_curves_of_a_run_are_its_rows(tmp_path):
    folder = make(tmp_path)
    assert list(runs_table.history(folder).columns) == ["step", "epoch", "images", "seconds"]
    (folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "val/loss": 1.5}\n{"st')
    assert runs_table.history(folder)["step"].tolist() == [1, 2]
    assert runs_table.history(str(folder))["val/loss"].dropna().tolist() == [1.5]
    (folder / "metrics.jsonl").unlink()
    os.mkfifo(folder / "metrics.jsonl")
    with pytest.raises(ValueError, match="no regular file"):
        runs_table.history(folder)


def test_reading_and_comparing_a_store_takes_no_torch(tmp_path):
    make(tmp_path)
    code = f"""
import sys
from vitlab.report import comparison
from vitlab.storage import runs_table
comparison.compare(runs_table.runs({str(tmp_path)!r})).frame()
print([name for name in ("torch", "hydra", "scipy.stats") if name in sys.modules])
"""
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "[]", done.stderr
