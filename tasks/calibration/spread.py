"""Calibration and evaluation rows have to be prepared alike: scales from pixels of 0 to 1 spoil those of 0 to 255."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from registry.errors import BadInput
from tasks.model_tasks.contract import Encoder

# As many rows of each split are looked at.
COMPARED_ROWS = 32
# Splits of one dataset are within a factor of two; a forgotten division by 255 is far outside.
MOST_TIMES = 8
# The part of the values that a range leaves out on each side.
TAIL = 0.01


def check_spread(encoder: Encoder, calibration: Sequence[Any], evaluation: Sequence[Any]) -> None:
    """Check that the values of each float input spread about as far in calibration rows as in evaluation rows.

    Raises:
        BadInput: they spread more than MOST_TIMES as far in one of the two.
    """
    names = [name for name, values in encoder.encode(calibration[:1]).items() if values.dtype.kind == "f"]
    if not names:
        return
    ranges = [_find_ranges(encoder, rows[:COMPARED_ROWS], names) for rows in (calibration, evaluation)]
    for name in names:
        (low, high), (least, most) = ranges[0][name], ranges[1][name]
        smaller, larger = sorted((high - low, most - least))
        if larger > MOST_TIMES * smaller:
            raise BadInput(
                f"{name} is {low:.4g} to {high:.4g} in calibration rows and {least:.4g} to {most:.4g} in evaluation "
                "rows (98 % of the values): the splits were prepared differently, as by a forgotten division by 255; "
                "prepare both as the model is asked in production"
            )


def _find_ranges(encoder: Encoder, inputs: Sequence[Any], names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return between which values the middle of each input's values lies."""
    ranges: dict[str, tuple[float, float]] = {}
    for each in inputs:
        feed = encoder.encode([each])
        for name in names:
            low, high = (float(bound) for bound in np.quantile(feed[name], [TAIL, 1 - TAIL]))
            least, most = ranges.get(name, (low, high))
            ranges[name] = (min(low, least), max(high, most))
    return ranges
