"""The generated part of prefect.yaml matches the recipes and the fleet file, or the difference is described."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.inputs.choices import find_recipes, require_recipes
from flows.inputs.fleet import RELEASES_POOL, Fleet, list_work_pools, load_fleet
from flows.prefect_server.deployment_file import (
    BEGIN,
    END,
    describe_difference,
    generate_deployments,
    write_deployments,
)
from flows.prefect_server.settings import RUN_ENVIRONMENT
from registry.errors import BadInput

ROOT = Path(__file__).parents[4]


class Checkout:
    """A copy of recipes, fleet and prefect.yaml, to change."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(ROOT / "recipes", folder / "recipes")
        shutil.copy(ROOT / "prefect.yaml", folder)
        self.file = folder / "prefect.yaml"
        self.fleet_file = folder / "recipes" / "fleet.yaml"

    @property
    def fleet(self) -> Fleet:
        return load_fleet(self.fleet_file)

    def describe_difference(self) -> str | None:
        return describe_difference(require_recipes(self.fleet_file), self.fleet, self.file)

    def write(self) -> None:
        write_deployments(require_recipes(self.fleet_file), self.fleet, self.file)

    def deployments(self) -> dict[str, Any]:
        loaded = yaml.safe_load(self.file.read_text(encoding="utf-8"))
        return {f"{entry['entrypoint']}/{entry['name']}": entry for entry in loaded["deployments"]}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    monkeypatch.chdir(tmp_path)
    return Checkout(tmp_path)


def test_the_shipped_file_follows_the_shipped_recipes_and_fleet(checkout: Checkout) -> None:
    assert checkout.describe_difference() is None
    before = checkout.file.read_text(encoding="utf-8")
    checkout.write()
    assert checkout.file.read_text(encoding="utf-8") == before


def test_every_recipe_and_every_pool_has_its_deployment(checkout: Checkout) -> None:
    deployments = checkout.deployments()
    releases = {name.rpartition("/")[2] for name in deployments if ":release_engines/" in name}
    builds = {name.rpartition("/")[2] for name in deployments if ":build_target/" in name}
    assert releases == {path.stem for path in find_recipes(ROOT / "recipes" / "fleet.yaml")}
    assert builds == {target.work_pool for target in checkout.fleet.targets.values()}
    assert {name.rpartition(":")[2] for name in deployments} >= {
        "promote_engine/promote",
        "rollback_engine/rollback",
        "refresh_engines/nightly",
        "refresh_engines/weekly-full",
    }


def test_flows_that_wait_for_builds_are_in_no_pool_that_builds(checkout: Checkout) -> None:
    for name, entry in checkout.deployments().items():
        builds = ":build_target/" in name
        assert (entry["work_pool"]["name"] == RELEASES_POOL) is not builds, name


def test_every_run_beats_and_a_second_trigger_waits(checkout: Checkout) -> None:
    for name, entry in checkout.deployments().items():
        assert entry["work_pool"]["job_variables"]["env"].items() >= RUN_ENVIRONMENT.items(), name
        assert "enginery" in entry["tags"], name  # the automations look at these runs only
        if ":release_engines/" in name:
            limit = {"limit": 1, "collision_strategy": "ENQUEUE", "grace_period_seconds": 60}
            assert entry["concurrency_limit"] == limit, name


def test_every_deployment_is_tagged_with_its_use(checkout: Checkout) -> None:
    uses = {
        "release_engines": "release", "build_target": "internal", "refresh_engines": "refresh",
        "promote_engine": "promote", "rollback_engine": "promote",
    }  # fmt: skip
    for name, entry in checkout.deployments().items():
        assert entry["tags"] == ["enginery", uses[name.rpartition(":")[2].partition("/")[0]]], name
        assert entry["description"], name
        assert ("not by hand" in entry["description"]) is ("internal" in entry["tags"]), name


