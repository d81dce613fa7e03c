"""Compare a candidate with the engine in production: proven no worse, proven worse, or neither.

The rules of the gates apply: a missing measurement never passes, bounds decide instead of point values, and the worst
result counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from registry.records import EngineManifest, GateResult, Machine, Measurement, Verdict
from tasks.verdicts.gates import find
from tasks.verdicts.intervals import PairedLoss

# Two releases measure the same machine at two moments, so a smaller difference in call time proves nothing.
SLOWER_AT_MOST = 0.10
# Side by side, in one process and the same seconds, less can be told; of p99, whose slow calls are few, it cannot.
SLOWER_SIDE_BY_SIDE = {"latency_p50_ms": 0.05, "latency_p99_ms": 0.10}
# The figures that say how many times as long as in production, by what they compare.
OVER_PRODUCTION = {"latency_p50_ms": "p50_over_production", "latency_p99_ms": "p99_over_production"}


@dataclass(frozen=True)
class Measured:
    """The measurements of an engine, the digest of its evaluation data and the revision of its fp32 source.

    `shape` is (axis, size) of the timed calls, `digest` the engine's.
    """

    measurements: tuple[Measurement, ...]
    evaluation_set: str
    source_revision: str
    shape: tuple[tuple[str, int], ...]
    digest: str = ""


def read_measured(manifest: EngineManifest) -> Measured:
    """Return what a manifest says was measured; calls are timed in the first profile's optimum."""
    profile = next(iter(manifest.build.profiles), None)
    shape = tuple((name, span.opt) for name, span in profile.axes) if profile else ()
    return Measured(
        manifest.measurements, manifest.evaluation_set, manifest.source.revision, shape, manifest.build.digest
    )


def compare(
    candidate: Measured,
    production: Measured,
    *,
    metric: str,
    loss_max: float,
    paired: PairedLoss | None = None,
    higher_is_better: bool = True,
) -> tuple[GateResult, ...]:
    """Compare the task's metric, p50 and p99; the candidate is proven no worse only where all three pass.

    `loss_max` is the recipe's limit of the metric's loss, as a fraction: what is allowed against fp32 is allowed
    against production too. `paired` is the loss row by row, where the answers of both engines are still stored. Without
    it the two intervals are taken as far apart as they can be, which proves less than a paired test and never more.
    So are those of the call times, where the candidate's release did not time production's engine beside it.
    """
    return (
        _compare_quality(metric, candidate, production, loss_max, paired, higher_is_better=higher_is_better),
        _compare_latency("latency_p50_ms", candidate, production),
        _compare_latency("latency_p99_ms", candidate, production),
    )


def _compare_quality(
    metric: str,
    candidate: Measured,
    production: Measured,
    limit: float,
    paired: PairedLoss | None,
    *,
    higher_is_better: bool,
) -> GateResult:
    gate = f"{metric}_against_production"
    if candidate.evaluation_set != production.evaluation_set and paired is None:
        reason = "production was judged on other evaluation data: release it again with this evaluation set"
        return GateResult(gate, Verdict.UNMEASURED, reason)
    ours, theirs = (_find_own(engine.measurements, metric) for engine in (candidate, production))
    if ours is None or theirs is None:
        return GateResult(gate, Verdict.UNMEASURED, f"{metric} was not measured on both engines")
    if paired is not None:
        return _judge_loss(
            gate, f"paired {metric} loss on {paired.rows:,} rows", (paired.low, paired.high), limit, ours
        )
    if ours.raw_digest is not None and ours.raw_digest == theirs.raw_digest:
        return GateResult(gate, Verdict.PASSED, f"the same answers as production on {ours.samples} rows", ours)
    our_loss, their_loss = (_find_own(engine.measurements, f"{metric}_loss") for engine in (candidate, production))
    if candidate.source_revision == production.source_revision and our_loss is not None and their_loss is not None:
        # Both losses are against the same fp32.
        (low, high), (their_low, their_high) = _read_bounds(our_loss), _read_bounds(their_loss)
        return _judge_loss(gate, f"{metric} loss", (low - their_high, high - their_low), limit, ours)
    (low, high), (their_low, their_high) = _read_bounds(ours), _read_bounds(theirs)
    bounds = (their_low - high, their_high - low) if higher_is_better else (low - their_high, high - their_low)
    return _judge_loss(gate, f"{metric} loss", bounds, limit, ours)


