"""The digits, and scenes of them, are three disjoint splits of real scans, and the same each time."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from calibration_data.digits import scenes
from calibration_data.digits.make import CLASSES, SPLITS, train, write_rows
from calibration_data.digits.transformer import make_vit
from calibration_data.reader import Rows, load_split
from calibration_data.splits import DatasetRef
from registry.digest import record_tree
from tasks.checkpoints.config import read_classes, read_config
from tasks.model_tasks.images.image_classification import IMAGE_CLASSIFICATION
from tasks.model_tasks.images.semantic_segmentation import SEMANTIC_SEGMENTATION
from tasks.model_tasks.inputs.image_files import decode_mask


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


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    scenes.write_rows(folder)
    return folder


def test_every_scene_has_digits_on_its_mask_and_stands_in_one_split(scene_folder: Path) -> None:
    ref = DatasetRef(str(scene_folder), (("image", "image"), ("mask", "mask")))
    splits = {split: load_split(ref, SEMANTIC_SEGMENTATION, split) for split in scenes.SPLITS}
    assert {split: len(rows.inputs) for split, rows in splits.items()} == {
        split: count for split, (count, _, _) in scenes.SPLITS.items()
    }
    images = [image for rows in splits.values() for image in rows.inputs]
    assert len(set(images)) == len(images)
    found = [np.unique(decode_mask(mask)) for mask in splits["evaluation"].targets]
    assert all(numbers[0] == 0 and 2 <= len(numbers) <= 1 + scenes.MOST_SCANS for numbers in found)
    assert set(np.concatenate(found).tolist()) == set(range(len(scenes.NAMES)))


def test_the_same_scenes_are_written_again(scene_folder: Path, tmp_path: Path) -> None:
    scenes.write_rows(tmp_path)
    assert record_tree(tmp_path) == record_tree(scene_folder)


@pytest.mark.long
def test_what_is_trained_on_the_scenes_is_a_checkpoint_of_the_task(scene_folder: Path, tmp_path: Path) -> None:
    """One round of the sixteen finds the background, two thirds of the pixels, and little else."""
    assert scenes.train(scene_folder, tmp_path, epochs=1) > 0.6
    config = read_config(tmp_path)
    SEMANTIC_SEGMENTATION.check_checkpoint(config)
    assert read_classes(config) == scenes.NAMES
    assert SEMANTIC_SEGMENTATION.fixed_sizes(tmp_path) == {"num_channels": 3, "height": 64, "width": 64}


@pytest.mark.slow
def test_the_network_learns_to_read_them(folder: Path, tmp_path: Path) -> None:
    assert pq.read_metadata(folder / "fit.parquet").num_rows == SPLITS["fit"]
    assert train(folder, tmp_path, epochs=4) > 0.85
    assert (tmp_path / "preprocessor_config.json").is_file()


@pytest.mark.slow
def test_the_vision_transformer_is_a_checkpoint_of_the_task(folder: Path, tmp_path: Path) -> None:
    assert train(folder, tmp_path, epochs=2, make_network=make_vit) > 0.1
    config = read_config(tmp_path)
    IMAGE_CLASSIFICATION.check_checkpoint(config)
    assert config["model_type"] == "vit"
