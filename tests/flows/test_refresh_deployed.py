"""A refresh and the deployments that it runs, on a real Prefect; who would run them is played by the test."""

import json
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client

from flows.inputs.fleet import Fleet
from flows.inputs.recipe import Recipe
from flows.refresh import refresh_engines as refreshing
from flows.refresh.refresh_engines import pool_toolchains, release_deployed
from flows.refresh.results import Plan
from flows.refresh.staleness import Toolchain
from flows.workers.machine import WorkerReport, write_report
from registry.records import Backend

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_offline")]


def post(path: Any, **body: object) -> Any:
    with get_client(sync_client=True) as client:
        answer = client.request("POST", path, json=body)
        return answer.json() if answer.content else None


def deploy(stem: str) -> str:
    """A deployment that no worker serves; its id."""
    flow = post("/flows/", name="release-engines")["id"]
    return str(post("/deployments/", name=stem, flow_id=flow, enforce_parameter_schema=False)["id"])


def plan(stem: str) -> Plan:
    return Plan(Path(f"recipes/{stem}.yaml"), None, (), ("l4",))  # type: ignore[arg-type]  # the recipe is not looked at


def end(deployment: str, state: dict[str, object], seen: list[dict[str, Any]]) -> Thread:
    """Wait for the deployment's run, note its parameters, and set its final state; without one, delete it."""

    def work() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            runs = post("/flow_runs/filter", deployments={"id": {"any_": [deployment]}})
            for run in runs:
                seen.append(run["parameters"])
                if state:
                    post(f"/flow_runs/{run['id']}/set_state", state=state, force=True)
                else:
                    with get_client(sync_client=True) as client:
                        client.request("DELETE", "/flow_runs/{id}", path_params={"id": run["id"]})
                return
            Event().wait(0.1)

    thread = Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refreshing, "POLL_SECONDS", 0.2)


def test_how_each_run_ended_is_looked_at_and_one_failure_hides_no_other() -> None:
    seen: list[dict[str, Any]] = []
    good, bad, gone = (f"{name}-{uuid4().hex[:8]}" for name in ("good", "bad", "gone"))
    threads = [
        end(deploy(good), {"type": "COMPLETED"}, seen),
        end(deploy(bad), {"type": "FAILED", "message": "published no engine"}, seen),
        end(deploy(gone), {}, seen),
    ]
    results = release_deployed([plan(good), plan(bad), plan(gone), plan("never-deployed")], "recipes/fleet.yaml")
    for thread in threads:
        thread.join()
    assert {path.stem: reason for path, reason in results.items()} == {
        good: "",
        bad: "its release is Failed: published no engine",
        gone: "its flow run was deleted",
        "never-deployed": "Prefect has no deployment release-engines/never-deployed: run `prefect deploy --all`",
    }
    assert {"recipe": f"recipes/{good}.yaml", "fleet": "recipes/fleet.yaml", "targets": ["l4"]} in seen


def test_a_release_that_does_not_end_is_said_and_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refreshing, "PATIENCE_SECONDS", 0.5)
    stem = f"slow-{uuid4().hex[:8]}"
    deploy(stem)
    assert "has not ended" in release_deployed([plan(stem)], "fleet.yaml")[Path(f"recipes/{stem}.yaml")]


def test_the_newest_report_of_a_pool_says_what_it_builds_with() -> None:
    pool = f"gpu-{uuid4().hex[:8]}"
    for host, version, at in (("old", "11.3.0", "2026-11-20"), ("new", "11.4.0", "2026-11-23")):
        write_report(
            WorkerReport(
                pool, host, ("l4",), Backend.TENSORRT, version, "c" * 64, f"{at}T00:00:00+00:00", driver="580.10"
            )
        )
    spec = {"backend": "tensorrt", "compute_capability": "8.9"}
    targets = {"l4": {**spec, "work_pool": pool}, "t4": {**spec, "work_pool": "none"}}
    fleet = Fleet.model_validate_json(json.dumps({"targets": targets}))
    recipe = Recipe.model_construct(targets=("l4", "t4"))
    assert pool_toolchains()(recipe, fleet) == {"l4": Toolchain("new", "11.4.0", "580.10")}
