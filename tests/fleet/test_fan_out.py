"""A release on workers: what each target brings, what a lost one leaves, and what resuming makes."""

import json
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from registry.mlflow.runs.releases import STATE
from tests.support.fleet import Fleet, Process, RestartableFleet, descendants, releasing, until, working
from tests.support.fleet_runs import engines, flow_run_of, golden_inputs, is_running, job_of, release_of

pytest.importorskip("tensorrt_rtx")
pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def cpu_worker(fleet: Fleet) -> Iterator[Process]:
    with working(fleet, "cpu", "cpu-worker") as worker:
        yield worker


def test_a_target_without_a_worker_is_lost_and_resuming_builds_only_it(fleet: Fleet, cpu_worker: Process) -> None:
    tiny = fleet.recipe("unsunk", ("cpu", "rtx-4090"), rtx_4090={"patience_seconds": 3})
    with releasing(fleet, tiny) as parent:
        code, first = parent.wait()
    assert (code, first["missing"]) == (1, ["rtx-4090"])
    lost = [row for row in first["engines"] if row["target"] == "rtx-4090"]
    assert {row["state"] for row in lost} == {"lost"}
    assert "no worker of pool rtx was online" in lost[0]["reason"]
    assert [run.data.tags[STATE] for run in fleet.release_runs("unsunk")] == ["partial"]
    assert engines(fleet, "unsunk") == [("cpu", "fp32", 1), ("cpu", "int8-dynamic", 2)]
    with working(fleet, "rtx-4090", "rtx-worker"), releasing(fleet, tiny, "--resume", first["release"]) as parent:
        code, second = parent.wait()
    assert (code, second["missing"], second["release"]) == (0, [], first["release"])
    # fp32 only: TensorRT for RTX has no int8-dynamic.
    assert engines(fleet, "unsunk")[2:] == [("rtx-4090", "fp32", 3)]
    # Answered by the worker, which has no such GPU.
    assert golden_inputs(fleet, "unsunk") == [("engine", 8), ("engine", 8), ("onnx-graph", 8)]
    assert [run.data.tags[STATE] for run in fleet.release_runs("unsunk")] == ["complete"]
    cpu, rtx = fleet.flow_runs(first["release"], "cpu"), fleet.flow_runs(first["release"], "rtx-4090")
    assert [run.state.name for run in cpu] == ["Completed"]
    assert [run.state.name for run in rtx] == ["Cancelled", "Completed"]
    assert flow_run_of(fleet, "unsunk", "cpu") == {str(cpu[0].id)}
    assert flow_run_of(fleet, "unsunk", "rtx-4090") == {str(rtx[1].id)}
    assert "flow-run" in fleet.release_runs("unsunk")[0].data.tags.get("prefect_flow_run_url", "flow-run")


def test_a_late_result_of_a_lost_worker_is_not_accepted(fleet: Fleet) -> None:
    tiny = fleet.recipe("late", ("rtx-4090",), rtx_4090={"patience_seconds": 3})
    impatient = "import flows.workers.flow_runs as runs\nruns.SILENT_SECONDS, runs.CANCEL_SECONDS = 20, 1"
    with working(fleet, "rtx-4090", "rtx-vanishing") as worker, releasing(fleet, tiny, before=impatient) as parent:
        release = release_of(fleet, "late")
        until(lambda: is_running(fleet, release, "rtx-4090"))
        job = until(lambda: job_of(worker))
        everything = [psutil.Process(pid) for pid in (worker.popen.pid, *descendants(worker.popen.pid))]
        for process in everything:
            process.suspend()
        code, first = parent.wait()
        assert (code, first["missing"]) == (1, ["rtx-4090"])
        assert "no sign of life" in first["engines"][0]["reason"]
        (late,) = fleet.flow_runs(release, "rtx-4090")
        assert late.state.name == "Cancelled"
        # The job comes back, as after a partition of the network, and ends well as far as it knows.
        for process in (job, *job.children(recursive=True)):
            process.resume()
        client, run = fleet.store().client, fleet.release_runs("late")[0].info.run_id
        until(lambda: any("result-" in f.path for f in client.list_artifacts(run, f"targets/rtx-4090/{late.id}")))
        until(lambda: fleet.flow_runs(release, "rtx-4090")[0].state.is_completed())
    with releasing(fleet, tiny, "--resume", release) as parent:
        code, second = parent.wait()
    assert (code, second["missing"], engines(fleet, "late")) == (1, ["rtx-4090"], [])
    assert [run.state.name for run in fleet.flow_runs(release, "rtx-4090")] == ["Completed", "Cancelled"]


