"""A candidate held against the engine in production: proven no worse, proven worse, or neither.

The rules of the gates: absence fails, and a bound decides, not a point. What is worst counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from registry.records import GateResult, Machine, Measurement, Verdict
from tasks.verdicts.gates import find
from tasks.verdicts.intervals import PairedLoss

# Two releases are two moments of a machine: a call time that differs by less is the same one.
SLOWER_AT_MOST = 0.10


@dataclass(frozen=True)
class Measured:
    """What was measured of an engine, on which evaluation data, against which fp32 (the source's revision).

    `shape` is (axis, size) of the timed calls.
    """

    measurements: tuple[Measurement, ...]
    evaluation_set: str
    source_revision: str
    shape: tuple[tuple[str, int], ...]


def compare(
    candidate: Measured, production: Measured, *, loss_max: float, paired: PairedLoss | None = None
) -> tuple[GateResult, ...]:
    """One result for accuracy, p50 and p99; only where all passed is the candidate proven no worse.

    `loss_max` is the recipe's limit of accuracy lost, as a fraction: what may be lost against fp32 may be lost against
    production. `paired` is the loss row by row, where both engines' answers are still there. Without it the intervals
    of the two are as far apart as they can be, which proves less than a paired test and never more.
    """
    return (
        _accuracy(candidate, production, loss_max, paired),
        _latency("latency_p50_ms", candidate, production),
        _latency("latency_p99_ms", candidate, production),
    )


def _accuracy(candidate: Measured, production: Measured, limit: float, paired: PairedLoss | None) -> GateResult:
    gate, metric = "accuracy_against_production", "accuracy"
    if candidate.evaluation_set != production.evaluation_set:
        return GateResult(
            gate, Verdict.UNMEASURED, "production was judged on other evaluation data: release it on these rows too"
        )
    ours, theirs = (_own(each.measurements, metric) for each in (candidate, production))
    if ours is None or theirs is None:
        return GateResult(gate, Verdict.UNMEASURED, "accuracy was not measured on both engines")
    if paired is not None:
        return _within(gate, "paired accuracy loss", (paired.low, paired.high), limit, ours)
    if ours.raw_digest is not None and ours.raw_digest == theirs.raw_digest:
        return GateResult(gate, Verdict.PASSED, f"the same answers as production on {ours.samples} rows", ours)
    losses = [_own(each.measurements, "accuracy_loss") for each in (candidate, production)]
    if candidate.source_revision == production.source_revision and None not in losses:
        # Both lost against the same fp32.
        (low, high), (their_low, their_high) = (_bounds(loss) for loss in losses if loss is not None)
        return _within(gate, "accuracy loss", (low - their_high, high - their_low), limit, ours)
    (low, high), (their_low, their_high) = _bounds(ours), _bounds(theirs)
    return _within(gate, "accuracy loss", (their_low - high, their_high - low), limit, ours)


def _within(gate: str, what: str, bounds: tuple[float, float], limit: float, measured: Measurement) -> GateResult:
    low, high = bounds
    figure = f"{what} against production {low:+.2%} to {high:+.2%}, limit {limit:.2%}"
    if low > limit:
        return GateResult(gate, Verdict.FAILED, f"{figure}: it regressed", measured)
    if high > limit or math.isnan(high):
        return GateResult(gate, Verdict.INCONCLUSIVE, f"{figure}: it is not proven to be no worse", measured)
    return GateResult(gate, Verdict.PASSED, figure, measured)


def _latency(metric: str, candidate: Measured, production: Measured) -> GateResult:
    gate = f"{metric.removesuffix('_ms')}_against_production"
    ours, theirs = (_own(each.measurements, metric) for each in (candidate, production))
    if ours is None or theirs is None:
        return GateResult(gate, Verdict.UNMEASURED, f"{metric} was not measured on both engines")
    if (here := _kind(ours.measured_on)) != (there := _kind(theirs.measured_on)):
        return GateResult(gate, Verdict.UNMEASURED, f"measured on {here} and on {there}: that is no comparison", ours)
    if candidate.shape != production.shape:
        return GateResult(
            gate, Verdict.UNMEASURED, f"timed at {candidate.shape} and at {production.shape}: that is no comparison"
        )
    (low, high), (their_low, their_high) = _bounds(ours), _bounds(theirs)
    if not their_low > 0:
        return GateResult(gate, Verdict.INCONCLUSIVE, f"{metric} of production has no lower bound", ours)
    least, most = low / their_high, high / their_low
    figure = f"{metric} {ours.value:.2f} against {theirs.value:.2f}: {least:.2f} to {most:.2f} times"
    if least > 1 + SLOWER_AT_MOST:
        return GateResult(gate, Verdict.FAILED, f"{figure}: it regressed", ours)
    if not most <= 1 + SLOWER_AT_MOST:
        return GateResult(gate, Verdict.INCONCLUSIVE, f"{figure}: it is not proven to be no slower", ours)
    return GateResult(gate, Verdict.PASSED, figure, ours)


def _own(measurements: Sequence[Measurement], metric: str) -> Measurement | None:
    """The engine's own figure: one of its ONNX graph says nothing of what serves."""
    found = find(measurements, metric)
    return found if found is not None and found.subject == "engine" and math.isfinite(found.value) else None


def _kind(machine: Machine) -> str:
    """What a call time depends on; a driver may be newer, which is one of the reasons to look."""
    return machine.gpu or f"{machine.host_cpu} with {machine.cores} cores"


def _bounds(measured: Measurement) -> tuple[float, float]:
    """The interval; a bound that is missing or NaN is as far away as it can be."""
    low, high = measured.low, measured.high
    return (
        -math.inf if low is None or math.isnan(low) else low,
        math.inf if high is None or math.isnan(high) else high,
    )
