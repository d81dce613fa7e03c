"""The stages that measure: answers on the evaluation rows, and call times beside the fp32 baseline."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from calibration_data.reader import (
    Rows,
    read_calibration_inputs,
)
from flows.inputs.recipe import Recipe
from flows.inputs.rows import golden_rows
from flows.release.context import ReleaseContext, versions
from flows.release.engines import find_production
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

    more = len(evaluation.inputs) > (recipe.data.evaluation.samples or len(evaluation.inputs))
    label = f"{build.target.name} {build.precision}{' on more rows' if more else ''}"
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


def benchmark_engines(
    context: ReleaseContext, source: SourceFiles, builds: Sequence[EngineBuild], calibration: CalibrationSet
) -> tuple[Benchmark | None, str]:
    """Time a target's engines beside the one in production; return the call times, and why production is not in them.

    There are none where the engines do not run here, or have no fp32 baseline for a speed-up.
    """
    baseline = next((build for build in builds if build.precision is Precision.FP32), None)
    if baseline is None or BACKENDS[baseline.target.backend].can_run(baseline.target) is not None:
        return None, ""
    plan = plan_latency(context.recipe)
    production = find_production(context, baseline.target, [baseline, *builds], dict(plan.sizes))
    engines = TimedEngines(tuple(builds), baseline, production.build)
    try:
        return make_benchmark(context, source, engines, calibration), production.remark
    except MeasurementError as error:
        if engines.guest is None:
            raise
        # An old engine that fails here must not stop a release.
        remark = f"not timed beside the engine in production, with which it failed: {error}"
        return make_benchmark(context, source, replace(engines, production=None), calibration), remark


@dataclass(frozen=True)
class TimedEngines:
    """A target's engines, the one that is their baseline, and the one in production, which may be one of them."""

    builds: tuple[EngineBuild, ...]
    baseline: EngineBuild
    production: EngineBuild | None

    @property
    def guest(self) -> EngineBuild | None:
        """The engine in production where it is none of the builds."""
        digests = {build.digest for build in self.builds}
        return None if self.production is None or self.production.digest in digests else self.production

    @property
    def together(self) -> tuple[EngineBuild, ...]:
        """All engines that are timed."""
        return self.builds if self.guest is None else (*self.builds, self.guest)


def plan_latency(recipe: Recipe) -> LatencyPlan:
    """Return how a recipe's engines are timed: at the optimum of its first profile."""
    spec, profile = recipe.latency, recipe.shape_profiles[0]
    best = tuple((name, span.opt) for name, span in profile.axes)
    return LatencyPlan(spec.windows, spec.iterations, spec.warmup, best, spec.seconds_max)


def make_benchmark(
    context: ReleaseContext, source: SourceFiles, engines: TimedEngines, calibration: CalibrationSet
) -> Benchmark:
    """Measure call times of a target's engines, interleaved with the fp32 baseline and with production, until decided.

    One fresh process appends to the windows that earlier releases kept of the same engines on the same machine.
    """
    recipe, plan, machine = context.recipe, plan_latency(context.recipe), this_machine()
    metric, baseline = recipe.model_task.metrics[0], engines.baseline
    limits, judged = Limits(metric.name, **recipe.gates.model_dump()), tuple(build.digest for build in engines.builds)
    rule = LatencyRule(limits, machine, promotes=recipe.auto_promote, judged=judged)
    timed = [(build.digest, build.backend_version) for build in engines.together]
    measured = (timed, plan.iterations, plan.sizes, machine, source.digest, versions())
    kept = context.workspace.partial("windows", measured)
    production = engines.production.digest if engines.production else None

    def make(into: Path) -> Benchmark:
        rows = encode_timed_rows(context, source, baseline, calibration)
        return run_isolated(
            measure_latency,
            engines.together,
            make_feed(rows, baseline.inputs, dict(plan.sizes)),
            Windows.empty([digest for digest, _ in timed], baseline.digest, plan, production),
            rule,
            (kept, into),
            on_progress=context.progress_of(f"benchmark {baseline.target.name}"),
            died=MeasurementError,
        )

    def describe(benchmark: Benchmark) -> str:
        medians = {
            build.precision: 1000 * float(np.median(benchmark.seconds(build.digest))) for build in engines.builds
        }
        return "p50 " + ", ".join(f"{precision} {median:.1f} ms" for precision, median in medians.items())

    key = (measured, plan, rule, production)
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
