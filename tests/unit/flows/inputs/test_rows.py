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


@pytest.mark.parametrize(("queries", "grades", "telling"), [(60, 1, 0), (10, 3, 10), (30, 3, 30)])
def test_a_ranking_needs_queries_whose_texts_differ_in_relevance(
    queries: int, grades: int, telling: int, tmp_path: Path
) -> None:
    pairs = [(at % queries, at // queries) for at in range(queries * 6)]
    columns = {
        "query": [f"query {query}" for query, _ in pairs],
        "text": [f"text {query} {text}" for query, text in pairs],
        "score": [float(text % grades) for _, text in pairs],
    }
    datasets.Dataset.from_dict(columns).to_parquet(str(tmp_path / "evaluation.parquet"))
    document = {
        "model": "m",
        "task": "text-ranking",
        "source": {"path": "m"},
        "data": {"path": str(tmp_path), "max_length": 16},
        "precisions": ["fp32"],
        "targets": ["cpu"],
        "profiles": [{"batch": {"min": 1, "opt": 2, "max": 4}, "sequence": {"min": 4, "opt": 8, "max": 16}}],
    }
    recipe = Recipe.model_validate(document, strict=False)
    if telling >= FEWEST_GROUPS:
        assert len(set(evaluation_rows(recipe, SOURCE).groups)) == telling
    else:
        with pytest.raises(BadInput, match=f"are of {telling} queries that differ in relevance, and at least"):
            evaluation_rows(recipe, SOURCE)
