"""Ranges from histograms, on distributions whose answer is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.calibration.histogram import Histogram
from tasks.calibration.ranges import (
    METHODS,
    Method,
    _divergence,
    clips,
    entropy,
    min_max,
    mse,
    percentile,
    squared_error,
)

NORMAL = np.random.default_rng(0).standard_normal(400_000).astype(np.float32)
UNIFORM = np.random.default_rng(0).uniform(-1, 1, 400_000).astype(np.float32)


def of(values: NDArray[np.float32]) -> tuple[Histogram, float]:
    histogram = Histogram()
    histogram.add(values)
    return histogram, float(np.abs(values).max())


def test_min_max_is_the_largest_value() -> None:
    assert min_max(*of(NORMAL)) == float(np.abs(NORMAL).max())


def test_percentile_leaves_its_share_outside() -> None:
    clip = percentile(*of(NORMAL))
    assert (np.abs(NORMAL) > clip).mean() == pytest.approx(1e-4, rel=0.2)


@pytest.mark.parametrize("method", list(Method))
def test_a_uniform_range_is_kept(method: Method) -> None:
    histogram, amax = of(UNIFORM)
    assert METHODS[method](histogram, amax) == pytest.approx(amax, rel=0.02)


@pytest.mark.parametrize("method", [Method.PERCENTILE, Method.MSE])
def test_a_lone_outlier_is_cut(method: Method) -> None:
    assert METHODS[method](*of(np.append(UNIFORM, np.float32(3.0)))) < 1.5


def test_mse_is_the_least_of_what_float_rounding_gives() -> None:
    histogram, amax = of(NORMAL)

    def true_error(clip: float) -> float:
        scale = clip / 127
        return float(np.square(np.clip(np.rint(NORMAL / scale), -127, 127) * scale - NORMAL).mean())

    best = min((amax * ratio for ratio in np.linspace(0.3, 1, 71)), key=true_error)
    assert mse(histogram, amax) == pytest.approx(best, rel=0.05)
    assert squared_error(histogram, best) == pytest.approx(true_error(best), rel=0.05)


def test_entropy_is_not_moved_by_exact_zeros() -> None:
    relu = np.append(np.abs(NORMAL), np.zeros(4_000_000, dtype=np.float32))
    assert entropy(*of(relu)) == entropy(*of(NORMAL))


@pytest.mark.parametrize("freedom", [2.0, 3.0])
def test_entropy_is_what_2048_equal_bins_of_the_values_give(freedom: float) -> None:
    heavy = np.random.default_rng(0).standard_t(freedom, 200_000).astype(np.float32)
    heavy = heavy[np.abs(heavy) < 60]
    histogram, amax = of(heavy)
    counts = np.histogram(np.abs(heavy), bins=2048, range=(0, amax))[0].astype(np.float64)
    widths = range(128, 2049, 16)
    expected = amax * min(widths, key=lambda width: _divergence(counts, width)) / 2048
    assert entropy(histogram, amax) == pytest.approx(expected, rel=0.15)
    assert entropy(histogram, amax) < 0.97 * amax


def test_a_tensor_that_is_always_zero_gets_a_range_that_keeps_its_zeros() -> None:
    assert set(clips(*of(np.zeros(100, dtype=np.float32))).values()) == {1.0}
