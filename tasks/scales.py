"""The int8 scale of every tensor that layers read: smoothing strength and clip, chosen by the layers' own error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.calibration_statistics import ActivationStatistics, Calibration
from tasks.histogram import Floats, Histogram
from tasks.linears import Graph, Linear, groups
from tasks.ranges import INT8_MAX, METHODS, Method, clips, squared_error
from tasks.smoothquant import Smoothing, shiftable, smoothing_of

ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9)
# The search compares strengths and clips: this much of the sample and of the layer ranks them alike.
SEARCH_TOKENS, SEARCH_COLUMNS = 256, 512


@dataclass(frozen=True)
class ActivationScale:
    """How one tensor becomes int8: shifted and divided by `smoothing`, then rounded in steps of `scale`.

    `alpha` is the strength that was chosen (None: not smoothed), `error` the relative squared error of the layers
    that read the tensor, on the sample; of the tensor itself where that has no sample (the input of a Conv).
    """

    scale: float
    method: Method
    smoothing: Smoothing | None = None
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
    return Search(statistics, weight, may_shift=bool(alphas) and shiftable(graph, members)).best(method, alphas)


def by_histogram(statistics: ActivationStatistics, method: Method) -> ActivationScale:
    """Scale of a tensor whose layers are not tried out."""
    clip = clips(statistics.histogram, statistics.amax, (method,))[method]
    middles, counts = statistics.histogram.filled()
    power = float(counts @ np.square(middles) / max(1, counts.sum())) or 1.0
    return ActivationScale(clip / INT8_MAX, method, error=squared_error(statistics.histogram, clip) / power)


class Search:
    """Tries strengths and clips on a sample of a tensor and on columns of the layers that read it."""

    def __init__(self, statistics: ActivationStatistics, weight: Floats, *, may_shift: bool) -> None:
        """Take the statistics of X and the weights [K, N] of all layers that read it, side by side."""
        self._low, self._high = statistics.low, statistics.high
        self._sample = statistics.sample.values()
        self._tokens = self._sample[:: -(-len(self._sample) // SEARCH_TOKENS)]
        self._all_columns = weight
        self._weight = np.ascontiguousarray(weight[:, :: -(-weight.shape[1] // SEARCH_COLUMNS)])
        self._exact = self._tokens @ self._weight
        self._power = float(np.square(self._exact).sum()) or 1.0
        none = np.zeros_like(self._low)
        self._shifts = (none, (self._low + self._high) / 2) if may_shift else (none,)

    def best(self, method: Method | None, alphas: Sequence[float]) -> ActivationScale:
        """Search the shift and the strength with everything in range, then the clip with both of them."""
        candidates: list[tuple[float | None, Smoothing]] = [
            (alpha, self._smoothing(shift, alpha)) for shift in self._shifts for alpha in (None, *alphas)
        ]
        alpha, smoothing = min(candidates, key=lambda each: self._tried(*each, self._all_in_range(each[1]))[0].error)
        histogram = Histogram()
        histogram.add(smoothing.apply(self._sample))
        found = clips(histogram, self._amax(smoothing), METHODS if method is None else (method,))
        return min(self._tried(alpha, smoothing, found), key=lambda each: each.error)

    def _smoothing(self, shift: Floats, alpha: float | None) -> Smoothing:
        if alpha is None:
            return Smoothing(np.ones_like(shift), shift)
        return Smoothing(smoothing_of(self._channel_amax(shift), self._all_columns, alpha), shift)

    def _channel_amax(self, shift: Floats) -> Floats:
        amax: Floats = np.maximum(self._high - shift, shift - self._low)
        return amax

    def _amax(self, smoothing: Smoothing) -> float:
        return float((self._channel_amax(smoothing.shift) / smoothing.factor).max()) or 1.0

    def _all_in_range(self, smoothing: Smoothing) -> dict[Method, float]:
        return {Method.MIN_MAX: self._amax(smoothing)}

    def _tried(self, alpha: float | None, smoothing: Smoothing, found: Mapping[Method, float]) -> list[ActivationScale]:
        weight = round_per_column(self._weight * smoothing.factor[:, None])
        smoothed = smoothing.apply(self._tokens)
        # What the shift takes from X W comes back exactly, in the bias.
        wanted = self._exact - smoothing.shift @ self._weight
        exact = alpha is None and not smoothing.shift.any()
        tried = []
        for method, clip in found.items():
            scale = clip / INT8_MAX
            error = float(np.square(fake_quantize(smoothed, scale) @ weight - wanted).sum()) / self._power
            tried.append(ActivationScale(scale, method, None if exact else smoothing, alpha, error))
        return tried


def fake_quantize(values: Floats, scale: float) -> Floats:
    """Values rounded to int8 steps of `scale` and back."""
    step = np.float32(scale)
    rounded: Floats = np.clip(np.rint(values / step), -INT8_MAX - 1, INT8_MAX) * step
    return rounded


def round_per_column(weight: Floats) -> Floats:
    """Round a weight [K, N] to int8 with one symmetric scale a column, and back."""
    scale = np.maximum(np.abs(weight).max(axis=0), 1e-12).astype(np.float32) / np.float32(INT8_MAX)
    rounded: Floats = np.rint(weight / scale) * scale
    return rounded
