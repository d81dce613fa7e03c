"""Ranges from histograms, on distributions whose answer is known."""

import numpy as np
import pytest

from tasks.calibration.histogram import Histogram
from tasks.calibration.ranges import (
    METHODS,
    Method,
    clip_entropy,
    clip_min_max,
    clip_mse,
    clip_percentile,
    compute_squared_error,
    find_clips,
    kl_divergence,
)
from tasks.graphs.layers import Floats

NORMAL = np.random.default_rng(0).standard_normal(400_000).astype(np.float32)
UNIFORM = np.random.default_rng(0).uniform(-1, 1, 400_000).astype(np.float32)


def count_values(values: Floats) -> tuple[Histogram, float]:
    histogram = Histogram()
    histogram.add(values)
    return histogram, float(np.abs(values).max())


def test_min_max_is_the_largest_value() -> None:
    assert clip_min_max(*count_values(NORMAL)) == float(np.abs(NORMAL).max())


def test_percentile_leaves_its_share_outside() -> None:
    clip = clip_percentile(*count_values(NORMAL))
    assert (np.abs(NORMAL) > clip).mean() == pytest.approx(1e-4, rel=0.2)


@pytest.mark.parametrize("method", list(Method))
def test_a_uniform_range_is_kept(method: Method) -> None:
    histogram, amax = count_values(UNIFORM)
    assert METHODS[method](histogram, amax) == pytest.approx(amax, rel=0.02)


@pytest.mark.parametrize("method", [Method.PERCENTILE, Method.MSE])
def test_a_lone_outlier_is_cut(method: Method) -> None:
    assert METHODS[method](*count_values(np.append(UNIFORM, np.float32(3.0)))) < 1.5


def test_mse_is_the_least_of_what_float_rounding_gives() -> None:
    histogram, amax = count_values(NORMAL)

    def true_error(clip: float) -> float:
        scale = clip / 127
        return float(np.square(np.clip(np.rint(NORMAL / scale), -127, 127) * scale - NORMAL).mean())

    best = min((amax * ratio for ratio in np.linspace(0.3, 1, 71)), key=true_error)
    assert clip_mse(histogram, amax) == pytest.approx(best, rel=0.05)
    assert compute_squared_error(histogram, best) == pytest.approx(true_error(best), rel=0.05)


def test_entropy_is_not_moved_by_exact_zeros() -> None:
    relu = np.append(np.abs(NORMAL), np.zeros(4_000_000, dtype=np.float32))
    assert clip_entropy(*count_values(relu)) == clip_entropy(*count_values(NORMAL))


@pytest.mark.parametrize("freedom", [2.0, 3.0])
def test_entropy_is_what_2048_equal_bins_of_the_values_give(freedom: float) -> None:
    heavy = np.random.default_rng(0).standard_t(freedom, 200_000).astype(np.float32)
    heavy = heavy[np.abs(heavy) < 60]
    histogram, amax = count_values(heavy)
    counts = np.histogram(np.abs(heavy), bins=2048, range=(0, amax))[0].astype(np.float64)
    widths = range(128, 2049, 16)
    expected = amax * min(widths, key=lambda width: kl_divergence(counts, width)) / 2048
    assert clip_entropy(histogram, amax) == pytest.approx(expected, rel=0.15)
    assert clip_entropy(histogram, amax) < 0.97 * amax


def test_a_tensor_that_is_always_zero_gets_a_range_that_keeps_its_zeros() -> None:
    assert set(find_clips(*count_values(np.zeros(100, dtype=np.float32))).values()) == {1.0}