def _judge_loss(gate: str, what: str, bounds: tuple[float, float], limit: float, ours: Measurement) -> GateResult:
    low, high = bounds
    figure = f"{what} against production {low:+.2%} to {high:+.2%}, limit {limit:.2%}"
    if low > limit:
        return GateResult(gate, Verdict.FAILED, f"{figure}: it regressed", ours)
    if high > limit or math.isnan(high):
        return GateResult(gate, Verdict.INCONCLUSIVE, f"{figure}: not proven to be no worse", ours)
    return GateResult(gate, Verdict.PASSED, figure, ours)


def _compare_latency(metric: str, candidate: Measured, production: Measured) -> GateResult:
    gate = f"{metric.removesuffix('_ms')}_against_production"
    beside = _find_own(candidate.measurements, OVER_PRODUCTION[metric])
    if beside is not None and beside.against == production.digest:
        return _judge_side_by_side(gate, metric, beside)
    ours, theirs = (_find_own(engine.measurements, metric) for engine in (candidate, production))
    if ours is None or theirs is None:
        return GateResult(gate, Verdict.UNMEASURED, f"{metric} was not measured on both engines")
    if (here := _name_device(ours.measured_on)) != (there := _name_device(theirs.measured_on)):
        reason = f"not comparable: measured on {here}, production on {there}"
        return GateResult(gate, Verdict.UNMEASURED, reason, ours)
    if candidate.shape != production.shape:
        reason = f"not comparable: timed with (batch, sequence) {candidate.shape}, production with {production.shape}"
        return GateResult(gate, Verdict.UNMEASURED, reason)
    (low, high), (their_low, their_high) = _read_bounds(ours), _read_bounds(theirs)
    if not their_low > 0:
        return GateResult(gate, Verdict.INCONCLUSIVE, f"{metric} of production has no lower bound", ours)
    least, most = low / their_high, high / their_low
    figure = (
        f"{metric} {ours.value:.2f} against {theirs.value:.2f} in production, each by its own release: {least:.2f} to "
        f"{most:.2f} times as long, limit {1 + SLOWER_AT_MOST:.2f}"
    )
    return GateResult(gate, *_judge_ratio(figure, least, most, SLOWER_AT_MOST), ours)


def _judge_side_by_side(gate: str, metric: str, ratio: Measurement) -> GateResult:
    """Judge how many times as long as in production, both timed in one process."""
    slower, (low, high) = SLOWER_SIDE_BY_SIDE[metric], _read_bounds(ratio)
    figure = (
        f"{metric.removeprefix('latency_').removesuffix('_ms')} {ratio.value:.2f} times as long as in production "
        f"({max(low, 0.0):.2f} to {high:.2f}), both timed side by side, limit {1 + slower:.2f}"
    )
    return GateResult(gate, *_judge_ratio(figure, low, high, slower), ratio)


def _judge_ratio(figure: str, low: float, high: float, slower: float) -> tuple[Verdict, str]:
    """Return the verdict on a call that may take `slower` of itself longer, and why."""
    if low > 1 + slower:
        return Verdict.FAILED, f"{figure}: it regressed"
    if not high <= 1 + slower:
        return Verdict.INCONCLUSIVE, f"{figure}: not proven to be no slower"
    return Verdict.PASSED, figure


def is_undecided_over_production(measurements: Sequence[Measurement]) -> bool:
    """Tell whether more calls beside production's engine may decide which of the two is faster.

    p99 does not count: the bounds of two p99 stay far apart for thousands of calls.
    """
    ratio = find(measurements, OVER_PRODUCTION["latency_p50_ms"])
    if ratio is None:
        return False
    return _judge_side_by_side("", "latency_p50_ms", ratio).verdict is Verdict.INCONCLUSIVE


def _find_own(measurements: Sequence[Measurement], metric: str) -> Measurement | None:
    """Return the engine's own measurement; one of its ONNX graph proves nothing about the engine that serves."""
    measurement = find(measurements, metric)
    is_own = measurement is not None and measurement.subject == "engine" and math.isfinite(measurement.value)
    return measurement if is_own else None


def _name_device(machine: Machine) -> str:
    """Name what a call time depends on. Not the driver: a newer one is a reason to compare."""
    return machine.gpu or f"{machine.host_cpu} with {machine.cores} cores"


def _read_bounds(measurement: Measurement) -> tuple[float, float]:
    """Return the interval; a bound that is missing or NaN becomes infinite."""
    low, high = measurement.low, measurement.high
    return (
        -math.inf if low is None or math.isnan(low) else low,
        math.inf if high is None or math.isnan(high) else high,
    )
