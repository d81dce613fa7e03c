"""From windows of call times to figures with intervals, and which engines they leave undecided."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from registry.records import Machine, Measurement, Verdict
from tasks.measurement.windows import Windows
from tasks.verdicts.against_production import OVER_PRODUCTION, is_undecided_over_production
from tasks.verdicts.gates import Limits, judge_latency
from tasks.verdicts.intervals import quantile_interval
from tasks.verdicts.sequential import bound_quantile, bound_ratio, find_look, find_ratio_looks, list_looks

# What is told of a GPU meanwhile, in the order of `Windows.gpu`: the mean, and the smallest and largest.
GPU_FIGURES = (
    ("gpu_sm_clock_mhz", "MHz"), ("gpu_power_watts", "W"), ("gpu_temperature_celsius", "°C"),
    ("gpu_power_capped", "share"),
)  # fmt: skip


def latency_measurements(
    windows: Windows, digest: str, machine: Machine, raw_digest: str | None = None
) -> tuple[Measurement, ...]:
    """Return p50, p99 and throughput of one engine, the windows dropped from them, and its speed-up over fp32.

    With production among the engines, how many times as long as its own p50 and p99 are, too.

    The speed-up is that of all windows: the baseline ran beside the engine in each, so other work met both. The others
    leave out the windows in which other work was seen, unless fewer are left than the first look needs. Where a look
    was reached, p99 and the speed-up are those of the last one, whose bounds are paid for.
    """
    seconds, first = windows.times[digest], windows.plan.windows
    calls, under_load = choose_calls(seconds, windows.disturbed[: len(seconds)], first)
    looked_at = calls[: find_look(len(calls), first) or len(calls)]

    def figure(
        metric: str, value: float, unit: str, low: float | None = None, high: float | None = None
    ) -> Measurement:
        high = high if high is None or np.isfinite(high) else None
        return Measurement(metric, value, unit, calls.size, "engine", digest, machine, low, high, raw_digest)

    per_second = windows.plan.batch / np.median(calls, axis=1)
    dropped = int(windows.disturbed[: len(seconds)].sum())
    figures = [
        figure("latency_p50_ms", *_scale(quantile_interval(calls.ravel(), 0.5))),
        figure("latency_p99_ms", *_scale(bound_quantile(looked_at, 0.99))),
        figure("throughput", float(np.median(per_second)), "rows/s", float(per_second.min()), float(per_second.max())),
        figure("windows_dropped", dropped, "windows"),
        figure("latency_under_load", under_load, "share"),
    ]
    gpu = windows.gpu[: len(seconds)]
    if len(known := gpu[np.isfinite(gpu).all(axis=1)]):
        for values, (metric, unit) in zip(known.T, GPU_FIGURES, strict=True):
            figures.append(figure(metric, float(values.mean()), unit, float(values.min()), float(values.max())))
    if digest != windows.baseline:
        figures.append(figure("speedup", *_bound_ratio_of(windows, windows.baseline, digest)))
    if windows.production not in {None, digest}:
        against = replace(figures[0], against=windows.production, unit="ratio")
        figures += [
            replace(against, metric=metric, value=value, low=low, high=high if np.isfinite(high) else None)
            for metric, (value, low, high) in _compare_with_production(windows, digest, looked_at).items()
        ]
    return tuple(figures)


def _bound_ratio_of(windows: Windows, numerator: str, denominator: str) -> tuple[float, str, float, float]:
    """Return how many times as long a call of the first engine takes, in the windows that both have."""
    count = min(len(windows.times[name]) for name in (numerator, denominator))
    spent = windows.seconds[:count]
    look = next(reversed(find_ratio_looks(spent, windows.plan.windows)), count)
    own, other = (np.median(windows.times[name][:look], axis=1) for name in (numerator, denominator))
    value, low, high = bound_ratio(own, other, spent[:look])
    return value, "ratio", low, high


def _compare_with_production(
    windows: Windows, digest: str, looked_at: NDArray[np.float64]
) -> dict[str, tuple[float, float, float]]:
    """Return how many times as long as in production, with bounds, p50 and p99 are; of the same windows.

    The bounds of p99's are those of the two p99 at their farthest, whatever the two have in common.
    """
    value, _, low, high = _bound_ratio_of(windows, digest, str(windows.production))
    seconds = windows.times[str(windows.production)][: len(windows.times[digest])]
    calls, _ = choose_calls(seconds, windows.disturbed[: len(seconds)], windows.plan.windows)
    ours, theirs = bound_quantile(looked_at, 0.99), bound_quantile(calls[: len(looked_at)], 0.99)
    p99 = ours[0] / theirs[0], ours[1] / theirs[2], ours[2] / theirs[1]
    return {OVER_PRODUCTION["latency_p50_ms"]: (value, low, high), OVER_PRODUCTION["latency_p99_ms"]: p99}


def choose_calls(
    seconds: NDArray[np.float64], disturbed: NDArray[np.bool_], first: int
) -> tuple[NDArray[np.float64], float]:
    """Return the windows that stand for the engine alone, and the share of them in which other work was seen."""
    quiet = seconds[~disturbed]
    if len(quiet) >= min(first, len(seconds)):
        return quiet, 0.0
    return seconds, float(disturbed.mean())


def _scale(interval: tuple[float, float, float]) -> tuple[float, str, float, float]:
    value, low, high = (1000 * seconds for seconds in interval)
    return value, "ms", low, high


@dataclass(frozen=True)
class LatencyRule:
    """Which engines of a measurement more windows may decide, by the recipe's limits (None: there are none).

    `promotes`: the comparison with production decides too, and with the next production, which needs a p99 with an
    upper bound. `judged` are the engines that are judged at all (None: all are); production may be none of them.
    """

    limits: Limits | None
    machine: Machine
    promotes: bool = False
    judged: tuple[str, ...] | None = None

    def __call__(self, windows: Windows) -> tuple[str, ...]:
        """Return the digests of the undecided engines, in the order of the windows."""
        judged = windows.digests if self.judged is None else self.judged
        return tuple(digest for digest in windows.digests if digest in judged and self._is_open(windows, digest))

    def _is_open(self, windows: Windows, digest: str) -> bool:
        figures, last = latency_measurements(windows, digest, self.machine), list_looks(windows.plan.windows)[-1]
        all_looks, quiet_looks = windows.reached
        may_move = {"speedup"} if all_looks < last else set[str]()
        may_move |= {"latency_p99"} if quiet_looks < last else set()
        is_baseline = digest == windows.baseline
        gates = () if self.limits is None else judge_latency(figures, self.limits, is_baseline=is_baseline)
        if any(gate.verdict is Verdict.FAILED for gate in gates):
            return False  # whatever the others say, it fails
        if self.promotes and "latency_p99" in may_move and _find_high(figures) is None:
            return True
        if self.promotes and all_looks < last and is_undecided_over_production(figures):
            return True
        return any(gate.verdict is Verdict.INCONCLUSIVE and gate.gate in may_move for gate in gates)


def _find_high(figures: Sequence[Measurement]) -> float | None:
    return next(figure.high for figure in figures if figure.metric == "latency_p99_ms")
