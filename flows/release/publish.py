"""Publish judged engines: as nested MLflow runs, as signed versions, and as candidates for production.

Every step may be repeated after a kill at any line: an engine's run and version are looked up before they are made.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prefect import runtime

from calibration_data.reader import Rows, read_calibration_inputs
from flows.inputs.recipe import Recipe
from flows.release.build_target import JudgedEngine
from flows.release.context import ReleaseRun, make_flow_run_links
from flows.release.graphs import Graphs, read_choice
from flows.release.identity import source_revision
from flows.release.scoring import SharedArtifacts
from registry.bundle.description import describe_next
from registry.bundle.manifest import FORMAT_VERSION
from registry.errors import EngineryError
from registry.host.clock import now
from registry.mlflow.runs.entries import EngineEntry, UsedRows
from registry.mlflow.runs.lineage import Lineage
from registry.promotion.promote import nominate
from registry.records import OnnxArtifact, Precision, Verdict
from tasks.bundle.assemble import add_warmup, assemble_bundle, make_manifest, seal_bundle
from tasks.bundle.golden import write_golden
from tasks.execution.progress import StepEnd
from tasks.graphs.layer_table import LAYERS_FILE
from tasks.measurement.row_results import ROW_RESULTS, ROW_RESULTS_FILE
from tasks.quantization.autopilot import CHOICE_FILE
from tasks.quantization.table import TABLE_FILE, describe_drift, drift, from_json, read_table
from tasks.report.rows import EngineRow, add_aliases, pick_winner

# What a quantizer writes beside its graph.
TABLES = (TABLE_FILE, CHOICE_FILE, LAYERS_FILE)


def publish_engines(
    release: ReleaseRun, shared: SharedArtifacts, judged: Sequence[JudgedEngine]
) -> tuple[EngineRow, ...]:
    """Publish what no gate failed, nominate each target's winner, and return all rows with their aliases."""
    context, model = release.context, release.context.recipe.model
    drifts = moved_scales(Lineage(release.context.store), model, release.id, shared.graphs)
    rows, step, started = [], f"publish {model}", time.monotonic()
    for position, engine in enumerate(judged):
        context.reporter(step, position / len(judged))
        remark = "; ".join(filter(None, [engine.row.remark, drifts.get(engine.row.precision)]))
        rows.append(publish_engine(release, shared, replace(engine, row=replace(engine.row, remark=remark))))
    for target in {row.target for row in rows}:
        best = pick_winner([row for row in rows if row.target == target])
        if best is not None and best.version is not None:
            nominate(context.store, model, target, best.version)
    versions = f"{sum(row.version is not None for row in rows)} versions"
    context.reporter.end_step(StepEnd(step, time.monotonic() - started, found=False, figure=versions))
    return add_aliases(rows, context.store.aliases(model))


def publish_engine(release: ReleaseRun, shared: SharedArtifacts, judged: JudgedEngine) -> EngineRow:
    """Log one engine's nested run and, if no gate failed, publish its version.

    However often it is called, that happens once.
    """
    row, model = judged.row, release.context.recipe.model
    if judged.build is None:
        return row
    run_id, is_finished = release.log.engine_run(model, release.id, release.run_id, judged.build, judged.verdict)
    version = find_version(release, judged)
    is_due = version is None and row.verdict is not Verdict.FAILED
    if is_due or not is_finished:
        log_engine(release, run_id, shared, judged)
        if is_due:
            version = publish_version(release, run_id, shared, judged)
        advice = describe_next(model, row.target, judged.verdict, version)
        release.log.finish_engine(run_id, version, advice)
    return replace(row, version=version)


def find_version(release: ReleaseRun, judged: JudgedEngine) -> int | None:
    """Return the version of an engine with this verdict and the present manifest format, if there is one."""
    context, build = release.context, judged.engine
    published = (
        engine.version
        for engine in context.store.builds(build.build_key)
        if (engine.model, engine.digest, engine.target) == (context.recipe.model, build.digest, build.target.name)
        and (engine.verdict, engine.format_version) == (judged.row.verdict, FORMAT_VERSION)
    )
    return next(published, None)


def log_engine(release: ReleaseRun, run_id: str, shared: SharedArtifacts, judged: JudgedEngine) -> None:
    """Log an engine's figures, files and verdict to its nested run."""
    build, row = judged.engine, judged.row
    graph, calibration = shared.graphs.by_precision[build.precision], shared.calibration_of(build.precision)
    with tempfile.TemporaryDirectory() as scratch:
        entry = EngineEntry(
            build,
            row.measurements,
            judged.gates,
            judged.verdict,
            evaluation=name_evaluation_rows(release.context.recipe, shared.rows_of(judged.answered)),
            drawn_first=shared.evaluation.digest,
            calibration=name_calibration_rows(shared) if calibration else None,
            source_revision=source_revision(release.context.recipe),
            figures=draw_engine(judged, graph, Path(scratch), release.context.recipe.gates.latency_p99_ms_max),
            tables=tuple(file for name in TABLES if (file := graph.directory / name).is_file()),
            files=write_answered(judged, Path(scratch)),
            macs_share=graph.macs_share,
            remark=row.remark,
            exporter=shared.graphs.by_precision[Precision.FP32].exporter,
            links=make_flow_run_links(judged.flow_run or str(runtime.flow_run.id)),
        )
        release.log.log_engine(run_id, entry)


