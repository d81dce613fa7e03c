"""A refresh on the real path: one release, then one thing changes, and exactly that is found and released again."""

import datetime
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client

from flows.cli import app, run_command
from flows.deployments import refresh_engines
from flows.inputs.fleet import Fleet, load_fleet
from flows.inputs.recipe import Recipe, load_recipe
from flows.prefect_server import local as local_prefect
from flows.refresh.lineage import local_toolchains
from flows.refresh.refresh_engines import refresh_recipes
from flows.refresh.results import Plan, Refreshed, RefreshRequest
from flows.refresh.staleness import Toolchain
from flows.workers.machine import WorkerReport, write_report
from registry.mlflow.store import MlflowStore, embedded_store
from registry.promotion.promote import promote
from registry.promotion.rules import Decision
from registry.records import Backend, Precision
from tasks.backends import BACKENDS
from tests.support.tiny_recipe import RECIPE, TinyRecipe, copy_home, release_into, write_split

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_offline")]

ALL = [("cpu", "fp32"), ("cpu", "int8-dynamic"), ("cpu", "int8")]


@dataclass(frozen=True)
class World:
    """A registry with one release in it, and the recipe that it was made from; the current folder is the recipe's."""

    home: Path
    tiny: TinyRecipe

    @property
    def store(self) -> MlflowStore:
        return embedded_store(self.home)

    def change(self, **keys: object) -> None:
        recipe = yaml.safe_load(self.tiny.recipe.read_text(encoding="utf-8"))
        self.tiny.recipe.write_text(yaml.safe_dump(recipe | keys), encoding="utf-8")

    def refresh(self, *, full: bool = False, dry_run: bool = False, toolchains: Any = local_toolchains) -> Refreshed:
        request = RefreshRequest((self.tiny.recipe,), self.tiny.fleet, dry_run, full)
        (result,) = refresh_recipes(request, self.store, toolchains, self._release)
        return result

    def stale(self, **how: Any) -> list[tuple[str, str]]:
        plan = self.refresh(dry_run=True, **how).plan
        assert plan is not None
        return [(engine.target, engine.precision.value) for engine in plan.stale]

    def _release(self, plans: Sequence[Plan]) -> Mapping[Path, str]:
        for plan in plans:
            release_into(
                self.home, plan.pinned.model_copy(update={"targets": plan.targets}), load_fleet(self.tiny.fleet)
            )
        return {plan.recipe: "" for plan in plans}


@pytest.fixture(scope="session")
def first(
    recipe_template: TinyRecipe,
    tmp_path_factory: pytest.TempPathFactory,
    migrated_database: Path,
    prefect_offline: None,
) -> World:
    """One release, made once and never changed: tests work on copies of it."""
    folder = tmp_path_factory.mktemp("refresh")
    shutil.copytree(recipe_template.folder, folder / "recipe")
    (folder / "home").mkdir()
    shutil.copy(migrated_database, folder / "home" / "mlflow.db")
    world = World(folder / "home", TinyRecipe(folder / "recipe"))
    world.change(targets=["cpu"], latency={"windows": 4, "iterations": 200, "warmup": 20})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world.tiny.folder)
        release_into(world.home, load_recipe(world.tiny.recipe), load_fleet(world.tiny.fleet))
    return world


