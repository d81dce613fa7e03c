"""The stages that measure: answers on the evaluation rows, and call times beside the fp32 baseline."""

from pathlib import Path

import numpy as np

from calibration_data.reader import (
    Rows,
    read_calibration_inputs,
)
from flows.inputs.rows import golden_rows
from flows.release.context import ReleaseContext, versions
from registry.digest import digest_of
from registry.errors import MeasurementError
from registry.records import (
    Backend,
    CalibrationSet,
    EngineBuild,
    GpuTarget,
    OnnxArtifact,
    Precision,
    ShapeProfile,
    SourceFiles,
)
from tasks.backends import BACKENDS
from tasks.bundle.record_golden import choose_inputs, fits_profile
from tasks.execution.isolate import run_isolated
from tasks.execution.steps import Step
from tasks.generation.parts import digest_files
from tasks.measurement.evaluate import AskedInputs, Evaluation, evaluate_engine
from tasks.measurement.latency import make_feed, measure_latency
from tasks.measurement.latency_figures import LatencyRule
from tasks.measurement.machine import this_machine
from tasks.measurement.sweep import Sweep, list_sizes, sweep_engines
from tasks.measurement.windows import Benchmark, LatencyPlan, Windows
from tasks.model_tasks.contract import Feed
from tasks.verdicts.gates import Limits

# Calibration rows whose values fill the batch that is timed.
TIMED_ROWS = 32
# Where an exact ONNX graph is scored when no machine here runs the engine made of it.
GRAPH = GpuTarget("onnx-graph", Backend.ONNXRUNTIME)


def make_evaluation(
    context: ReleaseContext, source: SourceFiles, build: EngineBuild, evaluation: Rows, golden: Rows
) -> Evaluation:
    """Return an engine's answers on the evaluation rows, from a fresh process that checks the engine's sha256 first.

    The golden inputs run in the same process, each alone.
    """
    recipe = context.recipe

    def make(into: Path) -> Evaluation:
        return run_isolated(
            evaluate_engine,
            build,
            recipe.model_task,
            source.directory,
            recipe.largest,
            AskedInputs(evaluation.inputs, golden.inputs),
            into,
            on_progress=context.progress_of(f"evaluate {label}"),
            died=MeasurementError,
        )

    label = f"{build.target.name} {build.precision}"
    engine = (build.digest, build.backend, build.backend_version)
    rows = evaluation.digest, golden.digest
    key = (*engine, source.digest, rows, recipe.task, build.profiles, versions())
    return context.run(Step("evaluate", label, key, Evaluation, make, lambda answers: f"{answers.rows} rows"))


def choose_golden(context: ReleaseContext, source: SourceFiles, onnx: OnnxArtifact, evaluation: Rows) -> Rows:
    """Return the rows whose inputs travel with each bundle: those that an engine takes alone.

    Raises:
        BadInput: the split that the recipe names for them cannot be read.
    """
    rows, recipe = golden_rows(context.recipe, evaluation), context.recipe
    encoder = context.open_encoder(source, onnx.input_names)
    chosen = choose_inputs(rows.inputs, recipe.golden_samples)
    inputs = tuple(each for each in chosen if fits_profile(encoder.encode([each]), onnx.inputs, recipe.shape_profiles))
    return Rows(inputs, (None,) * len(inputs), None, 0, digest_of(inputs), rows.source)


def graph_as_engine(onnx: OnnxArtifact, profiles: tuple[ShapeProfile, ...]) -> EngineBuild:
    """Return the exact ONNX graph as a build, to be scored by ONNX Runtime where the engine made of it cannot run."""
    record = next(record for record in onnx.files if record.path == onnx.file)
    files = (record,) if onnx.generation is None else onnx.files
    return EngineBuild(
        file=onnx.file,
        files=onnx.files,
        digest=digest_files(files, onnx.generation),
        build_key="",
        onnx_digest=onnx.digest,
        precision=onnx.precision,
        backend=Backend.ONNXRUNTIME,
        backend_version=BACKENDS[Backend.ONNXRUNTIME].version(),
        target=GRAPH,
        profiles=profiles,
        inputs=onnx.inputs,
        outputs=onnx.outputs,
        build_seconds=0.0,
        size_bytes=sum(each.size_bytes for each in files),
        generation=onnx.generation,
        directory=onnx.directory,
    )


