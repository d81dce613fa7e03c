"""Rows that name files of images and audio, relative to the folder of their split."""

import json
import os
from pathlib import Path

import datasets
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from calibration_data import columns
from calibration_data.columns import split_revision
from calibration_data.reader import load_split
from calibration_data.splits import DatasetRef
from registry.errors import BadInput
from tasks.model_tasks.audio.audio_classification import AUDIO_CLASSIFICATION
from tasks.model_tasks.images.image_classification import IMAGE_CLASSIFICATION
from tasks.model_tasks.images.semantic_segmentation import SEMANTIC_SEGMENTATION
from tests.support.audio import draw_audio
from tests.support.images import draw_image, draw_mask

FORMS = ("train.csv", "train.tsv", "train.jsonl", "train.parquet")
COLUMNS = (("audio", "clip"), ("label", "label"))


def write(folder: Path, form: str, names: list[object]) -> DatasetRef:
    frame = pd.DataFrame({"clip": names, "label": ["one", "two"] * (len(names) // 2)})
    file = folder / form
    if file.suffix == ".parquet":
        frame.to_parquet(file)
    elif file.suffix == ".jsonl":
        file.write_text("\n".join(json.dumps(row) for row in frame.to_dict("records")), encoding="utf-8")
    else:
        frame.to_csv(file, index=False, sep="\t" if file.suffix == ".tsv" else ",")
    return DatasetRef(str(folder), COLUMNS)


@pytest.fixture
def names(tmp_path: Path) -> list[object]:
    (tmp_path / "data" / "clips").mkdir(parents=True)
    names: list[object] = [f"clips/{at}.wav" for at in range(10)]
    for at, name in enumerate(names):
        (tmp_path / "data" / str(name)).write_bytes(draw_audio(at))
    return names


@pytest.mark.parametrize("form", FORMS)
def test_rows_name_files_beside_the_split(form: str, tmp_path: Path, names: list[object]) -> None:
    ref = write(tmp_path / "data", form, names)
    rows = load_split(ref, AUDIO_CLASSIFICATION, "train")
    assert rows.inputs == tuple(draw_audio(at) for at in range(10))
    assert rows.targets == ("one", "two") * 5


@pytest.mark.parametrize("form", FORMS)
def test_another_file_under_the_same_name_is_another_split(form: str, tmp_path: Path, names: list[object]) -> None:
    ref = write(tmp_path / "data", form, names)
    before = split_revision(ref, "train")
    assert split_revision(ref, "train") == before
    (tmp_path / "data" / "clips" / "3.wav").write_bytes(draw_audio(99))
    assert split_revision(ref, "train") != before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../secret.wav", "lies outside of"),
        ("clips/../../secret.wav", "lies outside of"),
        ("/etc/passwd", "lies outside of"),
        ("clips/link.wav", "lies outside of"),
        ("out/secret.wav", "lies outside of"),
        ("clips", "is not in"),
        ("clips/none.wav", "is not in"),
        ("clips/pipe.wav", "is not in"),
        ("a\0b", "has a name that cannot be one"),
        ("x" * 5000, "has a name that cannot be one"),
    ],
)
def test_a_file_that_may_not_be_read_is_left_out_with_its_row(
    name: str, words: str, tmp_path: Path, names: list[object]
) -> None:
    (tmp_path / "secret.wav").write_bytes(draw_audio(77))
    (tmp_path / "data" / "clips" / "link.wav").symlink_to(tmp_path / "secret.wav")
    (tmp_path / "data" / "out").symlink_to(tmp_path)
    ref = write(tmp_path / "data", "train.jsonl", [*names[:7], name, *names[8:]])
    os.mkfifo(tmp_path / "data" / "clips" / "pipe.wav")
    rows = load_split(ref, AUDIO_CLASSIFICATION, "train")
    assert rows.quarantined == 1
    assert draw_audio(77) not in rows.inputs
    assert rows.first_unusable.startswith("in row 7 the file ")
    assert words in rows.first_unusable
    assert split_revision(ref, "train")


def test_files_that_are_missing_are_named_where_they_are_many(tmp_path: Path, names: list[object]) -> None:
    ref = write(tmp_path / "data", "train.csv", [f"elsewhere/{at}.wav" for at in range(len(names))])
    with pytest.raises(
        BadInput, match=r"10 of 10 rows .*; in row 0 the file 'elsewhere/0.wav' is not in .*/data: give"
    ):
        load_split(ref, AUDIO_CLASSIFICATION, "train")


def test_named_files_of_more_bytes_than_fit_are_refused(
    tmp_path: Path, names: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = write(tmp_path / "data", "train.csv", names)
    monkeypatch.setattr("calibration_data.splits.MOST_BYTES", 10_000)
    assert columns.read_named_files([], tmp_path)
    with pytest.raises(BadInput, match=r"holds \d+ bytes, more than 10000"):
        load_split(ref, AUDIO_CLASSIFICATION, "train")


def test_images_and_masks_are_named_alike(tmp_path: Path) -> None:
    images = [draw_image(at, (24, 24)) for at in range(4)]
    for at, image in enumerate(images):
        (tmp_path / f"{at}.png").write_bytes(image)
        (tmp_path / f"{at}-mask.png").write_bytes(draw_mask(image))
    lines = [f"{at}.png,{at}-mask.png" for at in range(4)]
    (tmp_path / "train.csv").write_text("\n".join(["photo,drawn", *lines]), encoding="utf-8")
    ref = DatasetRef(str(tmp_path), (("image", "photo"), ("mask", "drawn")))
    rows = load_split(ref, SEMANTIC_SEGMENTATION, "train")
    assert rows.inputs == tuple(images)
    assert rows.targets == tuple(draw_mask(image) for image in images)


@pytest.mark.parametrize("is_embedded", [True, False])
def test_images_of_datasets_are_read_with_their_bytes_or_paths(is_embedded: bool, tmp_path: Path) -> None:
    images = [draw_image(at, (24, 24)) for at in range(10)]
    for at, image in enumerate(images):
        (tmp_path / f"{at}.png").write_bytes(image)
    values = [{"bytes": image if is_embedded else None, "path": f"{at}.png"} for at, image in enumerate(images)]
    table = pyarrow.table({"photo": values, "label": [0] * 10})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    ref = DatasetRef(str(tmp_path), (("image", "photo"), ("label", "label")))
    assert load_split(ref, IMAGE_CLASSIFICATION, "train").inputs == tuple(images)
    before = split_revision(ref, "train")
    (tmp_path / "0.png").write_bytes(draw_image(9))
    assert is_embedded or split_revision(ref, "train") != before
    (tmp_path / "0.png").unlink()
    assert is_embedded or load_split(ref, IMAGE_CLASSIFICATION, "train", fewest=1).quarantined == 1


def test_rows_of_a_hub_name_only_files_that_came_with_their_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, elsewhere = tmp_path / "cache", tmp_path / "private"
    for folder in (cache, elsewhere):
        folder.mkdir()
        (folder / "0.png").write_bytes(draw_image(0))
    (cache / "link.png").symlink_to(elsewhere / "0.png")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(cache))
    named = [cache / "0.png", elsewhere / "0.png", cache / "link.png", cache / ".." / "private" / "0.png"]
    table = datasets.Dataset(
        pyarrow.table(
            {"photo": [{"bytes": None, "path": str(path)} for path in named]},
            schema=datasets.Features({"photo": datasets.Image(decode=False)}).arrow_schema,
        )
    )
    first, *others = columns.read_column(table, "image", "photo", None)
    assert first == draw_image(0)
    assert [type(each) for each in others] == [columns.UnreadFile] * 3
    assert "did not come with the dataset" in others[0].problem
