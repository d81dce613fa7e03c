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
from flows.release.build_target import Judged, build_target, builds_at_once, why_not
from flows.release.context import Bench, Report, flow_run_links
from flows.release.graphs import Takes, gather, make_graphs
from flows.release.publish import Made, draw_release, publish_all
from flows.release.stages import evaluation_rows, make_calibration_set, make_onnx, make_source
from registry.bundle.signing import local_signer, local_trust
from registry.host.home import home
from registry.mlflow.runs.releases import ReleaseLog
from registry.mlflow.store import MlflowStore
from registry.records import GpuTarget, Precision
from registry.repair import reconcile
from tasks.execution.workspace import Workspace
from tasks.report.rows import ROWS, ReleaseReport


def open_bench(
    recipe: Recipe,
    store: MlflowStore,
    workspace: Workspace,
    report: Report,
    say: Callable[[str], None],
    clock: Callable[[], datetime.datetime],
) -> Bench:
    """What a release of a pinned recipe works with; what a crash left half published is settled, and said, first."""
    signer, trust = local_signer(home()), partial(local_trust, home())
    for settled in reconcile(store.repairs, trust, clock=clock, model=recipe.model):
        say(f"{settled.outcome}: {settled.model} run {settled.run_id}: {settled.reason}")
    return Bench(workspace, recipe, report, store, signer, trust)


def parameters(recipe: Recipe) -> dict[str, str]:
    """The recipe, flat, as the parameters that MLflow compares releases by."""
    asked = recipe.model_dump(mode="json", exclude_none=True)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in asked.items()}


@flow(name="release-engines", flow_run_name="{release}", validate_parameters=False, persist_result=False)
def release_engines(bench: Bench, fleet: Fleet, release: str) -> ReleaseReport:
    """Release a pinned recipe: every engine that can be built here is built, measured, judged and published."""
    targets = [fleet.target(name) for name in bench.recipe.targets]
    log = ReleaseLog(bench.store)
    run_id = start_release(bench, log, release)
    with abandoned_on_error(log, run_id):
        made = make_shared(bench, targets, builds_here)
        judged = [
            build_target.with_options(task_runner=side_by_side(target))(
                bench, target, made.source, made.graphs, made.calibration, made.evaluation
            )
            for target in targets
        ]
        return publish_release(bench, log, release, run_id, made, [entry for entries in judged for entry in entries])


def start_release(bench: Bench, log: ReleaseLog, release: str) -> str:
    """The id of the release's MLflow run, which names this Prefect run."""
    links = flow_run_links(str(runtime.flow_run.id))
    return log.start(bench.recipe.model, release, parameters(bench.recipe), links)


@contextmanager
def abandoned_on_error(log: ReleaseLog, run_id: str) -> Iterator[None]:
    """The release's run is marked as failed where the block does not end well."""
    try:
        yield
    except BaseException:
        log.abandon(run_id)
        raise


def publish_release(
    bench: Bench,
    log: ReleaseLog,
    release: str,
    run_id: str,
    made: Made,
    judged: Sequence[Judged],
    missing: tuple[str, ...] = (),
) -> ReleaseReport:
    """Publish what was judged, and close the release's run; `missing` are the targets that gave no result."""
    rows = publish_all(bench, log, release, run_id, made, judged)
    result = ReleaseReport(release, bench.recipe.model, rows, run_id=run_id, missing=missing)
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


def make_shared(bench: Bench, targets: Sequence[GpuTarget], takes: Takes) -> Made:
    """Source, rows and the graph of each precision that at least one target takes."""
    source = make_source(bench)
    evaluation = evaluation_rows(bench, source)
    calibration = make_calibration_set(bench, evaluation)
    onnx = make_onnx(bench, source, evaluation)
    material = gather(bench, source, onnx, calibration, evaluation)
    graphs = make_graphs(bench, material, bench.recipe.precisions, targets, takes)
    return Made(source, evaluation, calibration, graphs)
