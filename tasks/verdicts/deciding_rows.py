"""How many evaluation rows would decide a loss that is near its limit.

A test decides in `POWER` of the cases with n = ((z_alpha s0 + z_beta s1) / (limit - loss))^2 rows, where s0 and s1 are
a row's standard deviation if the loss were the limit, and as observed (Nam, Biometrics 53 (1997) 1422, for the score
test of paired rows that the bounds in intervals.py come from).
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

from registry.records import Measurement
from tasks.verdicts.intervals import Z_ONE_SIDED
from tasks.verdicts.row_looks import find_z

POWER = 0.8
# More than anybody evaluates on: the loss is at its limit.
MOST_ROWS = 10_000_000
_Z_BETA = NormalDist().inv_cdf(POWER)


def estimate_rows(measurements: Sequence[Measurement], metric: str, limit: float, looks: int = 1) -> int | None:
    """Return about how many rows would decide the loss of a metric, in two digits; None where no number would.

    It is that of a loss which stays what it is: one below the limit would then pass, one above it would fail. Its
    interval is that of one of `looks`.
    """
    loss = _find(measurements, f"{metric}_loss")
    if loss is None or loss.low is None or loss.high is None or not math.isfinite(loss.value + loss.low + loss.high):
        return None
    if math.isclose(loss.value, limit, abs_tol=1e-9):
        return None
    flips = _find(measurements, "flips") if _find(measurements, "mcnemar_p") is not None else None
    z = find_z(looks)
    if flips is not None:
        rows = count_rows(loss.value, flips.value / loss.samples, limit, z)
    else:
        rows = _scale_interval(loss, limit, z)
    return _round_up(rows) if rows <= MOST_ROWS else None


def count_rows(loss: float, flipped: float, limit: float, z: float = Z_ONE_SIDED) -> float:
    """Return how many rows decide a loss of rows that are right or wrong; `flipped` is the share that changed."""
    won, distance = (flipped - loss) / 2, abs(limit - loss)
    # The most likely share of rows won if the loss were the limit, as in intervals.py.
    linear = (2 - loss) * limit - flipped
    likely = (math.sqrt(max(linear**2 + 8 * won * limit * (1 - limit), 0.0)) - linear) / 4
    at_limit = math.sqrt(max(2 * likely + limit - limit**2, 0.0))
    observed = math.sqrt(max(flipped - loss**2, 0.0))
    return ((z * at_limit + _Z_BETA * observed) / distance) ** 2


def _scale_interval(loss: Measurement, limit: float, z: float) -> float:
    """Return the same of any metric, from its interval: the distance of a bound shrinks with the root of the rows.

    No fewer than prove a loss of which no row shows anything: z² (1 - limit) / limit.
    """
    low, high = float(loss.low or 0.0), float(loss.high or 0.0)
    width = high - loss.value if loss.value < limit else loss.value - low
    rows = loss.samples * ((z + _Z_BETA) / z * width / (limit - loss.value)) ** 2
    least = z**2 * (1 - limit) / limit if limit > 0 and loss.value < limit else 0.0
    return max(rows, least)


def _round_up(rows: float) -> int:
    """Return rows with two digits: what is estimated from a few flips is no more exact."""
    step = 10 ** max(math.floor(math.log10(max(rows, 1.0))) - 1, 0)
    return int(math.ceil(rows / step) * step)


def _find(measurements: Sequence[Measurement], metric: str) -> Measurement | None:
    return next((measurement for measurement in measurements if measurement.metric == metric), None)
