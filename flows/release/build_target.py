"""Build, evaluate and benchmark every precision of one target, and judge each engine by the recipe's gates."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from prefect import flow
from prefect.futures import PrefectFuture

from calibration_data.reader import Rows
from flows.inputs.plan import is_swept, why_not_here
from flows.release.context import ReleaseContext, Unshown
from flows.release.engines import engine_step
from flows.release.graphs import Graphs
from flows.release.measuring import benchmark_engines, graph_as_engine, make_evaluation, make_sweep
from registry.errors import BuildError, EngineryError
from registry.records import (
    Backend,
    CalibrationSet,
    EngineBuild,
    GateResult,
    GpuTarget,
    Measurement,
    Precision,
    SourceFiles,
    Verdict,
)
from tasks.backends import BACKENDS
from tasks.backends.known_faults import describe_known_faults
from tasks.bundle.golden import Golden
from tasks.execution.steps import submit_stage
from tasks.measurement.evaluate import Evaluation
from tasks.measurement.latency_figures import latency_measurements
from tasks.measurement.machine import this_machine
from tasks.measurement.measurements import (
    choose_worst,
    describe_batch_flips,
    quality_measurements,
)
from tasks.measurement.row_results import RowResults, make_row_results
from tasks.measurement.sweep import SizeTimes, Sweep
from tasks.measurement.windows import Benchmark
from tasks.report.rows import EngineRow
from tasks.verdicts.gates import Limits, judge, overall


@dataclass(frozen=True)
class SharedArtifacts:
    """What all targets of a release share: checkpoint, evaluation rows, golden inputs, calibration set and graphs."""

    source: SourceFiles
    evaluation: Rows
    golden: Rows
    calibration: CalibrationSet
    graphs: Graphs

    def calibration_of(self, precision: Precision) -> CalibrationSet | None:
        """Return the calibration set if the graph of a precision was calibrated, else None."""
        return self.calibration if self.graphs.by_precision[precision].calibration_set else None


@dataclass(frozen=True)
class EngineMeasurements:
    """What was measured of one engine; `call_seconds` are raw call times, its own and the baseline's, by precision.

    `answered` is what it answered row by row, None where it did not run. `sizes` are call times by size.
    """

    measurements: tuple[Measurement, ...] = ()
    answered: RowResults | None = None
    call_seconds: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    golden: Golden | None = None
    sizes: tuple[SizeTimes, ...] = ()


@dataclass(frozen=True)
class JudgedEngine:
    """A row of the report with what it was made from; `call_seconds` are raw call times by precision.

    `answered` is what the engine answered row by row, None where it did not run.
    `flow_run` is the Prefect run on a worker that made it, None where this process did. `sizes` are its call times over
    the sizes of the profile.
    """

    row: EngineRow
    build: EngineBuild | None = None
    gates: tuple[GateResult, ...] = ()
    verdict: Verdict = Verdict.UNMEASURED
    call_seconds: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    answered: RowResults | None = None
    flow_run: str | None = None
    golden: Golden | None = None
    sizes: tuple[SizeTimes, ...] = ()

    @property
    def engine(self) -> EngineBuild:
        """The build of a row that has one.

        Raises:
            ValueError: the row was skipped, lost or failed.
        """
        if self.build is None:
            raise ValueError(f"the {self.row.state} row of {self.row.target} {self.row.precision} has no engine")
        return self.build


def count_parallel_builds(target: GpuTarget) -> int:
    """Return how many engines of a target this machine builds side by side.

    TensorRT times its tactics on the GPU: one build at a time (TensorRT#3543). TensorRT for RTX only compiles, on
    one core per build; each takes about 600 MB, so the limit keeps a machine of many cores from running out of memory.
    """
    return min(os.cpu_count() or 1, 8) if target.backend is Backend.TENSORRT_RTX else 1


@flow(name="build-engines", flow_run_name="{target.name}", validate_parameters=False, persist_result=False)
def build_engines(
    context: ReleaseContext, target: GpuTarget, artifacts: Unshown[SharedArtifacts]
) -> list[JudgedEngine]:
    """Build, measure and judge every precision of the recipe on one target.

    A precision that cannot be built here is skipped; one without a graph, or that the vendor's library refuses, has
    failed. The row of either says why.
    """
    shared = artifacts.value
    graphs, judged = shared.graphs, dict[Precision, JudgedEngine]()
    pending: dict[Precision, PrefectFuture[tuple[EngineBuild, bool]]] = {}
    precisions = graphs.with_stand_ins(context.recipe.precisions)
    for precision in precisions:
        if reason := why_not_here(precision, target) or graphs.refused.get(precision):
            judged[precision] = JudgedEngine(make_row(context, target, precision, "skipped", reason))
        elif reason := graphs.failed.get(precision):
            judged[precision] = JudgedEngine(make_row(context, target, precision, "failed", reason))
        else:
            step = engine_step(context, graphs.by_precision[precision], target)
            pending[precision] = submit_stage(context.workspace, step, context.reporter)
    builds: dict[Precision, EngineBuild] = {}
    states: dict[Precision, str] = {}
    for precision, future in pending.items():
        try:
            build, was_found = future.result()
        except BuildError as error:
            # One engine that a vendor's library refuses does not sink the others; the row says so.
            judged[precision] = JudgedEngine(make_row(context, target, precision, "failed", str(error)))
        else:
            # One GPU type under two names shares an engine: the record says for which of them this one is.
            builds[precision] = replace(build, target=target, precision=precision)
            states[precision] = "found" if was_found else "built"
    benchmark, apart = benchmark_engines(context, shared.source, tuple(builds.values()), shared.calibration)
    swept = sweep_target(context, shared, builds, benchmark)
    for precision, measured in measure_engines(context, target, shared, builds, benchmark).items():
        row = make_row(context, target, precision, states[precision])
        build = builds[precision]
        faults = (
            describe_known_faults(path, build.backend, build.backend_version)
            for path in graphs.by_precision[precision].paths
        )
        dropped = benchmark.windows().describe_dropped() if benchmark else None
        remarks = (graphs.remarks.get(precision), describe_batch_flips(measured.measurements), *faults, dropped, apart)
        is_open = benchmark is not None and build.digest in benchmark.undecided
        row = replace(row, remark="; ".join(filter(None, remarks)), is_open=is_open)
        judged[precision] = judge_engine(context, row, build, add_sizes(measured, swept, build.digest))
    if benchmark is not None and benchmark.undecided:
        # Undecided call times are no finished stage: the next release goes on from the windows that were kept.
        context.workspace.discard(benchmark.directory)
    return [judged[precision] for precision in precisions]


def measure_engines(
    context: ReleaseContext,
    target: GpuTarget,
    shared: SharedArtifacts,
    builds: Mapping[Precision, EngineBuild],
    benchmark: Benchmark | None,
) -> dict[Precision, EngineMeasurements]:
    """Measure each engine; where none of the target runs here, score the exact ONNX graphs instead."""
    runs_here = BACKENDS[target.backend].can_run(target) is None
    exact = graph_as_engine(shared.graphs.by_precision[Precision.FP32], context.recipe.shape_profiles)
    reference = make_evaluation(context, shared.source, exact, shared.evaluation, shared.golden)
    windows, measured = benchmark.windows() if benchmark else None, {}
    for precision, build in builds.items():
        scored = score_engine(context, shared, build, reference, runs_here=runs_here)
        if benchmark is None or windows is None:
            measured[precision] = scored
        else:
            calls = {str(p): benchmark.seconds(builds[p].digest) for p in {Precision.FP32, precision}}
            timed = latency_measurements(
                windows, build.digest, benchmark.measured_on, benchmark.raw_digest(build.digest)
            )
            figures = (*scored.measurements, *timed)
            measured[precision] = EngineMeasurements(figures, scored.answered, calls, scored.golden)
    return measured


def score_engine(
    context: ReleaseContext, shared: SharedArtifacts, build: EngineBuild, reference: Evaluation, *, runs_here: bool
) -> EngineMeasurements:
    """Score an engine, or its exact ONNX graph, against the reference; nothing where that fails."""
    subject = build if runs_here else graph_as_engine(shared.graphs.by_precision[build.precision], build.profiles)
    try:
        answers = make_evaluation(context, shared.source, subject, shared.evaluation, shared.golden)
    except EngineryError as error:
        context.reporter.say(f"{build.target.name} {build.precision} cannot be scored here: {error}")
        return EngineMeasurements()
    task, rows, what = context.recipe.model_task, shared.evaluation, "engine" if runs_here else "onnx-graph"
    figures = quality_measurements(
        task, answers, reference, rows.targets, groups=rows.groups, subject=what, machine=this_machine()
    )
    if not runs_here:
        return EngineMeasurements(figures, golden=answers.golden(what))
    exact = reference.answers()
    _, judged = choose_worst(task.metrics[0], answers, rows.targets, exact)
    answered = make_row_results(task.metrics[0], judged, exact, rows)
    return EngineMeasurements(figures, answered, golden=answers.golden(what))


def sweep_target(
    context: ReleaseContext,
    shared: SharedArtifacts,
    builds: Mapping[Precision, EngineBuild],
    benchmark: Benchmark | None,
) -> Sweep | None:
    """Time a target's engines over the profile's sizes; None where they do not run here, or it is not asked for.

    No gate judges by it, so where it fails the release goes on without it.
    """
    if benchmark is None or not is_swept(context.recipe):
        return None
    try:
        return make_sweep(context, shared.source, tuple(builds.values()), shared.calibration)
    except EngineryError as error:
        context.reporter.say(f"the sizes of the profile are not timed: {error}")
        return None


def add_sizes(measured: EngineMeasurements, swept: Sweep | None, digest: str) -> EngineMeasurements:
    """Return what was measured of an engine, with its times over the profile's sizes."""
    if swept is None:
        return measured
    figures = (*measured.measurements, *swept.measurements(digest))
    return replace(measured, measurements=figures, sizes=swept.times(digest))


def judge_engine(
    context: ReleaseContext, row: EngineRow, build: EngineBuild, measured: EngineMeasurements
) -> JudgedEngine:
    """Judge a measured engine by the recipe's gates, and complete its row."""
    metric = context.recipe.model_task.metrics[0]
    limits = Limits(metric.name, **context.recipe.gates.model_dump(), higher_is_better=metric.higher_is_better)
    is_baseline = build.precision is Precision.FP32
    gates = judge(measured.measurements, limits, size_bytes=build.size_bytes, is_baseline=is_baseline)
    verdict, reason = overall(gates)
    row = replace(
        row,
        reason=reason,
        verdict=verdict,
        digest=build.digest,
        size_bytes=build.size_bytes,
        build_seconds=build.build_seconds,
        measurements=measured.measurements,
    )
    return JudgedEngine(
        row,
        build,
        gates,
        verdict,
        measured.call_seconds,
        measured.answered,
        golden=measured.golden,
        sizes=measured.sizes,
    )


def make_row(
    context: ReleaseContext, target: GpuTarget, precision: Precision, state: str, reason: str = ""
) -> EngineRow:
    """Make the row of one engine; its figures come once it is judged."""
    return EngineRow(context.recipe.model, target.name, precision, target.backend, state, reason)
