"""Counts of |x| in bins that float32 itself has: nothing to choose, nothing to widen, merging is exact.

A bin is the sign-less exponent and the first 8 bits of the mantissa: 256 bins an octave, so a bin is at most 0.4 %
of its values wide. Fixed edges need no look at the data first, and counts depend neither on order nor on batches.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# 8 bits of exponent and 8 of mantissa stay of 31.
_DROPPED_BITS = 15
BINS = 1 << (31 - _DROPPED_BITS)
LINEAR_BINS = 2048


@dataclass
class Histogram:
    """Counts of |x|, int64 [BINS]; 512 KiB."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))

    def add(self, values: Floats) -> None:
        """Count float32 values of any shape and sign, all finite."""
        bits = np.ascontiguousarray(values, dtype=np.float32).reshape(-1).view(np.uint32)
        # The sign is shifted out first; bincount would make the int64 itself, and slower.
        found = np.bincount((bits << np.uint32(1) >> np.uint32(_DROPPED_BITS + 1)).astype(np.int64))
        self.counts[: len(found)] += found

    def merge(self, other: "Histogram") -> None:
        """Add the counts of `other`."""
        self.counts += other.counts

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def digest(self) -> str:
        """sha256 of the counts: equal digests mean equal histograms."""
        return hashlib.sha256(self.counts.astype("<i8").tobytes()).hexdigest()

    def filled(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Middles and counts of the bins that hold something, ascending."""
        at = np.flatnonzero(self.counts)
        return (_edges(at) + _edges(at + 1)) / 2, self.counts[at]

    def quantile(self, share: float) -> float:
        """Upper edge of the first bin at which at least `share` (0 to 1) of the values are counted."""
        if not self.total:
            return 0.0
        counted = np.cumsum(self.counts)
        return float(_edges(np.asarray(np.searchsorted(counted, share * counted[-1]) + 1)))

    def linear(self, top: float, bins: int = LINEAR_BINS) -> NDArray[np.float64]:
        """The counts of |x| up to `top` in equal bins, each own bin spread evenly over those it overlaps."""
        at = np.flatnonzero(self.counts)
        edges = np.append(_edges(at), _edges(at[-1:] + 1))
        counted = np.append(0, np.cumsum(self.counts[at])).astype(np.float64)
        # The gap to the next filled bin holds nothing: a step, so both edges of each bin are knots.
        knots = np.column_stack([edges[:-1], np.minimum(_edges(at + 1), edges[1:])]).ravel()
        values = np.column_stack([counted[:-1], counted[1:]]).ravel()
        cumulated = np.interp(np.linspace(0.0, top, bins + 1), knots, values, left=0.0, right=counted[-1])
        cumulated[-1] = counted[-1]  # the last bin's edge may lie beyond the largest value
        return np.diff(cumulated)


def _edges(at: NDArray[np.int64]) -> NDArray[np.float64]:
    """Lower edges of bins; beyond the largest finite value the edge is that value."""
    bits = (np.minimum(at, (255 << 8) - 1).astype(np.uint32)) << np.uint32(_DROPPED_BITS)
    edges: NDArray[np.float64] = bits.view(np.float32).astype(np.float64)
    return edges
