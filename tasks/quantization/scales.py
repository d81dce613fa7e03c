"""The int8 scale of every tensor that layers read: smoothing strength and clip, chosen by the layers' own error.

A strength is SmoothQuant's alpha (arXiv 2211.10438), searched per tensor; clips come from tasks/calibration/ranges.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
# A sample that is more than one in so many of all tokens made the maxima that it would judge.
UNBIASED_SHARE = 4
# Of such a tensor, smoothing has to leave less than this share of the error on rows that did not make its factors.
SMOOTHING_ERROR_MOST = 0.9


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
    return choose_by_layers(statistics, weight, method, alphas)


def choose_by_layers(
    statistics: ActivationStatistics, weight: Floats, method: Method | None, alphas: Sequence[float]
) -> ActivationScale:
    """Choose the strength with min-max, then the clip at that strength, by the error of the layers that read a tensor.

    `weight` is that of all those layers, side by side: float32 [K, N]. Min-max stays unless a clip is better. Where
    the sample is most of what made the maxima, as in a layer that sees one vector a row, it says nothing about other
    rows: then each half of it judges what the other half chose, and nothing is smoothed that gains little so.
    """
    sample = statistics.sample.values()
    whole = ScaleSearch(statistics.channel_amax, sample, sample, weight)
    tokens_seen = int(statistics.histogram.counts.sum()) // max(1, sample.shape[1])
    is_biased = len(sample) >= 2 and tokens_seen < UNBIASED_SHARE * len(sample)
    judges = [whole]
    if is_biased:
        halves = sample[::2], sample[1::2]
        judges = [
            ScaleSearch(np.abs(chosen_on).max(axis=0), chosen_on, judged_on, weight)
            for chosen_on, judged_on in (halves, halves[::-1])
        ]

    def measure(alpha: float | None, method: Method) -> float:
        return sum(judge.try_clip(alpha, method).error for judge in judges) / len(judges)

    alpha: float | None = None
    if alphas:
        errors = {tried: measure(tried, Method.MIN_MAX) for tried in (None, *alphas)}
        alpha = min(errors, key=lambda tried: errors[tried])
        if is_biased and errors[alpha] > SMOOTHING_ERROR_MOST * errors[None]:
            alpha = None
    by_method = {tried: measure(alpha, tried) for tried in (METHODS if method is None else (method,))}
    best = min(by_method, key=lambda tried: by_method[tried])
    in_range = Method.MIN_MAX if Method.MIN_MAX in by_method else best
    chosen = best if by_method[best] < CLIP_ERROR_MOST * by_method[in_range] else in_range
    return replace(whole.try_clip(alpha, chosen), error=by_method[chosen])


def choose_by_histogram(statistics: ActivationStatistics, method: Method) -> ActivationScale:
    """Choose the scale of a tensor without trying its layers, by the histogram alone."""
    clip = find_clips(statistics.histogram, statistics.amax, (method,))[method]
    middles, counts = statistics.histogram.filled_bins()
    power = float(counts @ np.square(middles) / max(1, counts.sum())) or 1.0
    return ActivationScale(clip / INT8_MAX, method, error=compute_squared_error(statistics.histogram, clip) / power)


class ScaleSearch:
    """Tries strengths and clips on tokens of a tensor and on columns of the layers that read it.

    `channel_amax` [K] and `chosen_on` [T, K] make the scales, `judged_on` [T, K] are what errors are measured on.
    """

    def __init__(self, channel_amax: Floats, chosen_on: Floats, judged_on: Floats, weight: Floats) -> None:
        """Take the weights of all layers that read the tensor, side by side: float32 [K, N]."""
        self._channel_amax, self._chosen_on, self._all_columns = channel_amax, chosen_on, weight
        self._tokens = judged_on[:: -(-len(judged_on) // SEARCH_TOKENS)]
        self._weight = np.ascontiguousarray(weight[:, :: -(-weight.shape[1] // SEARCH_COLUMNS)])
        self._exact = self._tokens @ self._weight
        self._power = float(np.square(self._exact).sum()) or 1.0
        self._smoothed: dict[float | None, tuple[Floats, Floats]] = {}

    def try_clip(self, alpha: float | None, method: Method) -> ActivationScale:
        """Return the scale of a strength and a method, with its relative squared error on the judging tokens."""
        factor, weight = self._smooth(alpha)
        amax, histogram = float((self._channel_amax / factor).max()) or 1.0, Histogram()
        if method is not Method.MIN_MAX:
            histogram.add(self._chosen_on / factor)
        scale = find_clips(histogram, amax, (method,))[method] / INT8_MAX
        made = fake_quantize(self._tokens / factor, scale) @ weight
        error = float(np.square(made - self._exact).sum()) / self._power
        return ActivationScale(scale, method, None if alpha is None else factor, alpha, error)

    def _smooth(self, alpha: float | None) -> tuple[Floats, Floats]:
        """Return a strength's factors [K], and the smoothed weight, rounded."""
        if alpha not in self._smoothed:
            amax = self._channel_amax
            factor = np.ones_like(amax) if alpha is None else compute_smoothing(amax, self._all_columns, alpha)
            self._smoothed[alpha] = factor, round_per_column(self._weight * factor[:, None])
        return self._smoothed[alpha]


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
