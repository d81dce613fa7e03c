"""From judged engines to nested runs, versions and candidates; safe to repeat after a kill at any line."""

import datetime
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prefect import runtime

from calibration_data.reader import Rows, read_calibration_inputs
from flows.release.build_target import JudgedEngine
from flows.release.context import ReleaseContext, flow_run_links
from flows.release.graphs import Graphs, read_choice
from flows.release.identity import source_revision
from registry.bundle.manifest import FORMAT_VERSION
from registry.errors import EngineryError
from registry.mlflow.runs.releases import EngineEntry, ReleaseLog
from registry.promotion.promote import nominate
from registry.records import CalibrationSet, OnnxArtifact, Precision, SourceFiles, Verdict
from tasks.bundle.assemble import add_warmup, assemble_bundle, make_manifest, seal_bundle
from tasks.quantization.autopilot import CHOICE_FILE
from tasks.quantization.table import TABLE_FILE, describe_drift, drift, from_json, read_table
from tasks.report.rows import EngineRow, add_aliases, pick_winner


@dataclass(frozen=True)
class SharedArtifacts:
    """What all targets of a release share."""

    source: SourceFiles
    evaluation: Rows
    calibration: CalibrationSet
    graphs: Graphs


def publish_all(
    context: ReleaseContext,
    log: ReleaseLog,
    release: str,
    run_id: str,
    made: SharedArtifacts,
    judged: Sequence[JudgedEngine],
) -> tuple[EngineRow, ...]:
    """Publish what no gate failed, nominate each target's winner, and give all rows with their aliases."""
    rows, moved = [], moved_scales(log, context.recipe.model, release, made.graphs)
    for position, entry in enumerate(judged):
        context.on_progress("publish", position / len(judged))
        remark = "; ".join(filter(None, [entry.row.remark, moved.get(entry.row.precision)]))
        remarked = replace(entry, row=replace(entry.row, remark=remark))
        rows.append(publish_engine(context, log, release, run_id, made, remarked))
    for target in {row.target for row in rows}:
        best = pick_winner([row for row in rows if row.target == target])
        if best is not None and best.version is not None:
            nominate(context.store, context.recipe.model, target, best.version)
    return add_aliases(rows, context.store.aliases(context.recipe.model))


def publish_engine(
    context: ReleaseContext, log: ReleaseLog, release: str, run_id: str, made: SharedArtifacts, judged: JudgedEngine
) -> EngineRow:
    """One engine's nested run and, where no gate failed, its version; done once however often it is called."""
    row, build = judged.row, judged.build
    if build is None:
        return row
    model = context.recipe.model
    calibration = made.calibration if made.graphs.by_precision[build.precision].calibration_set else None
    nested, finished = log.engine_run(model, release, run_id, build)
    version = next(
        (
            engine.version
            for engine in context.store.builds(build.build_key)
            if (engine.model, engine.digest, engine.target) == (model, build.digest, build.target.name)
            and (engine.verdict, engine.format_version) == (row.verdict, FORMAT_VERSION)
        ),
        None,
    )
    if finished and (version is not None or row.verdict is Verdict.FAILED):
        return replace(row, version=version)
    if finished:
        nested, _ = log.engine_run(model, release, run_id, build)
    with tempfile.TemporaryDirectory() as scratch:
        graph = made.graphs.by_precision[build.precision]
        choice = read_choice(graph)
        files = tuple(file for name in (TABLE_FILE, CHOICE_FILE) if (file := graph.directory / name).is_file())
        figures = draw_engine(judged, graph, Path(scratch))
        log.log_engine(
            nested,
            EngineEntry(
                build,
                row.measurements,
                judged.verdict,
                row.reason,
                calibration_set=calibration.digest if calibration else None,
                evaluation_set=made.evaluation.digest,
                source_revision=source_revision(context.recipe),
                figures=figures,
                calibration=files,
                int8_share=choice.int8_share if choice else None,
                remark=row.remark,
                links=flow_run_links(judged.flow_run or str(runtime.flow_run.id)),
            ),
        )
    if version is None and row.verdict is not Verdict.FAILED:
        version = publish_version(context, release, nested, made, judged, calibration)
    log.finish_engine(nested, version)
    return replace(row, version=version)


def publish_version(
    context: ReleaseContext,
    release: str,
    run_id: str,
    made: SharedArtifacts,
    judged: JudgedEngine,
    calibration: CalibrationSet | None,
) -> int:
    """Assemble the bundle, sign it and make it a version; the number of the version."""
    if judged.build is None:
        raise ValueError("a skipped row has no engine to publish")
    model = context.recipe.model
    with tempfile.TemporaryDirectory(dir=context.workspace.root) as scratch:
        bundle = Path(scratch)
        assemble_bundle(judged.build, made.source, bundle)
        if rows := read_calibration_inputs(made.calibration)[: context.recipe.warmup_rows]:
            add_warmup(judged.build, made.source, rows, bundle)
        manifest = make_manifest(
            judged.build,
            made.source,
            bundle=bundle,
            release=release,
            sequence=context.store.take_sequence(model),
            calibration=calibration,
            evaluation_set=made.evaluation.digest,
            measurements=judged.row.measurements,
            gates=judged.gates,
            created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        sealed = seal_bundle(manifest, bundle, context.signer)
        return context.store.publish(sealed, bundle, run_id=run_id).version


def draw_engine(judged: JudgedEngine, graph: OnnxArtifact, into: Path) -> dict[str, Path]:
    """The latency histogram of an engine that ran, beside its baseline; an int8 graph's worst tensors and mixes."""
    # matplotlib is half a second, which a worker does not pay: who publishes draws.
    from tasks.report.figures import draw_int8_trade_off, draw_latency_histogram, draw_worst_tensors

    figures, table = {}, graph.directory / TABLE_FILE
    if judged.call_seconds:
        figures["latency"] = draw_latency_histogram(dict(judged.call_seconds), into / "latency.png")
    if table.is_file():
        figures["calibration"] = draw_worst_tensors(read_table(table), into / "calibration.png")
    if (choice := read_choice(graph)) is not None:
        figures["int8"] = draw_int8_trade_off(choice, into / "int8.png")
    return figures


def draw_release(rows: Sequence[EngineRow], into: Path) -> dict[str, Path]:
    """Accuracy against latency of every engine that ran."""
    from tasks.report.figures import draw_quality_against_latency

    points = []
    for row in rows:
        quality, p50 = row.quality, row.figure("latency_p50_ms")
        if quality and p50 and quality.low is not None and quality.high is not None:
            name = f"{row.target} {row.precision}"
            points.append((name, p50.value, quality.value, quality.low, quality.high))
            metric = quality.metric
    return {"trade-off": draw_quality_against_latency(metric, points, into / f"{metric}_latency.png")} if points else {}


def moved_scales(log: ReleaseLog, model: str, release: str, graphs: Graphs) -> dict[Precision, str]:
    """One sentence for each calibrated precision whose scales moved since another release's newest table."""
    found = {}
    for precision, graph in graphs.by_precision.items():
        file = graph.directory / TABLE_FILE
        if not file.is_file():
            continue
        now = read_table(file)
        try:
            before = log.last_calibration_file(model, TABLE_FILE, precision, apart_from=release)
            moved = drift(from_json(before), now) if before is not None else ()
        except EngineryError as error:  # no reason to publish nothing
            found[precision] = f"scales not compared with the last release's: {error}"
        else:
            if moved:
                found[precision] = f"since the last release {describe_drift(moved, len(now.ranges))}"
    return found
