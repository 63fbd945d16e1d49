"""Labels in CSV files beside flat images."""

import re

import pytest

from tests.data.datasets.test_image_folder import images_below, write
from tests.data.test_dataset import FOLDER
from vitlab.__main__ import main
from vitlab.config.errors import DataError, DatasetMissing
from vitlab.data.dataset import for_evaluation
from vitlab.data.datasets.image_csv import ImageCsv

CSV = FOLDER | {"image_size": 8, "verify": False, "image_column": None, "label_column": None}
IDS = [f"im{i:02d}" for i in range(12)]


def labels(ids, header="id,label", suffix="", separator=",", names=("cat", "dog")):
    rows = [f"{name}{suffix},{names[i % len(names)]}" for i, name in enumerate(ids)]
    return "\n".join([header] * bool(header) + rows).replace(",", separator) + "\n"


def image_csv(root, layout, files, **options):
    write(root, layout)
    for name, text in files.items():
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return ImageCsv(**(CSV | {"root": str(root)} | options))


READ = {  # a layout, CSV files, options, and how many images have a label, and are in test
    "Kaggle": ("train:12, test:5", {"train.csv": labels(IDS, suffix=".png")}, {}, 12, None),
    "without suffixes": ("train:12, test:12", {"train.csv": labels(IDS)}, {}, 12, None),
    "with paths": (
        "a/train:12, test:12",
        {"train.csv": labels(IDS, suffix=".png").replace("im", "a/train/im")},
        {},
        12,
        None,
    ),
    "with another root's paths": (
        "pics:12",
        {"x.csv": labels(IDS, suffix=".png").replace("im", "/home/me/pics/im")},
        {},
        12,
        None,
    ),
    "with Windows' paths": ("pics:12", {"x.csv": labels(IDS).replace("im", "pics\\im")}, {}, 12, None),
    "in the root": (".:12", {"labels.csv": labels(IDS)}, {}, 12, None),
    "an unlabelled test": ("train:12, test:5", {"train.csv": labels(IDS), "test.csv": "id\nim00\n"}, {}, 12, None),
    "a sample submission": (
        "train:12, test:5",
        {"labels.csv": labels(IDS), "sample_submission.csv": labels(IDS)},
        {},
        12,
        None,
    ),
    "a labelled test": ("train:12, test:5", {"train.csv": labels(IDS), "test.csv": labels(IDS[:5])}, {}, 17, 5),
    "a test left out": (
        "train:12, test:5",
        {"train.csv": labels(IDS), "test.csv": labels(IDS[:5])},
        {"test": None},
        12,
        None,
    ),
    "semicolons": ("train:12", {"train.csv": labels(IDS, separator=";")}, {}, 12, None),
    "tabs": ("train:12", {"train.tsv": labels(IDS, separator="\t")}, {}, 12, None),
    "a byte-order mark": ("train:12", {"train.csv": b"\xef\xbb\xbf" + labels(IDS).encode()}, {}, 12, None),
    "Windows' line ends": ("train:12", {"train.csv": labels(IDS).replace("\n", "\r\n")}, {}, 12, None),
    "spaces": ("train:12", {"train.csv": labels(IDS).replace(",cat", ", cat ").replace("im", " im")}, {}, 12, None),
    "no header": ("train:12", {"train.csv": labels(IDS, header="")}, {}, 12, None),
    "the columns turned": (
        "train:12",
        {"train.csv": "\n".join(",".join(row.split(",")[::-1]) for row in labels(IDS).split())},
        {},
        12,
        None,
    ),
    "an index": (
        "train:12",
        {"train.csv": "\n".join(f"{i}," * (i > 0) + "," * (i == 0) + row for i, row in enumerate(labels(IDS).split()))},
        {},
        12,
        None,
    ),
    "other columns": (
        "train:12",
        {
            "train.csv": labels(IDS, "id,label")
            .replace(",cat", ",cat,7")
            .replace(",dog", ",dog,9")
            .replace("label", "label,age")
        },
        {},
        12,
        None,
    ),
    "columns by name": (
        "train:12",
        {
            "train.csv": labels(IDS, "id,kind")
            .replace(",cat", ",cat,7")
            .replace(",dog", ",dog,9")
            .replace("kind", "kind,age")
        },
        {"label_column": "kind", "image_column": "id"},
        12,
        None,
    ),
    "a file by name": ("train:12", {"a.csv": labels(IDS), "b.csv": labels(IDS)}, {"train": "b.csv"}, 12, None),
    "rows twice": ("train:12", {"train.csv": labels(IDS) + "im00,cat\n"}, {}, 12, None),
    "rows without a file": ("train:12", {"train.csv": labels([*IDS, "gone"])}, {}, 12, None),
    "files without a row": ("train:12", {"train.csv": labels(IDS[:10])}, {}, 10, None),
    "rows without a label": ("train:12", {"train.csv": labels(IDS[:11]) + "im11,\n"}, {}, 11, None),
}


