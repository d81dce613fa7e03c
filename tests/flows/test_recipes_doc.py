"""docs/recipes.md, run: its first recipe releases a checkpoint and rows that lie as the page says."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from flows.inputs.fleet import load_fleet
from flows.inputs.recipe import load_recipe
from registry.mlflow.store import embedded_store
from registry.records import Precision
from tests.support.tiny_recipe import TinyRecipe, release_into

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_example_on_the_page_is_accepted(tmp_path: Path) -> None:
    kinds = []
    for block in BLOCKS:
        file = tmp_path / "example.yaml"
        file.write_text(block, encoding="utf-8")
        kinds.append("fleet" if isinstance(yaml.safe_load(block)["targets"], dict) else "recipe")
        (load_fleet if kinds[-1] == "fleet" else load_recipe)(file)
    assert kinds == ["recipe"] * 6 + ["fleet"]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_offline")
def test_the_first_recipe_runs_as_it_is_written(
    recipe_template: TinyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, migrated_database: Path
) -> None:
    folder, home = tmp_path / "my-model", tmp_path / "home"
    home.mkdir()
    shutil.copy(migrated_database, home / "mlflow.db")
    folder.mkdir()
    for name in ("checkpoint", "rows"):
        shutil.copytree(recipe_template.folder / name, folder / name)
    (folder / "recipe.yaml").write_text(BLOCKS[0], encoding="utf-8")
    monkeypatch.chdir(folder)
    report = release_into(home, load_recipe(Path("recipe.yaml")), load_fleet(ROOT / "recipes" / "fleet.yaml"))
    # The verdicts of a random network on 64 rows are chance: what counts is that both engines ran.
    assert [(row.target, row.precision, row.state) for row in report.rows] == [
        ("cpu", Precision.FP32, "built"),
        ("cpu", Precision.INT8_DYNAMIC, "built"),
    ]
    assert all(row.figure("latency_p50_ms") for row in report.rows)
    assert embedded_store(home).versions("my-model")
