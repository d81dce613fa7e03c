"""The spoken digits are three splits with voices of their own, and the same each time."""

import shutil
from itertools import combinations
from pathlib import Path

import pytest

from calibration_data.reader import Rows, load_split
from calibration_data.splits import DatasetRef
from calibration_data.spoken_digits import make
from calibration_data.spoken_digits.make import CLASSES, SPLITS, write_rows
from registry.digest import record_tree
from registry.errors import BadInput
from tasks.model_tasks.audio.audio_classification import AUDIO_CLASSIFICATION

COLUMNS = (("audio", "audio"), ("label", "label"))


def test_no_voice_or_speed_stands_in_two_splits() -> None:
    for one, other in combinations(SPLITS.values(), 2):
        assert not set(one[0]) & set(other[0])
        assert not set(one[1]) & set(other[1])


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_the_rows_are_disjoint_usable_and_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "ACCENTS", ("en-us",))
    monkeypatch.setattr(make, "SPLITS", {split: (said[0][:1], said[1][:1], said[2]) for split, said in SPLITS.items()})
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        write_rows(folder)
    assert record_tree(folders[0]) == record_tree(folders[1])
    splits: list[Rows] = [
        load_split(DatasetRef(str(folders[0]), COLUMNS), AUDIO_CLASSIFICATION, split) for split in SPLITS
    ]
    assert all(rows.classes == CLASSES and rows.quarantined == 0 for rows in splits)
    assert all(set(rows.targets) == set(range(10)) for rows in splits)
    seen = [audio for rows in splits for audio in rows.inputs]
    assert len(seen) == len(set(seen))


def test_without_espeak_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="espeak-ng is not installed: apt-get install espeak-ng"):
        write_rows(tmp_path)
