"""The few statistics that a verdict rests on; scipy where it has them, a cited formula where it has not."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

# One-sided 95 %: the same z as a two-sided 90 % interval.
Z_ONE_SIDED = float(stats.norm.ppf(0.95))


@dataclass(frozen=True)
class PairedLoss:
    """Accuracy lost against a reference on the same rows, as fractions; `low` and `high` are one-sided 95 % bounds."""

    loss: float
    low: float
    high: float
    flips: int
    mcnemar_p: float
    rows: int


def paired_loss(reference: NDArray[np.bool_], candidate: NDArray[np.bool_]) -> PairedLoss:
    """How much less often `candidate` is right than `reference`; both bool [rows], row by row the same question.

    Bounds: Agresti and Min, Statistics in Medicine 24 (2005) 729, Wald after adding 1/2 to each of the four cells;
    close to nominal coverage also with few flips, where the plain Wald interval has width zero. p: McNemar's exact
    test on the rows where the two disagree.
    """
    rows = len(reference)
    lost = int(np.sum(reference & ~candidate))
    won = int(np.sum(~reference & candidate))
    n, b, c = rows + 2, lost + 0.5, won + 0.5
    middle = (b - c) / n
    half = Z_ONE_SIDED * float(np.sqrt((b + c) - (b - c) ** 2 / n)) / n
    p = float(stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    return PairedLoss((lost - won) / rows, middle - half, middle + half, lost + won, p, rows)


def rows_to_prove(loss: PairedLoss, margin: float) -> int | None:
    """About how many rows would prove a margin at the observed loss and flip rate; None where none would."""
    room = margin - loss.loss
    if room <= 0:
        return None
    flip_rate = max(loss.flips, 1) / loss.rows
    return int(np.ceil(Z_ONE_SIDED**2 * (flip_rate - loss.loss**2) / room**2)) + 1


def accuracy_interval(correct: NDArray[np.bool_]) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    interval = stats.binomtest(int(correct.sum()), len(correct)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def quantile_interval(samples: NDArray[np.float64], q: float) -> tuple[float, float, float]:
    """(quantile, low, high): a 95 % interval by order statistics; `high` is inf where too few samples bound it."""
    ordered = np.sort(samples)
    n = len(ordered)
    low = int(stats.binom.ppf(0.025, n, q)) - 1
    high = int(stats.binom.ppf(0.975, n, q)) + 1
    top = float(ordered[high - 1]) if high <= n else float("inf")
    return float(np.quantile(ordered, q)), float(ordered[max(low, 0)]), top


def ratio_interval(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> tuple[float, float, float]:
    """(ratio, low, high) of paired window medians: bootstrap over the windows (percentile, 95 %, fixed seed)."""
    logs = np.log(numerator / denominator)
    if np.ptp(logs) == 0:
        return (float(np.exp(logs[0])),) * 3
    result = stats.bootstrap((logs,), np.mean, confidence_level=0.95, method="percentile", rng=np.random.default_rng(0))
    interval = result.confidence_interval
    return float(np.exp(logs.mean())), float(np.exp(interval.low)), float(np.exp(interval.high))
