"""Evaluation rows: their groups, and the rows behind the first for engines that those leave undecided."""

from pathlib import Path

import datasets
import pytest

from calibration_data.reader import load_split
from flows.inputs.recipe import Recipe
from flows.inputs.rows import FEWEST_GROUPS, evaluation_rows, more_evaluation_rows
from registry.errors import BadInput
from registry.records import ModelSource

SOURCE = ModelSource("m", "o", "r", "text-classification", ("no", "yes"))


def read(folder: Path, groups: list[str | None]) -> tuple[str, ...]:
    return evaluation_rows(write(folder, groups), SOURCE).groups


def write(folder: Path, groups: list[str | None], **evaluation: int) -> Recipe:
    texts = [f"text {at}" for at in range(len(groups))]
    columns = {"text": texts, "label": [at % 2 for at in range(len(groups))], "document": groups}
    datasets.Dataset.from_dict(columns).to_parquet(str(folder / "evaluation.parquet"))
    axes = {"batch": {"min": 1, "opt": 2, "max": 4}, "sequence": {"min": 4, "opt": 8, "max": 16}}
    document = {
        "model": "m",
        "source": {"path": "m"},
        "data": {"path": str(folder), "max_length": 16, "group": "document", "evaluation": evaluation},
        "precisions": ["fp32"],
        "targets": ["cpu"],
        "profiles": [axes],
    }
    return Recipe.model_validate(document, strict=False)


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


OWN: list[str | None] = [None] * 400


def test_more_rows_are_the_first_and_those_behind_them(tmp_path: Path) -> None:
    recipe = write(tmp_path, OWN, samples=60)
    first = evaluation_rows(recipe, SOURCE)
    known = load_split(recipe.dataset, recipe.model_task, "evaluation", samples=70, seed=0).inputs[60:]
    more = more_evaluation_rows(recipe, SOURCE, first, known)
    assert more is not None
    assert len(more.inputs) == len(more.targets) == len(set(more.inputs)) == 4 * 60
    assert more.inputs[:60] == first.inputs
    assert more.targets[:60] == first.targets
    assert not {*known} & {*more.inputs}
    assert len({*more.groups}) == 240
    assert more.digest != first.digest


@pytest.mark.parametrize("evaluation", [{}, {"samples": 60, "samples_max": 60}, {"samples": 300}])
def test_no_more_rows_are_drawn_where_the_recipe_or_the_split_has_none(
    tmp_path: Path, evaluation: dict[str, int]
) -> None:
    recipe = write(tmp_path, OWN, **evaluation)
    assert more_evaluation_rows(recipe, SOURCE, evaluation_rows(recipe, SOURCE), ()) is None


@pytest.mark.parametrize("evaluation", [{"samples": 60, "samples_max": 59}, {"samples_max": 500}])
def test_a_second_look_at_fewer_rows_is_refused(tmp_path: Path, evaluation: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="samples <= samples_max"):
        write(tmp_path, OWN, **evaluation)
