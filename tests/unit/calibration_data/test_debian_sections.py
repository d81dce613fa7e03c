import hashlib
import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

FOLDER = Path(__file__).parents[3] / "calibration_data" / "debian_sections"
SPLITS = ("fit", "calibration", "evaluation")


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / "dataset.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict[str, Any]]]:
    return {split: pq.read_table(FOLDER / f"{split}.parquet").to_pylist() for split in SPLITS}


@pytest.mark.parametrize("column", ["text", "package"])
def test_no_text_and_no_package_stands_in_two_splits_or_twice_in_one(
    splits: dict[str, list[dict[str, Any]]], column: str
) -> None:
    values = {split: [row[column].casefold() for row in rows] for split, rows in splits.items()}
    for split in SPLITS:
        assert len(set(values[split])) == len(values[split])
    for one, other in combinations(SPLITS, 2):
        assert not set(values[one]) & set(values[other])


def test_no_summary_stands_alone_in_one_split_and_with_its_long_form_in_another(
    splits: dict[str, list[dict[str, Any]]],
) -> None:
    split_of = {row["text"].casefold(): split for split, rows in splits.items() for row in rows}
    for text, split in split_of.items():
        parts = text.split(": ")
        heads = (": ".join(parts[:count]) for count in range(1, len(parts)))
        assert all(split_of.get(head, split) == split for head in heads)


def test_the_manifest_names_every_file_with_its_digest_and_rows(manifest: dict[str, Any]) -> None:
    entries = manifest["splits"]
    assert {entry["file"] for entry in entries.values()} == {path.name for path in FOLDER.glob("*.parquet")}
    for entry in entries.values():
        path = FOLDER / entry["file"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
        assert pq.read_metadata(path).num_rows == entry["rows"]


def test_the_evaluation_split_has_at_least_2000_rows(splits: dict[str, list[dict[str, Any]]]) -> None:
    assert len(splits["evaluation"]) >= 2000


def test_every_split_holds_all_twelve_labels(manifest: dict[str, Any], splits: dict[str, list[dict[str, Any]]]) -> None:
    assert len(manifest["label_names"]) == 12
    for rows in splits.values():
        assert {row["label"] for row in rows} == set(range(12))


def test_labels_have_the_same_proportions_in_every_split(splits: dict[str, list[dict[str, Any]]]) -> None:
    shares = {
        split: {label: count / len(rows) for label, count in Counter(row["label"] for row in rows).items()}
        for split, rows in splits.items()
    }
    for split in SPLITS:
        assert shares[split] == pytest.approx(shares["fit"], abs=2 / len(splits[split]))


def test_each_label_is_the_index_of_its_section(
    manifest: dict[str, Any], splits: dict[str, list[dict[str, Any]]]
) -> None:
    for rows in splits.values():
        assert all(manifest["label_names"][row["label"]] == row["section"] for row in rows)


def test_the_files_carry_the_label_names_in_the_manifests_order(manifest: dict[str, Any]) -> None:
    for split in SPLITS:
        metadata = pq.read_schema(FOLDER / f"{split}.parquet").metadata
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        assert features["label"]["names"] == manifest["label_names"]
        assert set(features) == set(manifest["columns"])


def test_every_text_is_filled_collapsed_and_at_most_400_characters(
    splits: dict[str, list[dict[str, Any]]],
) -> None:
    for rows in splits.values():
        for row in rows:
            assert row["text"]
            assert row["text"] == " ".join(row["text"].split())
            assert len(row["text"]) <= 400
