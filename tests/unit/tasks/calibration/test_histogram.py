"""Histograms with the bins of float32's own bit pattern."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.calibration.histogram import Histogram

FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40)


def histogram(values: object) -> Histogram:
    counted = Histogram()
    counted.add(np.array(values, dtype=np.float32))
    return counted


@given(FLOATS, st.randoms())
def test_any_split_and_order_of_the_values_gives_the_same_counts(values: list[float], random: object) -> None:
    whole, parts = histogram(values), Histogram()
    shuffled = sorted(values, key=lambda _: random.random())  # type: ignore[attr-defined]
    middle = len(values) // 2
    for part in (shuffled[middle:], shuffled[:middle]):
        if part:
            parts.add(np.array(part, dtype=np.float32))
    assert parts.digest == whole.digest
    assert whole.total == len(values)


@given(st.floats(min_value=2.0**-100, max_value=2.0**100, width=32), st.sampled_from([1, -1]))
def test_a_value_lies_in_a_bin_no_wider_than_a_256th_of_its_octave(value: float, sign: int) -> None:
    middles, counts = histogram([sign * value]).filled_bins()
    assert counts.tolist() == [1]
    assert middles[0] == pytest.approx(value, rel=2**-9)
    assert histogram([value]).quantile(1.0) >= value


def test_zero_has_a_bin_of_its_own_and_the_largest_float_has_one() -> None:
    assert histogram([0.0, -0.0]).counts[0] == 2
    largest = histogram([np.finfo(np.float32).max])
    assert largest.counts.sum() == 1
    assert np.isfinite(largest.filled_bins()[0]).all()


def test_quantile_is_the_edge_below_which_the_share_lies() -> None:
    values = np.linspace(0, 10, 10_001, dtype=np.float32)
    assert histogram(values).quantile(0.9) == pytest.approx(9.0, rel=2**-7)
    assert Histogram().quantile(0.5) == 0.0


def test_linear_bins_keep_the_total_and_spread_each_bin_evenly() -> None:
    values = np.random.default_rng(0).uniform(0, 3, 200_000).astype(np.float32)
    counts = histogram(values).to_linear_bins(float(values.max()))
    assert counts.sum() == pytest.approx(len(values))
    assert len(counts) == 2048
    expected = len(values) / 2048
    assert np.abs(counts - expected).max() < 0.6 * expected


def test_an_empty_stretch_stays_empty_in_linear_bins() -> None:
    counts = histogram([0.01] * 10 + [1.0] * 5).to_linear_bins(1.0, 100)
    assert counts[:3].sum() == pytest.approx(10)
    assert counts[3:98].sum() == pytest.approx(0)