def write_answered(judged: JudgedEngine, into: Path) -> tuple[Path, ...]:
    """Write what an engine answered row by row; nothing where it did not run."""
    if judged.answered is None:
        return ()
    file = into / ROW_RESULTS_FILE
    file.write_bytes(ROW_RESULTS.dump_json(judged.answered))
    return (file,)


def name_evaluation_rows(recipe: Recipe, rows: Rows) -> UsedRows:
    """Name the rows that engines are judged on by their dataset and split."""
    split = recipe.data.evaluation.split
    return UsedRows(f"{Path(recipe.dataset.origin).name} {split}", rows.digest, len(rows.inputs), "evaluation")


def name_calibration_rows(shared: SharedArtifacts) -> UsedRows:
    """Name the rows that quantizers saw by their dataset and split."""
    drawn = shared.calibration
    return UsedRows(f"{Path(drawn.dataset).name} {drawn.split}", drawn.digest, drawn.samples, "calibration")


def publish_version(release: ReleaseRun, run_id: str, shared: SharedArtifacts, judged: JudgedEngine) -> int:
    """Assemble an engine's bundle, sign it, and publish it as a version; return the version's number."""
    context, build = release.context, judged.engine
    with tempfile.TemporaryDirectory(dir=context.workspace.root) as scratch:
        bundle = Path(scratch)
        assemble_bundle(build, shared.source, bundle)
        if rows := read_calibration_inputs(shared.calibration)[: context.recipe.warmup_rows]:
            add_warmup(build, shared.source, rows, bundle)
        if judged.golden is not None:
            write_golden(judged.golden, bundle)
        manifest = make_manifest(
            build,
            shared.source,
            bundle=bundle,
            release=release.id,
            sequence=context.store.take_sequence(context.recipe.model),
            calibration=shared.calibration_of(build.precision),
            evaluation_set=shared.rows_of(judged.answered).digest,
            measurements=judged.row.measurements,
            gates=judged.gates,
            created_at=now().isoformat(timespec="seconds"),
            exporter=shared.graphs.by_precision[Precision.FP32].exporter,
        )
        sealed = seal_bundle(manifest, bundle, context.signer)
        return context.store.publish(sealed, bundle, run_id=run_id).version


def draw_engine(judged: JudgedEngine, graph: OnnxArtifact, into: Path, p99_limit_ms: float | None) -> dict[str, Path]:
    """Draw the latencies of an engine that ran, beside its baseline's; an int8 graph's worst tensors and mixes."""
    # Importing matplotlib takes half a second: only the process that publishes draws, so workers do not pay for it.
    from tasks.report.figures import draw_int8_trade_off, draw_latency_histogram, draw_worst_tensors

    figures, table = {}, graph.directory / TABLE_FILE
    if judged.call_seconds:
        figures["latency"] = draw_latency_histogram(
            judged.call_seconds, into / "latency.png", p99_limit_ms=p99_limit_ms
        )
    if table.is_file():
        figures["calibration"] = draw_worst_tensors(read_table(table), into / "calibration.png")
    if (choice := read_choice(graph)) is not None:
        figures["int8"] = draw_int8_trade_off(choice, into / "int8.png")
    return figures


def draw_release(rows: Sequence[EngineRow], into: Path, loss_max: float, *, higher_is_better: bool) -> dict[str, Path]:
    """Draw quality against latency of every engine that ran."""
    from tasks.report.figures import EnginePoint, draw_quality_against_latency

    points = []
    for row in rows:
        quality, p50 = row.quality, row.figure("latency_p50_ms")
        if quality and p50 and quality.low is not None and quality.high is not None:
            points.append(EnginePoint(row.target, row.precision, p50.value, quality.value, quality.low, quality.high))
            metric = quality.metric
    if not points:
        return {}
    return {
        "trade-off": draw_quality_against_latency(
            metric,
            points,
            into / f"{metric}_latency.png",
            loss_max=loss_max,
            higher_is_better=higher_is_better,
        )
    }


def moved_scales(lineage: Lineage, model: str, release: str, graphs: Graphs) -> dict[Precision, str]:
    """Describe, per calibrated precision, which scales moved since another release's newest table."""
    sentences = {}
    for precision, graph in graphs.by_precision.items():
        file = graph.directory / TABLE_FILE
        if not file.is_file():
            continue
        table = read_table(file)
        try:
            before = lineage.last_calibration_file(model, TABLE_FILE, precision, apart_from=release)
            moved = drift(from_json(before), table) if before is not None else ()
        except EngineryError as error:  # no reason to publish nothing
            sentences[precision] = f"scales not compared with the last release's: {error}"
        else:
            if moved:
                sentences[precision] = f"since the last release {describe_drift(moved, len(table.ranges))}"
    return sentences
