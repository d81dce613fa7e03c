"""A stand-in for the GPU workers of a fleet: takes a pool's flow runs in one process, and answers without building.

    python -m benchmarks.stub_worker POOL SLOTS BUILD_SECONDS

Real: the pool, its queue, the states of each flow run, the order and its graph, the engine's and the outcome's way
through MLflow's artifact store. Not there: a process a flow run, the build (a sleep, then 64 KiB that no GPU can
run), evaluation and measurement, the heartbeats and the logs of flow runs.
"""

import os
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed, Failed, Pending, Running

from flows.release.build_target import JudgedEngine
from flows.release.context import now
from flows.workers.machine import WorkerReport, write_report
from flows.workers.orders import BuildRequest, BuildResult, BuildResultRef, make_entry, outcome_folder, write_outcome
from flows.workers.parcels import receive
from registry.digest import record_file
from registry.host.home import home
from registry.mlflow.connect import open_store
from registry.mlflow.runs.run_files import RunFiles
from registry.records import Backend, EngineBuild, OnnxArtifact, Precision
from tasks.backends import BACKENDS
from tasks.bundle.toolchain import own_code
from tasks.execution.workspace import Workspace
from tasks.report.rows import EngineRow
from tasks.verdicts.gates import Limits, judge, overall

ASK_SECONDS = 2.0
ENGINE_BYTES = 64 * 1024


def main() -> None:
    pool, slots, build_seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    files, workspace = RunFiles(open_store()), Workspace(home() / "stages")
    taken: set[str] = set()
    write_report(describe(pool))
    with get_client(sync_client=True) as client, ThreadPoolExecutor(slots) as threads:
        work: list[Future[None]] = []
        while True:
            client.send_worker_heartbeat(pool, f"stub-{os.getpid()}", heartbeat_interval_seconds=30)
            work = [each for each in work if not each.done()]
            for found in client.get_scheduled_flow_runs_for_work_pool(pool)[: slots - len(work)]:
                if str(found.flow_run.id) not in taken:
                    taken.add(str(found.flow_run.id))
                    work.append(threads.submit(serve, client, found.flow_run, build_seconds, files, workspace))
            time.sleep(ASK_SECONDS)


def describe(pool: str) -> WorkerReport:
    """What a worker of the pool would say of its machine."""
    backend = Backend.TENSORRT_RTX
    at = now().isoformat(timespec="seconds")
    return WorkerReport(pool, "stub", (), backend, BACKENDS[backend].version(), own_code(), at)


def serve(client: SyncPrefectClient, run: FlowRun, build_seconds: float, files: RunFiles, workspace: Workspace) -> None:
    """Bring one flow run from Scheduled to its end."""
    client.set_flow_run_state(run.id, Pending())
    client.set_flow_run_state(run.id, Running())
    try:
        order = BuildRequest.model_validate(run.parameters["order"])
        ref = answer(order, str(run.id), build_seconds, files, workspace)
    except Exception as error:  # the parent reads why, as with a real worker
        client.set_flow_run_state(run.id, Failed(message=f"{type(error).__name__}: {error}"))
        raise
    client.set_flow_run_state(run.id, Completed(message=ref.model_dump_json()))


def answer(
    order: BuildRequest, flow_run: str, build_seconds: float, files: RunFiles, workspace: Workspace
) -> BuildResultRef:
    """Log an outcome with one engine in fp32 that nothing measured."""
    graph = receive(files, workspace, order.graphs[Precision.FP32], OnnxArtifact)
    time.sleep(build_seconds)
    build, _ = workspace.stage(
        "build", (order.release, order.name), EngineBuild, lambda into: _stub_engine(order, graph, into)
    )
    limits = Limits(**order.recipe.gates.model_dump())
    gates = judge((), limits, size_bytes=build.size_bytes, is_baseline=True)
    verdict, reason = overall(gates)
    row = EngineRow(
        order.recipe.model,
        order.name,
        build.precision,
        build.backend,
        "built",
        reason,
        verdict=verdict,
        digest=build.digest,
        size_bytes=build.size_bytes,
        build_seconds=build.build_seconds,
    )
    folder = outcome_folder(order.name, flow_run)
    entry = make_entry(JudgedEngine(row, build, gates, verdict), files, workspace, order.run_id, folder)
    outcome = BuildResult(target=order.name, flow_run=flow_run, host="stub", entries=(entry,))
    return write_outcome(outcome, files, workspace, order.run_id, folder)


def _stub_engine(order: BuildRequest, graph: OnnxArtifact, into: Path) -> EngineBuild:
    seed = sha256(f"{order.release} {order.name}".encode())
    plan = into / "engine.plan"
    plan.write_bytes(seed.digest() * (ENGINE_BYTES // seed.digest_size))
    record = record_file(plan, root=into)
    return EngineBuild(
        file=plan.name,
        files=(record,),
        digest=record.sha256,
        # Of the model too: in a real refresh every model has graphs of its own.
        build_key=seed.hexdigest(),
        onnx_digest=graph.digest,
        precision=graph.precision,
        backend=order.target.backend,
        backend_version=BACKENDS[order.target.backend].version(),
        target=order.target,
        profiles=order.recipe.shape_profiles,
        inputs=graph.inputs,
        outputs=graph.outputs,
        build_seconds=0.0,
        size_bytes=record.size_bytes,
    )


if __name__ == "__main__":
    main()