@pytest.fixture
def world(first: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    home = copy_home(first.home, tmp_path / "home")
    shutil.copytree(first.tiny.folder, tmp_path / "recipe")
    monkeypatch.chdir(tmp_path / "recipe")
    return World(home, TinyRecipe(tmp_path / "recipe"))


def test_nothing_is_stale_after_a_release(world: World) -> None:
    result = world.refresh()
    assert (result.state, result.plan and result.plan.stale) == ("fresh", ())


def test_new_evaluation_data_makes_all_stale_and_a_second_refresh_finds_nothing(world: World) -> None:
    rows = world.tiny.rows("evaluation")
    write_split(world.tiny.folder / "rows", "evaluation", [*rows, *(f"{text} and a film" for text in rows[:16])])
    assert world.stale() == ALL
    before = len(world.store.versions("tiny"))
    assert world.refresh().state == "released"
    assert world.refresh().state == "fresh"
    # The engines are the same bytes: what is new is what they were judged on.
    assert len(world.store.versions("tiny")) == before


def test_a_new_calibration_set_makes_only_int8_stale(world: World) -> None:
    rows = world.tiny.rows("calibration")
    write_split(world.tiny.folder / "rows", "calibration", [f"{text} and a film" for text in rows])
    assert world.stale() == [("cpu", "int8")]
    assert world.refresh().state == "released"
    assert world.stale() == []


def test_an_engine_of_an_older_manifest_format_is_published_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (old,) = (engine for engine in world.store.versions("tiny") if engine.precision is Precision.FP32)
    row = world.store.client.get_model_version("tiny", str(old.version))
    record = json.loads(row.tags["version.record"]) | {"format_version": old.format_version - 1}
    world.store.client.set_model_version_tag("tiny", str(old.version), "version.record", json.dumps(record))
    monkeypatch.setattr("flows.release.identity.own_code", lambda: "a later one")  # which writes the later format
    assert world.stale() == [("cpu", "fp32")]
    assert world.refresh().state == "released"
    assert world.stale() == []
    published = [engine.digest for engine in world.store.versions("tiny") if engine.precision is Precision.FP32]
    assert published == [old.digest, old.digest]


@pytest.mark.long
def test_a_moved_source_makes_all_stale_until_it_is_released(world: World) -> None:
    config = world.tiny.folder / "checkpoint" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"note": "the same weights"}), encoding="utf-8")
    assert world.stale() == ALL
    assert world.refresh().state == "released"
    assert world.stale() == []


def test_a_backend_that_a_worker_reports_in_another_version_makes_its_target_stale(world: World) -> None:
    def reported(recipe: Recipe, fleet: Fleet) -> dict[str, Toolchain]:
        here = local_toolchains(recipe, fleet)["cpu"]
        return {"cpu": Toolchain("ada", f"{here.backend_version}.1", here.driver)}

    result = world.refresh(dry_run=True, toolchains=reported)
    assert result.plan is not None
    assert [(engine.target, engine.precision.value) for engine in result.plan.stale] == ALL
    assert {"ada builds with" in engine.reason for engine in result.plan.stale} == {True}
    assert (result.state, result.plan.targets) == ("planned", ("cpu",))


def test_a_new_target_is_made_where_a_machine_builds_it(world: World) -> None:
    pytest.importorskip("tensorrt_rtx")
    world.change(targets=["cpu", "rtx-4090"], precisions=["fp32", "int8-dynamic"])
    assert world.stale() == [("rtx-4090", "fp32")]
    assert world.stale(toolchains=lambda *_: {}) == []
    result = world.refresh()
    assert result.plan is not None
    assert (result.state, result.plan.targets) == ("released", ("rtx-4090",))
    assert world.stale() == []


def test_a_dry_run_changes_nothing(world: World) -> None:
    world.change(profiles=[{**RECIPE["profiles"][0], "batch": {"min": 1, "opt": 1, "max": 4}}])  # type: ignore[index]
    before = (world.store.versions("tiny"), world.store.aliases("tiny"), sorted((world.home / "stages").glob("*/*")))
    assert world.stale() == ALL
    assert before == (
        world.store.versions("tiny"),
        world.store.aliases("tiny"),
        sorted((world.home / "stages").glob("*/*")),
    )


def test_a_full_refresh_of_what_is_fresh_finds_everything(world: World) -> None:
    before = world.store.versions("tiny")
    result = world.refresh(full=True)
    assert (result.state, result.plan and result.plan.targets) == ("released", ("cpu",))
    assert world.store.versions("tiny") == before


def test_a_recipe_that_cannot_be_read_sinks_no_other(world: World) -> None:
    (world.tiny.folder / "broken.yaml").write_text("model: 7", encoding="utf-8")
    results = refresh_recipes(RefreshRequest(None, world.tiny.fleet), world.store, local_toolchains, world._release)
    assert [(result.recipe.name, result.state) for result in results] == [
        ("broken.yaml", "failed"),
        ("recipe.yaml", "fresh"),
    ]
    assert "broken.yaml" in results[0].reason


