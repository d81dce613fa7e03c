"""A task of the user's own on workers: they have no recipe folder, only what the release sent them by its digest."""

import shutil

import pytest

from registry.mlflow.runs.releases import STATE
from tests.support.fleet import RestartableFleet, releasing, working
from tests.support.fleet_runs import engines, golden_inputs
from tests.support.own_tasks import write_own_recipe

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]


def test_a_worker_builds_an_own_task_from_what_was_sent(fleet: RestartableFleet) -> None:
    entries = fleet.recipe("own-fleet", ("cpu",)).fleet
    tiny = write_own_recipe(fleet.folder / "own-task", model="own", precisions=["fp32", "int8-dynamic"])
    shutil.copy(entries, tiny.fleet)
    with working(fleet, "cpu", "own-worker"), releasing(fleet, tiny) as parent:
        code, report = parent.wait()
    assert (code, report["missing"]) == (0, [])
    assert engines(fleet, "own") == [("cpu", "fp32", 1), ("cpu", "int8-dynamic", 2)]
    assert golden_inputs(fleet, "own") == [("engine", 8), ("engine", 8)]
    assert [run.data.tags[STATE] for run in fleet.release_runs("own")] == ["complete"]
