"""Reports of workers, stored as Prefect variables that anyone may edit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.variables import Variable

from flows.commands.machine import targets
from flows.workers.machine import WorkerReport, read_reports, write_report
from registry.records import Backend

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_offline")]

REPORT = WorkerReport(
    "gpu-l4",
    "Host.Example_1",
    ("l4",),
    Backend.TENSORRT,
    "11.4.0.106",
    "a" * 64,
    "2026-11-24T10:00:00+00:00",
    "NVIDIA L4",
    "8.9",
    "580.95.05",
)


def test_the_last_report_of_each_host_of_a_pool_is_read_newest_first() -> None:
    newer = replace(REPORT, backend_version="11.5", at="2026-11-24T11:00:00+00:00")
    neighbour = replace(REPORT, host="other", at="2026-11-24T10:30:00+00:00")
    for report in (REPORT, newer, neighbour, replace(REPORT, pool="gpu-l4-other")):
        write_report(report)
    assert read_reports("gpu-l4") == (newer, neighbour)
    assert read_reports("nobody") == ()


def test_a_variable_that_is_not_a_report_is_ignored() -> None:
    tags = ["enginery_worker", "pool:gpu-edited"]
    write_report(replace(REPORT, pool="gpu-edited"))
    Variable.set("edited", {"pool": "gpu-edited", "host": 1}, tags=tags)
    Variable.set("words", "not a report", tags=tags)
    assert read_reports("gpu-edited") == (replace(REPORT, pool="gpu-edited"),)


def test_targets_shows_what_the_workers_of_each_pool_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_report(replace(REPORT, pool="gpu-shown"))
    spec = {"backend": "tensorrt", "compute_capability": "8.9"}
    fleet = {"targets": {"l4": {**spec, "work_pool": "gpu-shown"}, "t4": {**spec, "work_pool": "gpu-nobody"}}}
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(fleet), encoding="utf-8")
    with get_client(sync_client=True) as client:
        monkeypatch.setenv("PREFECT_API_URL", str(client.api_url))
        client.create_work_pool(WorkPoolCreate(name="gpu-shown", type="process"))
        client.send_worker_heartbeat("gpu-shown", "one", heartbeat_interval_seconds=30)
        targets(tmp_path / "fleet.yaml", as_json=True)
    l4, t4 = json.loads(capsys.readouterr().out)
    assert (l4["online"], [report["driver"] for report in l4["workers"]]) == (True, ["580.95.05"])
    assert (t4["online"], t4["workers"]) == (False, [])