def make_benchmark(
    context: ReleaseContext, source: SourceFiles, builds: tuple[EngineBuild, ...], calibration: CalibrationSet
) -> Benchmark:
    """Measure call times of a target's engines, interleaved with the fp32 baseline, until the gates are decided.

    One fresh process appends to the windows that earlier releases kept of the same engines on the same machine.
    """
    recipe, profile, machine = context.recipe, context.recipe.shape_profiles[0], this_machine()
    spec, gates, metric = recipe.latency, recipe.gates, recipe.model_task.metrics[0]
    best = tuple((name, span.opt) for name, span in profile.axes)
    plan = LatencyPlan(spec.windows, spec.iterations, spec.warmup, best, spec.seconds_max)
    baseline = next(build for build in builds if build.precision is Precision.FP32)
    rule = LatencyRule(Limits(metric.name, **gates.model_dump()), machine, bounds_p99=recipe.auto_promote)
    engines = [(build.digest, build.backend_version) for build in builds]
    measured = (engines, plan.iterations, plan.sizes, machine, source.digest, versions())
    kept = context.workspace.partial("windows", measured)

    def make(into: Path) -> Benchmark:
        rows = encode_timed_rows(context, source, baseline, calibration)
        return run_isolated(
            measure_latency,
            builds,
            make_feed(rows, baseline.inputs, dict(plan.sizes)),
            Windows.empty([build.digest for build in builds], baseline.digest, plan),
            rule,
            (kept, into),
            on_progress=context.progress_of(f"benchmark {baseline.target.name}"),
            died=MeasurementError,
        )

    def describe(benchmark: Benchmark) -> str:
        medians = {build.precision: 1000 * float(np.median(benchmark.seconds(build.digest))) for build in builds}
        return "p50 " + ", ".join(f"{precision} {median:.1f} ms" for precision, median in medians.items())

    key = (measured, plan, rule)
    return context.run(Step("benchmark", baseline.target.name, key, Benchmark, make, describe))


def make_sweep(
    context: ReleaseContext, source: SourceFiles, builds: tuple[EngineBuild, ...], calibration: CalibrationSet
) -> Sweep:
    """Time a target's engines over the sizes of the first profile, in a fresh process."""
    recipe, first, machine = context.recipe, builds[0], this_machine()
    sizes, seconds_max = list_sizes(recipe.shape_profiles[0]), recipe.latency.sweep_seconds_max

    def make(into: Path) -> Sweep:
        return run_isolated(
            sweep_engines,
            builds,
            encode_timed_rows(context, source, first, calibration),
            first.inputs,
            sizes,
            seconds_max,
            machine,
            into,
            on_progress=context.progress_of(f"sweep {first.target.name}"),
            died=MeasurementError,
        )

    engines = [(build.digest, build.backend_version) for build in builds]
    key = (engines, sizes, seconds_max, machine, source.digest, versions())
    return context.run(Step("sweep", first.target.name, key, Sweep, make, lambda _: f"{len(sizes)} sizes"))


def encode_timed_rows(
    context: ReleaseContext, source: SourceFiles, build: EngineBuild, calibration: CalibrationSet
) -> list[Feed]:
    """Return calibration rows as feeds of an engine, each alone: what timed calls are made of."""
    encoder = context.open_encoder(source, build.input_names)
    return [encoder.encode([row]) for row in read_calibration_inputs(calibration)[:TIMED_ROWS]]
