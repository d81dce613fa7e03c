"""TODO: flows/release/measuring.py."""

from pathlib import Path

from calibration_data.reader import (
    Rows,
    read_calibration_texts,
)
from flows.release.context import ReleaseContext, versions
from flows.release.stages import CHECKED_ROWS
from registry.errors import MeasurementError
from registry.records import (
    Backend,
    CalibrationSet,
    EngineBuild,
    GpuTarget,
    OnnxArtifact,
    Precision,
    SourceFiles,
)
from tasks.backends import BACKENDS
from tasks.execution.isolate import run_isolated
from tasks.execution.steps import Step, run_stage
from tasks.measurement.evaluate import Evaluation, evaluate_engine
from tasks.measurement.latency import Benchmark, LatencyPlan, latency_feed, measure_latency
from tasks.measurement.machine import this_machine
from tasks.model_tasks.text_inputs import text_encoder

# Where an exact ONNX graph is scored when no machine here runs the engine made of it.
GRAPH = GpuTarget("onnx-graph", Backend.ONNXRUNTIME)


def make_evaluation(context: ReleaseContext, source: SourceFiles, build: EngineBuild, evaluation: Rows) -> Evaluation:
    """An engine's answers on the evaluation rows, from a fresh process that checks the engine's sha256 first."""
    max_length = context.recipe.data.max_length

    def make(into: Path) -> Evaluation:
        tell = context.progress_of(f"evaluate {build.target.name} {build.precision}")
        return run_isolated(
            evaluate_engine,
            build,
            source.directory,
            max_length,
            evaluation.texts,
            evaluation.labels,
            into,
            on_progress=tell,
            died=MeasurementError,
        )

    engine = (build.digest, build.backend, build.backend_version)
    key = (*engine, source.digest, evaluation.digest, max_length, versions())
    label = f"{build.target.name} {build.precision}"
    return run_stage(context.workspace, Step("evaluate", label, key, Evaluation, make))[0]


def graph_as_engine(onnx: OnnxArtifact) -> EngineBuild:
    """The exact ONNX graph, to be scored by ONNX Runtime where the engine made of it cannot run."""
    record = next(record for record in onnx.files if record.path == onnx.file)
    return EngineBuild(
        file=onnx.file,
        files=onnx.files,
        digest=record.sha256,
        build_key="",
        onnx_digest=onnx.digest,
        precision=onnx.precision,
        backend=Backend.ONNXRUNTIME,
        backend_version=BACKENDS[Backend.ONNXRUNTIME].version(),
        target=GRAPH,
        profiles=(),
        inputs=onnx.inputs,
        outputs=onnx.outputs,
        build_seconds=0.0,
        size_bytes=record.size_bytes,
        directory=onnx.directory,
    )


def make_benchmark(
    context: ReleaseContext, source: SourceFiles, builds: tuple[EngineBuild, ...], calibration: CalibrationSet
) -> Benchmark:
    """Call times of a target's engines, interleaved with the fp32 baseline in one fresh process."""
    spec, profile, machine = context.recipe.latency, context.recipe.profiles[0], this_machine()
    plan = LatencyPlan(spec.windows, spec.iterations, spec.warmup, profile.batch.opt, profile.sequence.opt)
    baseline = next(build for build in builds if build.precision is Precision.FP32)

    def make(into: Path) -> Benchmark:
        names = [tensor.name for tensor in baseline.inputs]
        encoder = text_encoder(source.directory, names, max_length=context.recipe.data.max_length)
        rows = [encoder.encode([text]) for text in read_calibration_texts(calibration)[:CHECKED_ROWS]]
        tell = context.progress_of(f"measure {baseline.target.name}")
        feed = latency_feed(rows, plan)
        return run_isolated(
            measure_latency,
            builds,
            baseline.digest,
            feed,
            plan,
            machine,
            into,
            on_progress=tell,
            died=MeasurementError,
        )

    key = ([(build.digest, build.backend_version) for build in builds], plan, machine, source.digest, versions())
    return run_stage(context.workspace, Step("benchmark", baseline.target.name, key, Benchmark, make))[0]
