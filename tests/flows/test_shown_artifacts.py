"""Artifacts on a real Prefect: they are there, on the flow run's page, with the right content."""

from pathlib import Path
from typing import Any

import pytest
from prefect import flow, runtime
from prefect.client.orchestration import get_client

from flows.prefect_server.pages import plan_engines, show_plan, show_release
from flows.prefect_server.progress_page import RELEASE_STAGES, show_progress
from flows.release.progress import lines_report
from registry.mlflow.store import MlflowStore
from registry.records import Backend, GpuTarget, Precision, Verdict
from tasks.report.rows import EngineRow, ReleaseReport

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_offline")]

ROW = EngineRow(
    "sst2", "cpu", Precision.FP32, Backend.ONNXRUNTIME, "built", "fine", Verdict.PASSED, "d" * 64, version=1
)


def shown(flow_run: str) -> dict[str, Any]:
    wanted = {"artifacts": {"flow_run_id": {"any_": [flow_run]}}}
    with get_client(sync_client=True) as client:
        answer = client.request("POST", "/artifacts/filter", json=wanted)
    return {found["key"]: found for found in answer.json()}


def test_a_release_shows_its_table_its_verdicts_and_its_progress(server_uri: str, tmp_path: Path) -> None:
    store = MlflowStore(server_uri, tmp_path)
    experiment = store.experiment("sst2")
    parent = store.client.create_run(experiment).info.run_id
    engine = store.client.create_run(experiment, tags={"mlflow.parentRunId": parent}).info.run_id
    for name, value in {"target": "cpu", "precision": "fp32"}.items():
        store.client.log_param(engine, name, value)

    seen: list[dict[str, Any]] = []

    @flow
    def job() -> str:
        flow_run = str(runtime.flow_run.id)
        engines = plan_engines([GpuTarget("cpu", Backend.ONNXRUNTIME, None, None, "cpu")], [Precision.FP32])
        with show_progress(lines_report(lambda _: None), RELEASE_STAGES) as reporter:
            report = show_plan(("sst2", "abc123"), engines, store, reporter)
            seen.append(shown(flow_run))
            report("wait for cpu", 0.0)
            seen.append(shown(flow_run))
            report("build cpu fp32: copy", 0.25)
            show_release(ReleaseReport("abc123", "sst2", (ROW,), run_id=parent), store)
        return flow_run

    found = shown(job())
    first, waiting = seen
    assert first.keys() == {"progress-job", "release-sst2", "verdicts-sst2"}  # before any work
    assert f"]({server_uri}/#/experiments/{experiment})" in first["verdicts-sst2"]["data"]
    assert "builds 1 engine for cpu" in first["verdicts-sst2"]["data"]
    assert '"state": "planned"' in first["release-sst2"]["data"]
    assert '"state": "in pool cpu"' in waiting["release-sst2"]["data"]
    assert waiting["progress-job"]["description"] == "stage 6 of 7: wait for cpu"
    assert (found["progress-job"]["data"], found["progress-job"]["description"]) == (100.0, "done")
    assert found.keys() == {"release-sst2", "verdicts-sst2", "progress-build-cpu-fp32", "progress-job"}
    assert {key: found[key]["id"] for key in first} == {key: first[key]["id"] for key in first}  # replaced, not added
    assert '"precision": "fp32"' in found["release-sst2"]["data"]
    assert f"[cpu fp32]({server_uri}/#/experiments/{experiment}/runs/{engine})" in found["verdicts-sst2"]["data"]
    assert found["progress-build-cpu-fp32"]["data"] == 25.0


def test_a_registry_that_fails_costs_the_page_and_not_the_release(
    mlflow_store: MlflowStore, caplog: pytest.LogCaptureFixture
) -> None:
    @flow
    def job() -> str:
        show_release(ReleaseReport("abc123", "../sst2", (ROW,), run_id="r0"), mlflow_store)
        return str(runtime.flow_run.id)

    assert shown(job()) == {}
    (said,) = [record.message for record in caplog.records if "could not show" in record.message]
    assert said.startswith("could not show the release in Prefect: model '../sst2' is not a valid name")