def test_a_new_recipe_and_a_new_pool_are_missing_until_they_are_written(checkout: Checkout) -> None:
    shutil.copy(checkout.fleet_file.parent / "quickstart.yaml", checkout.fleet_file.parent / "mine.yaml")
    text = checkout.fleet_file.read_text(encoding="utf-8")
    checkout.fleet_file.write_text(text + "  edge: {backend: onnxruntime, work_pool: edge}\n", encoding="utf-8")
    assert checkout.describe_difference() == "missing: release-engines/mine, build-target/edge"
    checkout.write()
    assert checkout.describe_difference() is None
    assert checkout.deployments()["flows/deployments.py:release_engines/mine"]["parameters"] == {
        "recipe": "recipes/mine.yaml",
        "fleet": "recipes/fleet.yaml",
    }


def test_a_pool_that_left_the_fleet_and_an_edited_deployment_are_told_apart(checkout: Checkout) -> None:
    text = checkout.fleet_file.read_text(encoding="utf-8")
    checkout.fleet_file.write_text(text.replace("gpu-h200", "gpu-h100"), encoding="utf-8")
    difference = checkout.describe_difference()
    assert difference is not None
    assert "not expected: build-target/gpu-h200" in difference
    assert "changed: build-target/gpu-h100" in difference


def test_what_people_wrote_themselves_stays(checkout: Checkout) -> None:
    text = checkout.file.read_text(encoding="utf-8").replace("0 1 * * *", "30 2 * * *")
    checkout.file.write_text("# ours\n" + text, encoding="utf-8")
    shutil.copy(checkout.fleet_file.parent / "quickstart.yaml", checkout.fleet_file.parent / "mine.yaml")
    checkout.write()
    written = checkout.file.read_text(encoding="utf-8")
    assert written.startswith("# ours\n")
    assert "30 2 * * *" in written


@pytest.mark.parametrize("removed", [BEGIN, END, "deployments:\n"])
def test_a_file_without_its_marks_or_its_list_is_refused_and_left_alone(removed: str, checkout: Checkout) -> None:
    text = checkout.file.read_text(encoding="utf-8").replace(removed, "")
    checkout.file.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=r"prefect\.yaml"):
        checkout.write()
    assert checkout.file.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("{a: {backend: onnxruntime, work_pool: releases}}", "reserved for releases"),
        ("{a: {backend: onnxruntime}, b: {backend: tensorrt, compute_capability: '8.9'}}", "two backends"),
    ],
)
def test_a_pool_has_one_backend_and_is_not_the_releases(targets: str, words: str, checkout: Checkout) -> None:
    checkout.fleet_file.write_text(f"targets: {targets}\n", encoding="utf-8")
    with pytest.raises(BadInput, match=words):
        list_work_pools(checkout.fleet)


def test_a_recipe_file_with_a_name_that_yaml_would_read_otherwise_is_refused(checkout: Checkout) -> None:
    odd = checkout.fleet_file.parent / "a: [b.yaml"
    shutil.copy(checkout.fleet_file.parent / "quickstart.yaml", odd)
    with pytest.raises(BadInput, match="recipe file"):
        generate_deployments([odd], checkout.fleet)


def test_away_from_a_checkout_it_says_where_to_go(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="in the checkout"):
        describe_difference([], load_fleet(ROOT / "recipes" / "fleet.yaml"), tmp_path / "prefect.yaml")
    with pytest.raises(BadInput, match="in the checkout"):
        require_recipes(tmp_path / "fleet.yaml")


def test_the_command_says_how_it_differs_and_rewrites_it(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.cli import app, run_command

    monkeypatch.setenv("ENGINERY_DEBUG", "")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)

    def command(*options: str) -> int:
        return run_command(lambda: app(["deployments", *options], standalone_mode=False))

    shutil.copy(checkout.fleet_file.parent / "quickstart.yaml", checkout.fleet_file.parent / "mine.yaml")
    assert command() == 1
    assert "missing: release-engines/mine; run `enginery deployments --write`" in capsys.readouterr().err
    assert (command("--write"), command("--check")) == (0, 0)
    assert command("--pools") == 2
    assert "PREFECT_API_URL" in capsys.readouterr().err


def test_a_form_offers_the_fleets_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("prefect")
    from prefect.utilities.callables import parameter_schema

    from flows.deployments import promote_engine

    menu = parameter_schema(promote_engine).model_dump()["properties"]["targets"]["items"]["enum"]
    assert menu == [*load_fleet(ROOT / "recipes" / "fleet.yaml").targets, "all"]
