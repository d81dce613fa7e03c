"""The statistics behind the verdicts: from scipy where it has them, else from a cited formula."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import scipy  # its parts load on first use, which saves a worker that measures nothing most of a second
from numpy.typing import NDArray

# One-sided 95 %: the same z as a two-sided 90 % interval.
Z_ONE_SIDED = NormalDist().inv_cdf(0.95)
RESAMPLES = 4000
# Counts of rows that are drawn at a time: 16 MB.
_COUNTS_AT_A_TIME = 2_000_000
# Of more rows the jackknife leaves out blocks.
MOST_LEFT_OUT = 2000
Numbers = NDArray[np.float64]
Aggregate = Callable[[Numbers, Numbers], Numbers]
"""Scores [rows, numbers], and how often each row is drawn [resamples, rows], to figures [resamples]."""
Statistic = Callable[[Numbers], Numbers]
"""How often each row is drawn [resamples, rows] to figures [resamples]."""
FindChanged = Callable[[Numbers, Numbers], NDArray[np.bool_]]
"""Scores of the same rows before and after, [rows, numbers], to whether each changed."""


def find_changed(before: Numbers, after: Numbers) -> NDArray[np.bool_]:
    """Tell of each row whether one of its numbers changed."""
    changed: NDArray[np.bool_] = (before != after).any(axis=1)
    return changed


@dataclass(frozen=True)
class PairedLoss:
    """A metric's loss against a reference on the same rows; `low` and `high` are one-sided 95 % bounds.

    `flips` counts the rows whose numbers changed; McNemar's p is that of rows which are right or wrong, else None.
    """

    loss: float
    low: float
    high: float
    flips: int
    mcnemar_p: float | None
    rows: int


def compare_scores(
    reference: Numbers,
    candidate: Numbers,
    aggregate: Aggregate | None,
    *,
    higher_is_better: bool = True,
    groups: Sequence[str] = (),
    changes: FindChanged | None = None,
) -> PairedLoss:
    """Return what `candidate` loses against `reference`, both [rows, numbers] over the same rows.

    Without an `aggregate` the one number of a row says whether it is right, and the test is exact (`paired_loss`).
    With one, the bounds are a paired bootstrap's over rows, or over `groups` of rows that belong together. A bootstrap
    never draws what no row shows, so the upper bound is at least that of no change in as many rows or groups:
    z² / (rows + z²).
    """
    if aggregate is None and not groups:
        return paired_loss(reference[:, 0] > 0, candidate[:, 0] > 0)
    combine, group = aggregate or _average, number_groups(len(reference), groups)
    sign, drawn = 1 if higher_is_better else -1, int(group.max()) + 1

    def lose(counts: Numbers) -> Numbers:
        return sign * (combine(reference, counts) - combine(candidate, counts))

    loss, low, high = bootstrap_interval(lose, group, level=0.9)
    flips = int((changes or find_changed)(reference, candidate).sum())
    return PairedLoss(loss, low, max(high, Z_ONE_SIDED**2 / (drawn + Z_ONE_SIDED**2)), flips, None, len(reference))


def score_interval(
    scores: Numbers, aggregate: Aggregate | None, groups: Sequence[str] = ()
) -> tuple[float, float, float]:
    """Return (figure, low, high) of one engine's scores [rows, numbers], with a 95 % interval."""
    if aggregate is None and not groups:
        return (float(scores[:, 0].mean()), *share_interval(scores[:, 0] > 0))
    combine = aggregate or _average
    return bootstrap_interval(lambda counts: combine(scores, counts), number_groups(len(scores), groups), level=0.95)


def number_groups(rows: int, groups: Sequence[str]) -> NDArray[np.int64]:
    """Return the number of each row's group, in the order of their names; without groups each row is one.

    Rows of one document, speaker or user are alike: drawn one by one they would prove more than they do (Cameron and
    Miller, "A practitioner's guide to cluster-robust inference", Journal of Human Resources 50 (2015) 317).
    """
    return np.unique(np.asarray(groups), return_inverse=True)[1] if groups else np.arange(rows)


def _average(scores: Numbers, counts: Numbers) -> Numbers:
    """Return the mean of the first number over the rows drawn; 0 of none."""
    sums, rows = counts @ scores[:, 0], counts.sum(axis=1)
    mean: Numbers = np.divide(sums, rows, out=np.zeros_like(sums), where=rows != 0)
    return mean


