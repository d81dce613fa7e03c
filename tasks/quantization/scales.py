"""The int8 scale of every tensor that layers read: smoothing strength and clip, chosen by the layers' own error.

A strength is SmoothQuant's alpha (arXiv 2211.10438), searched per tensor; clips come from tasks/calibration/ranges.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.calibration.histogram import Histogram
from tasks.calibration.ranges import INT8_MAX, METHODS, Method, compute_squared_error, find_clips
from tasks.calibration.statistics import ActivationStatistics, Calibration
from tasks.graphs.layers import Floats, Graph, Linear, group_by_input
from tasks.quantization.qdq import compute_column_scales
from tasks.quantization.smoothquant import compute_smoothing

ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9)
# The search only ranks strengths and clips: this much of the sample and of the layer ranks them as all of it does.
SEARCH_TOKENS, SEARCH_COLUMNS = 256, 512
# A clip replaces min-max only if its error is below this share of min-max's. Clipping errors have one sign and fall on
# few tokens, so small gains on the sample were losses of the whole graph (docs/adr/0017-calibration.md).
CLIP_ERROR_MOST = 0.8


@dataclass(frozen=True)
class ActivationScale:
    """One tensor's way to int8: divided by `smoothing` (float32 [K], or None), then rounded in steps of `scale`.

    `alpha` is the strength chosen (None: not smoothed). `error` is the relative squared error, on the sample, of the
    layers that read the tensor; of the tensor itself if it has no sample (the input of a Conv).
    """

    scale: float
    method: Method
    smoothing: Floats | None = None
    alpha: float | None = None
    error: float = 0.0

    @property
    def clip(self) -> float:
        """Largest |x|, after smoothing, that int8 can hold."""
        return self.scale * INT8_MAX


def choose_scales(
    graph: Graph, calibration: Calibration, *, method: Method | None = None, alphas: Sequence[float] = ALPHAS
) -> dict[str, ActivationScale]:
    """Choose each tensor's strength and clip by the error of the layers that read it.

    `method` fixes how clips are found (None: the best one per tensor); without `alphas` nothing is smoothed.
    """
    return {
        tensor: _choose_scale(graph, calibration.activations[tensor], members, method, alphas)
        for tensor, members in group_by_input(graph.list_linears()).items()
        if tensor in calibration.activations
    }


def _choose_scale(
    graph: Graph,
    statistics: ActivationStatistics,
    members: Sequence[Linear],
    method: Method | None,
    alphas: Sequence[float],
) -> ActivationScale:
    if any(layer.op == "Conv" for layer in members):
        return choose_by_histogram(statistics, method or Method.MSE)
    weight = np.concatenate([layer.to_matrix(graph.read_weight(layer)) for layer in members], axis=1)
    return ScaleSearch(statistics, weight).find_best(method, alphas)


def choose_by_histogram(statistics: ActivationStatistics, method: Method) -> ActivationScale:
    """Choose the scale of a tensor without trying its layers, by the histogram alone."""
    clip = find_clips(statistics.histogram, statistics.amax, (method,))[method]
    middles, counts = statistics.histogram.filled_bins()
    power = float(counts @ np.square(middles) / max(1, counts.sum())) or 1.0
    return ActivationScale(clip / INT8_MAX, method, error=compute_squared_error(statistics.histogram, clip) / power)


class ScaleSearch:
    """A search of strengths and clips on a sample of a tensor and on columns of the layers that read it."""

    def __init__(self, statistics: ActivationStatistics, weight: Floats) -> None:
        """Take the statistics of X and the weights of all layers that read it, side by side: float32 [K, N]."""
        self._channel_amax = statistics.channel_amax
        self._sample = statistics.sample.values()
        self._tokens = self._sample[:: -(-len(self._sample) // SEARCH_TOKENS)]
        self._all_columns = weight
        self._weight = np.ascontiguousarray(weight[:, :: -(-weight.shape[1] // SEARCH_COLUMNS)])
        self._exact = self._tokens @ self._weight
        self._power = float(np.square(self._exact).sum()) or 1.0

    def find_best(self, method: Method | None, alphas: Sequence[float]) -> ActivationScale:
        """Search the strength with min-max, then the clip at that strength; keep min-max unless a clip is better."""
        ones = np.ones_like(self._channel_amax)
        candidates: list[tuple[float | None, Floats]] = [(None, ones)]
        candidates += [(alpha, compute_smoothing(self._channel_amax, self._all_columns, alpha)) for alpha in alphas]
        alpha, factor = candidates[0]
        if len(candidates) > 1:
            alpha, factor = min(candidates, key=lambda candidate: self._min_max_error(*candidate))
        histogram = Histogram()
        histogram.add(self._sample / factor)
        clips = find_clips(histogram, self._smoothed_amax(factor), METHODS if method is None else (method,))
        scales = self._try_clips(alpha, factor, clips)
        best = min(scales, key=lambda scale: scale.error)
        in_range = next((scale for scale in scales if scale.method is Method.MIN_MAX), best)
        return best if best.error < CLIP_ERROR_MOST * in_range.error else in_range

    def _smoothed_amax(self, factor: Floats) -> float:
        return float((self._channel_amax / factor).max()) or 1.0

    def _min_max_error(self, alpha: float | None, factor: Floats) -> float:
        return self._try_clips(alpha, factor, {Method.MIN_MAX: self._smoothed_amax(factor)})[0].error

    def _try_clips(self, alpha: float | None, factor: Floats, clips: Mapping[Method, float]) -> list[ActivationScale]:
        weight = round_per_column(self._weight * factor[:, None])
        smoothed = self._tokens / factor
        scales = []
        for method, clip in clips.items():
            scale = clip / INT8_MAX
            error = float(np.square(fake_quantize(smoothed, scale) @ weight - self._exact).sum()) / self._power
            scales.append(ActivationScale(scale, method, None if alpha is None else factor, alpha, error))
        return scales


def fake_quantize(values: Floats, scale: float) -> Floats:
    """Round values to int8 steps of `scale`, and scale them back to float32."""
    step = np.float32(scale)
    rounded: Floats = np.clip(np.rint(values / step), -INT8_MAX - 1, INT8_MAX) * step
    return rounded


def round_per_column(weight: Floats) -> Floats:
    """Round a weight [K, N] to int8 with one symmetric scale per column, and scale it back to float32."""
    scale = compute_column_scales(weight, INT8_MAX)
    rounded: Floats = np.rint(weight / scale) * scale
    return rounded
