"""From raw answers to measurements, each with its interval and where it was measured."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from registry.records import Machine, Measurement
from tasks.measurement.batching import Batching
from tasks.measurement.evaluate import Evaluation
from tasks.model_tasks.contract import Answers, Metric, ModelTask, Scores
from tasks.verdicts.gates import find
from tasks.verdicts.intervals import compare_scores, score_interval, share_interval
from tasks.verdicts.row_looks import bound_at_look


def quality_measurements(
    task: ModelTask,
    evaluation: Evaluation,
    reference: Evaluation,
    targets: Sequence[Any],
    *,
    groups: Sequence[str] = (),
    subject: str,
    machine: Machine,
    looks: int = 1,
) -> tuple[Measurement, ...]:
    """Return the task's metrics, and what is lost of each against fp32 on the same rows; `subject` says what ran.

    The first metric is the one that is judged, and comes first. `groups` name rows that belong together. Where answers
    depend on what else is in the batch, the figures are those of the batching in which it is worst. The bounds of a
    loss are those of one of so many `looks`.
    """
    exact = reference.answers()
    batching, answers = choose_worst(task.metrics[0], evaluation, targets, exact)

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
            evaluation.sha256(batching),
        )

    def measure(metric: Metric) -> tuple[list[Measurement], list[Measurement]]:
        scores, before = (metric.score(each, targets, exact) for each in (answers, exact))
        value, low, high = score_interval(scores, metric.aggregate, groups)
        better = metric.higher_is_better
        loss = compare_scores(
            before, scores, metric.aggregate, higher_is_better=better, groups=groups, changes=metric.changes
        )
        loss = bound_at_look(loss, looks, len(set(groups)) or evaluation.rows)
        p = [] if loss.mcnemar_p is None else [figure("mcnemar_p", loss.mcnemar_p, "probability")]
        lost = figure(metric.loss, loss.loss, metric.unit, loss.low, loss.high)
        worst = (
            [figure(f"{metric.name}_worst", find_worst(metric, scores), metric.unit)] if metric.reports_worst else []
        )
        return [figure(metric.name, value, metric.unit, low, high), lost, *worst], [
            figure("flips", loss.flips, "rows"),
            *p,
        ]

    judged, tests = measure(task.metrics[0])
    others = (metric for metric in task.metrics[1:] if metric.applies(exact))
    figures = (*judged, *tests, *(each for metric in others for each in measure(metric)[0]))
    if evaluation.dependence is None:
        return figures
    rows, flips, difference = vars(evaluation.dependence).values()
    shares = [figure("batch_flips", flips / rows, "share", *share_interval(np.arange(rows) < flips))]
    shares += [] if difference is None else [figure("batch_difference", difference, "share")]
    return (*figures, *(replace(share, samples=rows) for share in shares))


def choose_worst(
    metric: Metric, evaluation: Evaluation, targets: Sequence[Any], exact: Answers
) -> tuple[Batching, Answers]:
    """Return the batching in which the metric is worst, and the answers in it."""

    def measure(answers: Answers) -> float:
        value = metric.figure(metric.score(answers, targets, exact))
        return value if metric.higher_is_better else -value

    answers = {batching: evaluation.answers(batching) for batching in evaluation.batchings}
    worst = min(answers, key=lambda batching: measure(answers[batching])) if len(answers) > 1 else Batching.BY_LENGTH
    return worst, answers[worst]


def describe_batch_flips(measurements: Sequence[Measurement]) -> str:
    """Return a note on an engine whose answers depend on what else is in the batch; empty for any other."""
    flips = find(measurements, "batch_flips")
    if flips is None or not flips.value:
        return ""
    return f"answers to {flips.value:.1%} of {flips.samples} rows depend on their batch: judged at its worst batching"


def find_worst(metric: Metric, scores: Scores) -> float:
    """Return the figure of the row that is worst."""
    figures = [metric.figure(scores[[row]]) for row in range(len(scores))]
    return min(figures) if metric.higher_is_better else max(figures)
