"""Package entries are three disjoint splits, and every task's rows of them are usable and true."""

import json
from pathlib import Path

import datasets
import pytest

import calibration_data.debian_packages as package
from calibration_data.debian_packages.make import ENCODERS, train, write_rows
from calibration_data.debian_packages.rows import ROWS, make_questions, make_words
from calibration_data.reader import load_split
from calibration_data.splits import DatasetRef
from flows.inputs.recipe import load_recipe
from registry.digest import file_sha256
from tasks.checkpoints.config import read_config
from tasks.model_tasks import model_task

FOLDER = Path(str(package.__file__)).parent
RECIPES = {load_recipe(file).task: file for file in (Path(__file__).parents[3] / "recipes").glob("debian-*.yaml")}


def read_entries(split: str) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = datasets.Dataset.from_parquet(
        str(FOLDER / f"{split}.parquet"), keep_in_memory=True
    ).to_list()
    return entries


def test_the_splits_are_those_of_the_manifest_and_share_no_package() -> None:
    splits = json.loads((FOLDER / "dataset.json").read_text(encoding="utf-8"))["splits"]
    names: set[object] = set()
    for split, entry in splits.items():
        assert file_sha256(FOLDER / entry["file"]) == entry["sha256"]
        packages = {row["package"] for row in read_entries(split)}
        assert len(packages) == entry["rows"]
        assert not names & packages
        names |= packages


def test_every_task_has_a_recipe() -> None:
    assert set(RECIPES) == set(ROWS)
    assert set(ENCODERS) == set(ROWS) - {"sentence-similarity"}


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_row_of_a_task_is_usable(tmp_path: Path, name: str) -> None:
    recipe, task = load_recipe(RECIPES[name]), model_task(name)
    write_rows(name, tmp_path)
    for split in (recipe.data.calibration.split, recipe.data.evaluation.split):
        rows = load_split(DatasetRef(str(tmp_path), recipe.dataset.columns), task, split)
        assert rows.quarantined == 0
        of_rankings = {"calibration": 2814, "evaluation": 5611}  # a pair once
        rows_of = of_rankings if name == "text-ranking" else {"calibration": 800, "evaluation": 1600}
        assert len(rows.inputs) == rows_of[split]


def test_answers_stand_in_their_context_where_they_say() -> None:
    for row in make_questions(read_entries("evaluation")):
        (answer,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start:].startswith(answer)


def test_words_have_a_tag_each() -> None:
    for row in make_words(read_entries("evaluation")):
        assert len(row["words"]) == len(row["tags"])
        assert "B-PERSON" in row["tags"]


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_what_is_trained_is_a_checkpoint_of_its_task(tmp_path: Path, name: str) -> None:
    write_rows(name, tmp_path)
    train(name, tmp_path, tmp_path / "checkpoint", steps=1)
    model_task(name).check_checkpoint(read_config(tmp_path / "checkpoint"))