@pytest.mark.long
@pytest.mark.parametrize("allowed", [False, True])
def test_a_new_candidate_is_promoted_only_where_that_is_allowed_and_proven(world: World, allowed: bool) -> None:
    store = world.store
    serving = next(engine.version for engine in store.versions("tiny") if engine.precision is Precision.FP32)
    decision = Decision("ada", "first", datetime.datetime.now(datetime.UTC))
    promote(store, "tiny", {"cpu": serving}, decision, {})
    store.delete_alias("tiny", "candidate-cpu")  # whatever is fastest now is new
    world.change(auto_promote=allowed)
    rows = world.tiny.rows("evaluation")
    write_split(world.tiny.folder / "rows", "evaluation", [*rows, *(f"{text} and a film" for text in rows[:16])])
    promotions = {promotion.version: promotion for promotion in world.refresh().promotions}
    candidate = store.aliases("tiny")["candidate-cpu"]
    assert promotions.keys() == {candidate} - {serving}
    for promotion in promotions.values():
        assert promotion.reason
        assert allowed or not promotion.promoted
        expected = candidate if promotion.promoted else serving
        assert store.aliased("tiny", "production-cpu") == expected
        if promotion.promoted:
            assert store.events("tiny")[-1].who == "refresh-engines"


def test_what_no_known_machine_builds_waits(world: World) -> None:
    world.change(profiles=[{**RECIPE["profiles"][0], "batch": {"min": 1, "opt": 1, "max": 4}}])  # type: ignore[index]
    result = world.refresh(toolchains=lambda *_: {})
    assert result.plan is not None
    assert (result.state, result.plan.targets, result.plan.unbuilt) == ("waiting", (), ("cpu",))


def test_the_flow_shows_its_plan_and_fails_where_a_release_does(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINERY_HOME", str(world.home))
    world.change(profiles=[{**RECIPE["profiles"][0], "batch": {"min": 1, "opt": 1, "max": 4}}])  # type: ignore[index]
    version = BACKENDS[Backend.ONNXRUNTIME].version()
    write_report(WorkerReport("default", "ada", ("cpu",), Backend.ONNXRUNTIME, version, "c" * 64, "2026-11-24T00:00"))
    (result,) = refresh_engines(("recipe.yaml",), fleet="fleet.yaml", dry_run=True)
    assert (result.state, result.plan and result.plan.targets) == ("planned", ("cpu",))
    with get_client(sync_client=True) as client:
        shown = client.request("GET", "/artifacts/{key}/latest", path_params={"key": "refresh"}).json()
    rows = json.loads(shown["data"])
    assert [(row["target"], row["precision"], row["why"]) for row in rows] == [
        (target, precision, "the recipe has other optimization profiles") for target, precision in ALL
    ]
    state = refresh_engines(("recipe.yaml",), fleet="fleet.yaml", return_state=True)
    assert state.is_failed()
    assert "Prefect has no deployment release-engines/recipe" in str(state.message)


@pytest.mark.long
def test_the_command_says_what_is_stale_and_releases_it(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENGINERY_HOME", str(world.home))
    monkeypatch.setattr(local_prefect, "start_prefect", lambda: lambda: None)  # the test's own Prefect is up already
    rows = world.tiny.rows("calibration")
    write_split(world.tiny.folder / "rows", "calibration", [f"{text} and a film" for text in rows])
    command = ["refresh", "recipe.yaml", "--fleet", "fleet.yaml", "--json"]
    states = []
    for more in (["--dry-run"], [], ["--dry-run"]):
        assert run_command(lambda more=more: app([*command, *more], standalone_mode=False)) == 0  # type: ignore[misc]
        (output,) = json.loads(capsys.readouterr().out)
        states.append((output["state"], [engine["precision"] for engine in output["stale"]]))
    assert states == [("planned", ["int8"]), ("released", ["int8"]), ("fresh", [])]
