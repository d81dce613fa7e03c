"""Rows of every task can be sent as a file, and come back as they were."""

from pathlib import Path

import datasets
import pytest

from calibration_data.reader import Rows, load_split
from calibration_data.rows_file import read_rows, write_rows
from calibration_data.splits import DatasetRef
from registry.digest import digest_of
from registry.errors import BadInput
from tasks.model_tasks import model_task
from tests.support.task_recipes import TASKS, draw_texts


@pytest.mark.parametrize("name", sorted(TASKS))
def test_rows_of_every_task_come_back_as_they_were(tmp_path: Path, name: str) -> None:
    task, columns = model_task(name), TASKS[name][1](draw_texts(3, 12))
    columns["group"] = [f"document {at % 5}" for at in range(12)]
    datasets.Dataset.from_dict(columns).to_parquet(str(tmp_path / "test.parquet"))
    ref = DatasetRef(
        str(tmp_path),
        tuple((column, column) for column in columns if column in (*task.columns, "group")),
        constants=(("box_format", "coco"),) if "boxes" in task.columns else (),
    )
    rows = load_split(ref, task, "test")
    write_rows(rows, tmp_path / "sent")
    found = read_rows(tmp_path / "sent")
    assert len(found.inputs) == 12
    assert found.groups == rows.groups == tuple(f"group document {at % 5}" for at in range(12))
    assert (found.classes, found.quarantined, found.digest, found.source) == (
        rows.classes,
        rows.quarantined,
        rows.digest,
        rows.source,
    )
    assert digest_of((found.inputs, found.targets, found.groups)) == found.digest


def test_bytes_that_are_no_text_come_back(tmp_path: Path) -> None:
    rows = Rows((b"\xff\xd8", b""), (0, 1), ("a", "b"), 3, "d" * 64, "somewhere")
    write_rows(rows, tmp_path / "sent")
    assert read_rows(tmp_path / "sent") == rows


@pytest.mark.parametrize("content", [b"", b"PAR1", b'{"inputs": []}'])
def test_what_holds_no_rows_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sent").write_bytes(content)
    with pytest.raises(BadInput, match="holds no rows"):
        read_rows(tmp_path / "sent")


def test_a_table_without_what_is_known_of_its_rows_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"input": ["a"], "target": [1]}).to_parquet(str(tmp_path / "sent"))
    with pytest.raises(BadInput, match="holds no rows"):
        read_rows(tmp_path / "sent")
