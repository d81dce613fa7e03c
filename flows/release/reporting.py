"""The report of a release: what its page says is gathered here, and written as report.html and report.json."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from flows.release.build_target import JudgedEngine
from flows.release.context import ReleaseRun
from flows.release.scoring import SharedArtifacts, make_limits
from registry.errors import EngineryError
from registry.host.clock import now
from registry.mlflow.publish import REPORT_PAGE
from registry.mlflow.runs.addresses import list_links
from registry.mlflow.runs.lineage import Lineage
from registry.names import production_alias
from registry.records import GateResult
from tasks.bundle.toolchain import toolchain
from tasks.graphs.layer_table import LAYERS_FILE, LayerRow, parse_layers
from tasks.measurement.against_production import Known, judge_against_production
from tasks.measurement.row_results import ROW_RESULTS_FILE, RowResults, parse_row_results
from tasks.report.page.document import ReportedEngine, ReportInputs, describe_release
from tasks.report.rows import EngineRow, ReleaseReport
from tasks.verdicts.against_production import read_measured

REPORT_VALUES = "report.json"


def write_report(
    release: ReleaseRun,
    shared: SharedArtifacts,
    judged: Sequence[JudgedEngine],
    report: ReleaseReport,
    into: Path,
) -> tuple[Path, Path]:
    """Write the page of a release, and the same as JSON; `judged` are the engines of the report's rows, in order."""
    # Half a second of matplotlib, which workers do not pay for.
    from tasks.report.page.render import render_page

    engines = tuple(
        report_engine(release, shared, replace(engine, row=row))
        for engine, row in zip(judged, report.rows, strict=True)
    )
    document = describe_release(_gather_inputs(release, shared, report, engines))
    calls = {
        (each.row.target, each.row.precision.value): each.call_seconds
        for each in engines
        if each.call_seconds is not None
    }
    page, values = into / REPORT_PAGE, into / REPORT_VALUES
    page.write_text(render_page(document, calls), encoding="utf-8")
    values.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return page, values


def _gather_inputs(
    release: ReleaseRun, shared: SharedArtifacts, report: ReleaseReport, engines: tuple[ReportedEngine, ...]
) -> ReportInputs:
    recipe, calibration = release.context.recipe, shared.calibration
    metric = recipe.model_task.metrics[0]
    sizes = ", ".join(f"{name} {span.opt}" for name, span in recipe.shape_profiles[0].axes)
    judged_on = f"{len(shared.evaluation.inputs)} rows of {Path(recipe.dataset.origin).name}, split"
    return ReportInputs(
        report,
        engines,
        metric,
        make_limits(recipe, shared.looks),
        shared.source.source.classes,
        rows={
            "judged on": {"what": f"{judged_on} {recipe.data.evaluation.split}", "digest": shared.evaluation.digest},
            "calibrated on": {
                "what": f"{calibration.samples} rows of {Path(calibration.dataset).name}, split {calibration.split}",
                "digest": calibration.digest,
            },
        },
        shape=f"Timed with {sizes}; host arrays in, host arrays out",
        versions=toolchain(),
        recipe=yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True),
        created_at=now().strftime("%Y-%m-%d %H:%M UTC"),
        links=list_links(release.context.store, report.model, report.run_id),
    )


def report_engine(release: ReleaseRun, shared: SharedArtifacts, judged: JudgedEngine) -> ReportedEngine:
    """Gather what is known of one engine."""
    row = judged.row
    if judged.build is None:
        return ReportedEngine(row)
    graph = shared.graphs.by_precision[row.precision]
    production, against = compare_with_production(release, row, judged.answered)
    return ReportedEngine(
        row,
        judged.gates,
        judged.answered,
        judged.call_seconds.get(row.precision.value),
        _read_layers(graph.directory / LAYERS_FILE),
        graph.macs_share,
        production,
        against,
        judged.sizes,
    )


def _read_layers(file: Path) -> tuple[LayerRow, ...]:
    return parse_layers(file.read_text(encoding="utf-8")) if file.is_file() else ()


def compare_with_production(
    release: ReleaseRun, row: EngineRow, answered: RowResults | None
) -> tuple[int | None, tuple[GateResult, ...]]:
    """Compare a published engine with the one in production on its target; nothing where there is no other."""
    context = release.context
    serving = context.store.aliased(row.model, production_alias(row.target))
    if row.version is None or serving is None:
        return None, ()
    try:
        ours, theirs = (context.store.manifest(row.model, version) for version in (row.version, serving))
        if ours.build.digest == theirs.build.digest:
            return None, ()
        # Measured now, which an engine that was published before was not.
        rows = answered.evaluation_set if answered else ours.evaluation_set
        measured = replace(read_measured(ours), measurements=row.measurements, evaluation_set=rows)
        candidate = Known(measured, answered)
        production = Known(read_measured(theirs), read_answered(Lineage(context.store), row.model, serving))
        recipe = context.recipe
        results = judge_against_production(recipe.model_task.metrics[0], recipe.gates.loss_max, candidate, production)
    except EngineryError as error:  # no reason to report nothing
        context.reporter.say(f"{row.target} {row.precision} is not compared with version {serving}: {error}")
        return None, ()
    return serving, results


def read_answered(lineage: Lineage, model: str, version: int) -> RowResults | None:
    """Return what a version's engine answered row by row; None where its run did not keep that.

    Raises:
        EngineryError: it was kept, but cannot be read.
    """
    raw = lineage.version_file(model, ROW_RESULTS_FILE, version=version)
    return None if raw is None else parse_row_results(raw, f"{model} version {version}")
