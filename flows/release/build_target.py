"""Build, evaluate and benchmark every precision of one target, and judge each engine by the recipe's gates."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from prefect import flow
from prefect.futures import PrefectFuture

from flows.inputs.plan import why_not_here
from flows.release.context import ReleaseContext, Unshown
from flows.release.engines import engine_step
from flows.release.measuring import benchmark_engines
from flows.release.scoring import (
    EngineMeasurements,
    SharedArtifacts,
    add_sizes,
    describe_more,
    make_limits,
    measure_engines,
    sweep_target,
)
from registry.errors import BuildError
from registry.records import (
    Backend,
    EngineBuild,
    GateResult,
    GpuTarget,
    Precision,
    Verdict,
)
from tasks.backends.known_faults import describe_known_faults
from tasks.bundle.golden import Golden
from tasks.execution.steps import submit_stage
from tasks.measurement.measurements import (
    describe_batch_flips,
)
from tasks.measurement.row_results import RowResults
from tasks.measurement.sweep import SizeTimes
from tasks.report.rows import EngineRow
from tasks.verdicts.gates import judge, overall


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
        more = describe_more(measured.answered)
        remarks = (
            graphs.remarks.get(precision),
            more,
            describe_batch_flips(measured.measurements),
            *faults,
            dropped,
            apart,
        )
        is_open = benchmark is not None and build.digest in benchmark.undecided
        row = replace(row, remark="; ".join(filter(None, remarks)), is_open=is_open)
        measured = add_sizes(measured, swept, build.digest)
        judged[precision] = judge_engine(context, row, build, measured, shared.looks)
    if benchmark is not None and benchmark.undecided:
        # Undecided call times are no finished stage: the next release goes on from the windows that were kept.
        context.workspace.discard(benchmark.directory)
    return [judged[precision] for precision in precisions]


def judge_engine(
    context: ReleaseContext, row: EngineRow, build: EngineBuild, measured: EngineMeasurements, looks: int
) -> JudgedEngine:
    """Judge a measured engine by the recipe's gates, and complete its row."""
    limits = make_limits(context.recipe, looks)
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