@pytest.mark.parametrize("case", READ)
def test_every_image_has_its_label_of_the_csv_or_is_said_to_have_none(tmp_path, case):
    layout, files, options, count, test = READ[case]
    dataset = image_csv(tmp_path / "root", layout, files, **options)
    assert dataset.classes == ("cat", "dog")
    parts = dataset.splits()
    assert sum(map(len, parts.values())) == count
    assert test is None or len(parts["test"]) == test
    for part in parts.values():
        for path, label in zip(part.paths, part.labels, strict=True):
            assert label == int(path.stem[-2:]) % 2
    missing = sum(n for (kind, _), n in dataset.passed.items() if kind == "unlabelled")
    assert count + missing == len(images_below(tmp_path / "root"))


def numbered(root, names):
    for name in names:
        write(root, f"train/{name}.png")


def test_numbers_are_names_with_or_without_their_zeros(tmp_path):
    names = [f"{i:04d}" for i in range(1, 13)]
    numbered(tmp_path / "root", names)
    text = labels([str(int(name)) for name in names], names=("2", "10"))
    dataset = image_csv(tmp_path / "root", "notes.txt", {"train.csv": text})
    assert dataset.classes == ("2", "10")
    assert {path.stem: label for path, label in dataset.samples["train"]} == {
        name: i % 2 for i, name in enumerate(names)
    }


def test_a_number_that_is_a_name_comes_before_one_without_zeros(tmp_path):
    numbered(tmp_path / "root", [*(f"{i}" for i in range(12)), "0001", "01"])
    dataset = image_csv(tmp_path / "root", "notes.txt", {"train.csv": labels(map(str, range(12)))})
    assert {path.stem for path, _ in dataset.samples["train"]} == {str(i) for i in range(12)}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"train.csv": labels([*IDS[:10], "gone", "lost"])},
            r"2 rows without an image or a label \(gone, lost\), 2 im.*\(train\)",
        ),
        (
            {"train.csv": labels(IDS[:11]) + "im11,\n"},
            r"1 row without an image or a label \(im11 has no label\), 1 image wi",
        ),
        ({"train.csv": labels(IDS), "test.csv": "id\nim00\n"}, r"^test\.csv has no labels"),
        (
            {"train.csv": labels(IDS[:8]), "val.csv": labels(IDS[8::2], names=("cat",))},
            "the validation images have none of dog",
        ),
    ],
)
def test_rows_and_images_that_do_not_go_together_are_counted(tmp_path, files, said):
    assert re.search(said, image_csv(tmp_path / "root", "train:12", files).passed_over)


