"""Gates: from measurements to verdicts. What was not measured is `unmeasured`; NaN never passes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from registry.records import GateResult, Measurement, Verdict

MEGABYTE = 1_000_000
# Worst first: an engine is as good as its worst gate.
ORDER = (Verdict.FAILED, Verdict.UNMEASURED, Verdict.INCONCLUSIVE, Verdict.PASSED)


@dataclass(frozen=True)
class Limits:
    """What a recipe asks of every engine; None: no such gate."""

    loss_max: float
    latency_p99_ms_max: float | None = None
    speedup_min: float | None = None
    size_mb_max: float | None = None


def find(measurements: Sequence[Measurement], metric: str) -> Measurement | None:
    """The measurement of that name, or None."""
    return next((measured for measured in measurements if measured.metric == metric), None)


def judge(
    measurements: Sequence[Measurement], limits: Limits, *, size_bytes: int, is_baseline: bool
) -> tuple[GateResult, ...]:
    """One result per gate of the recipe.

    A figure of the ONNX graph (`subject` "onnx-graph") can fail an engine, since the engine computes that graph, and
    can never pass it. The fp32 baseline (`is_baseline`) has no speed-up over itself, so that gate is left out.
    """
    results = [_accuracy(find(measurements, "accuracy_loss"), limits.loss_max)]
    results.append(_latency(measurements, limits))
    if limits.speedup_min is not None and not is_baseline:
        results.append(_speedup(find(measurements, "speedup"), limits.speedup_min))
    if limits.size_mb_max is not None:
        results.append(_size(size_bytes, limits.size_mb_max))
    return tuple(results)


def overall(results: Sequence[GateResult]) -> tuple[Verdict, str]:
    """The worst verdict and its reason; no results at all is `unmeasured`."""
    if not results:
        return Verdict.UNMEASURED, "no gate was judged"
    worst = min(results, key=lambda result: ORDER.index(result.verdict))
    if worst.verdict is Verdict.PASSED:
        return Verdict.PASSED, "; ".join(result.reason for result in results)
    return worst.verdict, "; ".join(result.reason for result in results if result.verdict is worst.verdict)


def _usable(measured: Measurement | None) -> bool:
    return measured is not None and math.isfinite(measured.value)


def _bounds(measured: Measurement) -> tuple[float, float]:
    """The interval, or the bare value twice; NaN bounds are infinitely wide."""
    low = measured.value if measured.low is None else measured.low
    high = measured.value if measured.high is None else measured.high
    return (-math.inf if math.isnan(low) else low), (math.inf if math.isnan(high) else high)


def _accuracy(measured: Measurement | None, limit: float) -> GateResult:
    gate = "accuracy_loss"
    if measured is None or not _usable(measured):
        return GateResult(gate, Verdict.UNMEASURED, "accuracy was not measured", measured)
    low, high = _bounds(measured)
    figure = f"accuracy loss {measured.value:+.2%} (95 % bounds {low:+.2%} to {high:+.2%}), limit {limit:.2%}"
    if low > limit:
        return GateResult(gate, Verdict.FAILED, f"{figure}: too much is lost", measured)
    if measured.subject != "engine":
        return GateResult(gate, Verdict.UNMEASURED, f"the engine has not run; its ONNX graph: {figure}", measured)
    if high > limit:
        return GateResult(
            gate, Verdict.INCONCLUSIVE, f"{figure}: {measured.samples} rows cannot prove it; use more", measured
        )
    return GateResult(gate, Verdict.PASSED, figure, measured)


def _latency(measurements: Sequence[Measurement], limits: Limits) -> GateResult:
    """Always a gate: an engine that no device has run is not to be promoted, whatever the recipe asks.

    The interval of p99 is widened by how much the windows disagree, so that a noisy machine proves less and a
    comfortable margin is still proven on it.
    """
    gate, measured = "latency_p99", find(measurements, "latency_p99_ms")
    if measured is None or not _usable(measured) or measured.subject != "engine":
        return GateResult(gate, Verdict.UNMEASURED, "latency was not measured: no machine here runs this engine")
    limit, spread = limits.latency_p99_ms_max, find(measurements, "latency_spread")
    if limit is None:
        return GateResult(gate, Verdict.PASSED, f"p99 {measured.value:.2f} ms, no limit asked", measured)
    if measured.high is None or spread is None or not _usable(spread):
        return GateResult(gate, Verdict.INCONCLUSIVE, f"{measured.samples} calls are too few to bound p99", measured)
    low, high = _bounds(measured)
    low, high = low / (1 + spread.value), high * (1 + spread.value)
    windows = f"with windows {spread.value:.0%} apart"
    figure = f"p99 {measured.value:.2f} ms ({low:.2f} to {high:.2f} {windows}), limit {limit:g} ms"
    if low > limit:
        return GateResult(gate, Verdict.FAILED, f"{figure}: too slow", measured)
    if high > limit:
        return GateResult(gate, Verdict.INCONCLUSIVE, f"{figure}: measure longer, or on a quieter machine", measured)
    return GateResult(gate, Verdict.PASSED, figure, measured)


def _speedup(measured: Measurement | None, limit: float) -> GateResult:
    gate = "speedup"
    if measured is None or not _usable(measured) or measured.subject != "engine":
        return GateResult(gate, Verdict.UNMEASURED, "speed-up over fp32 was not measured", measured)
    low, high = _bounds(measured)
    figure = f"{measured.value:.2f} times fp32 (95 % interval {low:.2f} to {high:.2f}), at least {limit:g}"
    if high < limit:
        return GateResult(gate, Verdict.FAILED, f"{figure}: too slow", measured)
    if low < limit:
        return GateResult(gate, Verdict.INCONCLUSIVE, f"{figure}: the windows do not agree", measured)
    return GateResult(gate, Verdict.PASSED, figure, measured)


def _size(size_bytes: int, limit_mb: float) -> GateResult:
    size_mb = size_bytes / MEGABYTE
    verdict = Verdict.PASSED if size_mb <= limit_mb else Verdict.FAILED
    return GateResult("size_mb", verdict, f"{size_mb:.1f} MB, at most {limit_mb:g}")
