"""release-engines: export → quantize → build every target's engines → publish → nominate."""

import datetime
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.task_runners import ThreadPoolTaskRunner

from calibration_data.reader import read_calibration_inputs
from flows.inputs.fleet import Fleet
from flows.inputs.plan import why_not_here
from flows.inputs.recipe import Recipe
from flows.inputs.rows import evaluation_rows, more_evaluation_rows
from flows.release.build_target import JudgedEngine, build_engines, count_parallel_builds
from flows.release.context import ReleaseContext, ReleaseRun, Unshown, make_flow_run_links
from flows.release.graphs import Takes, gather, make_graphs
from flows.release.measuring import choose_golden
from flows.release.publish import draw_release, name_calibration_rows, name_evaluation_rows, publish_engines
from flows.release.reporting import write_report
from flows.release.scoring import SharedArtifacts
from flows.release.stages import make_calibration_set, make_onnx, make_source
from registry.bundle.signing import local_signer, local_trust
from registry.errors import EngineryError
from registry.host.home import home
from registry.mlflow.runs.releases import ReleaseLog
from registry.mlflow.store import MlflowStore
from registry.records import GpuTarget, Precision
from registry.repair import repair_unfinished
from tasks.execution.progress import Reporter
from tasks.execution.workspace import Workspace
from tasks.report.rows import ROWS, ReleaseReport
from tasks.report.summary import release_metrics, release_note


def open_context(
    recipe: Recipe,
    store: MlflowStore,
    workspace: Workspace,
    reporter: Reporter,
    clock: Callable[[], datetime.datetime],
) -> ReleaseContext:
    """Make the context of a pinned recipe's release. First repairs, and reports, what a crash left half published."""
    signer, trust = local_signer(home()), partial(local_trust, home())
    for repair in repair_unfinished(store.repairs, trust, clock=clock, model=recipe.model):
        reporter.say(f"{repair.outcome}: {repair.model} run {repair.run_id}: {repair.reason}")
    return ReleaseContext(workspace, recipe, reporter, store, signer, trust)


# Not "release-engines": that is the deployed flow, which builds on workers.
@flow(name="release-engines-here", flow_run_name="{release_id}", validate_parameters=False, persist_result=False)
def release_engines(context: ReleaseContext, fleet: Fleet, release_id: str) -> ReleaseReport:
    """Release a pinned recipe: every engine that can be built here is built, measured, judged and published."""
    targets = [fleet.target(name) for name in context.recipe.targets]
    release = start_release(context, release_id)
    with abandon_on_error(release):
        shared = make_shared(context, targets, builds_here)
        judged = [
            engine
            for target in targets
            for engine in build_engines.with_options(task_runner=make_task_runner(target))(
                context, target, Unshown(shared)
            )
        ]
        return publish_release(release, shared, judged)


def start_release(context: ReleaseContext, release_id: str) -> ReleaseRun:
    """Start, or resume, a release's run in MLflow, which links to this Prefect run and keeps the recipe."""
    log, links = ReleaseLog(context.store), make_flow_run_links(str(runtime.flow_run.id))
    run_id = log.start(context.recipe.model, release_id, flatten_recipe(context.recipe), links)
    log.keep_recipe(run_id, context.recipe.model_dump_json())
    return ReleaseRun(context, log, release_id, run_id)


def flatten_recipe(recipe: Recipe) -> dict[str, str]:
    """Flatten a recipe into the parameters by which MLflow compares releases."""
    entries = recipe.model_dump(mode="json", exclude_none=True)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in entries.items()}


@contextmanager
def abandon_on_error(release: ReleaseRun) -> Iterator[None]:
    """Mark the release's run as failed where the block raises."""
    try:
        yield
    except BaseException:
        with suppress(EngineryError):  # what failed first says more
            release.log.abandon(release.run_id)
        raise


def publish_release(
    release: ReleaseRun, shared: SharedArtifacts, judged: Sequence[JudgedEngine], missing: tuple[str, ...] = ()
) -> ReleaseReport:
    """Publish the judged engines and close the release's run; `missing` are the targets without a result."""
    rows = publish_engines(release, shared, judged)
    report = ReleaseReport(release.id, release.context.recipe.model, rows, run_id=release.run_id, missing=missing)
    used = name_evaluation_rows(release.context.recipe, shared.evaluation), name_calibration_rows(shared)
    metric = release.context.recipe.model_task.metrics[0]
    metrics = release_metrics(report, metric)
    release.log.summarize(release.run_id, metrics, release_note(report), *used)
    with tempfile.TemporaryDirectory() as scratch:
        loss_max = release.context.recipe.gates.loss_max
        figures = draw_release(rows, Path(scratch), loss_max, higher_is_better=metric.higher_is_better)
        pages = write_report(release, shared, judged, report, Path(scratch))
        release.log.finish(release.run_id, ROWS.dump_json(rows).decode(), figures, pages, state=report.state)
    return report


def make_task_runner(target: GpuTarget) -> Any:  # Prefect types its own runners out of its own parameter
    """Make the task runner for the builds of a target on this machine."""
    return ThreadPoolTaskRunner[Any](count_parallel_builds(target))


def builds_here(precision: Precision, target: GpuTarget) -> bool:
    """Tell whether this machine can build a precision for a target."""
    return why_not_here(precision, target) is None


def make_shared(context: ReleaseContext, targets: Sequence[GpuTarget], takes: Takes) -> SharedArtifacts:
    """Make the checkpoint, the rows and the graph of each precision that at least one target takes."""
    source = make_source(context)
    evaluation = evaluation_rows(context.recipe, source.source, source.directory)
    calibration = make_calibration_set(context, evaluation)
    more = more_evaluation_rows(context.recipe, source.source, evaluation, read_calibration_inputs(calibration))
    onnx = make_onnx(context, source, evaluation)
    material = gather(context, source, onnx, calibration, more or evaluation)
    graphs = make_graphs(context, material, context.recipe.precisions, targets, takes)
    golden = choose_golden(context, source, onnx, evaluation)
    return SharedArtifacts(source, evaluation, golden, calibration, graphs, more)
