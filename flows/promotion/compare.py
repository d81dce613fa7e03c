"""Two published engines side by side: what their releases kept, and, where this machine runs both, call times here."""

import math
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from registry.bundle.signing import Trust
from registry.errors import BadInput, Incompatible, MeasurementError
from registry.host.compatibility import Host, check_compatible
from registry.mlflow.runs.lineage import Lineage
from registry.mlflow.store import MlflowStore
from registry.records import EngineManifest
from registry.serving.download import copy_bundle
from registry.serving.fetch import verify_placed
from tasks.execution.isolate import run_isolated
from tasks.execution.progress import OnProgress
from tasks.graphs.layer_table import LAYERS_FILE, parse_layers
from tasks.measurement.beside import explain_apart
from tasks.measurement.latency import make_feed, measure_latency
from tasks.measurement.latency_figures import LatencyRule
from tasks.measurement.machine import this_machine
from tasks.measurement.row_results import ROW_RESULTS_FILE, parse_row_results
from tasks.measurement.windows import LatencyPlan, Windows
from tasks.model_tasks import MODULE, model_task
from tasks.model_tasks.contract import Metric, Scores
from tasks.model_tasks.own.code import TASK_FILE
from tasks.model_tasks.own.declarations import AGGREGATES, read_declarations
from tasks.report.comparison import ComparedEngine, Comparison, Interleaved, compare_engines, summarize_calls
from tasks.verdicts.gates import Limits

# As a release measures (flows/inputs/recipe.py).
WINDOWS, ITERATIONS, WARMUP, SECONDS_MAX = 6, 5, 10, 60.0
# Measured until one is told to be the faster: no engine is limited, and only the speed-up counts.
TOLD_APART = Limits("none", math.inf, speedup_min=1.0)


def compare_versions(store: MlflowStore, model: str, before: int, after: int) -> Comparison:
    """Compare two versions by what the registry has of them.

    Raises:
        BadInput: they are one version, or of models for different tasks.
        NotFound: one does not exist.
    """
    if before == after:
        raise BadInput(f"version {before} is the same on both sides: name two versions of `enginery list {model}`")
    engines = [_read_engine(store, model, version) for version in (before, after)]
    tasks = [engine.manifest.source.task for engine in engines]
    if tasks[0] != tasks[1]:
        raise BadInput(f"version {before} is for {tasks[0]} and version {after} for {tasks[1]}: nothing compares them")
    if tasks[0] != MODULE:
        return compare_engines(model_task(tasks[0]).metrics[0], *engines)
    metrics = [_read_metric(store, model, version) for version in (before, after)]
    if metrics[0] != metrics[1]:
        raise BadInput(f"versions {before} and {after} are judged by different metrics: nothing compares them")
    return compare_engines(metrics[1], *engines)


def _read_metric(store: MlflowStore, model: str, version: int) -> Metric:
    """Read what a version's task module declares of its metric; its code does not run, and row scores are kept."""
    with closing(store.open_bundle(model, version).files.read(TASK_FILE)) as chunks:
        declared = read_declarations(b"".join(chunks), f"{model} version {version}").metric
    compute = AGGREGATES[declared.aggregate].compute
    return Metric(declared.name, declared.unit, _refuse_scoring, compute, higher_is_better=declared.higher_is_better)


def _refuse_scoring(*_answered: Any) -> Scores:
    raise ValueError("the scores of rows were kept")


def _read_engine(store: MlflowStore, model: str, version: int) -> ComparedEngine:
    store.version(model, version)  # raises NotFound for a version that does not exist
    lineage = Lineage(store)
    answered = lineage.version_file(model, ROW_RESULTS_FILE, version=version)
    layers = lineage.calibration_file(model, LAYERS_FILE, version=version)
    return ComparedEngine(
        version,
        store.manifest(model, version),
        None if answered is None else parse_row_results(answered, f"{model} version {version}"),
        None if layers is None else parse_layers(layers.decode()),
    )


def measure_here(
    store: MlflowStore, comparison: Comparison, trust: Trust, host: Host, on_progress: OnProgress
) -> Comparison:
    """Fetch and verify both engines, and time them here, interleaved in one fresh process.

    Calls are fed as the second engine's first profile is optimal for, with the task's example inputs.

    Raises:
        Incompatible: one does not run here, or both have no shape in common.
        SignatureInvalid, DigestMismatch, TornBundle: one is not what was published; it was not loaded.
    """
    versions = comparison.before.version, comparison.after.version
    for version in versions:
        engine = store.version(comparison.model, version)
        check_compatible(engine, host)
    if comparison.before.digest == comparison.after.digest:
        raise BadInput(f"versions {versions[0]} and {versions[1]} are the same engine: there is nothing to time")
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(version) for version in versions]
        manifests = []
        for folder, version in zip(folders, versions, strict=True):
            folder.mkdir()
            copy_bundle(store, comparison.model, version, folder)
            manifests.append(verify_placed(folder, trust))
        _require_together(comparison, *manifests)
        times = Path(scratch) / "times"
        times.mkdir()
        return replace(comparison, interleaved=_interleave(manifests, folders, times, on_progress))


def _require_together(comparison: Comparison, before: EngineManifest, after: EngineManifest) -> None:
    """Refuse two engines of which one does not run here, or cannot be called as the second is."""
    sizes = {name: span.opt for name, span in after.build.profiles[0].axes}
    for figures, build in ((comparison.before, before.build), (comparison.after, after.build)):
        if reason := explain_apart(build, after.build, sizes):
            raise Incompatible(f"version {figures.version} cannot be timed here beside the other: {reason}")


def _interleave(
    manifests: list[EngineManifest], folders: list[Path], into: Path, on_progress: OnProgress
) -> Interleaved:
    before, after = (
        replace(manifest.build, directory=folder) for manifest, folder in zip(manifests, folders, strict=True)
    )
    sizes = tuple((name, span.opt) for name, span in after.profiles[0].axes)
    plan = LatencyPlan(WINDOWS, ITERATIONS, WARMUP, sizes, SECONDS_MAX)
    task = model_task(manifests[1].source.task)
    encoder = task.open_encoder(folders[1], after.input_names, dict(sizes))
    feed = make_feed([encoder.encode([row]) for row in task.example_inputs], after.inputs, dict(plan.sizes))
    benchmark = run_isolated(
        measure_latency,
        (before, after),
        feed,
        Windows.empty((before.digest, after.digest), before.digest, plan),
        LatencyRule(TOLD_APART, this_machine()),
        (into.parent / "windows", into),
        on_progress=on_progress,
        died=MeasurementError,
    )
    return summarize_calls(benchmark.windows(), (before.digest, after.digest))
