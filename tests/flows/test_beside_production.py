"""A release on a target that has something in production: what serves is fetched, and timed beside the new engines."""

import datetime
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.inputs.fleet import load_fleet
from flows.inputs.recipe import load_recipe
from registry.mlflow.runs.addresses import report_address
from registry.mlflow.runs.lineage import Lineage
from registry.mlflow.store import MlflowStore, embedded_store
from registry.promotion.promote import promote
from registry.promotion.rules import Decision
from registry.records import Measurement, Precision
from tasks.report.rows import EngineRow, ReleaseReport
from tests.support.tiny_recipe import RECIPE, TinyRecipe, copy_home, release_into, write_split

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_offline")]
METRICS = ("p50_over_production", "p99_over_production")


def release(home: Path, tiny: TinyRecipe, **changes: Any) -> ReleaseReport:
    """Release the tiny recipe for the CPU, with some keys changed."""
    changed = RECIPE | {"targets": ["cpu"]} | changes
    tiny.recipe.write_text(yaml.safe_dump(changed), encoding="utf-8")
    report: ReleaseReport = release_into(home, load_recipe(tiny.recipe), load_fleet(tiny.fleet))
    return report


def rows_of(report: ReleaseReport) -> dict[Precision, EngineRow]:
    return {row.precision: row for row in report.rows}


def ratios(row: EngineRow) -> list[Measurement]:
    return [figure for metric in METRICS if (figure := row.figure(metric)) is not None]


def change_calibration(tiny: TinyRecipe) -> None:
    """Make other int8 engines of the same checkpoint and rows."""
    write_split(tiny.folder / "rows", "calibration", [f"{text} and a film" for text in tiny.rows("calibration")])


@dataclass(frozen=True)
class Served:
    """A home in which the int8 engine of a release is in production."""

    home: Path
    serving: EngineRow

    @property
    def store(self) -> MlflowStore:
        return embedded_store(self.home)


@pytest.fixture(scope="session")
def first_served(
    recipe_template: TinyRecipe,
    tmp_path_factory: pytest.TempPathFactory,
    migrated_database: Path,
    prefect_offline: None,
) -> Served:
    """Made once and never changed: tests work on copies of it."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(recipe_template.folder, folder / "recipe")
    (folder / "home").mkdir()
    shutil.copy(migrated_database, folder / "home" / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "recipe")
        report = release(folder / "home", TinyRecipe(folder / "recipe"))
    assert all(ratios(row) == [] for row in report.rows)
    row = rows_of(report)[Precision.INT8]
    decision = Decision("ada", "first", datetime.datetime.now(datetime.UTC))
    promote(embedded_store(folder / "home"), "tiny", {"cpu": row.version or 0}, decision, {})
    return Served(folder / "home", row)


@pytest.fixture
def served(first_served: Served, tmp_path: Path) -> Served:
    return replace(first_served, home=copy_home(first_served.home, tmp_path / "home"))


def test_the_engine_in_production_is_fetched_and_timed_beside_the_new_ones(
    served: Served, tiny_recipe: TinyRecipe
) -> None:
    change_calibration(tiny_recipe)
    again = release(served.home, tiny_recipe)
    assert rows_of(again)[Precision.INT8].digest != served.serving.digest
    for row in again.rows:
        p50, p99 = ratios(row)
        assert p50.against == p99.against == served.serving.digest
        assert p50.low is not None
        assert 0 < p50.low <= p50.value
    check_report(served.store, again, served.serving)
    check_run(served.store, again)
    manifest = served.store.manifest("tiny", rows_of(again)[Precision.INT8].version or 0)
    against = [each.against for each in manifest.measurements if each.metric in METRICS]
    assert against == [served.serving.digest] * 2


def check_report(store: MlflowStore, again: ReleaseReport, serving: EngineRow) -> None:
    file = Path(report_address(store, again.run_id)).with_suffix(".json")
    engines = json.loads(file.read_text(encoding="utf-8"))["engines"]
    new = next(engine for engine in engines if engine["precision"] == "int8")
    assert new["production"] == serving.version
    differences = {line["gate"]: line for line in new["against_production"]}
    assert "side by side" in differences["latency_p50_against_production"]["reason"]
    assert differences["latency_p50_against_production"]["times"]["value"] == new["metrics"]["p50_over_production"]
    assert differences["accuracy_against_production"]["reason"].startswith("paired accuracy loss")


def check_run(store: MlflowStore, again: ReleaseReport) -> None:
    run_id = Lineage(store).run_ids("tiny", again.run_id)["cpu", "int8"]
    logged = store.client.get_run(run_id).data.metrics
    version = str(rows_of(again)[Precision.INT8].version)
    description = str(store.client.get_model_version("tiny", version).description)
    assert f"/runs/{run_id})" in description
    assert f"/runs/{again.run_id}/artifacts/report.html)" in description
    assert {"p50_over_production", "p50_over_production_low", "p50_over_production_high"} <= logged.keys()


def test_production_that_is_made_again_is_not_fetched(served: Served, tiny_recipe: TinyRecipe) -> None:
    again = rows_of(release(served.home, tiny_recipe, gates={"loss_max": 1.0, "size_mb_max": 51.0}))
    assert not (served.home / "stages" / "production").exists()
    assert ratios(again[Precision.INT8]) == []
    assert {each.against for each in ratios(again[Precision.FP32])} == {served.serving.digest}


def test_production_for_other_shapes_is_not_compared_and_says_so(served: Served, tiny_recipe: TinyRecipe) -> None:
    change_calibration(tiny_recipe)
    profile = {"batch": {"min": 1, "opt": 8, "max": 8}, "sequence": {"min": 4, "opt": 8, "max": 16}}
    for row in release(served.home, tiny_recipe, profiles=[profile]).rows:
        assert ratios(row) == []
        assert "not timed beside version" in row.remark
        assert "it takes no batch 8" in row.remark


def test_an_engine_in_production_that_a_stranger_signed_is_not_run(served: Served, tiny_recipe: TinyRecipe) -> None:
    change_calibration(tiny_recipe)
    for key in (served.home / "keys").glob("*"):
        key.unlink()
    for row in release(served.home, tiny_recipe).rows:
        assert ratios(row) == []
        assert "not timed beside version" in row.remark
    assert not (served.home / "stages" / "production").exists()
