"""From windows of call times to figures with intervals, and which engines they leave undecided."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from registry.records import Machine, Measurement, Verdict
from tasks.measurement.windows import Windows
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
    if digest == windows.baseline:
        return tuple(figures)
    spent = windows.seconds[: len(seconds)]
    look = next(reversed(find_ratio_looks(spent, first)), len(seconds))
    own, baseline = (np.median(times[:look], axis=1) for times in (seconds, windows.times[windows.baseline]))
    ratio, low, high = bound_ratio(baseline, own, spent[:look])
    return (*figures, figure("speedup", ratio, "ratio", low, high))


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

    `bounds_p99`: a p99 without an upper bound is no result, because a later comparison needs one.
    """

    limits: Limits | None
    machine: Machine
    bounds_p99: bool = False

    def __call__(self, windows: Windows) -> tuple[str, ...]:
        """Return the digests of the undecided engines, in the order of the windows."""
        return tuple(digest for digest in windows.digests if self._is_open(windows, digest))

    def _is_open(self, windows: Windows, digest: str) -> bool:
        figures, last = latency_measurements(windows, digest, self.machine), list_looks(windows.plan.windows)[-1]
        all_looks, quiet_looks = windows.reached
        may_move = {"speedup"} if all_looks < last else set[str]()
        may_move |= {"latency_p99"} if quiet_looks < last else set()
        if self.bounds_p99 and "latency_p99" in may_move and _find_high(figures) is None:
            return True
        if self.limits is None:
            return False
        gates = judge_latency(figures, self.limits, is_baseline=digest == windows.baseline)
        return any(gate.verdict is Verdict.INCONCLUSIVE and gate.gate in may_move for gate in gates)


def _find_high(figures: Sequence[Measurement]) -> float | None:
    return next(figure.high for figure in figures if figure.metric == "latency_p99_ms")
