"""release-engines: export → quantize → one build-target per target → publish → nominate."""

import datetime
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.task_runners import ThreadPoolTaskRunner

from flows.inputs.fleet import Fleet
from flows.inputs.recipe import Recipe
from flows.release.build_target import JudgedEngine, build_target, builds_at_once, why_not
from flows.release.context import ReleaseContext, flow_run_links
from flows.release.graphs import Takes, gather, make_graphs
from flows.release.publish import SharedArtifacts, draw_release, publish_all
from flows.release.stages import evaluation_rows, make_calibration_set, make_onnx, make_source
from registry.bundle.signing import local_signer, local_trust
from registry.host.home import home
from registry.mlflow.runs.releases import ReleaseLog
from registry.mlflow.store import MlflowStore
from registry.records import GpuTarget, Precision
from registry.repair import repair_unfinished
from tasks.execution.progress import OnProgress
from tasks.execution.workspace import Workspace
from tasks.report.rows import ROWS, ReleaseReport


def open_context(
    recipe: Recipe,
    store: MlflowStore,
    workspace: Workspace,
    report: OnProgress,
    say: Callable[[str], None],
    clock: Callable[[], datetime.datetime],
) -> ReleaseContext:
    """What a release of a pinned recipe works with; what a crash left half published is settled, and said, first."""
    signer, trust = local_signer(home()), partial(local_trust, home())
    for repaired in repair_unfinished(store.repairs, trust, clock=clock, model=recipe.model):
        say(f"{repaired.outcome}: {repaired.model} run {repaired.run_id}: {repaired.reason}")
    return ReleaseContext(workspace, recipe, report, store, signer, trust)


def parameters(recipe: Recipe) -> dict[str, str]:
    """The recipe, flat, as the parameters that MLflow compares releases by."""
    asked = recipe.model_dump(mode="json", exclude_none=True)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in asked.items()}


@flow(name="release-engines", flow_run_name="{release}", validate_parameters=False, persist_result=False)
def release_engines(context: ReleaseContext, fleet: Fleet, release: str) -> ReleaseReport:
    """Release a pinned recipe: every engine that can be built here is built, measured, judged and published."""
    targets = [fleet.target(name) for name in context.recipe.targets]
    log = ReleaseLog(context.store)
    run_id = start_release(context, log, release)
    with abandoned_on_error(log, run_id):
        made = make_shared(context, targets, builds_here)
        judged = [
            build_target.with_options(task_runner=side_by_side(target))(
                context, target, made.source, made.graphs, made.calibration, made.evaluation
            )
            for target in targets
        ]
        return publish_release(context, log, release, run_id, made, [entry for entries in judged for entry in entries])


def start_release(context: ReleaseContext, log: ReleaseLog, release: str) -> str:
    """The id of the release's MLflow run, which names this Prefect run."""
    links = flow_run_links(str(runtime.flow_run.id))
    return log.start(context.recipe.model, release, parameters(context.recipe), links)


@contextmanager
def abandoned_on_error(log: ReleaseLog, run_id: str) -> Iterator[None]:
    """The release's run is marked as failed where the block does not end well."""
    try:
        yield
    except BaseException:
        log.abandon(run_id)
        raise


def publish_release(
    context: ReleaseContext,
    log: ReleaseLog,
    release: str,
    run_id: str,
    made: SharedArtifacts,
    judged: Sequence[JudgedEngine],
    missing: tuple[str, ...] = (),
) -> ReleaseReport:
    """Publish what was judged, and close the release's run; `missing` are the targets that gave no result."""
    rows = publish_all(context, log, release, run_id, made, judged)
    result = ReleaseReport(release, context.recipe.model, rows, run_id=run_id, missing=missing)
    with tempfile.TemporaryDirectory() as scratch:
        figures = draw_release(rows, Path(scratch))
        log.finish(run_id, ROWS.dump_json(rows).decode(), figures, state=result.state)
    return result


def side_by_side(target: GpuTarget) -> Any:  # Prefect types its own runners out of its own parameter
    """The task runner for the builds of a target on this machine."""
    return ThreadPoolTaskRunner[Any](builds_at_once(target))


def builds_here(precision: Precision, target: GpuTarget) -> bool:
    """Whether this machine makes that engine."""
    return why_not(precision, target) is None


def make_shared(context: ReleaseContext, targets: Sequence[GpuTarget], takes: Takes) -> SharedArtifacts:
    """Source, rows and the graph of each precision that at least one target takes."""
    source = make_source(context)
    evaluation = evaluation_rows(context, source)
    calibration = make_calibration_set(context, evaluation)
    onnx = make_onnx(context, source, evaluation)
    material = gather(context, source, onnx, calibration, evaluation)
    graphs = make_graphs(context, material, context.recipe.precisions, targets, takes)
    return SharedArtifacts(source, evaluation, calibration, graphs)
