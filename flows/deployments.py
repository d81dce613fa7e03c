"""The five flows that prefect.yaml deploys: their parameters are JSON, everything else comes from MLflow."""

import platform
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger, runtime
from prefect.states import Completed, Failed

from flows.inputs.choices import PrecisionChoice, RecipeChoice, TargetChoice, TargetOrAll
from flows.inputs.default_paths import FLEET
from flows.prefect_server.progress_page import BUILD_STAGES, RELEASE_STAGES, show_progress
from flows.promotion import decisions
from flows.refresh.refresh_engines import pool_toolchains, refresh_recipes, release_deployed
from flows.refresh.results import Refreshed, RefreshIncomplete, RefreshRequest, show_refresh
from flows.release.build_target import JudgedEngine, build_engines
from flows.release.context import ReleaseContext, Unshown, open_workspace
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
    targets: tuple[TargetChoice, ...] = (),
    precisions: tuple[PrecisionChoice, ...] = (),
    resume: str = "",
    fleet: str = str(FLEET),
) -> ReleaseReport:
    """Release a recipe on the fleet: each target's engines are built by the workers of its pool.

    Args:
        recipe: path of the recipe in the checkout.
        targets: only these of the recipe's targets; none selected: all of them.
        precisions: only these of the recipe's precisions, and fp32; none selected: all of them.
        resume: id of an earlier release: its own recipe is used, and only what it lacks is built; empty: a new release.
        fleet: path of the fleet file in the checkout.
    """
    log = get_run_logger()
    request = ReleaseRequest(
        Path(recipe),
        Path(fleet),
        targets or None,
        tuple(map(Precision, precisions)) or None,
        resume or None,
    )
    store = open_store(patience_seconds=JOB_PATIENCE_SECONDS)
    with show_progress(lines_report(log.info), RELEASE_STAGES) as reporter:
        return release_on_workers(request, store, reporter)


@flow(name="build-target", flow_run_name="{request.name} of {request.release}", persist_result=False)
def build_target(request: BuildRequest) -> State:
    """Build, measure and judge one target's engines on this machine, and log the result to the release's run.

    The final state's message says where the result is. Only the release that waits for this run reads it.
    """
    check_request(request)
    store, workspace = open_store(patience_seconds=JOB_PATIENCE_SECONDS), open_workspace()
    trust = partial(local_trust, home())
    transfer = StageTransfer(RunFiles(store), workspace)
    build = build_engines.with_options(task_runner=make_task_runner(request.target))
    with show_progress(lines_report(get_run_logger().info), BUILD_STAGES) as reporter:
        # Workers hold no signing key: the publisher signs.
        shared = receive_shared(request, transfer)
        recipe = request.recipe.read_module_from(shared.source.directory)
        context = ReleaseContext(workspace, recipe, reporter, store, Signer(Path()), trust)
        judged = build(context, request.target, Unshown(shared))
        ref = _send_result(request, judged, transfer)
    return Completed(message=ref.model_dump_json())


def _send_result(request: BuildRequest, judged: Sequence[JudgedEngine], transfer: StageTransfer) -> BuildResultRef:
    flow_run = str(runtime.flow_run.id)
    folder = result_folder(request.name, flow_run)
    entries = tuple(make_entry(engine, transfer, request.run_id, folder) for engine in judged)
    result = BuildResult(target=request.name, flow_run=flow_run, host=platform.node(), entries=entries)
    return write_result(result, transfer, request.run_id, folder)


def _name_move() -> str:
    parameters = runtime.flow_run.parameters
    return f"{parameters['model']} on {', '.join(parameters['targets'])}"


@flow(name="promote-engine", flow_run_name=_name_move, persist_result=False)
def promote_engine(
    model: str,
    targets: tuple[TargetOrAll, ...],
    why: str,
    who: str,
    version: int | None = None,
    waiver: str = "",
    fleet: str = str(FLEET),
) -> State[Any]:
    """Move production to a version that passed its gates, by default the candidate.

    A refused promotion ends Failed, with the one sentence that says why.

    Args:
        model: its name in the registry.
        targets: they move together, or none does; all: every target that has a candidate.
        why: the reason, for the history.
        who: the name of who decides, for the history.
        version: of one target alone; None: each target's candidate.
        waiver: the reason to promote although a gate was inconclusive or not measured; empty: none.
        fleet: path of the fleet file in the checkout.
    """
    try:
        store = open_store()
        events = decisions.promote_targets(
            store, model, targets, version, _make_decision(who, why, waiver), Path(fleet)
        )
    except EngineryError as error:
        return Failed(message=str(error))
    return _complete_with(events)


@flow(name="rollback-engine", flow_run_name=_name_move, persist_result=False)
def rollback_engine(
    model: str, targets: tuple[TargetOrAll, ...], why: str, who: str, fleet: str = str(FLEET)
) -> State[Any]:
    """Move production back to the version before.

    Args:
        model: its name in the registry.
        targets: they move together, or none does; all: every target that is in production.
        why: the reason, for the history.
        who: the name of who decides, for the history.
        fleet: path of the fleet file in the checkout.
    """
    try:
        decision = _make_decision(who, why)
        events = decisions.roll_back_targets(open_store(), model, targets, decision, Path(fleet))
    except EngineryError as error:
        return Failed(message=str(error))
    return _complete_with(events)


def _make_decision(who: str, why: str, waiver: str = "") -> Decision:
    return Decision(who, why, now(), waiver or None, str(runtime.flow_run.id))


def _complete_with(events: Sequence[PromotionEvent]) -> State[Any]:
    log = get_run_logger()
    for event in events:
        log.info("%s %s: %s", event.model, decisions.describe_event(event), event.evidence)
    return Completed(message="; ".join(map(decisions.describe_event, events)))


@flow(name="refresh-engines", persist_result=False)
def refresh_engines(
    recipes: tuple[RecipeChoice, ...] = (),
    dry_run: bool = False,
    full: bool = False,
    fleet: str = str(FLEET),
) -> list[Refreshed]:
    """Release again, through their deployments, the recipes that have stale engines.

    Args:
        recipes: only these; none selected: all beside the fleet file.
        dry_run: only report what is stale and why.
        full: release everything, stale or not; finished stages are reused.
        fleet: path of the fleet file in the checkout.
    """
    request = RefreshRequest(tuple(map(Path, recipes)) or None, Path(fleet), dry_run, full)
    store = open_store(patience_seconds=JOB_PATIENCE_SECONDS)
    results = refresh_recipes(request, store, pool_toolchains(), lambda plans: release_deployed(plans, fleet))
    show_refresh(results)
    if failed := [f"{result.recipe}: {result.reason}" for result in results if result.state == "failed"]:
        raise RefreshIncomplete("; ".join(failed))
    return results
