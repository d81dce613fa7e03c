"""The statistics that calibration yields: per tensor maxima, a histogram and a sample."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from registry.errors import BadInput
from tasks.calibration.histogram import Histogram
from tasks.calibration.rows import Batch
from tasks.calibration.token_sample import TokenSample
from tasks.graphs.layers import Floats

# An outlier is judged against the value that 99.9 % of a tensor's |x| stay below.
TYPICAL = 0.999
# A row with a value this many times what 90 % of all values stay below leaves int8 no step for any other row. Not the
# median: most of what a Softmax gives is a millionth of its largest value, in every row.
WILD, ORDINARY = 1e6, 0.9


@dataclass(frozen=True)
class Tokens:
    """One tensor of a batch: the real tokens of all rows [N, K], each row's token count, and the largest |x| [K]."""

    values: Floats
    lengths: NDArray[np.int64]
    channel_amax: Floats

    @classmethod
    def select(cls, value: Floats, mask: NDArray[np.int64] | None) -> "Tokens | None":
        """Select the real tokens of [rows, T, K] by mask [rows, T], if any; None when one is not finite."""
        lengths = np.full(len(value), value.shape[1])
        flat = value.reshape(-1, value.shape[-1])
        if mask is not None and mask.shape == value.shape[:2] and not mask.all():
            flat, lengths = value[mask != 0], np.count_nonzero(mask, axis=1)
        with np.errstate(invalid="ignore"):
            # Two passes without a copy are faster than one over |x|; NaN and infinity come through both.
            amax = np.maximum(flat.max(axis=0), -flat.min(axis=0))
        return cls(flat, lengths, amax) if np.isfinite(amax).all() else None


@dataclass
class ActivationStatistics:
    """One tensor's largest |x| per channel, float32 [K], its histogram of |x| over all channels, and a sample.

    `peak_row` is the number of the row that holds the largest |x|.
    """

    channel_amax: Floats = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    histogram: Histogram = field(default_factory=Histogram)
    sample: TokenSample = field(default_factory=TokenSample)
    peak_row: int = -1

    @property
    def amax(self) -> float:
        """Largest |x| of all channels."""
        return float(self.channel_amax.max(initial=0.0))

    def add(self, tokens: Tokens, batch: Batch, *, sampled: bool) -> None:
        """Count a batch's tokens; with `sampled`, also offer its rows to the sample."""
        rows = np.split(tokens.values, np.cumsum(tokens.lengths)[:-1]) if len(batch.rows) > 1 else [tokens.values]
        peak = float(tokens.channel_amax.max())
        if peak > self.amax or self.peak_row < 0:
            peaks = [float(np.abs(row).max(initial=0.0)) for row in rows]
            self._note_peak(peak, batch.rows[int(np.argmax(peaks))].number)
        self._raise_amax(tokens.channel_amax)
        self.histogram.add(tokens.values)
        if sampled:
            for row, values in zip(batch.rows, rows, strict=True):
                self.sample.add(row.key, values)

    def _raise_amax(self, amax: Floats) -> None:
        self.channel_amax = np.maximum(self.channel_amax, amax) if len(self.channel_amax) else amax.copy()

    def _note_peak(self, peak: float, row: int) -> None:
        if self.peak_row < 0 or peak > self.amax:
            self.peak_row = row
        elif peak == self.amax:
            self.peak_row = min(self.peak_row, row)


@dataclass(frozen=True)
class Outlier:
    """The row of the largest |x|, in the tensor where that is farthest from the typical |x|."""

    row: int
    tensor: str
    amax: float
    typical: float


@dataclass
class Calibration:
    """Statistics of each layer's input by tensor name, the number of rows run, and the numbers of those refused."""

    activations: dict[str, ActivationStatistics] = field(default_factory=dict)
    rows: int = 0
    quarantined: list[int] = field(default_factory=list)

    def find_wild_row(self) -> Outlier | None:
        """Find the row that makes a tensor's range useless for all others, farthest first; None where none does.

        A tensor's largest |x| is then WILD times what ORDINARY of its values stay below.
        """
        ratios = {
            tensor: statistics.amax / ordinary
            for tensor, statistics in self.activations.items()
            if (ordinary := statistics.histogram.quantile_of_nonzero(ORDINARY)) > 0
        }
        tensor = max(ratios, key=lambda name: ratios[name], default=None)
        if tensor is None or ratios[tensor] <= WILD:
            return None
        statistics = self.activations[tensor]
        ordinary = statistics.histogram.quantile_of_nonzero(ORDINARY)
        return Outlier(statistics.peak_row, tensor, statistics.amax, ordinary)

    def find_outlier(self) -> Outlier:
        """Find the row to look at first when scales are too wide; rows are counted from 0.

        Raises:
            BadInput: nothing was calibrated.
        """
        if not self.activations:
            raise BadInput(
                "no calibration row was usable, so there is no outlier: check the rows against the graph's inputs"
            )
        outliers = [
            Outlier(statistics.peak_row, tensor, statistics.amax, statistics.histogram.quantile(TYPICAL))
            for tensor, statistics in self.activations.items()
        ]
        return max(outliers, key=lambda outlier: outlier.amax / outlier.typical if outlier.typical else 0.0)
