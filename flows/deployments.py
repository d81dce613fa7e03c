"""The five flows that prefect.yaml deploys: their parameters are JSON, everything else comes from MLflow."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger, runtime
from prefect.states import Completed, Failed

from flows.inputs.choices import RecipeChoice, TargetChoice, TargetOrAll
from flows.inputs.default_paths import FLEET
from flows.prefect_server.pages import show_progress
from flows.promotion import decisions
from flows.refresh.refresh_engines import pool_toolchains, refresh_recipes, release_deployed
from flows.refresh.results import Refreshed, RefreshIncomplete, RefreshRequest, show_refresh
from flows.release.build_target import JudgedEngine, build_engines
from flows.release.context import ReleaseContext, open_workspace
from flows.release.progress import lines_report
from flows.release.release_engines import make_task_runner
from flows.workers.build_requests import (
    BuildRequest,
    BuildResult,
    BuildResultRef,
    make_entry,
    result_folder,
    write_result,
)
from flows.workers.job import check_request, receive_shared
from flows.workers.release_on_workers import ReleaseRequest, release_on_workers
from flows.workers.stage_transfer import StageTransfer
from registry.bundle.signing import Signer, local_trust
from registry.errors import EngineryError
from registry.host.clock import now
from registry.host.home import home
from registry.mlflow.connect import JOB_PATIENCE_SECONDS, open_store
from registry.mlflow.runs.run_files import RunFiles
from registry.promotion.rules import Decision
from registry.records import Precision, PromotionEvent
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
        resume: id of an earlier release: its own recipe is used, and only what it lacks is built.
    """
    log = get_run_logger()
    request = ReleaseRequest(
        Path(recipe),
        Path(fleet),
        tuple(targets) if targets else None,
        tuple(precisions) if precisions else None,
        resume,
    )
    store = open_store(patience_seconds=JOB_PATIENCE_SECONDS)
    return release_on_workers(request, store, show_progress(lines_report(log.info)))


@flow(name="build-target", flow_run_name="{request.name} of {request.release}", persist_result=False)
def build_target(request: BuildRequest) -> State:
    """Build, measure and judge one target's engines on this machine, and log the result to the release's run.

    The final state's message says where the result is. Only the release that waits for this run reads it.
    """
    check_request(request)
    store, workspace = open_store(patience_seconds=JOB_PATIENCE_SECONDS), open_workspace()
    reporter = show_progress(lines_report(get_run_logger().info))
    # Workers hold no signing key: the publisher signs.
    context = ReleaseContext(workspace, request.recipe, reporter, store, Signer(Path()), lambda: local_trust(home()))
    transfer = StageTransfer(RunFiles(store), workspace)
    shared = receive_shared(request, transfer)
    build = build_engines.with_options(task_runner=make_task_runner(request.target))
    ref = _send_result(request, build(context, request.target, shared), transfer)
    return Completed(message=ref.model_dump_json())


def _send_result(request: BuildRequest, judged: Sequence[JudgedEngine], transfer: StageTransfer) -> BuildResultRef:
    flow_run = str(runtime.flow_run.id)
    folder = result_folder(request.name, flow_run)
    entries = tuple(make_entry(engine, transfer, request.run_id, folder) for engine in judged)
    result = BuildResult(target=request.name, flow_run=flow_run, host=platform.node(), entries=entries)
    return write_result(result, transfer, request.run_id, folder)


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
    """Move production to a version that passed its gates, by default the candidate.

    Several targets, or `all`, move together.

    A refused promotion ends Failed, with the one sentence that says why.
    """
    try:
        store = open_store()
        events = decisions.promote_targets(
            store, model, targets, version, _make_decision(who, why, waiver), Path(fleet)
        )
    except EngineryError as error:
        return Failed(message=str(error))
    return _complete_with(events)


@flow(name="rollback-engine", flow_run_name="{model} on {targets}", persist_result=False)
def rollback_engine(model: str, targets: list[TargetOrAll], why: str, who: str, fleet: str = str(FLEET)) -> State[Any]:
    """Move production back to the version before. Several targets, or `all`, move together."""
    try:
        decision = _make_decision(who, why, None)
        events = decisions.roll_back_targets(open_store(), model, targets, decision, Path(fleet))
    except EngineryError as error:
        return Failed(message=str(error))
    return _complete_with(events)


def _make_decision(who: str, why: str, waiver: str | None) -> Decision:
    # Prefect's form sends an empty text for an empty field.
    return Decision(who, why, now(), waiver or None, str(runtime.flow_run.id))


def _complete_with(events: Sequence[PromotionEvent]) -> State[Any]:
    log = get_run_logger()
    for event in events:
        log.info("%s %s: %s", event.model, decisions.describe_event(event), event.evidence)
    return Completed(message="; ".join(map(decisions.describe_event, events)))


@flow(name="refresh-engines", persist_result=False)
def refresh_engines(
    recipes: list[RecipeChoice] | None = None,
    fleet: str = "recipes/fleet.yaml",
    dry_run: bool = False,
    full: bool = False,
) -> list[Refreshed]:
    """Release again, through their deployments, the recipes that have stale engines.

    Args:
        recipes: paths of recipes in the checkout; by default all beside the fleet file.
        fleet: path of the fleet file in the checkout.
        dry_run: only report what is stale and why.
        full: release everything, stale or not; finished stages are reused.
    """
    request = RefreshRequest(tuple(map(Path, recipes)) if recipes else None, Path(fleet), dry_run, full)
    store = open_store(patience_seconds=JOB_PATIENCE_SECONDS)
    results = refresh_recipes(request, store, pool_toolchains(), lambda plans: release_deployed(plans, fleet))
    show_refresh(results)
    if failed := [f"{result.recipe}: {result.reason}" for result in results if result.state == "failed"]:
        raise RefreshIncomplete("; ".join(failed))
    return results
