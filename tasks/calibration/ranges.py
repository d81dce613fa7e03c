"""From a histogram of |x| to the clip of its int8 range: pure functions, one per method.

Min-max and percentile are those of Wu et al. (arXiv 2004.09602, section 3.3), entropy is Migacz's (8-bit inference
with TensorRT, GTC 2017), the least squared error is Nagel et al.'s (arXiv 2106.08295, equation 2.9).
"""

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from tasks.calibration.histogram import Histogram

INT8_MAX = 127
# A scale below this is denormal, which runtimes flush to 0 and divide by.
LEAST_CLIP = 1e-30
PERCENTILE = 0.9999
# Levels of |x| in int8, the fewest linear bins a range may have, and the step between ranges that are tried.
_LEVELS, _STRIDE = 128, 16
_RATIOS = np.linspace(0.3, 1.0, 71)


class Method(StrEnum):
    """A way to choose a tensor's int8 range."""

    MIN_MAX = "min-max"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"
    MSE = "mse"


def clip_min_max(_histogram: Histogram, amax: float) -> float:
    """Clip nothing: return the largest |x|."""
    return amax


def clip_percentile(histogram: Histogram, amax: float) -> float:
    """Return the clip within which 99.99 % of the values lie."""
    return min(amax, histogram.quantile(PERCENTILE))


def clip_entropy(histogram: Histogram, amax: float) -> float:
    """Return the clip of least Kullback-Leibler divergence between 2,048 linear bins and their 128 levels.

    Ranges of 128, 144, … 2,048 bins are tried. Values beyond a range count in its last bin. Values of 0 are left out:
    they are exact in every range, and a ReLU gives so many that nothing else would weigh.
    """
    if not amax:
        return 0.0
    without_zeros = Histogram(np.where(np.arange(len(histogram.counts)) == 0, 0, histogram.counts))
    if not without_zeros.counts.any():
        return 0.0
    counts = without_zeros.to_linear_bins(amax)
    widths = range(_LEVELS, len(counts) + 1, _STRIDE)
    best = min(widths, key=lambda width: (kl_divergence(counts, width), -width))
    return amax * best / len(counts)


def kl_divergence(counts: NDArray[np.float64], width: int) -> float:
    """Compute how far the first `width` bins, clipped and quantized to 128 levels, are from themselves unquantized.

    Infinite where a level of 0 stands for values that occur.
    """
    reference = counts[:width].copy()
    reference[-1] += counts[width:].sum()
    filled = counts[:width] > 0
    starts = np.arange(_LEVELS) * width // _LEVELS
    sums = np.add.reduceat(counts[:width], starts)
    occupied = np.add.reduceat(filled.astype(np.int64), starts)
    sizes = np.diff(np.append(starts, width))
    levels = np.repeat(sums / np.maximum(occupied, 1), sizes) * filled
    occurs = reference > 0
    if not levels[occurs].all():
        return float("inf")
    p, q = reference[occurs] / reference.sum(), levels[occurs] / levels.sum()
    return float(p @ np.log(p / q))


def clip_mse(histogram: Histogram, amax: float) -> float:
    """Return the clip of least squared rounding and clipping error among 0.30, 0.31, … 1.00 of the largest |x|."""
    bins = histogram.filled_bins()
    return min((float(amax * ratio) for ratio in _RATIOS[::-1]), key=lambda clip: _mean_squared_error(*bins, clip))


def compute_squared_error(histogram: Histogram, clip: float) -> float:
    """Compute the mean squared error of |x| rounded to 127 equal levels up to `clip`."""
    return _mean_squared_error(*histogram.filled_bins(), clip)


def _mean_squared_error(middles: NDArray[np.float64], counts: NDArray[np.int64], clip: float) -> float:
    if not clip or not len(counts):
        return 0.0
    scale = clip / INT8_MAX
    rounded = np.minimum(np.rint(middles / scale), INT8_MAX) * scale
    return float(counts @ np.square(middles - rounded) / counts.sum())


METHODS: Mapping[Method, Callable[[Histogram, float], float]] = MappingProxyType(
    {
        Method.MIN_MAX: clip_min_max,
        Method.PERCENTILE: clip_percentile,
        Method.ENTROPY: clip_entropy,
        Method.MSE: clip_mse,
    }
)


def find_clips(histogram: Histogram, amax: float, methods: Iterable[Method] = METHODS) -> dict[Method, float]:
    """Return each method's clip; a tensor that is always 0, or as good as that, gets 1, which keeps its zeros."""
    clips = {method: METHODS[method](histogram, amax) for method in methods}
    return {method: clip if clip > LEAST_CLIP else 1.0 for method, clip in clips.items()}
