"""What calibration rows say about the activations of a graph, in memory that does not grow with the rows.

Every row runs alone, cut to its real tokens. So the statistics are the same for any batch size, order and
padding of the rows, to the last bit: a float sum depends on the batch it was computed in; a maximum, a count
in a bin of fixed edges and the rows of least hash do not depend on order.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, RuntimeException

from registry.errors import BadInput
from tasks.linears import Floats, Graph, groups
from tasks.tokenize import FeedDict

BINS = 4096
# Rows and tokens that are kept for the search of smoothing and clipping: enough for 384 to 4,096 channels.
KEPT_ROWS = 64
KEPT_TOKENS = 512

log = logging.getLogger(__name__)


@dataclass
class Histogram:
    """Counts of |x| in BINS equal bins from 0 to `top`, which is a power of two and doubles as needed.

    Widths are nested powers of two, so merging pairs of bins is exact: counts depend on the values only, not
    on their order. At least BINS / 2 bins cover what was seen.
    """

    top: float = 2.0**-24
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))

    def add(self, magnitudes: Floats) -> None:
        """Count |x|, float32 of any shape, all finite."""
        while magnitudes.size and float(magnitudes.max()) >= self.top:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([merged, np.zeros(BINS // 2, dtype=np.int64)])
            self.top *= 2.0
        bins = (magnitudes * np.float32(BINS / self.top)).astype(np.int64).ravel()
        self.counts += np.bincount(bins, minlength=BINS)

    def clip_of_least_error(self, amax: float, ratios: Iterable[float], steps: int) -> float:
        """Find the clip among `ratios` of `amax` whose rounding to `steps` levels errs least, squared."""
        centres = (np.arange(BINS) + 0.5) * self.top / BINS

        def error(clip: float) -> float:
            scale = clip / steps
            rounded = np.minimum(np.rint(centres / scale), steps) * scale
            return float(self.counts @ (centres - rounded) ** 2)

        return min((amax * ratio for ratio in ratios), key=error)


@dataclass
class ActivationStatistics:
    """One tensor's per-channel maxima of |x|, float32 [K], and the histogram of |x| over all channels."""

    channel_amax: Floats
    histogram: Histogram = field(default_factory=Histogram)

    @property
    def amax(self) -> float:
        """Largest |x|."""
        return float(self.channel_amax.max())


@dataclass
class Calibration:
    """Statistics of each layer's input, the rows kept as a sample, and how many rows were refused."""

    activations: dict[str, ActivationStatistics]
    sample: dict[str, Floats]
    rows: int
    quarantined: int


def single_rows(feeds: Iterable[FeedDict]) -> Iterator[FeedDict]:
    """Each row of each batch alone, [1, S], without its trailing padding (attention_mask 0)."""
    for feed in feeds:
        for row in range(len(next(iter(feed.values())))):
            mask = feed.get("attention_mask")
            end = None if mask is None else int(np.flatnonzero(mask[row]).max(initial=-1)) + 1
            yield {
                name: column[row : row + 1, :end] if column.ndim == 2 else column[row : row + 1]
                for name, column in feed.items()
            }


def calibrate(
    model: onnx.ModelProto, rows: Iterable[FeedDict], *, on_row: Callable[[int], None] = lambda _: None
) -> Calibration:
    """Run `rows` through the fp32 graph and collect the statistics of every layer's input.

    A row that gives NaN or infinity anywhere, that has no token, or that the graph refuses is quarantined: it
    enters no statistic, and is counted.

    Raises:
        BadInput: no row is left, or the graph has no layer with a constant weight.

    """
    probe = _Probe(model)
    result = Calibration({}, {}, rows=0, quarantined=0)
    kept: dict[str, FeedDict] = {}
    for row in single_rows(rows):
        captured = probe.run(row)
        result.rows += 1
        on_row(result.rows)
        if captured is None:
            result.quarantined += 1
            continue
        for name, tokens in captured.items():
            _update(result.activations, name, np.abs(tokens))
        _keep(kept, row)
    if not result.activations:
        raise BadInput(f"none of {result.rows} calibration rows is usable: check the rows against the graph's inputs")
    if result.quarantined:
        log.warning(
            "%d of %d calibration rows quarantined (not finite, empty, or refused by the graph)",
            result.quarantined,
            result.rows,
        )
    result.sample = _sample(probe, [kept[key] for key in sorted(kept)])
    return result


