"""A sample of a tensor's tokens that is the same for any order, batching and split of the rows."""

from dataclasses import dataclass, field

import numpy as np

from tasks.calibration.histogram import Floats

# Enough for the search of smoothing and clipping on 384 to 4,096 channels.
SAMPLE_TOKENS = 512


@dataclass
class TokenSample:
    """Whole rows of least sha256 until SAMPLE_TOKENS tokens are full (special tokens hold the outliers)."""

    rows: dict[bytes, Floats] = field(default_factory=dict)
    # The largest sha256 that a full sample holds; beyond it nothing is looked at.
    _last: bytes | None = None

    def add(self, key: bytes, tokens: Floats) -> None:
        """Offer a row's tokens [T, K]; they are copied when kept."""
        if key in self.rows or (self._last is not None and key > self._last):
            return
        self.rows[key] = tokens.copy()
        self._trim()

    def merge(self, other: "TokenSample") -> None:
        """Take over what belongs to the sample of both."""
        self.rows |= other.rows
        self._trim()

    def values(self) -> Floats:
        """The sample, [at most SAMPLE_TOKENS, K], in the order of the rows' sha256."""
        return np.concatenate([self.rows[key] for key in sorted(self.rows)])[:SAMPLE_TOKENS]

    def _trim(self) -> None:
        # A row stays while those before it leave room: more rows can only push out, so merging loses nothing.
        room = SAMPLE_TOKENS
        for key in sorted(self.rows):
            if room <= 0:
                del self.rows[key]
            else:
                room -= len(self.rows[key])
        self._last = max(self.rows) if room <= 0 else None
