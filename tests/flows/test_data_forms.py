"""A release whose rows are CSV files, from the draft of its recipe to the registry."""

import shutil
from pathlib import Path

import pytest

from flows.inputs.fleet import load_fleet
from flows.inputs.new_recipe import draft_recipe, find_origin
from flows.inputs.plan import why_not_here
from flows.inputs.recipe import load_recipe
from flows.inputs.rows import evaluation_rows
from flows.release.check import check_recipe
from registry.mlflow.store import embedded_store
from registry.records import ModelSource
from tests.support.tiny_recipe import LABELS, TinyRecipe, convert_splits, release_into

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_offline")]


@pytest.mark.long
def test_rows_as_csv_are_checked_and_released_as_the_same_rows(
    tiny_recipe: TinyRecipe, tmp_path: Path, migrated_database: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    shutil.copy(migrated_database, home / "mlflow.db")
    source = ModelSource("tiny", "checkpoint", "0" * 40, "text-classification", LABELS)
    of_parquet = evaluation_rows(load_recipe(tiny_recipe.recipe), source)
    convert_splits(tiny_recipe.folder / "rows", "csv")
    name, text = draft_recipe(find_origin("checkpoint", "checkpoint"), find_origin("rows", "dataset"), ["cpu"], "mine")
    Path("mine.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe(Path("mine.yaml"))
    assert not check_recipe(recipe, load_fleet(tiny_recipe.fleet), why_not_here, home).problems
    of_csv = evaluation_rows(recipe, source)
    assert (of_csv.inputs, of_csv.targets, of_csv.digest) == (of_parquet.inputs, of_parquet.targets, of_parquet.digest)
    report = release_into(home, recipe, load_fleet(tiny_recipe.fleet))
    assert [row.state for row in report.rows] == ["built"] * len(recipe.precisions)
    assert embedded_store(home).versions(name)
