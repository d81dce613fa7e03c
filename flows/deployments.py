"""The flows that Prefect deployments run: parameters are JSON, and everything else comes from MLflow."""

import platform
from pathlib import Path

from prefect import flow, get_run_logger, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.commands.console import FLEET, JOB_PATIENCE_SECONDS, open_store
from flows.inputs.choices import RecipeChoice, TargetChoice
from flows.prefect_server.pages import progress_artifacts
from flows.release import build_target as here
from flows.release.graphs import Graphs
from flows.release.progress import lines_report
from flows.release.publish import Made
from flows.release.release_engines import side_by_side
from flows.release.stages import Bench
from flows.workers.machine import check_machine
from flows.workers.orders import Order, Outcome, make_entry, outcome_folder, write_outcome
from flows.workers.parcels import receive
from flows.workers.release_on_workers import Asked, RowsFile, release_on_workers
from registry.bundle.signing import Signer, local_trust
from registry.errors import Incompatible
from registry.host.compatibility import read_host
from registry.host.home import home
from registry.mlflow.runs.run_files import RunFiles
from registry.records import CalibrationSet, OnnxArtifact, Precision, SourceFiles
from tasks.bundle.assemble import own_code
from tasks.execution.workspace import Workspace
from tasks.measurement.evaluate import Evaluation
from tasks.report.rows import ReleaseReport


@flow(name="release-engines", flow_run_name="{recipe}", persist_result=False)
def release_engines(
    recipe: RecipeChoice,
    fleet: str = str(FLEET),
    targets: list[TargetChoice] | None = None,
    precisions: list[Precision] | None = None,
    resume: str | None = None,
) -> ReleaseReport:
    """Release a recipe on the fleet: each target's engines are built by the workers of its pool.

    Args:
        recipe: path of the recipe in the checkout.
        fleet: path of the fleet file in the checkout.
        targets: only these of the recipe's targets.
        precisions: only these of the recipe's precisions, and fp32.
        resume: id of an earlier release; its own recipe counts, and only what it lacks is made.
    """
    log = get_run_logger()
    asked = Asked(
        Path(recipe),
        Path(fleet),
        tuple(targets) if targets else None,
        tuple(precisions) if precisions else None,
        resume,
    )
    store = open_store(patience_seconds=JOB_PATIENCE_SECONDS)
    return release_on_workers(asked, store, progress_artifacts(lines_report(log.info)), log.warning)


@flow(name="build-target", flow_run_name="{order.name} of {order.release}", persist_result=False)
def build_target(order: Order) -> State:
    """Build, measure and judge the engines of one target on this machine, and log them to the release's run.

    The final state's message says where the outcome lies: whoever waits for this run reads it there, and nobody else
    reads it at all.
    """
    check_order(order)
    store, workspace = open_store(patience_seconds=JOB_PATIENCE_SECONDS), Workspace(home() / "stages")
    workspace.sweep()
    files, run = RunFiles(store), str(runtime.flow_run.id)
    report = progress_artifacts(lines_report(get_run_logger().info))
    # Workers hold no signing key: who publishes signs.
    bench = Bench(workspace, order.recipe, report, store, Signer(Path()), lambda: local_trust(home()))
    made = receive_order(files, workspace, order)
    build = here.build_target.with_options(name="build-engines", task_runner=side_by_side(order.target))
    judged = build(bench, order.target, made.source, made.graphs, made.calibration, made.evaluation)
    folder = outcome_folder(order.name, run)
    entries = tuple(make_entry(each, files, workspace, order.run_id, folder) for each in judged)
    outcome = Outcome(target=order.name, flow_run=run, host=platform.node(), entries=entries)
    ref = write_outcome(outcome, files, workspace, order.run_id, folder)
    return Completed(message=ref.model_dump_json())


def check_order(order: Order) -> None:
    """Refuse, before anything is downloaded, what this machine or this copy of Enginery cannot do.

    Raises:
        Incompatible: another GPU, driver or backend than the target's, or other code than the release's.
    """
    check_machine(order.target, order.spec.serving, read_host())
    if order.code != own_code():
        raise Incompatible(
            f"this worker has another Enginery ({own_code()[:12]}) than the release ({order.code[:12]}): "
            "put the same commit on both"
        )


def receive_order(files: RunFiles, workspace: Workspace, order: Order) -> Made:
    """What all targets of the release share, fetched and verified; the reference evaluation is found by its key."""
    receive(files, workspace, order.reference, Evaluation)
    return Made(
        receive(files, workspace, order.tokenizer, SourceFiles),
        receive(files, workspace, order.evaluation, RowsFile).read(),
        receive(files, workspace, order.calibration, CalibrationSet),
        Graphs(
            {precision: receive(files, workspace, parcel, OnnxArtifact) for precision, parcel in order.graphs.items()},
            order.refused,
            order.remarks,
        ),
    )
