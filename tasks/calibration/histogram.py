"""Counts of |x| in bins of float32's own bit pattern: no range to choose or widen.

A bin is the exponent without the sign and the first 8 bits of the mantissa: 256 bins per octave, so a bin is at most
0.4 % of its values wide. The edges are fixed before any data is seen, so counts depend on neither order nor batches.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tasks.graphs.layers import Floats

# Of 31 bits, 8 of the exponent and 8 of the mantissa stay.
_DROPPED_BITS = 15
BINS = 1 << (31 - _DROPPED_BITS)
LINEAR_BINS = 2048


@dataclass
class Histogram:
    """Counts of |x|, int64 [BINS]; 512 KiB."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))

    def add(self, values: Floats) -> None:
        """Count the values of a float32 array of any shape, all finite; the sign is ignored."""
        bits = np.ascontiguousarray(values, dtype=np.float32).reshape(-1).view(np.uint32)
        # The sign is shifted out first; bincount would make the int64 itself, and slower.
        counts = np.bincount((bits << np.uint32(1) >> np.uint32(_DROPPED_BITS + 1)).astype(np.int64))
        self.counts[: len(counts)] += counts

    @property
    def total(self) -> int:
        """Number of values counted."""
        return int(self.counts.sum())

    @property
    def digest(self) -> str:
        """Hex sha256 of the counts: equal digests mean equal histograms."""
        return hashlib.sha256(self.counts.astype("<i8").tobytes()).hexdigest()

    def filled_bins(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the middles and the counts of the bins that are not empty, ascending."""
        bins = np.flatnonzero(self.counts)
        return (_lower_edges(bins) + _lower_edges(bins + 1)) / 2, self.counts[bins]

    def quantile(self, share: float) -> float:
        """Return the upper edge of the first bin up to which at least `share` (0 to 1) of the values lie."""
        if not self.total:
            return 0.0
        counted = np.cumsum(self.counts)
        return float(_lower_edges(np.asarray(np.searchsorted(counted, share * counted[-1]) + 1)))

    def quantile_of_nonzero(self, share: float) -> float:
        """Return `quantile` over the values that are not 0: a ReLU's zeros say nothing of its scale."""
        without_zeros = self.counts.copy()
        without_zeros[0] = 0
        return Histogram(without_zeros).quantile(share)

    def to_linear_bins(self, top: float, bins: int = LINEAR_BINS) -> NDArray[np.float64]:
        """Spread the counts of |x| up to `top` over equal bins, evenly within each float32 bin."""
        filled = np.flatnonzero(self.counts)
        edges = np.append(_lower_edges(filled), _lower_edges(filled[-1:] + 1))
        counted = np.append(0, np.cumsum(self.counts[filled])).astype(np.float64)
        # Between two filled bins the sum stays level, so both edges of each bin are knots.
        knots = np.column_stack([edges[:-1], np.minimum(_lower_edges(filled + 1), edges[1:])]).ravel()
        values = np.column_stack([counted[:-1], counted[1:]]).ravel()
        cumulated = np.interp(np.linspace(0.0, top, bins + 1), knots, values, left=0.0, right=counted[-1])
        cumulated[-1] = counted[-1]  # the last bin's edge may lie beyond the largest value
        return np.diff(cumulated)


def _lower_edges(bins: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the lower edges of bins; beyond the largest finite value the edge is that value."""
    bits = (np.minimum(bins, (255 << 8) - 1).astype(np.uint32)) << np.uint32(_DROPPED_BITS)
    edges: NDArray[np.float64] = bits.view(np.float32).astype(np.float64)
    return edges
