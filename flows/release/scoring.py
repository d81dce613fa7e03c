"""Measure a target's engines: answers on the evaluation rows, on more where those decide nothing, and call times."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from calibration_data.reader import Rows
from flows.inputs.plan import is_swept
from flows.inputs.recipe import Recipe
from flows.release.context import ReleaseContext
from flows.release.graphs import Graphs
from flows.release.measuring import graph_as_engine, make_evaluation, make_sweep
from registry.errors import EngineryError
from registry.records import CalibrationSet, EngineBuild, GpuTarget, Measurement, Precision, SourceFiles, Verdict
from tasks.backends import BACKENDS
from tasks.bundle.golden import Golden
from tasks.measurement.evaluate import Evaluation
from tasks.measurement.latency_figures import latency_measurements
from tasks.measurement.machine import this_machine
from tasks.measurement.measurements import choose_worst, quality_measurements
from tasks.measurement.row_results import RowResults, make_row_results
from tasks.measurement.sweep import SizeTimes, Sweep
from tasks.measurement.windows import Benchmark
from tasks.verdicts.gates import Limits, judge_quality


@dataclass(frozen=True)
class SharedArtifacts:
    """What all targets of a release share: checkpoint, evaluation rows, golden inputs, calibration set and graphs.

    `more` are the rows for engines that the evaluation rows leave undecided, those first; None where there are none.
    """

    source: SourceFiles
    evaluation: Rows
    golden: Rows
    calibration: CalibrationSet
    graphs: Graphs
    more: Rows | None = None

    @property
    def looks(self) -> int:
        """How often an engine's loss may be looked at."""
        return 1 if self.more is None else 2

    def rows_of(self, answered: RowResults | None) -> Rows:
        """Return the rows that an engine was judged on."""
        is_more = self.more is not None and answered is not None and answered.evaluation_set == self.more.digest
        return self.more if is_more and self.more is not None else self.evaluation

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
        if runs_here and shared.more is not None and is_loss_open(context.recipe, scored.measurements, shared.looks):
            scored = judge_on_more(context, shared, shared.more, build, exact) or scored
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


def describe_more(answered: RowResults | None) -> str:
    """Say that an engine was judged on more rows than the first; empty for any other."""
    if answered is None or answered.first_rows is None:
        return ""
    return f"judged on {len(answered.scores):,} rows, since {answered.first_rows:,} left it undecided"


def judge_on_more(
    context: ReleaseContext, shared: SharedArtifacts, more: Rows, build: EngineBuild, exact: EngineBuild
) -> EngineMeasurements | None:
    """Score an engine that the first rows left undecided on those and the rows behind them: the second look.

    Returns None where that fails: the first look stands.
    """
    first, rest = shared.evaluation, replace(shared, evaluation=more)
    reference = make_evaluation(context, shared.source, exact, more, shared.golden)
    scored = score_engine(context, rest, build, reference, runs_here=True)
    if scored.answered is None:
        return None
    answered = replace(scored.answered, first_set=first.digest, first_rows=len(first.inputs))
    return replace(scored, answered=answered)


def is_loss_open(recipe: Recipe, measurements: Sequence[Measurement], looks: int) -> bool:
    """Tell whether more rows may decide what is lost of the judged metric."""
    return judge_quality(measurements, make_limits(recipe, looks)).verdict is Verdict.INCONCLUSIVE


def make_limits(recipe: Recipe, looks: int) -> Limits:
    """Make a recipe's limits, for losses with the bounds of one of so many looks."""
    metric = recipe.model_task.metrics[0]
    return Limits(metric.name, **recipe.gates.model_dump(), higher_is_better=metric.higher_is_better, looks=looks)


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
        task,
        answers,
        reference,
        rows.targets,
        groups=rows.groups,
        subject=what,
        machine=this_machine(),
        looks=shared.looks,
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
