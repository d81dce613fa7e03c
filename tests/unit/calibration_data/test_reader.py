"""Splits and draws: unusable rows are counted, draws are repeatable, and no row is on both sides."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value

from calibration_data import splits
from calibration_data.columns import split_revision
from calibration_data.reader import (
    FEWEST_CALIBRATION_ROWS,
    Rows,
    draw_calibration_set,
    load_split,
    read_calibration_inputs,
    refuse_overlap,
)
from calibration_data.splits import DatasetRef
from registry.digest import digest_of
from registry.errors import BadInput
from registry.records import CalibrationSet
from tasks.model_tasks.images.image_classification import IMAGE_CLASSIFICATION
from tasks.model_tasks.images.object_detection import OBJECT_DETECTION
from tasks.model_tasks.inputs.texts import LONGEST_TEXT
from tasks.model_tasks.texts.text_classification import TEXT_CLASSIFICATION
from tests.support.images import draw_image

COLUMNS = (("text", "text"), ("label", "label"))
TEXTS = tuple(f"row {number}" for number in range(100))


@pytest.fixture(autouse=True)
def _one_progress_bar_less() -> None:
    import datasets

    datasets.disable_progress_bars()


def write(
    folder: Path, texts: Sequence[object], labels: Sequence[object] | None = None, split: str = "train"
) -> DatasetRef:
    """A folder with one split; labels are 0 and 1 in turn where none are given."""
    folder.mkdir(parents=True, exist_ok=True)
    given = [row % 2 for row in range(len(texts))] if labels is None else list(labels)
    Dataset.from_dict({"text": list(texts), "label": given}).to_parquet(folder / f"{split}.parquet")
    return DatasetRef(str(folder), COLUMNS)


def test_every_usable_row_is_read_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = load_split(write(tmp_path, TEXTS), TEXT_CLASSIFICATION, "train")
    assert rows.inputs == TEXTS
    assert rows.targets == tuple(row % 2 for row in range(100))
    assert (rows.quarantined, rows.classes) == (0, None)


def test_a_split_of_more_rows_or_bytes_than_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = write(tmp_path, TEXTS)
    monkeypatch.setattr(splits, "MOST_ROWS", 99)
    with pytest.raises(BadInput, match=r"train.parquet has more than 99 rows: make a smaller split"):
        load_split(ref, TEXT_CLASSIFICATION, "train")
    monkeypatch.setattr(splits, "MOST_BYTES", 1000)
    with pytest.raises(BadInput, match=r"train.parquet holds \d+ bytes, more than 1000"):
        load_split(ref, TEXT_CLASSIFICATION, "train")


def test_a_text_that_is_longer_than_any_that_is_read_is_unusable(tmp_path: Path) -> None:
    ref = write(tmp_path, [*TEXTS, "x" * (LONGEST_TEXT + 1)])
    assert load_split(ref, TEXT_CLASSIFICATION, "train").quarantined == 1
    ref = write(tmp_path, ["x" * (LONGEST_TEXT + 1)])
    with pytest.raises(BadInput, match=r"in row 0 the text has 1000001 characters, more than 1000000: cut it"):
        load_split(ref, TEXT_CLASSIFICATION, "train")


def test_a_missing_split_is_refused_with_those_there_are(tmp_path: Path) -> None:
    ref = write(tmp_path, TEXTS)
    with pytest.raises(BadInput, match=r"has no split 'test': it has train; a split is a file test.parquet, .csv"):
        load_split(ref, TEXT_CLASSIFICATION, "test")
    with pytest.raises(BadInput, match="it has no splits"):
        split_revision(replace(ref, origin=str(tmp_path / "nowhere")), "train")


def test_a_missing_column_is_refused_with_those_there_are(tmp_path: Path) -> None:
    ref = replace(write(tmp_path, TEXTS), columns=(("text", "sentence"), ("label", "class")))
    with pytest.raises(BadInput, match="has no column sentence, class: it has text, label"):
        load_split(ref, TEXT_CLASSIFICATION, "train")


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"text,label\n")
    with pytest.raises(BadInput, match="the dataset cannot be read: ArrowInvalid"):
        load_split(DatasetRef(str(tmp_path), COLUMNS), TEXT_CLASSIFICATION, "train")


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        (["", " \n\t", None], [0, 0, 0]),
        (["a", "b", "c"], [-1, -1, None]),
    ],
    ids=["texts", "labels"],
)
def test_empty_rows_and_rows_without_a_label_are_left_out_and_counted(
    tmp_path: Path, texts: list[object], labels: list[object]
) -> None:
    rows = load_split(write(tmp_path, [*TEXTS, *texts], [*([1] * 100), *labels]), TEXT_CLASSIFICATION, "train")
    assert rows.inputs == TEXTS
    assert rows.quarantined == 3


def test_more_than_a_fifth_of_unusable_rows_is_refused(tmp_path: Path) -> None:
    assert load_split(write(tmp_path / "a", [*TEXTS[:80], *[""] * 20]), TEXT_CLASSIFICATION, "train").quarantined == 20
    with pytest.raises(
        BadInput, match=r"21 of 100 rows .* lack a text .*; in row 79 the text is str '': name the column"
    ):
        load_split(write(tmp_path / "b", [*TEXTS[:79], *[""] * 21]), TEXT_CLASSIFICATION, "train")


@pytest.mark.parametrize("column", [list(range(100)), [[text] for text in TEXTS], [0.5] * 100])
def test_a_column_that_is_not_text_is_refused(tmp_path: Path, column: list[object]) -> None:
    with pytest.raises(BadInput, match="100 of 100 rows"):
        load_split(write(tmp_path, column), TEXT_CLASSIFICATION, "train")


def test_labels_that_are_not_whole_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="100 of 100 rows"):
        load_split(write(tmp_path, TEXTS, [0.5] * 100), TEXT_CLASSIFICATION, "train")


def test_too_few_usable_rows_are_refused(tmp_path: Path) -> None:
    ref = write(tmp_path, TEXTS)
    with pytest.raises(BadInput, match="gives 100 usable rows; at least 101 are needed"):
        load_split(ref, TEXT_CLASSIFICATION, "train", fewest=101)
    with pytest.raises(BadInput, match="gives 9 usable rows; at least 10"):
        load_split(ref, TEXT_CLASSIFICATION, "train", samples=9, fewest=10)
    with pytest.raises(BadInput, match="gives 0 usable rows"):
        load_split(write(tmp_path / "empty", []), TEXT_CLASSIFICATION, "train")


def test_a_draw_depends_on_its_seed_alone(tmp_path: Path) -> None:
    here, there = write(tmp_path / "here", TEXTS), write(tmp_path / "there", TEXTS)
    drawn = load_split(here, TEXT_CLASSIFICATION, "train", samples=20, seed=7)
    assert drawn == load_split(there, TEXT_CLASSIFICATION, "train", samples=20, seed=7)
    assert drawn.inputs != load_split(here, TEXT_CLASSIFICATION, "train", samples=20, seed=8).inputs
    assert len(set(drawn.inputs)) == 20
    assert all(label == int(text.split()[1]) % 2 for text, label in zip(drawn.inputs, drawn.targets, strict=True))


def test_a_smaller_draw_is_the_start_of_a_larger_one(tmp_path: Path) -> None:
    ref = write(tmp_path, TEXTS)
    assert (
        load_split(ref, TEXT_CLASSIFICATION, "train", samples=50).inputs[:20]
        == load_split(ref, TEXT_CLASSIFICATION, "train", samples=20).inputs
    )
    assert load_split(ref, TEXT_CLASSIFICATION, "train", samples=1000).inputs == TEXTS


def test_class_names_come_from_the_files_own_schema(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    table = Dataset.from_dict({"text": list(TEXTS), "label": [0, 1] * 50}, features=features)
    table.to_parquet(tmp_path / "train.parquet")
    rows = load_split(DatasetRef(str(tmp_path), COLUMNS), TEXT_CLASSIFICATION, "train")
    assert rows.classes == ("no", "yes")
    assert rows.targets == (0, 1) * 50


def test_a_label_beyond_the_named_classes_is_quarantined(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    file = tmp_path / "train.parquet"
    Dataset.from_dict({"text": list(TEXTS), "label": [0, 1] * 50}, features=features).to_parquet(file)
    table = pyarrow.parquet.read_table(file)  # `datasets` would refuse to write it
    labels = pyarrow.array([2, *[0, 1] * 49, 0], pyarrow.int64())
    pyarrow.parquet.write_table(table.set_column(1, table.schema.field(1), labels), file)
    rows = load_split(DatasetRef(str(tmp_path), COLUMNS), TEXT_CLASSIFICATION, "train")
    assert (rows.quarantined, len(rows.targets)) == (1, 99)


def test_a_file_replaced_in_place_is_read_anew(tmp_path: Path) -> None:
    """Its key changes with its bytes; rows from a cache that goes by path and mtime would belong to another key."""
    for texts in (TEXTS, TEXTS[::-1]):
        ref = write(tmp_path, texts)
        os.utime(tmp_path / "train.parquet", (0, 0))
        assert load_split(ref, TEXT_CLASSIFICATION, "train").inputs == texts


def test_the_revision_of_a_split_is_its_bytes_and_not_its_place(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", TEXTS), write(tmp_path / "two", TEXTS)
    other = write(tmp_path / "three", [*TEXTS[:-1], "another"])
    assert split_revision(one, "train") == split_revision(two, "train") != split_revision(other, "train")
    assert split_revision(DatasetRef("a/b", COLUMNS, revision="c" * 40, is_hub=True), "train") == "c" * 40


def test_a_row_on_both_sides_is_refused_with_how_many() -> None:
    refuse_overlap(TEXT_CLASSIFICATION, ["a b", "c"], ["ab", "d"])
    with pytest.raises(BadInput, match=r"2 calibration rows also stand in the evaluation split \(as 'a b'\)"):
        refuse_overlap(TEXT_CLASSIFICATION, ["a b", "c", "d"], ["c", "x", "a b"])


@pytest.mark.parametrize("twin", ["A B", " a   b ", "a\tb\n", "a\u00a0b"])
def test_a_row_that_differs_only_in_case_or_white_space_is_the_same_row(twin: str) -> None:
    with pytest.raises(BadInput, match="1 calibration rows"):
        refuse_overlap(TEXT_CLASSIFICATION, [twin], ["a b"])
    with pytest.raises(BadInput, match="1 calibration rows"):
        refuse_overlap(TEXT_CLASSIFICATION, ["STRASSE"], ["straße"])


NONE = Rows((), (), None, 0, "0" * 64)
Draw = Callable[..., CalibrationSet]


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """`draw(texts, …)` writes a split into a new folder and draws from it into another."""
    made: list[Path] = []

    def make(texts: Sequence[str] = TEXTS, samples: int = 32, seed: int = 0, evaluation: Rows = NONE) -> CalibrationSet:
        made.append(tmp_path / str(len(made)))
        into = made[-1] / "drawn"
        ref = write(made[-1] / "rows", texts)
        into.mkdir()
        return draw_calibration_set(
            ref, TEXT_CLASSIFICATION, "train", samples=samples, seed=seed, evaluation=evaluation, into=into
        )

    return make


def test_a_calibration_set_holds_the_rows_it_drew(draw: Draw) -> None:
    drawn = draw(samples=32, seed=3)
    texts = read_calibration_inputs(drawn)
    assert len(texts) == drawn.samples == 32
    assert set(texts) < set(TEXTS)
    assert [file.path for file in drawn.files] == ["rows.parquet"]
    assert drawn.digest == digest_of((texts, tuple(int(text.split()[1]) % 2 for text in texts)))


def test_a_calibration_sets_digest_changes_with_one_row_and_not_with_its_place(draw: Draw) -> None:
    first, again = draw(samples=100), draw(samples=100)
    assert first.digest == again.digest
    assert first.files == again.files
    assert first.directory != again.directory
    assert draw([*TEXTS[:-1], "another"], samples=100).digest != first.digest


def test_a_calibration_set_may_not_hold_evaluation_rows(draw: Draw) -> None:
    with pytest.raises(BadInput, match="may not be judged on what it was calibrated with"):
        draw(samples=100, evaluation=replace(NONE, inputs=("ROW  7",)))


def test_a_calibration_set_of_too_few_rows_is_refused(draw: Draw) -> None:
    assert draw(samples=FEWEST_CALIBRATION_ROWS).samples == FEWEST_CALIBRATION_ROWS
    with pytest.raises(BadInput, match="gives 7 usable rows; at least 8"):
        draw(samples=FEWEST_CALIBRATION_ROWS - 1)


@pytest.mark.parametrize("kind", ["bytes", "image", "path"])
def test_images_are_read_as_the_bytes_of_their_files(tmp_path: Path, kind: str) -> None:
    files = [draw_image(seed) for seed in range(10)]
    columns: dict[str, list[object]] = {"image": list(files), "label": [seed % 2 for seed in range(10)]}
    features = Features({"image": Image(), "label": Value("int64")})
    if kind == "path":
        for seed, content in enumerate(files):
            (tmp_path / f"{seed}.png").write_bytes(content)
        paths = [{"path": str(tmp_path / f"{seed}.png"), "bytes": None} for seed in range(10)]
        # Written without `datasets`, which would put the bytes in.
        table = pyarrow.table({"image": paths, "label": columns["label"]})
        pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    else:
        table = Dataset.from_dict(columns, features=features if kind == "image" else None)
        table.to_parquet(tmp_path / "train.parquet")
    ref = DatasetRef(str(tmp_path), (("image", "image"), ("label", "label")))
    rows = load_split(ref, IMAGE_CLASSIFICATION, "train")
    assert rows.inputs == tuple(files)
    assert rows.digest == digest_of((tuple(files), rows.targets))


def test_a_row_that_is_no_image_is_counted_and_many_are_refused_with_the_first(tmp_path: Path) -> None:
    def write_images(broken: int) -> DatasetRef:
        files = [draw_image(seed)[: 30 if seed >= 10 - broken else None] for seed in range(10)]
        Dataset.from_dict({"image": files, "label": [0] * 10}).to_parquet(tmp_path / "train.parquet")
        return DatasetRef(str(tmp_path), (("image", "image"), ("label", "label")))

    assert load_split(write_images(2), IMAGE_CLASSIFICATION, "train").quarantined == 2
    with pytest.raises(BadInput, match=r"3 of 10 rows of .* lack an image .*; in row 7 the image's 30 bytes cannot be"):
        load_split(write_images(3), IMAGE_CLASSIFICATION, "train")


def test_a_drawn_set_of_images_is_read_back(tmp_path: Path) -> None:
    files = [draw_image(seed) for seed in range(20)]
    Dataset.from_dict({"image": files, "label": [0] * 20}).to_parquet(tmp_path / "train.parquet")
    ref = DatasetRef(str(tmp_path), (("image", "image"), ("label", "label")))
    into = tmp_path / "drawn"
    into.mkdir()
    evaluation = Rows((draw_image(99),), (0,), None, 0, "e" * 64)
    drawn = draw_calibration_set(
        ref, IMAGE_CLASSIFICATION, "train", samples=12, seed=1, evaluation=evaluation, into=into
    )
    assert set(read_calibration_inputs(drawn)) < set(files)
    with pytest.raises(BadInput, match=r"1 calibration rows also stand in the evaluation split \(as 'sha256 "):
        refuse_overlap(IMAGE_CLASSIFICATION, files, files[3:4])


@pytest.mark.parametrize("form", ["lists of mappings", "mappings of lists", "null"])
def test_a_dot_leads_into_a_column_of_mappings(tmp_path: Path, form: str) -> None:
    import datasets

    kinds = {"bbox": datasets.List(datasets.Value("float32")), "category": datasets.ClassLabel(names=["cat", "dog"])}
    boxes, labels = [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 5.0, 5.0]], [1, 0]
    if form == "mappings of lists":
        feature: Any = {name: datasets.List(kind) for name, kind in kinds.items()}
        value: Any = {"bbox": boxes, "category": labels}
    else:
        feature = datasets.List(kinds)
        value = [{"bbox": box, "category": label} for box, label in zip(boxes, labels, strict=True)]
    rows = {"image": [draw_image(0, (9, 9))] * 6, "objects": [value] * 5 + [None if form == "null" else value]}
    features = datasets.Features({"image": datasets.Image(), "objects": feature})
    images = [{"bytes": image, "path": None} for image in rows["image"]]
    datasets.Dataset.from_dict({**rows, "image": images}, features=features).to_parquet(tmp_path / "train.parquet")
    columns = (("image", "image"), ("boxes", "objects.bbox"), ("labels", "objects.category"))
    ref = DatasetRef(str(tmp_path), columns, constants=(("box_format", "coco"),))
    found = load_split(ref, OBJECT_DETECTION, "train")
    assert (found.classes, found.quarantined) == (("cat", "dog"), int(form == "null"))
    assert found.targets[0] == {"boxes": [[1, 2, 4, 6], [0, 0, 5, 5]], "labels": labels}
    other = DatasetRef(str(tmp_path), (("image", "image"), ("boxes", "objects.box"), ("labels", "objects.category")))
    with pytest.raises(BadInput, match=r"no column objects.box: it has image, objects.bbox, objects.category"):
        load_split(other, OBJECT_DETECTION, "train")
