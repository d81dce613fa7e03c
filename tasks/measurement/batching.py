"""Whether an engine's answer to a row depends on what else is in the batch: alone, beside its like, beside the longest.

Quantizers that take their scales from what is in a batch, and graphs whose padding is not masked, answer differently.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.model_tasks.contract import Encoder

# As many rows are tried in every batching; where an answer of them changed, all rows are.
PROBED_ROWS = 256
# Outputs of probed rows that are kept to be compared with.
KEPT_BYTES = 64_000_000

Batch = tuple[Sequence[int], Sequence[Any]]
"""Positions of rows, and what is encoded together: the inputs of these rows first."""


class Batching(StrEnum):
    """What is in a batch together: rows of like length, one row alone, or rows beside the longest of all."""

    BY_LENGTH = "by-length"
    ALONE = "alone"
    PADDED = "padded"


@dataclass(frozen=True)
class BatchDependence:
    """Of `rows` that ran in every batching, how many were not answered alike, and how far apart outputs were.

    `difference` is the largest of any row, over the largest value of its output; None where rows have no outputs of
    their own, or too large ones to be kept.
    """

    rows: int
    flips: int
    difference: float | None


def choose_probed(rows: int) -> list[int]:
    """Return the positions of at most PROBED_ROWS rows, spread over all."""
    return sorted({int(position) for position in np.linspace(0, rows - 1, min(rows, PROBED_ROWS))})


def batch_padded(
    encoder: Encoder, inputs: Sequence[Any], positions: Sequence[int], size: int, longest: int
) -> Iterator[Batch]:
    """Yield rows in batches of about `size`, each padded to the length of the row `longest` behind them."""
    chosen = [inputs[position] for position in positions]
    for places, batch in encoder.batches(chosen, max(1, size // 2)):
        yield [positions[place] for place in places], [*batch, inputs[longest]]


def find_longest(encoder: Encoder, inputs: Sequence[Any], positions: Sequence[int]) -> int:
    """Return the position of the row that makes the largest feed."""
    return max(positions, key=lambda position: sum(array.size for array in encoder.encode([inputs[position]]).values()))


@dataclass
class OutputComparison:
    """The outputs of rows that ran alone, each compared with what the row gives in a batch."""

    kept: dict[int, list[NDArray[Any]]] = field(default_factory=dict)
    size_bytes: int = 0
    largest: float | None = None

    def add(self, batching: Batching, positions: Sequence[int], inputs: int, outputs: Sequence[NDArray[Any]]) -> None:
        """Keep the outputs of a row alone, while there is room; of a batch of so many `inputs` compare them."""
        if any(len(output) != inputs for output in outputs):
            return  # an input is more than one row of the graph
        if batching is Batching.ALONE:
            size = sum(output.nbytes for output in outputs)
            if self.size_bytes + size <= KEPT_BYTES:
                self.kept[positions[0]] = [output[0].copy() for output in outputs]
                self.size_bytes += size
            return
        for place, position in enumerate(positions):
            for before, after in zip(self.kept.get(position, []), outputs, strict=False):
                self._compare(before, after[place])

    def _compare(self, before: NDArray[Any], after: NDArray[Any]) -> None:
        """Compare two outputs of a row; what padding added is cut off."""
        common = tuple(slice(min(sizes)) for sizes in zip(before.shape, after.shape, strict=True))
        one, other = before[common].astype(np.float64), after[common].astype(np.float64)
        scale = float(np.abs(one).max(initial=0.0)) or 1.0
        self.largest = max(self.largest or 0.0, float(np.abs(one - other).max(initial=0.0)) / scale)
