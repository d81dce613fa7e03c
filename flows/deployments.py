"""The flows that Prefect deployments run: parameters are JSON, and everything else comes from MLflow."""

import datetime
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger, runtime
from prefect.states import Completed, Failed

from flows.inputs.choices import RecipeChoice, TargetChoice, TargetOrAll
from flows.inputs.fleet import FLEET
from flows.prefect_server.pages import show_progress
from flows.promotion import decisions
from flows.refresh.refresh_engines import pool_toolchains, refresh, release_deployed
from flows.refresh.results import Refreshed, RefreshIncomplete, RefreshRequest, refresh_artifacts
from flows.release import build_target as here
from flows.release.context import ReleaseContext
from flows.release.progress import lines_report
from flows.release.release_engines import side_by_side
from flows.workers.job import check_order, receive_order
from flows.workers.orders import BuildRequest, BuildResult, make_entry, outcome_folder, write_outcome
from flows.workers.release_on_workers import ReleaseRequest, release_on_workers
from registry.bundle.signing import Signer, local_trust
from registry.errors import EngineryError
from registry.host.home import home
from registry.mlflow.connect import JOB_PATIENCE_SECONDS, open_store
from registry.mlflow.runs.run_files import RunFiles
from registry.promotion.rules import Decision
from registry.records import Precision, PromotionEvent
from tasks.execution.workspace import Workspace
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
    asked = ReleaseRequest(
        Path(recipe),
        Path(fleet),
        tuple(targets) if targets else None,
        tuple(precisions) if precisions else None,
        resume,
    )
    store = open_store(patience_seconds=JOB_PATIENCE_SECONDS)
    return release_on_workers(asked, store, show_progress(lines_report(log.info)), log.warning)


@flow(name="build-target", flow_run_name="{order.name} of {order.release}", persist_result=False)
def build_target(order: BuildRequest) -> State:
    """Build, measure and judge the engines of one target on this machine, and log them to the release's run.

    The final state's message says where the outcome lies: whoever waits for this run reads it there, and nobody else
    reads it at all.
    """
    check_order(order)
    store, workspace = open_store(patience_seconds=JOB_PATIENCE_SECONDS), Workspace(home() / "stages")
    workspace.sweep()
    files, run = RunFiles(store), str(runtime.flow_run.id)
    report = show_progress(lines_report(get_run_logger().info))
    # Workers hold no signing key: who publishes signs.
    context = ReleaseContext(workspace, order.recipe, report, store, Signer(Path()), lambda: local_trust(home()))
    made = receive_order(files, workspace, order)
    build = here.build_target.with_options(name="build-engines", task_runner=side_by_side(order.target))
    judged = build(context, order.target, made.source, made.graphs, made.calibration, made.evaluation)
    folder = outcome_folder(order.name, run)
    entries = tuple(make_entry(each, files, workspace, order.run_id, folder) for each in judged)
    outcome = BuildResult(target=order.name, flow_run=run, host=platform.node(), entries=entries)
    ref = write_outcome(outcome, files, workspace, order.run_id, folder)
    return Completed(message=ref.model_dump_json())


@flow(name="promote-engine", flow_run_name="{model} on {targets}", persist_result=False)
def promote_engine(
    model: str,
    targets: list[TargetOrAll],
    why: str,
    who: str,
    version: int | None = None,
    waiver: str | None = None,
    fleet: str = str(FLEET),
) -> State[Any]:
    """Move production to a version whose gates passed, the candidate by default; several targets, or `all`, together.

    A refusal ends Failed with the one sentence that says why.
    """
    try:
        store = open_store()
        moved = decisions.promote(store, model, targets, version, _decision(who, why, waiver), Path(fleet))
    except EngineryError as error:
        return Failed(message=str(error))
    return _told(moved)


@flow(name="rollback-engine", flow_run_name="{model} on {targets}", persist_result=False)
def rollback_engine(model: str, targets: list[TargetOrAll], why: str, who: str, fleet: str = str(FLEET)) -> State[Any]:
    """Move production back to the version before; several targets, or `all`, together."""
    try:
        moved = decisions.roll_back(open_store(), model, targets, _decision(who, why, None), Path(fleet))
    except EngineryError as error:
        return Failed(message=str(error))
    return _told(moved)


def _decision(who: str, why: str, waiver: str | None) -> Decision:
    # A form sends an empty text for what was left empty.
    return Decision(who, why, datetime.datetime.now(datetime.UTC), waiver or None, str(runtime.flow_run.id))


def _told(moved: Sequence[PromotionEvent]) -> State[Any]:
    log = get_run_logger()
    for event in moved:
        log.info("%s %s: %s", event.model, decisions.describe_event(event), event.evidence)
    return Completed(message="; ".join(map(decisions.describe_event, moved)))


@flow(name="refresh-engines", persist_result=False)
def refresh_engines(
    recipes: list[RecipeChoice] | None = None,
    fleet: str = "recipes/fleet.yaml",
    dry_run: bool = False,
    full: bool = False,
) -> list[Refreshed]:
    """Release again, by their deployments, the recipes that have stale engines.

    Args:
        recipes: paths of recipes in the checkout; all beside the fleet file without it.
        fleet: path of the fleet file in the checkout.
        dry_run: only say what is stale and why.
        full: release everything, stale or not; what is made already is found by its key.
    """
    asked = RefreshRequest(tuple(map(Path, recipes)) if recipes else None, Path(fleet), dry_run, full)
    store = open_store(patience_seconds=JOB_PATIENCE_SECONDS)
    results = refresh(asked, store, pool_toolchains(), lambda plans: release_deployed(plans, fleet))
    refresh_artifacts(results)
    if failed := [f"{each.recipe}: {each.reason}" for each in results if each.state == "failed"]:
        raise RefreshIncomplete("; ".join(failed))
    return results
