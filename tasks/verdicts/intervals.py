"""The statistics behind the verdicts: from scipy where it has them, else from a cited formula."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import scipy  # its parts load on first use, which saves a worker that measures nothing most of a second
from numpy.typing import NDArray

# One-sided 95 %: the same z as a two-sided 90 % interval.
Z_ONE_SIDED = NormalDist().inv_cdf(0.95)


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
    """Return how much less often `candidate` is right than `reference`; both bool [rows] over the same rows.

    Bounds: Tango's score interval, Statistics in Medicine 17 (1998) 891. With few flips the plain Wald interval has
    width zero, and the adjusted one of Agresti and Min covers 87 % where it says 95 %. p: McNemar's exact test on the
    rows where the two disagree.
    """
    rows = len(reference)
    lost = int(np.sum(reference & ~candidate))
    won = int(np.sum(~reference & candidate))
    low, high = -_upper_bound(won, lost, rows), _upper_bound(lost, won, rows)
    p = float(scipy.stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    return PairedLoss((lost - won) / rows, low, high, lost + won, p, rows)


def _upper_bound(lost: int, won: int, rows: int) -> float:
    """Return the largest loss that a one-sided score test at 5 % does not reject."""

    def score(loss: float) -> float:
        linear = (2 * rows - lost + won) * loss - lost - won
        # The maximum-likelihood share of rows won, given this loss.
        share = (np.sqrt(max(linear**2 + 8 * rows * won * loss * (1 - loss), 0.0)) - linear) / (4 * rows)
        variance = rows * (2 * share + loss * (1 - loss))
        return float((lost - won - rows * loss) / np.sqrt(variance)) if variance > 0 else 0.0

    observed, most = (lost - won) / rows, 1 - 1e-9
    if observed >= most or score(most) > -Z_ONE_SIDED:
        return 1.0
    return float(scipy.optimize.brentq(lambda loss: score(loss) + Z_ONE_SIDED, observed, most))


def share_interval(correct: NDArray[np.bool_]) -> tuple[float, float]:
    """Return Wilson's 95 % interval of the share of rows that are right."""
    interval = scipy.stats.binomtest(int(correct.sum()), len(correct)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def quantile_interval(samples: NDArray[np.float64], q: float) -> tuple[float, float, float]:
    """Return (quantile, low, high), a 95 % interval by order statistics; `high` is inf where samples are too few."""
    ordered = np.sort(samples)
    n = len(ordered)
    low = int(scipy.stats.binom.ppf(0.025, n, q)) - 1
    high = int(scipy.stats.binom.ppf(0.975, n, q)) + 1
    top = float(ordered[high - 1]) if high <= n else float("inf")
    return float(np.quantile(ordered, q)), float(ordered[max(low, 0)]), top


def ratio_interval(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return (ratio, low, high) of paired window medians: Student's t interval (95 %) of their mean logarithm.

    Not a percentile bootstrap, which covers only 82 % with 4 windows and 91 % with 10.
    """
    logs = np.log(numerator / denominator)
    if np.ptp(logs) == 0:
        return (float(np.exp(logs[0])),) * 3
    interval = scipy.stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    return float(np.exp(logs.mean())), float(np.exp(interval.low)), float(np.exp(interval.high))
