"""Gates turn measurements into verdicts. A missing measurement is `unmeasured`; NaN never passes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from registry.records import GateResult, Measurement, Verdict
from tasks.verdicts.deciding_rows import estimate_rows

MEGABYTE = 1_000_000
# An engine is as good as its worst gate.
WORST_FIRST = (Verdict.FAILED, Verdict.UNMEASURED, Verdict.INCONCLUSIVE, Verdict.PASSED)


@dataclass(frozen=True)
class Limits:
    """A recipe's limits for every engine; None: no such gate. `metric` is the task's, whose loss is limited.

    Where more of the metric is better (`higher_is_better`), fp32 has to have some of it. `looks` is how often the loss
    may be looked at, on more rows each time: its bounds are those of one of so many.
    """

    metric: str
    loss_max: float
    latency_p99_ms_max: float | None = None
    speedup_min: float | None = None
    size_mb_max: float | None = None
    batch_flips_max: float | None = None
    higher_is_better: bool = True
    looks: int = 1


def find(measurements: Sequence[Measurement], metric: str) -> Measurement | None:
    """Return the first measurement of a metric, or None."""
    return next((measurement for measurement in measurements if measurement.metric == metric), None)


def judge(
    measurements: Sequence[Measurement], limits: Limits, *, size_bytes: int, is_baseline: bool
) -> tuple[GateResult, ...]:
    """Judge one engine by the recipe's limits: one result per gate.

    A measurement of the ONNX graph (`subject` "onnx-graph") can fail an engine, since the engine computes that graph,
    but can never pass it. The fp32 baseline (`is_baseline`) has no speed-up over itself, so it has no such gate.
    """
    results = [judge_quality(measurements, limits)]
    results += judge_latency(measurements, limits, is_baseline=is_baseline)
    if limits.size_mb_max is not None:
        results.append(_judge_size(size_bytes, limits.size_mb_max))
    if limits.batch_flips_max is not None:
        results.append(_judge_batch_flips(find(measurements, "batch_flips"), limits.batch_flips_max))
    return tuple(results)


def judge_quality(measurements: Sequence[Measurement], limits: Limits) -> GateResult:
    """Judge what is lost of the metric: what more rows may decide."""
    loss = find(measurements, f"{limits.metric}_loss")
    if limits.higher_is_better and (nothing := _judge_nothing(find(measurements, limits.metric), loss)):
        return nothing
    return _judge_loss(loss, limits, estimate_rows(measurements, limits.metric, limits.loss_max, limits.looks))


def judge_latency(measurements: Sequence[Measurement], limits: Limits, *, is_baseline: bool) -> tuple[GateResult, ...]:
    """Judge the call times of one engine: what more windows may decide."""
    results = [_judge_p99(measurements, limits.latency_p99_ms_max)]
    if limits.speedup_min is not None and not is_baseline:
        results.append(_judge_speedup(find(measurements, "speedup"), limits.speedup_min))
    return tuple(results)


def overall(results: Sequence[GateResult]) -> tuple[Verdict, str]:
    """Return the worst verdict and its reasons; no results at all are `unmeasured`."""
    if not results:
        return Verdict.UNMEASURED, "no gate was evaluated"
    worst = min(results, key=lambda result: WORST_FIRST.index(result.verdict))
    if worst.verdict is Verdict.PASSED:
        return Verdict.PASSED, "; ".join(result.reason for result in results)
    return worst.verdict, "; ".join(result.reason for result in results if result.verdict is worst.verdict)


def _is_usable(measurement: Measurement | None) -> bool:
    return measurement is not None and math.isfinite(measurement.value)


def _read_bounds(measurement: Measurement) -> tuple[float, float]:
    """Return the interval, or the bare value twice; NaN bounds become infinite."""
    low = measurement.value if measurement.low is None else measurement.low
    high = measurement.value if measurement.high is None else measurement.high
    return (-math.inf if math.isnan(low) else low), (math.inf if math.isnan(high) else high)


def _judge_nothing(quality: Measurement | None, loss: Measurement | None) -> GateResult | None:
    """Judge a loss where fp32 itself answers nothing right: no engine can lose any of that."""
    if quality is None or loss is None or not math.isclose(quality.value + loss.value, 0.0, abs_tol=1e-12):
        return None
    reason = (
        f"fp32 itself has {quality.metric} {0:.2%}, of which nothing can be lost: check that the checkpoint and the "
        "labels belong together"
    )
    return GateResult(loss.metric, Verdict.UNMEASURED, reason, loss)


def _name_rows(rows: int | None) -> str:
    if rows is None:
        return "it is so close to its limit that more rows would hardly decide it"
    return f"about {rows:,} rows would decide it, if the loss stays what it is"


def _judge_loss(loss: Measurement | None, limits: Limits, rows: int | None) -> GateResult:
    gate, limit = f"{limits.metric}_loss", limits.loss_max
    if loss is None or not _is_usable(loss):
        return GateResult(gate, Verdict.UNMEASURED, f"{limits.metric} was not measured", loss)
    low, high = _read_bounds(loss)
    level = f"{100 - 5 / limits.looks:g} % bounds"
    figure = f"{limits.metric} loss {loss.value:+.2%} ({level} {low:+.2%} to {high:+.2%}), limit {limit:.2%}"
    if low > limit:
        return GateResult(gate, Verdict.FAILED, f"{figure}: the loss is too large", loss)
    if loss.subject != "engine":
        return GateResult(gate, Verdict.UNMEASURED, f"the engine itself has not run; its ONNX graph: {figure}", loss)
    if high > limit:
        reason = f"{figure}: {loss.samples:,} rows are too few to prove it; {_name_rows(rows)}"
        return GateResult(gate, Verdict.INCONCLUSIVE, reason, loss)
    return GateResult(gate, Verdict.PASSED, figure, loss)


def _judge_p99(measurements: Sequence[Measurement], limit: float | None) -> GateResult:
    """Judge p99, whatever the recipe limits: an engine that no device has run must not be promoted.

    Other work on the machine only adds time: a limit that holds beside it is held, one that does not may still be.
    """
    gate, p99 = "latency_p99", find(measurements, "latency_p99_ms")
    if p99 is None or not _is_usable(p99) or p99.subject != "engine":
        return GateResult(gate, Verdict.UNMEASURED, "latency was not measured: no available machine runs this engine")
    if limit is None:
        return GateResult(gate, Verdict.PASSED, f"p99 {p99.value:.2f} ms, no limit set", p99)
    low, high = _read_bounds(p99)
    if p99.high is None or high == math.inf:
        reason = f"p99 {p99.value:.2f} ms, limit {limit:g} ms: {p99.samples} calls are too few to bound it"
        return GateResult(gate, Verdict.INCONCLUSIVE, reason, p99)
    figure = f"p99 {p99.value:.2f} ms ({low:.2f} to {high:.2f}), limit {limit:g} ms"
    if high <= limit:
        return GateResult(gate, Verdict.PASSED, figure, p99)
    if (load := find(measurements, "latency_under_load")) is not None and not load.value <= 0:
        reason = f"{figure}: other work ran in {load.value:.0%} of the windows, measure on a quieter machine"
        return GateResult(gate, Verdict.INCONCLUSIVE, reason, p99)
    if low > limit:
        return GateResult(gate, Verdict.FAILED, f"{figure}: too slow", p99)
    return GateResult(gate, Verdict.INCONCLUSIVE, f"{figure}: too close to decide, measure longer", p99)


def _judge_speedup(speedup: Measurement | None, limit: float) -> GateResult:
    gate = "speedup"
    if speedup is None or not _is_usable(speedup) or speedup.subject != "engine":
        return GateResult(gate, Verdict.UNMEASURED, "speed-up over fp32 was not measured", speedup)
    low, high = _read_bounds(speedup)
    figure = f"speed-up over fp32 {speedup.value:.2f} ({low:.2f} to {high:.2f}), minimum {limit:g}"
    if high < limit:
        return GateResult(gate, Verdict.FAILED, f"{figure}: too slow", speedup)
    if low < limit:
        return GateResult(gate, Verdict.INCONCLUSIVE, f"{figure}: too close to decide, measure longer", speedup)
    return GateResult(gate, Verdict.PASSED, figure, speedup)


def _judge_batch_flips(flips: Measurement | None, limit: float) -> GateResult:
    gate = "batch_flips"
    if flips is None or not _is_usable(flips) or flips.subject != "engine":
        return GateResult(gate, Verdict.UNMEASURED, "whether answers depend on the batch was not measured", flips)
    low, high = _read_bounds(flips)
    figure = (
        f"{flips.value:.2%} of {flips.samples} rows ({low:.2%} to {high:.2%}) are answered otherwise in another batch, "
        f"limit {limit:.2%}"
    )
    if low > limit:
        return GateResult(gate, Verdict.FAILED, figure, flips)
    if high > limit:
        return GateResult(gate, Verdict.INCONCLUSIVE, f"{figure}: too few rows to prove it", flips)
    return GateResult(gate, Verdict.PASSED, figure, flips)


def _judge_size(size_bytes: int, limit_mb: float) -> GateResult:
    size_mb = size_bytes / MEGABYTE
    verdict = Verdict.PASSED if size_mb <= limit_mb else Verdict.FAILED
    return GateResult("size_mb", verdict, f"{size_mb:.1f} MB, limit {limit_mb:g} MB")
