"""A candidate against the engine in production, by what a release measured and by what both answered row by row."""

import math
from dataclasses import dataclass

from registry.records import GateResult
from tasks.measurement.row_results import RowResults, compare_results
from tasks.model_tasks.contract import Metric
from tasks.verdicts.against_production import Measured, compare
from tasks.verdicts.gates import find


@dataclass(frozen=True)
class Known:
    """What is known of an engine: its measurements, and its answers as its run keeps them; None where it does not."""

    measured: Measured
    answered: RowResults | None


def judge_against_production(
    metric: Metric, loss_max: float, candidate: Known, production: Known
) -> tuple[GateResult, ...]:
    """Compare the judged metric, row by row where both answered the same rows, and the call times."""
    rows = [each.answered for each in (production, candidate) if _is_measured_from(metric, each)]
    before, after = rows if len(rows) == 2 else (None, None)
    return compare(
        candidate.measured,
        production.measured,
        metric=metric.name,
        loss_max=loss_max,
        paired=compare_results(metric, before, after) if before and after else None,
        higher_is_better=metric.higher_is_better,
    )


def _is_measured_from(metric: Metric, engine: Known) -> bool:
    """Tell whether kept answers give the figure of the manifest, which is signed; the file beside the run is not."""
    quality, answered = find(engine.measured.measurements, metric.name), engine.answered
    if quality is None or answered is None or not answered.scores or quality.subject != "engine":
        return False
    if (answered.evaluation_set, len(answered.scores)) != (engine.measured.evaluation_set, quality.samples):
        return False
    return math.isclose(metric.figure(answered.numbers), quality.value, rel_tol=1e-9, abs_tol=1e-12)
