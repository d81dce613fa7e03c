"""Rows that belong together are read with their groups, of which there have to be enough."""

from pathlib import Path

import datasets
import pytest

from flows.inputs.recipe import Recipe
from flows.inputs.rows import FEWEST_GROUPS, evaluation_rows
from registry.errors import BadInput
from registry.records import ModelSource

SOURCE = ModelSource("m", "o", "r", "text-classification", ("no", "yes"))


def read(folder: Path, groups: list[str | None]) -> tuple[str, ...]:
    texts = [f"text {at}" for at in range(len(groups))]
    columns = {"text": texts, "label": [at % 2 for at in range(len(groups))], "document": groups}
    datasets.Dataset.from_dict(columns).to_parquet(str(folder / "evaluation.parquet"))
    axes = {"batch": {"min": 1, "opt": 2, "max": 4}, "sequence": {"min": 4, "opt": 8, "max": 16}}
    document = {
        "model": "m",
        "source": {"path": "m"},
        "data": {"path": str(folder), "max_length": 16, "group": "document"},
        "precisions": ["fp32"],
        "targets": ["cpu"],
        "profiles": [axes],
    }
    return evaluation_rows(Recipe.model_validate(document, strict=False), SOURCE).groups


def test_groups_are_those_of_the_column_and_a_row_without_one_is_its_own(tmp_path: Path) -> None:
    groups = read(tmp_path, [*(f"d{at // 2}" for at in range(58)), None, None])
    assert groups[:3] == ("group d0", "group d0", "group d1")
    assert groups[-2:] == ("row 58", "row 59")


def test_too_few_groups_are_refused_by_the_name_of_their_column(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=rf"of {FEWEST_GROUPS - 1} groups \(data.group: document\), and at least"):
        read(tmp_path, [f"d{at % (FEWEST_GROUPS - 1)}" for at in range(60)])
    assert len(set(read(tmp_path, [f"d{at % FEWEST_GROUPS}" for at in range(60)]))) == FEWEST_GROUPS
