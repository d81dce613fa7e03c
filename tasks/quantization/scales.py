"""The int8 scale of every tensor that layers read: smoothing strength and clip, chosen by the layers' own error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.calibration.histogram import Floats, Histogram
from tasks.calibration.ranges import INT8_MAX, METHODS, Method, clips, squared_error
from tasks.calibration.statistics import ActivationStatistics, Calibration
from tasks.graphs.layers import Graph, Linear, groups
from tasks.quantization.qdq import column_scale
from tasks.quantization.smoothquant import smoothing_of

ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9)
# The search compares strengths and clips: this much of the sample and of the layer ranks them alike.
SEARCH_TOKENS, SEARCH_COLUMNS = 256, 512
# Clipping must err less than this share of what min-max errs: its errors have one sign and fall on few tokens, so that
# small gains on the sample were losses of the whole graph (docs/adr/0017-calibration.md).
CLEARLY = 0.8


@dataclass(frozen=True)
class ActivationScale:
    """How one tensor becomes int8: divided by `smoothing` ([K] or None), then rounded in steps of `scale`.

    `alpha` is the strength that was chosen (None: not smoothed), `error` the relative squared error of the layers
    that read the tensor, on the sample; of the tensor itself where that has no sample (the input of a Conv).
    """

    scale: float
    method: Method
    smoothing: Floats | None = None
    alpha: float | None = None
    error: float = 0.0

    @property
    def clip(self) -> float:
        """Largest |x|, after smoothing, that int8 holds."""
        return self.scale * INT8_MAX


def choose_scales(
    graph: Graph, calibration: Calibration, *, method: Method | None = None, alphas: Sequence[float] = ALPHAS
) -> dict[str, ActivationScale]:
    """Choose the strength and the clip of least error for each tensor, by the layers that read it.

    `method` fixes how clips are found (None: the best of all, per tensor); no `alphas` means no smoothing.
    """
    return {
        tensor: _choose(graph, calibration.activations[tensor], members, method, alphas)
        for tensor, members in groups(graph.linears()).items()
        if tensor in calibration.activations
    }


def _choose(
    graph: Graph,
    statistics: ActivationStatistics,
    members: Sequence[Linear],
    method: Method | None,
    alphas: Sequence[float],
) -> ActivationScale:
    if any(each.op == "Conv" for each in members):
        return by_histogram(statistics, method or Method.MSE)
    weight = np.concatenate([each.to_matrix(graph.weight(each)) for each in members], axis=1)
    return Search(statistics, weight).best(method, alphas)


def by_histogram(statistics: ActivationStatistics, method: Method) -> ActivationScale:
    """Scale of a tensor whose layers are not tried out."""
    clip = clips(statistics.histogram, statistics.amax, (method,))[method]
    middles, counts = statistics.histogram.filled()
    power = float(counts @ np.square(middles) / max(1, counts.sum())) or 1.0
    return ActivationScale(clip / INT8_MAX, method, error=squared_error(statistics.histogram, clip) / power)


class Search:
    """Tries strengths and clips on a sample of a tensor and on columns of the layers that read it."""

    def __init__(self, statistics: ActivationStatistics, weight: Floats) -> None:
        """Take the statistics of X and the weights [K, N] of all layers that read it, side by side."""
        self._channel_amax = statistics.channel_amax
        self._sample = statistics.sample.values()
        self._tokens = self._sample[:: -(-len(self._sample) // SEARCH_TOKENS)]
        self._all_columns = weight
        self._weight = np.ascontiguousarray(weight[:, :: -(-weight.shape[1] // SEARCH_COLUMNS)])
        self._exact = self._tokens @ self._weight
        self._power = float(np.square(self._exact).sum()) or 1.0

    def best(self, method: Method | None, alphas: Sequence[float]) -> ActivationScale:
        """Search the strength with everything in range, then the clip at that strength; min-max unless it loses."""
        ones = np.ones_like(self._channel_amax)
        candidates: list[tuple[float | None, Floats]] = [(None, ones)]
        candidates += [(alpha, smoothing_of(self._channel_amax, self._all_columns, alpha)) for alpha in alphas]
        alpha, factor = candidates[0]
        if len(candidates) > 1:
            alpha, factor = min(candidates, key=lambda each: self._error_in_range(*each))
        histogram = Histogram()
        histogram.add(self._sample / factor)
        found = clips(histogram, self._amax(factor), METHODS if method is None else (method,))
        tried = self._tried(alpha, factor, found)
        best = min(tried, key=lambda each: each.error)
        in_range = next((each for each in tried if each.method is Method.MIN_MAX), best)
        return best if best.error < CLEARLY * in_range.error else in_range

    def _amax(self, factor: Floats) -> float:
        return float((self._channel_amax / factor).max()) or 1.0

    def _error_in_range(self, alpha: float | None, factor: Floats) -> float:
        return self._tried(alpha, factor, {Method.MIN_MAX: self._amax(factor)})[0].error

    def _tried(self, alpha: float | None, factor: Floats, found: Mapping[Method, float]) -> list[ActivationScale]:
        weight = round_per_column(self._weight * factor[:, None])
        smoothed = self._tokens / factor
        tried = []
        for method, clip in found.items():
            scale = clip / INT8_MAX
            error = float(np.square(fake_quantize(smoothed, scale) @ weight - self._exact).sum()) / self._power
            tried.append(ActivationScale(scale, method, None if alpha is None else factor, alpha, error))
        return tried


def fake_quantize(values: Floats, scale: float) -> Floats:
    """Values rounded to int8 steps of `scale` and back."""
    step = np.float32(scale)
    rounded: Floats = np.clip(np.rint(values / step), -INT8_MAX - 1, INT8_MAX) * step
    return rounded


def round_per_column(weight: Floats) -> Floats:
    """Round a weight [K, N] to int8 with one symmetric scale a column, and back."""
    scale = column_scale(weight, INT8_MAX)
    rounded: Floats = np.rint(weight / scale) * scale
    return rounded
