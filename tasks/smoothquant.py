"""SmoothQuant (Xiao et al., arXiv 2211.10438): move the outliers of activations into the weights, exactly.

X W = (X diag(s)^-1) (diag(s) W) with s_j = amax|X_j|^alpha / amax|W_j|^(1 - alpha) (equation 4).
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tasks.calibration import Calibration
from tasks.linears import Floats, Graph, Linear, groups

ALPHAS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6)
INT8_MAX = 127


@dataclass(frozen=True)
class ActivationScale:
    """How one tensor becomes int8: smoothed by `smoothing` ([K] or None), then rounded in steps of `scale`.

    `alpha` is the strength that was chosen (None: not smoothed), `error` the relative squared error of
    the layers that read the tensor, on the sample.
    """

    scale: float
    smoothing: Floats | None = None
    alpha: float | None = None
    error: float = 0.0


def choose_scales(graph: Graph, calibration: Calibration) -> dict[str, ActivationScale]:
    """Per tensor, the strength and the clip of least error |XW - Q(X / s) Q(s W)| on the sample."""
    chosen = {}
    for tensor, members in groups(graph.linears()).items():
        statistics = calibration.activations[tensor]
        if any(each.op == "Conv" for each in members):
            clip = statistics.histogram.clip_of_least_error(statistics.amax, CLIPS, INT8_MAX)
            chosen[tensor] = ActivationScale(_positive(clip) / INT8_MAX)
            continue
        weights = [each.to_matrix(_weight(graph, each)) for each in members]
        chosen[tensor] = search(calibration.sample[tensor], statistics.channel_amax, np.concatenate(weights, axis=1))
    return chosen


def search(sample: Floats, channel_amax: Floats, weight: Floats) -> ActivationScale:
    """Search the scale of X for a weight [K, N] on a sample [T, K] of X; `channel_amax` [K] is of all X."""
    exact = sample @ weight
    total = float(np.square(exact).sum()) or 1.0

    def attempt(alpha: float | None, smoothing: Floats, ratio: float) -> ActivationScale:
        scale = _positive(float((channel_amax / smoothing).max()) * ratio) / INT8_MAX
        rounded = fake_quantize(sample / smoothing, scale) @ round_per_column(weight * smoothing[:, None])
        error = float(np.square(rounded - exact).sum()) / total
        return ActivationScale(scale, None if alpha is None else smoothing, alpha, error)

    ones = np.ones(len(channel_amax), dtype=np.float32)
    smoothings = {alpha: smoothing_of(channel_amax, weight, alpha) for alpha in ALPHAS}
    tried = [attempt(None, ones, 1.0), *(attempt(alpha, each, 1.0) for alpha, each in smoothings.items())]
    best = min(tried, key=lambda each: each.error)
    smoothing = ones if best.smoothing is None else best.smoothing
    return min((attempt(best.alpha, smoothing, ratio) for ratio in CLIPS), key=lambda each: each.error)


def smoothing_of(channel_amax: Floats, weight: Floats, alpha: float) -> Floats:
    """Compute s of equation 4, float32 [K]; channels that are dead in X or W keep 1."""
    weight_amax = np.abs(weight).max(axis=1)
    alive = (channel_amax > 0) & (weight_amax > 0)
    x = np.where(alive, channel_amax, 1.0).astype(np.float64)
    w = np.where(alive, weight_amax, 1.0).astype(np.float64)
    smoothing = np.where(alive, x**alpha / w ** (1.0 - alpha), 1.0)
    return np.clip(smoothing, 1e-5, 1e5).astype(np.float32)


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


def smooth(graph: Graph, smoothings: dict[str, Floats]) -> Graph:
    """Let each tensor of `smoothings` reach its layers divided by its s [K]; the outputs stay the same.

    1 / s is folded into the constants that make the tensor (gamma and beta of a LayerNormalization, a
    constant factor) when nothing else reads it; otherwise a Mul in front of the layers does it, and
    other readers, such as a residual branch, keep the exact tensor.
    """
    for tensor, smoothing in smoothings.items():
        graph = _smooth_one(graph, tensor, smoothing)
    graph.drop_unused_constants()
    return graph


def _smooth_one(graph: Graph, tensor: str, smoothing: Floats) -> Graph:
    members = {each: node for each, node in graph.linear_nodes().items() if each.input == tensor}
    inverse = (1.0 / smoothing.astype(np.float64)).astype(np.float32)
    sole = tensor not in graph.output_names and len(graph.consumers[tensor]) == len(members)
    edits = _foldable(graph, tensor) if sole else []
    source = tensor
    if edits:
        for node, position in edits:
            _replace(graph, node, position, _constant(graph, node.input[position]) * inverse)
    else:
        source = f"{tensor}/smoothed"
        graph.proto.graph.initializer.append(numpy_helper.from_array(inverse, f"{source}/factor"))
        multiply = helper.make_node("Mul", [tensor, f"{source}/factor"], [source], name=source)
        graph.insert_before_consumers(tensor, [multiply])
    for each, node in members.items():
        weight = _weight(graph, each)
        matrix = each.to_matrix(weight) * smoothing[:, None]
        node.input[0] = source
        _replace(graph, node, 1, each.from_matrix(matrix, weight.shape))
    return Graph(graph.proto)


def _foldable(graph: Graph, tensor: str) -> list[tuple[onnx.NodeProto, int]]:
    """List the (node, input) constants that scale `tensor` as a whole; [] when there are none."""
    node = graph.producers.get(tensor)
    if node is None:
        return []
    constant = [at for at, name in enumerate(node.input) if _is_vector(graph, name)]
    if node.op_type == "LayerNormalization":
        return [(node, at) for at in range(1, len(node.input))] if constant == [*range(1, len(node.input))] else []
    if node.op_type == "Mul" and len(constant) == 1:
        return [(node, constant[0])]
    if node.op_type == "Add" and len(constant) == 1:
        other = node.input[1 - constant[0]]
        inner = _foldable(graph, other) if len(graph.consumers[other]) == 1 else []
        return [*inner, (node, constant[0])] if inner else []
    return []


def _is_vector(graph: Graph, name: str) -> bool:
    values = graph.constant(name)
    return values is not None and values.ndim <= 1


def _replace(graph: Graph, node: onnx.NodeProto, position: int, values: Floats) -> None:
    """Give one input of one node new values; the old constant may be shared and stays as it is."""
    name = f"{node.input[position]}/{node.output[0]}/smoothed"
    graph.proto.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype=np.float32), name))
    node.input[position] = name


def _constant(graph: Graph, name: str) -> Floats:
    values = graph.constant(name)
    if values is None:
        raise KeyError(name)
    return values


def _weight(graph: Graph, each: Linear) -> Floats:
    return _constant(graph, each.weight)


def _positive(clip: float) -> float:
    # A tensor that is always 0 has no range; any scale keeps its zeros.
    return clip if clip > 0 else 1.0
