"""A split in every form: the same rows, an identity of its bytes, and one sentence for each thing that is wrong."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from calibration_data import splits
from calibration_data.columns import read_columns, split_revision
from calibration_data.forms import read_split
from calibration_data.reader import Rows, load_split
from calibration_data.splits import DatasetRef, find_split, list_splits
from registry.errors import BadInput
from tasks.model_tasks.texts.text_classification import TEXT_CLASSIFICATION

COLUMNS = (("text", "text"), ("label", "label"))
# What a form could lose: separators, quotes, line ends, other alphabets, and texts that look like something else.
TEXTS = [
    "plain",
    'a, "quoted"\tone',
    "two\nlines",
    "two\r\nlines of Windows",
    "Größe 中文 😀",
    "null",
    "nan",
    "2026-11-26",
    " space ",
    "1",
    "1e5",
    "a\u2028b",
]
LABELS = [row % 2 for row in range(len(TEXTS))]


def frame() -> pd.DataFrame:
    return pd.DataFrame({"text": TEXTS, "label": LABELS, "note": "x"})


def save_with_missing_label(folder: Path) -> None:
    """pandas makes floats of integers where one is missing."""
    missing = pd.DataFrame({"text": ["unlabelled"], "label": [None], "note": ["x"]})
    pd.concat([frame().astype({"label": float}), missing]).to_csv(folder / "train.csv", index=False)


FORMS: dict[str, Callable[[Path], object]] = {
    "train.parquet": lambda folder: frame().to_parquet(folder / "train.parquet"),
    "train.csv": lambda folder: frame().to_csv(folder / "train.csv", index=False),
    "train.csv of Excel": lambda folder: frame().to_csv(
        folder / "train.csv", index=False, encoding="utf-8-sig", lineterminator="\r\n"
    ),
    "train.csv with a missing label": save_with_missing_label,
    "train.tsv": lambda folder: frame().to_csv(folder / "train.tsv", index=False, sep="\t"),
    "train.jsonl": lambda folder: frame().to_json(
        folder / "train.jsonl", orient="records", lines=True, force_ascii=False
    ),
    "train.json of lines": lambda folder: frame().to_json(folder / "train.json", orient="records", lines=True),
    "train.json": lambda folder: frame().to_json(folder / "train.json", orient="records", indent=1),
    "train/": lambda folder: Dataset.from_pandas(frame()).save_to_disk(folder / "train"),
    "dataset_dict.json": lambda folder: DatasetDict(train=Dataset.from_pandas(frame())).save_to_disk(folder),
}


@pytest.fixture(autouse=True)
def _one_progress_bar_less() -> None:
    import datasets

    datasets.disable_progress_bars()


def load(folder: Path) -> Rows:
    return load_split(DatasetRef(str(folder), COLUMNS), TEXT_CLASSIFICATION, "train")


def revision(folder: Path) -> str:
    return split_revision(DatasetRef(str(folder), COLUMNS), "train")


def write_images(folder: Path, split: str = "train") -> None:
    """Two classes with two images each, one of them of another kind of file."""
    for name in ("dog", "cat"):
        (folder / split / name).mkdir(parents=True)
        for number, suffix in enumerate((".png", ".JPG")):
            (folder / split / name / f"{number}{suffix}").write_bytes(f"{name} {number}".encode())


@pytest.mark.parametrize("form", FORMS)
def test_the_same_rows_have_the_same_digest_in_every_form(form: str, tmp_path: Path) -> None:
    (tmp_path / "parquet").mkdir()
    FORMS["train.parquet"](tmp_path / "parquet")
    (tmp_path / "other").mkdir()
    FORMS[form](tmp_path / "other")
    expected, rows = load(tmp_path / "parquet"), load(tmp_path / "other")
    assert rows.inputs == tuple(TEXTS)
    assert rows.targets == tuple(LABELS)
    assert rows.digest == expected.digest
    assert list_splits(tmp_path / "other") == ("train",)


@pytest.mark.parametrize("form", FORMS)
def test_reading_writes_neither_beside_the_rows_nor_into_a_cache(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows").mkdir()
    FORMS[form](tmp_path / "rows")
    before = sorted(tmp_path.rglob("*"))
    load(tmp_path / "rows")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("form", ["train.csv", "train.jsonl", "train/"])
def test_rows_replaced_in_place_are_read_anew_and_have_another_revision(form: str, tmp_path: Path) -> None:
    FORMS[form](tmp_path)
    first = revision(tmp_path)
    file = next(tmp_path.glob("train/*.arrow"), tmp_path / form)
    file.write_bytes(file.read_bytes().replace(b"plain", b"pl4in"))
    os.utime(file, (0, 0))
    assert load(tmp_path).inputs[0] == "pl4in"
    assert revision(tmp_path) != first


def test_class_folders_give_files_and_the_names_of_their_folders(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "train" / ".DS_Store").write_bytes(b"x")
    table = read_split(find_split(tmp_path, "train"))
    assert table.features["label"] == ClassLabel(names=["cat", "dog"])
    assert list(table["label"]) == [0, 0, 1, 1]
    assert table["image"][1] == {"bytes": b"cat 1", "path": "cat/1.JPG"}
    assert [column.name for column in read_columns(find_split(tmp_path, "train"), 1)] == ["image", "label"]


def test_class_folders_of_sounds_give_audio(tmp_path: Path) -> None:
    for name in ("no", "yes"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "a.wav").write_bytes(name.encode())
    table = read_split(find_split(tmp_path, "train"))
    assert [sound["bytes"] for sound in table["audio"]] == [b"no", b"yes"]


def test_images_of_a_saved_dataset_are_bytes_as_those_of_class_folders(tmp_path: Path) -> None:
    write_images(tmp_path / "folders")
    table = read_split(find_split(tmp_path / "folders", "train"))
    table.save_to_disk(tmp_path / "saved" / "train")
    saved = read_split(find_split(tmp_path / "saved", "train"))
    assert saved.features == table.features
    assert [image["bytes"] for image in saved["image"]] == [image["bytes"] for image in table["image"]]


def test_the_revision_of_class_folders_is_their_names_and_bytes_and_not_their_place(tmp_path: Path) -> None:
    write_images(tmp_path / "one")
    write_images(tmp_path / "two")
    first = revision(tmp_path / "one")
    assert first == revision(tmp_path / "two")
    (tmp_path / "two" / "train" / "cat" / "0.png").write_bytes(b"cat 9")
    assert first != revision(tmp_path / "two")
    (tmp_path / "one" / "train" / "cat").rename(tmp_path / "one" / "train" / "cow")
    assert first != revision(tmp_path / "one")


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ("train.csv", "train.parquet", "train.csv and train.parquet"),
        ("train.json", "train.jsonl", "train.json and train.jsonl"),
        ("train.tsv", "train/", "train.tsv and train/"),
    ],
)
def test_two_forms_of_a_split_are_refused_by_their_names(first: str, second: str, names: str, tmp_path: Path) -> None:
    FORMS[first](tmp_path)
    FORMS[second](tmp_path)
    for read in (load, revision):
        with pytest.raises(BadInput, match=f"the split 'train' twice, as {names}: keep one of them"):
            read(tmp_path)


@pytest.mark.parametrize("form", ["train.csv", "train.tsv", "train.jsonl", "train.json", "train/"])
def test_a_wrong_column_is_answered_with_those_there_are(form: str, tmp_path: Path) -> None:
    FORMS[form](tmp_path)
    ref = DatasetRef(str(tmp_path), (("text", "sentence"), ("label", "label")))
    with pytest.raises(BadInput, match="has no column sentence: it has text, label, note"):
        load_split(ref, TEXT_CLASSIFICATION, "train")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.csv", "text,label\nGröße,1\n".encode("latin-1"), "train.csv is not UTF-8"),
        ("train.csv", "text,label\na,1\n".encode("utf-16"), "train.csv is not UTF-8"),
        ("train.jsonl", '{"text": "Größe"}\n'.encode("latin-1"), "train.jsonl is not UTF-8"),
        ("train.csv", b"text,label\na,1\nb\n", "train.csv is torn at line 3: it has 1 fields, and the header 2"),
        ("train.csv", b"text,label\na,1\nb,c,0\n", "train.csv is torn at line 3: it has 3 fields, and the header 2"),
        ("train.csv", b'text,label\n"a,1\nb,0\n', "train.csv is torn near line 3 .*double those within"),
        ("train.tsv", b'text\tlabel\n"a" b\t1\n', "train.tsv is torn near line 2"),
        ("train.csv", b"text,text\na,1\n", "train.csv has two columns named 'text'"),
        ("train.csv", b"\n\n", "has no column text, label"),
        ("train.csv", b"\n\ntext,label\n\n", "gives 0 usable rows"),
        ("train.jsonl", b'{"text": "a", "label": 1}\n[1]\n', "train.jsonl line 2 is no JSON object"),
        ("train.jsonl", b'{"text": "a", "label": 1}\n\n{"text": "b"', "train.jsonl line 3 is no JSON object"),
        ("train.json", b'[{"text": "a", "label": 1}, 2]', "train.json entry 1 is no JSON object"),
        ("train.json", b'[{"text": "a", "label": 1}', "train.json is a torn JSON array"),
        ("train.json", b'[{"text": "a", "label": 1} {}]', "train.json is a torn JSON array"),
        ("train.json", b'[{"text": "a", "label": 1}] x', "train.json is a torn JSON array"),
        ("train.json", b'{\n "rows": []\n}', "train.json line 1 is no JSON object"),
        ("train.json", b"[]", "train.json is empty"),
        ("train.jsonl", b"\n\n", "train.jsonl is empty"),
        ("train.csv", b"text,label\na,nan\nb,1\n", None),
        (
            "train.jsonl",
            b'{"text": "a", "label": NaN}\n{"text": "b", "label": 1}',
            "the label is float nan: give a whole",
        ),
        ("train.jsonl", b'{"text": "a", "label": "x"}\n{"text": "b", "label": 1}', "the dataset cannot be read"),
        *((f"train{suffix}", b"", f"train{suffix} is empty") for suffix in splits.FILE_FORMS),
    ],
)
def test_a_broken_file_is_one_sentence(name: str, content: bytes, words: str | None, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    if words is None:  # a class may be called nan: the model's classes decide
        assert load(tmp_path).targets == ("nan", 1)
        return
    with pytest.raises(BadInput, match=words) as refusal:
        load(tmp_path)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("form", [*FORMS, "images"])
def test_the_limits_hold_for_every_form(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    {**FORMS, "images": write_images}[form](tmp_path)
    monkeypatch.setattr(splits, "MOST_ROWS", 3)
    with pytest.raises(BadInput, match=r"train.* has more than 3 rows: make a smaller split"):
        load(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(splits, "MOST_BYTES", 5)
    with pytest.raises(BadInput, match=r"train.* holds \d+ bytes, more than 5: make a smaller split"):
        revision(tmp_path)


@pytest.mark.parametrize("suffix", splits.FILE_FORMS)
def test_a_file_of_5_gb_is_refused_before_a_byte_is_read(suffix: str, tmp_path: Path) -> None:
    with (tmp_path / f"train{suffix}").open("wb") as file:
        file.truncate(5 * 10**9)  # takes no disk
    for read in (load, revision):
        with pytest.raises(BadInput, match="holds 5000000000 bytes, more than 4000000000"):
            read(tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    rows, outside = tmp_path / "rows", tmp_path / "outside"
    rows.mkdir()
    outside.mkdir()
    FORMS["train.csv"](outside)
    (rows / "train.csv").symlink_to(outside / "train.csv")
    with pytest.raises(BadInput, match=r"train.csv is a link out of .*rows: replace it by a copy"):
        revision(rows)
    (rows / "train.csv").unlink()
    write_images(outside)
    write_images(rows)
    (rows / "train" / "cow").symlink_to(outside / "train" / "cat")
    with pytest.raises(BadInput, match="cow is a link out of"):
        load(rows)
    (rows / "train" / "cow").unlink()
    (rows / "train" / "cat" / "2.png").symlink_to(outside / "train" / "cat" / "0.png")
    with pytest.raises(BadInput, match=r"2.png is a link out of"):
        load(rows)


def test_a_saved_dataset_names_no_file_outside_of_it(tmp_path: Path) -> None:
    FORMS["train/"](tmp_path)
    (arrow,) = (tmp_path / "train").glob("*.arrow")
    arrow.rename(tmp_path / arrow.name)
    state = tmp_path / "train" / "state.json"
    with pytest.raises(BadInput, match=r"train is not a whole dataset, it has no file 'data-00000"):
        load(tmp_path)
    state.write_text(json.dumps({"_data_files": [{"filename": f"../{arrow.name}"}]}), encoding="utf-8")
    with pytest.raises(BadInput, match="train is not a whole dataset"):
        load(tmp_path)
    state.write_text("{}", encoding="utf-8")
    with pytest.raises(BadInput, match=r"state.json is not what save_to_disk writes"):
        load(tmp_path)


def test_a_file_of_another_kind_in_a_class_folder_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(BadInput, match=r"notes.txt does not belong to images in class folders"):
        revision(tmp_path)


def test_a_folder_of_other_things_is_no_split(tmp_path: Path) -> None:
    FORMS["train.csv"](tmp_path)
    (tmp_path / "train" / "shards").mkdir(parents=True)
    assert list_splits(tmp_path) == ("train",)
    assert load(tmp_path).inputs == tuple(TEXTS)


def test_classes_of_a_saved_dataset_keep_their_names(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": TEXTS, "label": LABELS}, features=features).save_to_disk(tmp_path / "train")
    assert load(tmp_path).classes == ("no", "yes")


def write_masked(folder: Path, images: tuple[str, ...], masks: tuple[str, ...]) -> None:
    for kind, names in (("images", images), ("masks", masks)):
        (folder / "train" / kind).mkdir(parents=True)
        for name in names:
            (folder / "train" / kind / name).write_bytes(f"{kind} {name}".encode())


def test_images_are_paired_with_the_masks_of_their_names(tmp_path: Path) -> None:
    write_masked(tmp_path, ("b.jpg", "a.jpg", "c.jpg"), ("a.png", "b.png"))
    table = read_split(find_split(tmp_path, "train"))
    read = [tuple(row[name] and row[name]["bytes"].decode() for name in ("image", "mask")) for row in table]
    assert read == [("images a.jpg", "masks a.png"), ("images b.jpg", "masks b.png"), ("images c.jpg", None)]
    assert [column.name for column in read_columns(find_split(tmp_path, "train"), 1)] == ["image", "mask"]


@pytest.mark.parametrize(
    ("images", "masks", "words"),
    [
        (("a.jpg",), ("a.png", "b.png"), r"masks/b\.png is the mask of no image: name masks as their images"),
        (("a.jpg", "a.png"), ("a.png",), r"images/a\.jpg is not the only file of that name: keep one of them"),
        (("a.jpg",), ("a.txt",), r"a\.txt does not belong to images and masks in two folders"),
    ],
)
def test_masks_and_images_that_cannot_be_paired_are_named(
    images: tuple[str, ...], masks: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    write_masked(tmp_path, images, masks)
    with pytest.raises(BadInput, match=words):
        read_split(find_split(tmp_path, "train"))
