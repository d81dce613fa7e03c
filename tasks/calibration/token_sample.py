"""A sample of a tensor's tokens that is the same for any order and batching of the rows."""

from dataclasses import dataclass, field

import numpy as np

from tasks.graphs.layers import Floats

# Enough for the search of smoothing and clipping on 384 to 4,096 channels.
SAMPLE_TOKENS = 512


@dataclass
class TokenSample:
    """The rows of least sha256, each whole, until SAMPLE_TOKENS tokens are full.

    Rows stay whole because special tokens hold the outliers.
    """

    rows: dict[bytes, Floats] = field(default_factory=dict)
    # The largest sha256 that a full sample holds: rows beyond it are skipped.
    _last: bytes | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._trim()

    def add(self, key: bytes, tokens: Floats) -> None:
        """Offer a row's tokens, float32 [T, K], under its sha256; they are copied if they enter the sample."""
        if key in self.rows or (self._last is not None and key > self._last):
            return
        self.rows[key] = tokens.copy()
        self._trim()

    def values(self) -> Floats:
        """Return the sample, float32 [at most SAMPLE_TOKENS, K], in the order of the rows' sha256."""
        return np.concatenate([self.rows[key] for key in sorted(self.rows)])[:SAMPLE_TOKENS]

    def _trim(self) -> None:
        # A row stays while the rows before it leave room. More rows can only push rows out, so order is irrelevant.
        room = SAMPLE_TOKENS
        for key in sorted(self.rows):
            if room <= 0:
                del self.rows[key]
            else:
                room -= len(self.rows[key])
        self._last = max(self.rows) if room <= 0 else None
