"""How many rows would decide: as many as do in four of five cases, and none where the loss is at its limit."""

import math

import numpy as np
import pytest

from registry.records import Machine, Measurement
from tasks.verdicts.deciding_rows import MOST_ROWS, POWER, count_rows, estimate_rows
from tasks.verdicts.intervals import Z_ONE_SIDED, paired_loss


def figures(lost: int, won: int, rows: int, *, exact: bool = True) -> list[Measurement]:
    """What a release measures of rows of which some are lost and others won."""
    reference, candidate = np.arange(rows) >= won, ~(np.arange(rows) >= rows - lost)
    found = paired_loss(reference, candidate)
    own = "engine", "d" * 64, Machine("x86", 2)
    loss = Measurement("accuracy_loss", found.loss, "share", rows, *own, found.low, found.high)
    flips = Measurement("flips", found.flips, "rows", rows, *own)
    p = [Measurement("mcnemar_p", found.mcnemar_p or 0.0, "probability", rows, *own)] if exact else []
    return [loss, flips, *p]


@pytest.mark.parametrize(("loss", "flipped", "limit"), [(0.005, 0.03, 0.01), (0.0, 0.01, 0.01), (0.02, 0.04, 0.01)])
def test_so_many_rows_decide_in_four_of_five_cases(loss: float, flipped: float, limit: float) -> None:
    rows, random, trials = math.ceil(count_rows(loss, flipped, limit)), np.random.default_rng(0), 1000
    shares = (flipped + loss) / 2, (flipped - loss) / 2, 1 - flipped
    decided = 0
    for lost, won, _ in random.multinomial(rows, shares, trials):
        found = paired_loss(np.arange(rows) >= won, ~(np.arange(rows) >= rows - lost))
        decided += found.high <= limit if loss < limit else found.low > limit
    assert decided / trials == pytest.approx(POWER, abs=0.05)


def test_rows_of_which_none_flips_need_what_proves_the_limit() -> None:
    assert count_rows(0.0, 0.0, 0.01) == pytest.approx(Z_ONE_SIDED**2 * 0.99 / 0.01)


@pytest.mark.parametrize("exact", [True, False])
def test_the_estimate_is_in_two_digits_and_more_than_there_are(exact: bool) -> None:
    few = figures(6, 4, 400, exact=exact)
    rows = estimate_rows(few, "accuracy", 0.01)
    assert rows is not None
    assert rows > 400
    assert rows % 10 ** (len(str(rows)) - 2) == 0


def test_both_ways_to_estimate_agree_where_rows_are_many() -> None:
    exact, scaled = (estimate_rows(figures(70, 40, 10_000, exact=exact), "accuracy", 0.004) for exact in (True, False))
    assert exact
    assert scaled
    assert exact == pytest.approx(scaled, rel=0.1)


def test_an_interval_of_no_width_still_needs_rows_that_show_it() -> None:
    own = "engine", "d" * 64, Machine("x86", 2)
    loss = Measurement("f1_loss", 0.0, "share", 100, *own, 0.0, 0.0)
    assert estimate_rows([loss], "f1", 0.01) == 270


@pytest.mark.parametrize(
    "measurements",
    [
        [],
        figures(4, 0, 400),  # at its limit
        figures(40_003, 0, 4_000_000),  # and all but
        [Measurement("accuracy_loss", 0.02, "share", 100, "engine", "d" * 64, Machine("x86", 2))],
        [Measurement("accuracy_loss", 0.02, "share", 9, "engine", "d" * 64, Machine("x86", 2), math.nan, 0.1)],
    ],
)
def test_where_no_number_of_rows_decides_none_is_named(measurements: list[Measurement]) -> None:
    assert estimate_rows(measurements, "accuracy", 0.01) is None
    assert MOST_ROWS > 4_000_000