def _update(activations: dict[str, ActivationStatistics], name: str, magnitudes: Floats) -> None:
    statistics = activations.setdefault(name, ActivationStatistics(np.zeros(magnitudes.shape[1], dtype=np.float32)))
    np.maximum(statistics.channel_amax, magnitudes.max(axis=0), out=statistics.channel_amax)
    statistics.histogram.add(magnitudes)


def _keep(kept: dict[str, FeedDict], row: FeedDict) -> None:
    """Keep the KEPT_ROWS rows of least sha256: a uniform sample that no order of the rows changes."""
    hasher = hashlib.sha256()
    for name in sorted(row):
        hasher.update(np.ascontiguousarray(row[name]).tobytes())
    kept[hasher.hexdigest()] = row
    if len(kept) > KEPT_ROWS:
        del kept[max(kept)]


def _sample(probe: "_Probe", rows: list[FeedDict]) -> dict[str, Floats]:
    """Up to KEPT_TOKENS tokens of each tensor, [T, K], from whole rows (special tokens hold the outliers)."""
    chunks: list[dict[str, Floats]] = []
    tokens = 0
    for row in rows:
        captured = probe.run(row)
        if captured is None or tokens >= KEPT_TOKENS:
            break
        chunks.append(captured)
        tokens += min(len(values) for values in captured.values())
    return {name: np.concatenate([chunk[name] for chunk in chunks])[:KEPT_TOKENS] for name in chunks[0]}


class _Probe:
    """A session that also returns the input of every layer."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = Graph(model)
        linears = graph.linears()
        if not linears:
            raise BadInput("the graph has no MatMul, Gemm or Conv with a constant float32 weight to quantize")
        self._conv_inputs = {each.input for each in linears if each.op == "Conv"}
        inputs = {each.name for each in model.graph.input}
        self._tensors = list(groups(linears))
        probed = onnx.ModelProto()
        probed.CopyFrom(model)
        present = inputs | graph.output_names
        probed.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            for name in self._tensors
            if name not in present
        )
        options = ort.SessionOptions()
        options.log_severity_level = 4  # a refused row is counted, not printed
        self._session = ort.InferenceSession(probed.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._fed = [name for name in self._tensors if name in inputs]
        self._outputs = [each.name for each in self._session.get_outputs()]

    def run(self, row: FeedDict) -> dict[str, Floats] | None:
        """Each layer's input for one row as real tokens [T, K]; None when the row is to be quarantined."""
        if not all(column.size and np.isfinite(column).all() for column in row.values()):
            return None
        try:
            values = dict(zip(self._outputs, self._session.run(self._outputs, row), strict=True))
        except (
            InvalidArgument,
            RuntimeException,
        ):  # token ids beyond the vocabulary, a row longer than positions
            return None
        if not all(np.isfinite(value).all() for value in values.values()):
            return None
        values.update({name: row[name] for name in self._fed})
        mask = row.get("attention_mask")
        return {name: self._tokens(name, values[name], mask) for name in self._tensors}

    def _tokens(self, name: str, value: Floats, mask: NDArray[np.int64] | None) -> Floats:
        if name in self._conv_inputs:
            return np.moveaxis(value, 1, -1).reshape(-1, value.shape[1])
        if mask is not None and value.shape[:2] == mask.shape and value.ndim == 3:
            real: Floats = value[mask != 0]
            return real
        return value.reshape(-1, value.shape[-1])
