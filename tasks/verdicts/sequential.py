"""Latency as a sequential test: five looks at growing counts of windows, whose error is paid for before the first.

Each look may err by `ERROR`, so all of them together by at most 5 %, however they depend on each other: Bonferroni's
bound, the plainest of the alpha-spending rules of Lan and DeMets, Biometrika 70 (1983) 659. The counts are fixed before
anything is measured, so a measurement that goes on another day spends no look twice.

A look at a speed-up waits for a span of time as well: a shared host slows one engine more than another for seconds, and
no counter of the guest moves. What was seen within a second is true of that second only.
"""

from functools import cache

import numpy as np
import scipy  # its parts load on first use, as in intervals.py
from numpy.typing import NDArray

from tasks.verdicts.intervals import ratio_interval

LOOKS = 5
# How many times the windows of the look before: a case that the third look leaves open is a close one.
GROWTH = 3
# Of each look: of both bounds of a ratio together, which calls an engine faster or slower; of each bound of p99, whose
# limit is LoadGen's 99 % confidence.
ERROR = 0.05 / LOOKS
# Neighbouring windows are alike, and are averaged until at most so many blocks are left: for p99, and for a speed-up,
# whose few blocks are longer than most spans for which a host stays slow.
BLOCKS, PERIODS = 18, 6
# The seconds of measuring that each look at a speed-up waits for, and how many times the windows of the first.
SPANS = (0.0, 0.0, 25.0, 50.0, 100.0)
MULTIPLES = (1, 3, 4, 6, 27)
# From so many seconds of measuring on, how far a speed-up's logarithm may be from what it is over a long time, as the
# host has not shown yet. 0.35 is what one shared host did to int8 over fp32: 1.19 times as fast, and 0.84.
DRIFTS = ((0.0, 0.35), (25.0, 0.12), (50.0, 0.0))


def list_looks(first: int) -> tuple[int, ...]:
    """Return the counts of windows at which a measurement is looked at, the `first` one among them."""
    return tuple(first * GROWTH**look for look in range(LOOKS))


def find_look(windows: int, first: int) -> int:
    """Return the count of windows of the last look that so many windows reach; 0 before the first look."""
    return max((count for count in list_looks(first) if count <= windows), default=0)


def find_ratio_looks(seconds: NDArray[np.float64], first: int) -> tuple[int, ...]:
    """Return the counts of windows at the looks at a speed-up that were reached; `seconds` are what each window took.

    Counts are even, because windows come in pairs of both orders.
    """
    spans = 1 + np.searchsorted(np.cumsum(seconds), SPANS)
    looks = [max(times * first, int(least + least % 2)) for times, least in zip(MULTIPLES, spans, strict=True)]
    return tuple(count for count in looks if count <= len(seconds))


def bound_ratio(
    numerator: NDArray[np.float64], denominator: NDArray[np.float64], seconds: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Return (ratio, low, high) of paired window medians; both bounds together err by `ERROR`.

    Student's t of the means of at most `PERIODS` blocks of neighbouring windows: batch means, which hold their level
    where windows depend on each other (Law, "Simulation Modeling and Analysis", 5th edition, section 9.5.3). `seconds`
    are what each window took: over a short time the bounds are as much wider as `DRIFTS` says.
    """
    drift = next(log for span, log in reversed(DRIFTS) if seconds.sum() >= span)
    ratio, low, high = ratio_interval(_average_blocks(numerator), _average_blocks(denominator), level=1 - ERROR)
    return ratio, low * float(np.exp(-drift)), high * float(np.exp(drift))


def _average_blocks(medians: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the geometric mean of each block."""
    return np.exp([block.mean() for block in np.array_split(np.log(medians), min(len(medians), PERIODS))])


def bound_quantile(calls: NDArray[np.float64], q: float) -> tuple[float, float, float]:
    """Return (quantile, low, high) of call times [windows, iterations]; each bound errs by `ERROR`.

    `high` is at most a limit exactly where LoadGen's early stopping passes it: of 459 calls none may be above a limit
    of p99, of 662 one, of 2,010 ten (MLPerf LoadGen, `early_stopping.md` and `early_stopping.cc`, with no tolerance).
    LoadGen takes calls as independent. Slow ones come in bursts, so calls count as fewer by their design effect: how
    much more the blocks' counts of slow calls differ than independent ones would (Kish, "Survey Sampling", 1965,
    section 8.2), at p90, at the quantile and at the lower bound, whichever is most. Bursts of which none was seen are
    not counted so. `high` is inf where the calls are too few.
    """
    ordered, count, share = np.sort(calls, axis=None), calls.size, 1 - q
    value = float(np.quantile(ordered, q))
    effect = max(estimate_design_effect(calls > level) for level in (np.quantile(ordered, 0.9), value))
    low = _find_low(ordered, effect, share)
    effect = max(effect, estimate_design_effect(calls >= low))
    most, _ = count_slow(int(count / effect), share)
    high = float(ordered[count - 1 - int(most * effect)]) if most >= 0 else float("inf")
    return value, _find_low(ordered, effect, share), high


def _find_low(ordered: NDArray[np.float64], effect: float, share: float) -> float:
    """Return the largest limit that so many calls are above that it is failed."""
    count = len(ordered)
    _, least = count_slow(int(count / effect), share)
    return float(ordered[max(count - int(np.ceil(least * effect)), 0)])


@cache
def count_slow(calls: int, share: float) -> tuple[int, int]:
    """Return the most calls above a limit that pass it (-1: none would), and the least that fail it.

    `share` of the calls may truly be above it: 0.01 for p99.
    """
    slow = scipy.stats.binom(calls, share)
    quantile = int(slow.ppf(ERROR))
    most = quantile if slow.cdf(quantile) <= ERROR else quantile - 1
    return most, int(slow.isf(ERROR)) + 1


def estimate_design_effect(slow: NDArray[np.bool_]) -> float:
    """Return how much more the counts of slow calls differ between blocks of windows than chance would; at least 1.

    `slow` is [windows, iterations]: Pearson's chi-square of the blocks' counts over its degrees of freedom.
    """
    share = float(slow.mean())
    if share in {0.0, 1.0}:
        return 1.0
    blocks = [block.size for block in np.array_split(slow, min(len(slow), BLOCKS))]
    counts = [int(block.sum()) for block in np.array_split(slow, min(len(slow), BLOCKS))]
    expected = share * np.array(blocks)
    chi_square = float((np.square(counts - expected) / (expected * (1 - share))).sum())
    return max(1.0, chi_square / max(len(blocks) - 1, 1))
