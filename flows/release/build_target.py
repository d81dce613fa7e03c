"""build-target: build, evaluate and benchmark every precision of one target, and judge it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from prefect import flow
from prefect.futures import PrefectFuture

from calibration_data.reader import Rows
from flows.release.context import ReleaseContext
from flows.release.engines import engine_step
from flows.release.graphs import Graphs
from flows.release.measuring import graph_as_engine, make_benchmark, make_evaluation
from registry.errors import BuildError, EngineryError
from registry.records import (
    Backend,
    CalibrationSet,
    EngineBuild,
    GateResult,
    GpuTarget,
    Measurement,
    OnnxArtifact,
    Precision,
    SourceFiles,
    Verdict,
)
from tasks.backends import BACKENDS
from tasks.execution.steps import submit_stage
from tasks.measurement.latency import Benchmark
from tasks.measurement.machine import this_machine
from tasks.measurement.measurements import latency_measurements, quality_measurements
from tasks.report.rows import EngineRow
from tasks.verdicts.gates import Limits, judge, overall


@dataclass(frozen=True)
class JudgedEngine:
    """A row of the report with what it was made from; `call_seconds` are raw call times by precision.

    `flow_run` is the Prefect run on a worker that made it, None where this process did.
    """

    row: EngineRow
    build: EngineBuild | None = None
    gates: tuple[GateResult, ...] = ()
    verdict: Verdict = Verdict.UNMEASURED
    call_seconds: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    flow_run: str | None = None


def builds_at_once(target: GpuTarget) -> int:
    """How many engines of a target are built side by side on this machine.

    TensorRT times its tactics on the GPU: one build at a time (TensorRT#3543). TensorRT for RTX only compiles, on
    one core a build; about 600 MB each, so that a machine with many cores and less memory is not filled.
    """
    return min(os.cpu_count() or 1, 8) if target.backend is Backend.TENSORRT_RTX else 1


def why_not(precision: Precision, target: GpuTarget) -> str | None:
    """None when this machine can make that engine, else the reason in words."""
    backend = BACKENDS[target.backend]
    return backend.supports(precision, target) or backend.can_build(target)


@flow(name="build-target", flow_run_name="{target.name}", validate_parameters=False, persist_result=False)
def build_target(
    context: ReleaseContext,
    target: GpuTarget,
    source: SourceFiles,
    graphs: Graphs,
    calibration: CalibrationSet,
    evaluation: Rows,
) -> list[JudgedEngine]:
    """Every precision of the recipe on one target: skipped with a reason, failed with a reason, or judged."""
    results: dict[Precision, JudgedEngine] = {}
    builds: dict[Precision, tuple[EngineBuild, bool]] = {}
    pending: dict[Precision, PrefectFuture[tuple[EngineBuild, bool]]] = {}
    precisions = graphs.with_stand_ins(context.recipe.precisions)
    for precision in precisions:
        if reason := why_not(precision, target) or graphs.refused.get(precision):
            results[precision] = JudgedEngine(_row(context, target, precision, "skipped", reason))
        else:
            pending[precision] = submit_stage(
                context.workspace, engine_step(context, graphs.by_precision[precision], target)
            )
    for precision, future in pending.items():
        try:
            build, found = future.result()
        except BuildError as error:
            # One engine that a vendor's library refuses does not sink the others; the row says so.
            results[precision] = JudgedEngine(_row(context, target, precision, "failed", str(error)))
        else:
            # One GPU type under two names shares an engine: the record says for which of them this one is.
            builds[precision] = replace(build, target=target, precision=precision), found
    measured = _measure(
        context,
        target,
        source,
        graphs.by_precision,
        {p: build for p, (build, _) in builds.items()},
        calibration,
        evaluation,
    )
    for precision, (build, found) in builds.items():
        figures, calls = measured[precision]
        judged = _judge(context, build, "found" if found else "built", figures, calls)
        results[precision] = replace(judged, row=replace(judged.row, remark=graphs.remarks.get(precision, "")))
    return [results[precision] for precision in precisions]


Figures = tuple[tuple[Measurement, ...], Mapping[str, NDArray[np.float64]]]


def _measure(
    context: ReleaseContext,
    target: GpuTarget,
    source: SourceFiles,
    graphs: dict[Precision, OnnxArtifact],
    builds: dict[Precision, EngineBuild],
    calibration: CalibrationSet,
    evaluation: Rows,
) -> dict[Precision, Figures]:
    """Measurements and raw call times of each engine; the exact ONNX graph is scored where no engine can run here."""
    runs_here = BACKENDS[target.backend].can_run(target) is None
    subjects = {p: build if runs_here else graph_as_engine(graphs[p]) for p, build in builds.items()}
    reference = make_evaluation(context, source, graph_as_engine(graphs[Precision.FP32]), evaluation)
    benchmark = _benchmark(context, source, builds, calibration) if runs_here else None
    results: dict[Precision, Figures] = {}
    for precision, subject in subjects.items():
        figures: tuple[Measurement, ...] = ()
        try:
            answers = make_evaluation(context, source, subject, evaluation)
        except EngineryError as error:
            context.say(f"{target.name} {precision} cannot be scored here: {error}")
        else:
            figures = quality_measurements(
                context.recipe.model_task,
                answers,
                reference,
                evaluation.targets,
                subject="engine" if runs_here else "onnx-graph",
                machine=this_machine(),
            )
        calls: Mapping[str, NDArray[np.float64]] = {}
        if benchmark is not None:
            figures += latency_measurements(benchmark, builds[precision])
            calls = {p: benchmark.seconds(builds[p].digest) for p in {Precision.FP32, precision}}
        results[precision] = figures, calls
    return results


def _benchmark(
    context: ReleaseContext, source: SourceFiles, builds: dict[Precision, EngineBuild], calibration: CalibrationSet
) -> Benchmark | None:
    """None where the fp32 baseline could not be built: a speed-up over nothing is not measured."""
    return make_benchmark(context, source, tuple(builds.values()), calibration) if Precision.FP32 in builds else None


def _judge(
    context: ReleaseContext,
    build: EngineBuild,
    state: str,
    figures: tuple[Measurement, ...],
    calls: Mapping[str, NDArray[np.float64]],
) -> JudgedEngine:
    limits = Limits(context.recipe.model_task.metric.name, **context.recipe.gates.model_dump())
    is_baseline = build.precision is Precision.FP32
    gates = judge(figures, limits, size_bytes=build.size_bytes, is_baseline=is_baseline)
    verdict, reason = overall(gates)
    row = replace(
        _row(context, build.target, build.precision, state, reason),
        verdict=verdict,
        digest=build.digest,
        size_bytes=build.size_bytes,
        build_seconds=build.build_seconds,
        measurements=figures,
    )
    return JudgedEngine(row, build, gates, verdict, calls)


def _row(context: ReleaseContext, target: GpuTarget, precision: Precision, state: str, reason: str) -> EngineRow:
    return EngineRow(context.recipe.model, target.name, precision, target.backend, state, reason)
