"""release-engines: export → quantize → one build-target per target → publish → nominate."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.task_runners import ThreadPoolTaskRunner

from flows.build_target import build_target, builds_at_once, why_not
from flows.graphs import gather, make_graphs
from flows.publication import Made, draw_release, publish_all
from flows.recipe import Fleet, Recipe
from flows.report import ROWS, ReleaseReport
from flows.stages import (
    Bench,
    evaluation_rows,
    make_calibration_set,
    make_onnx,
    make_source,
)
from registry.mlflow_runs import ReleaseLog
from registry.records import GpuTarget


def parameters(recipe: Recipe) -> dict[str, str]:
    """The recipe, flat, as the parameters that MLflow compares releases by."""
    asked = recipe.model_dump(mode="json", exclude_none=True)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in asked.items()}


@flow(name="release-engines", flow_run_name="{release}", validate_parameters=False, persist_result=False)
def release_engines(bench: Bench, fleet: Fleet, release: str) -> ReleaseReport:
    """Release a pinned recipe: every engine that can be built here is built, measured, judged and published."""
    recipe = bench.recipe
    targets = [fleet.target(name) for name in recipe.targets]
    log = ReleaseLog(bench.store)
    run_id = log.start(recipe.model, release, parameters(recipe), {"prefect_flow_run": str(runtime.flow_run.id)})
    try:
        made = make_shared(bench, targets)
        judged = [
            build_target.with_options(task_runner=_side_by_side(target))(
                bench, target, made.source, made.graphs, made.calibration, made.evaluation
            )
            for target in targets
        ]
        rows = publish_all(bench, log, release, run_id, made, [entry for entries in judged for entry in entries])
    except BaseException:
        log.abandon(run_id)
        raise
    result = ReleaseReport(release, recipe.model, rows, run_id=run_id)
    with tempfile.TemporaryDirectory() as scratch:
        figures = draw_release(rows, Path(scratch))
        log.finish(run_id, ROWS.dump_json(rows).decode(), figures, failed=result.failed)
    return result


def _side_by_side(target: GpuTarget) -> Any:  # Prefect types its own runners out of its own parameter
    return ThreadPoolTaskRunner[Any](builds_at_once(target))


def make_shared(bench: Bench, targets: Sequence[GpuTarget]) -> Made:
    """Source, rows and the graph of every precision that at least one buildable target takes."""
    source = make_source(bench)
    evaluation = evaluation_rows(bench, source)
    calibration = make_calibration_set(bench, evaluation)
    onnx = make_onnx(bench, source, evaluation)
    material = gather(bench, source, onnx, calibration, evaluation)
    graphs = make_graphs(
        bench, material, bench.recipe.precisions, targets, lambda precision, target: why_not(precision, target) is None
    )
    return Made(source, evaluation, calibration, graphs)