@pytest.mark.parametrize(
    ("files", "options", "sentence"),
    [
        ({}, {}, r"no CSV of training images \(none at all\)"),
        ({"a.csv": labels(IDS), "b.csv": labels(IDS)}, {}, r"a\.csv and b\.csv.*dataset\.train=a\.csv"),
        ({"a.csv": labels(IDS)}, {"train": "c.csv"}, r"dataset\.train=c\.csv: there is no file"),
        ({"a.csv": labels(IDS)}, {"label_column": "kind"}, r"dataset\.label_column=kind: .*no such column.* id, label"),
        ({"a.csv": labels(IDS)}, {"image_column": "file"}, r"dataset\.image_column=file: .*no such column.* id, label"),
        (
            {"a.csv": labels(IDS).replace("im", "no")},
            {},
            r"no column names the images .*im\d\d\.png.*columns are id, label",
        ),
        ({"a.csv": "id\nim00\n"}, {}, r"which column holds the labels"),
        (
            {"a.csv": labels(IDS).replace("label", "a,b").replace("cat", "1,2").replace("dog", "3,4")},
            {},
            r"dataset\.label_column=a or another of a, b",
        ),
        ({"a.csv": labels(IDS, names=("cat",))}, {}, r"has 1 class \(cat\): a classifier needs at least 2"),
        ({"a.csv": labels(IDS) + "im00,dog\n"}, {}, r"im00 has two labels, cat and dog"),
        (
            {
                "a.csv": labels(IDS)
                .replace("cat", "train")
                .replace("dog", "test")
                .replace("label", "x,set")
                .replace(",t", ",1,t")
            },
            {},
            r"the column set names splits \(test, train\)",
        ),
        (
            {"train.csv": labels(IDS), "val.csv": labels(IDS[:4], names=("cat", "cow"))},
            {},
            r"1 of them not among the 2 .*: cow.*dataset\.validation=null",
        ),
        ({"train.csv": labels(IDS), "val.csv": labels(IDS[:4])}, {}, r"4 images are in two CSV files"),
        ({"train.csv": labels(IDS).encode("utf-16")}, {}, r"no CSV in UTF-8"),
        ({"train.csv": ""}, {}, r"train\.csv is empty"),
        (
            {"train.csv": labels(IDS), "test.csv": "id\nim00\n"},
            {"test": "test.csv"},
            r"test\.csv: which column holds the labels",
        ),
    ],
)
def test_what_is_not_clear_is_refused_with_the_candidates(tmp_path, files, options, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        image_csv(tmp_path / "root", "train:12", files, **options)
    assert "\n" not in str(caught.value)


def test_the_class_folders_page_names_it_and_vitlab_data_reads_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image_csv(tmp_path / "My data", "train:12, test:5", {"train.csv": labels(IDS)})
    words = ["dataset.image_size=8", "patch=p4", "fit.batch_size=4", "dataset.root=My data"]
    assert main(["data", "dataset=image_folder", *words]) == 2
    assert "use dataset=image_csv 'dataset.root=My data'" in capsys.readouterr().err
    assert main(["data", "dataset=image_csv", *words]) == 0
    said = capsys.readouterr().out
    assert "passed over 5 images without a label (test)" in said
    assert "2 classes" in said


def test_a_name_of_several_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="several images are called im0"):
        image_csv(tmp_path / "root", "a:12, b:12", {"x.csv": labels(IDS)})
    with pytest.raises(DatasetMissing, match=r"dataset\.root=PATH"):
        ImageCsv(**(CSV | {"root": str(tmp_path / "gone")}))


def test_an_evaluation_needs_no_csv_of_training_images(tmp_path):
    with for_evaluation():
        dataset = image_csv(tmp_path, ".:12", {"test.csv": labels(IDS, names=("cat",))})
    assert dataset.classes == ("cat",)
    assert {split: len(part) for split, part in dataset.splits().items()} == {"test": 12, "all": 12}


def test_its_fingerprint_is_of_labels_and_files_and_opens_none(tmp_path):
    dataset = image_csv(tmp_path, ".:12", {"train.csv": labels(IDS)}, verify=True)
    before = dataset.fingerprint()
    assert before["splits"]["train"]["images"] == {"cat": 6, "dog": 6}
    for file in tmp_path.glob("*.png"):
        file.write_bytes(b"x" * file.stat().st_size)
    assert dataset.fingerprint() == before
    (tmp_path / "train.csv").write_text(labels(IDS, names=("dog", "cat")))
    assert ImageCsv(**(CSV | {"root": str(tmp_path)})).fingerprint()["hash"] != before["hash"]