def test_a_killed_build_and_a_missing_deployment_are_reported_at_once(fleet: Fleet, cpu_worker: Process) -> None:
    tiny = fleet.recipe("killed", ("cpu", "rtx-3090"))
    with releasing(fleet, tiny) as parent:
        release = release_of(fleet, "killed")
        until(lambda: is_running(fleet, release, "cpu"))
        until(lambda: job_of(cpu_worker)).kill()
        code, report = parent.wait()
    assert (code, report["missing"], engines(fleet, "killed")) == (1, ["cpu", "rtx-3090"], [])
    assert report["engines"][0]["reason"].startswith("Crashed")
    assert "no deployment build-target/undeployed" in report["engines"][-1]["reason"]


def test_a_killed_parent_continues_with_what_its_workers_finished(fleet: Fleet, cpu_worker: Process) -> None:
    tiny = fleet.recipe("orphaned", ("cpu", "rtx-5090"), rtx_5090={"patience_seconds": 600})
    with releasing(fleet, tiny) as parent:
        release = release_of(fleet, "orphaned")
        until(lambda: "enginery.outcome.cpu" in fleet.release_runs("orphaned")[0].data.tags)
        parent.kill()
    assert engines(fleet, "orphaned") == []
    fleet.change(tiny, "rtx-5090", patience_seconds=3)
    with releasing(fleet, tiny, "--resume", release) as parent:
        code, report = parent.wait()
    assert (code, report["missing"]) == (1, ["rtx-5090"])
    # The flow run that the first parent started was found again, and the other one's result too.
    assert [run.state.name for run in fleet.flow_runs(release, "rtx-5090")] == ["Cancelled"]
    assert [run.state.name for run in fleet.flow_runs(release, "cpu")] == ["Completed"]
    assert [target for target, _, _ in engines(fleet, "orphaned")] == ["cpu", "cpu"]


def test_the_same_release_started_twice_at_once_is_one_release(fleet: Fleet, cpu_worker: Process) -> None:
    tiny = fleet.recipe("twice", ("cpu",))
    with releasing(fleet, tiny) as one, releasing(fleet, tiny, home="other-parent") as other:
        (first_code, first), (second_code, second) = one.wait(), other.wait()
    assert (first_code, second_code) == (0, 0), (first, second)
    assert first["release"] == second["release"]
    assert [name for _, name, _ in engines(fleet, "twice")] == ["fp32", "int8-dynamic"]
    assert len(fleet.flow_runs(first["release"], "cpu")) == 1
    assert [run.data.tags[STATE] for run in fleet.release_runs("twice")] == ["complete"]


def test_a_release_outlives_a_killed_and_restarted_mlflow(fleet: RestartableFleet, cpu_worker: Process) -> None:
    tiny = fleet.recipe("restarted", ("cpu",))
    with releasing(fleet, tiny) as parent:
        release = release_of(fleet, "restarted")
        until(lambda: is_running(fleet, release, "cpu"))
        fleet.mlflow_server.kill()
        fleet.mlflow_server.start()
        code, report = parent.wait()
    assert code == 0, [row["reason"] for row in report["engines"]]
    assert [name for _, name, _ in engines(fleet, "restarted")] == ["fp32", "int8-dynamic"]


def test_the_deployed_flow_releases_the_targets_and_precisions_that_were_chosen(
    fleet: Fleet, cpu_worker: Process
) -> None:
    tiny = fleet.recipe("deployed", ("cpu", "rtx-4090"))
    parameters = {"recipe": str(tiny.recipe), "fleet": str(tiny.fleet), "targets": ["cpu"], "precisions": ["fp32"]}
    code = "from prefect.deployments import run_deployment; import json, sys; "
    code += "run_deployment('release-engines/release', parameters=json.loads(sys.argv[1]), timeout=0)"
    environment = fleet.environment(fleet.folder / "homes" / "deployed") | {"PREFECT_LOGGING_LEVEL": "INFO"}
    here = {"cwd": tiny.folder, "env": environment, "check": True}
    subprocess.run([sys.executable, "-c", code, json.dumps(parameters)], **here)  # type: ignore[call-overload]
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "release", "--type", "process"]
    subprocess.run([*worker, "--run-once"], **here, timeout=240)  # type: ignore[call-overload]
    assert engines(fleet, "deployed") == [("cpu", "fp32", 1)]