def bootstrap_interval(statistic: Statistic, group: NDArray[np.int64], *, level: float) -> tuple[float, float, float]:
    """Return (figure, low, high) of a statistic of rows: the BCa bootstrap, with 4,000 resamples of groups of rows.

    `group` is the number of each row's group. Efron, "Better bootstrap confidence intervals", JASA 82 (1987) 171; of
    more than MOST_LEFT_OUT groups the jackknife leaves out blocks, as Efron and Narasimhan's bcajack does
    (J. Comput. Graph. Stat. 29 (2020) 608). Not scipy.stats.bootstrap, which gives the same (a test compares them) and
    takes rows² steps.
    """
    groups, random = int(group.max()) + 1, np.random.default_rng(0)
    is_row = np.array_equal(group, np.arange(groups))

    def measure(batches: Iterable[Numbers]) -> Numbers:
        return np.concatenate([statistic(counts if is_row else counts[:, group]) for counts in batches])

    figure = float(measure([np.ones((1, groups))])[0])
    drawn, left_out = measure(_draw_groups(random, groups, len(group))), measure(_leave_out(groups, len(group)))
    deviation = left_out.mean() - left_out
    power = float(np.square(deviation).sum())
    if np.ptp(drawn) == 0 or power == 0:
        return figure, figure, figure
    acceleration = float((deviation**3).sum()) / (6 * power**1.5)
    normal = NormalDist()
    share = (np.sum(drawn < figure) + np.sum(drawn <= figure)) / (2 * RESAMPLES)
    bias = normal.inv_cdf(float(np.clip(share, 1 / RESAMPLES, 1 - 1 / RESAMPLES)))
    bounds = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        shifted = bias + normal.inv_cdf(tail)
        bounds.append(float(np.quantile(drawn, normal.cdf(bias + shifted / (1 - acceleration * shifted)))))
    return figure, bounds[0], bounds[1]


def _draw_groups(random: np.random.Generator, groups: int, rows: int) -> Iterator[Numbers]:
    """Yield how often each group is drawn, [resamples, groups], a few resamples at a time."""
    step = max(1, _COUNTS_AT_A_TIME // rows)
    for start in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - start)
        drawn = random.integers(0, groups, (size, groups)) + groups * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * groups).reshape(size, groups).astype(np.float64)


def _leave_out(groups: int, rows: int) -> Iterator[Numbers]:
    """Yield 0 for the groups that are left out and 1 for the others, [blocks, groups], a few blocks at a time."""
    blocks = min(groups, MOST_LEFT_OUT)
    step, block = max(1, _COUNTS_AT_A_TIME // rows), np.arange(groups) % blocks
    for start in range(0, blocks, step):
        left_out = np.arange(start, min(start + step, blocks))
        yield (block != left_out[:, None]).astype(np.float64)


def paired_loss(reference: NDArray[np.bool_], candidate: NDArray[np.bool_]) -> PairedLoss:
    """Return how much less often `candidate` is right than `reference`; both bool [rows] over the same rows.

    Bounds: Tango's score interval, Statistics in Medicine 17 (1998) 891. With few flips the plain Wald interval has
    width zero, and the adjusted one of Agresti and Min covers 87 % where it says 95 %. p: McNemar's exact test on the
    rows where the two disagree.
    """
    rows = len(reference)
    lost = int(np.sum(reference & ~candidate))
    won = int(np.sum(~reference & candidate))
    low, high = -bound_loss(won, lost, rows), bound_loss(lost, won, rows)
    p = float(scipy.stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    return PairedLoss((lost - won) / rows, low, high, lost + won, p, rows)


def bound_loss(lost: int, won: int, rows: int, z: float = Z_ONE_SIDED) -> float:
    """Return Tango's bound: the largest loss that a one-sided score test does not reject, at 5 % by default."""

    def score(loss: float) -> float:
        linear = (2 * rows - lost + won) * loss - lost - won
        # The maximum-likelihood share of rows won, given this loss.
        share = (np.sqrt(max(linear**2 + 8 * rows * won * loss * (1 - loss), 0.0)) - linear) / (4 * rows)
        variance = rows * (2 * share + loss * (1 - loss))
        return float((lost - won - rows * loss) / np.sqrt(variance)) if variance > 0 else 0.0

    observed, most = (lost - won) / rows, 1 - 1e-9
    if observed >= most or score(most) > -z:
        return 1.0
    return float(scipy.optimize.brentq(lambda loss: score(loss) + z, observed, most))


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


def ratio_interval(
    numerator: NDArray[np.float64], denominator: NDArray[np.float64], level: float = 0.95
) -> tuple[float, float, float]:
    """Return (ratio, low, high) of paired window medians: Student's t interval of their mean logarithm.

    Not a percentile bootstrap, which covers only 82 % with 4 windows and 91 % with 10.
    """
    logs = np.log(numerator / denominator)
    if np.ptp(logs) < 1e-12:  # alike but for rounding, of which scipy would warn
        return (float(np.exp(logs[0])),) * 3
    half = float(scipy.special.stdtrit(len(logs) - 1, (1 + level) / 2) * logs.std(ddof=1) / np.sqrt(len(logs)))
    return float(np.exp(logs.mean())), float(np.exp(logs.mean() - half)), float(np.exp(logs.mean() + half))
