"""The digits are three disjoint splits of real scans, and the same each time."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from calibration_data.digits.make import CLASSES, SPLITS, train, write_rows
from calibration_data.reader import Rows, load_split
from calibration_data.splits import DatasetRef
from registry.digest import record_tree
from tasks.model_tasks.images.image_classification import IMAGE_CLASSIFICATION


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder)
    return folder


def read(folder: Path, split: str) -> Rows:
    return load_split(DatasetRef(str(folder), (("image", "image"), ("label", "label"))), IMAGE_CLASSIFICATION, split)


def test_every_scan_stands_in_one_split_with_its_label(folder: Path) -> None:
    splits = {split: read(folder, split) for split in SPLITS}
    assert {split: len(rows.inputs) for split, rows in splits.items()} == SPLITS
    assert sum(SPLITS.values()) == 1797
    assert all(rows.classes == CLASSES and rows.quarantined == 0 for rows in splits.values())
    seen = [image for rows in splits.values() for image in set(rows.inputs)]
    assert len(seen) == len(set(seen)) == 1797
    assert all(set(rows.targets) == set(range(10)) for rows in splits.values())


def test_the_same_rows_are_written_again(folder: Path, tmp_path: Path) -> None:
    write_rows(tmp_path)
    assert record_tree(tmp_path) == record_tree(folder)


@pytest.mark.slow
def test_the_network_learns_to_read_them(folder: Path, tmp_path: Path) -> None:
    assert pq.read_metadata(folder / "fit.parquet").num_rows == SPLITS["fit"]
    assert train(folder, tmp_path, epochs=4) > 0.85
    assert (tmp_path / "preprocessor_config.json").is_file()
