"""From raw answers and raw call times to measurements, each with its interval and where it was measured."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from registry.records import EngineBuild, Machine, Measurement
from tasks.measurement.evaluate import Evaluation
from tasks.measurement.latency import Benchmark
from tasks.model_tasks.contract import ModelTask
from tasks.verdicts.intervals import paired_loss, quantile_interval, ratio_interval, share_interval


def quality_measurements(
    task: ModelTask,
    evaluation: Evaluation,
    reference: Evaluation,
    targets: Sequence[Any],
    *,
    subject: str,
    machine: Machine,
) -> tuple[Measurement, ...]:
    """Return the task's metric, and what is lost of it against fp32 on the same rows; `subject` says what ran."""
    right, right_before = (task.scores(each.answers(), targets) for each in (evaluation, reference))
    low, high = share_interval(right)
    loss = paired_loss(right_before, right)

    def figure(
        metric: str, value: float, unit: str, low: float | None = None, high: float | None = None
    ) -> Measurement:
        return Measurement(
            metric,
            value,
            unit,
            evaluation.rows,
            subject,
            evaluation.subject_digest,
            machine,
            low,
            high,
            evaluation.files[0].sha256,
        )

    return (
        figure(task.metric.name, float(right.mean()), task.metric.unit, low, high),
        figure(task.metric.loss, loss.loss, task.metric.unit, loss.low, loss.high),
        figure("flips", loss.flips, "rows"),
        figure("mcnemar_p", loss.mcnemar_p, "probability"),
    )


def latency_measurements(benchmark: Benchmark, engine: EngineBuild) -> tuple[Measurement, ...]:
    """Return p50, p99 and throughput of one engine, its spread between windows, its speed-up over fp32."""
    seconds = benchmark.seconds(engine.digest)
    calls, medians = seconds.ravel(), np.median(seconds, axis=1)
    baseline = np.median(benchmark.seconds(benchmark.baseline_digest), axis=1)
    raw = benchmark.raw_digest(engine.digest)

    def figure(
        metric: str, value: float, unit: str, low: float | None = None, high: float | None = None
    ) -> Measurement:
        return Measurement(
            metric, value, unit, len(calls), "engine", engine.digest, benchmark.measured_on, low, high, raw
        )

    per_second = benchmark.plan.batch / medians
    return (
        figure("latency_p50_ms", *_scaled(quantile_interval(calls, 0.5))),
        figure("latency_p99_ms", *_scaled(quantile_interval(calls, 0.99))),
        figure("throughput", float(np.median(per_second)), "rows/s", float(per_second.min()), float(per_second.max())),
        # Quartiles: one window that something else disturbed does not void the others.
        figure("latency_spread", float(np.subtract(*np.quantile(medians, [0.75, 0.25])) / np.median(medians)), "share"),
        *(
            (figure("speedup", *_ratio(ratio_interval(baseline, medians))),)
            if engine.digest != benchmark.baseline_digest
            else ()
        ),
    )


def _scaled(interval: tuple[float, float, float]) -> tuple[float, str, float, float | None]:
    value, low, high = (1000 * seconds for seconds in interval)
    return value, "ms", low, high if np.isfinite(high) else None


def _ratio(interval: tuple[float, float, float]) -> tuple[float, str, float, float]:
    return interval[0], "ratio", interval[1], interval[2]
