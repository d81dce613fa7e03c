"""SmoothQuant (Xiao et al., arXiv 2211.10438): move the outliers of activations into the weights.

The product stays the same: X W = (X diag(s)^-1) (diag(s) W).
Equation 4: s_j = amax|X_j|^alpha / amax|W_j|^(1 - alpha).
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tasks.graphs.layers import Floats, Graph


def compute_smoothing(channel_amax: Floats, weight: Floats, alpha: float) -> Floats:
    """Compute s of equation 4, float32 [K], from amax|X| [K] and W [K, N]; channels that are dead in X or W keep 1."""
    weight_amax = np.abs(weight).max(axis=1)
    alive = (channel_amax > 0) & (weight_amax > 0)
    x = np.where(alive, channel_amax, 1.0).astype(np.float64)
    w = np.where(alive, weight_amax, 1.0).astype(np.float64)
    smoothing = np.where(alive, x**alpha / w ** (1.0 - alpha), 1.0)
    return np.clip(smoothing, 1e-5, 1e5).astype(np.float32)


def smooth_graph(graph: Graph, smoothings: dict[str, Floats]) -> Graph:
    """Divide each tensor of `smoothings` by its s, float32 [K], and multiply its layers' weights by it, in place.

    1 / s is folded into the constants that make the tensor (gamma and beta of a LayerNormalization, a constant factor)
    when nothing else reads it. Otherwise a Mul in front of the layers applies it, and other readers, such as a residual
    branch, keep the original tensor.
    """
    for tensor, smoothing in smoothings.items():
        graph = _smooth_tensor(graph, tensor, smoothing)
    graph.drop_unused_constants()
    return graph


def _smooth_tensor(graph: Graph, tensor: str, smoothing: Floats) -> Graph:
    members = {layer: node for layer, node in graph.find_linear_nodes().items() if layer.input == tensor}
    inverse = (1.0 / smoothing.astype(np.float64)).astype(np.float32)
    only_reader = tensor not in graph.output_names and len(graph.consumers[tensor]) == len(members)
    constants = _find_foldable(graph, tensor) if only_reader else []
    source = tensor
    if constants:
        for node, position in constants:
            _replace_constant(graph, node, position, graph.read_constant(node.input[position]) * inverse)
    else:
        source = graph.make_name(f"{tensor}/smoothed")
        factor = graph.make_name(f"{source}/factor")
        graph.proto.graph.initializer.append(numpy_helper.from_array(inverse, factor))
        multiply = helper.make_node("Mul", [tensor, factor], [source], name=source)
        graph.insert_before_consumers(tensor, [multiply])
    for layer, node in members.items():
        weight = graph.read_weight(layer)
        matrix = layer.to_matrix(weight) * smoothing[:, None]
        node.input[0] = source
        _replace_constant(graph, node, 1, layer.from_matrix(matrix, weight.shape))
    return Graph(graph.proto)


def _find_foldable(graph: Graph, tensor: str) -> list[tuple[onnx.NodeProto, int]]:
    """Find the constants, as (node, input position), that scale `tensor` as a whole; [] when there are none."""
    node = graph.producers.get(tensor)
    if node is None:
        return []
    constant = [position for position, name in enumerate(node.input) if _is_vector(graph, name)]
    if node.op_type == "LayerNormalization" and node.output[0] == tensor:  # the others are its mean and deviation
        parameters = [*range(1, len(node.input))]
        return [(node, position) for position in parameters] if constant == parameters else []
    if node.op_type == "Mul" and len(constant) == 1:
        return [(node, constant[0])]
    if node.op_type == "Add" and len(constant) == 1:
        other = node.input[1 - constant[0]]
        only_reader = len(graph.consumers[other]) == 1 and other not in graph.output_names
        inner = _find_foldable(graph, other) if only_reader else []
        return [*inner, (node, constant[0])] if inner else []
    return []


def _is_vector(graph: Graph, name: str) -> bool:
    values = graph.find_constant(name)
    return values is not None and values.ndim <= 1


def _replace_constant(graph: Graph, node: onnx.NodeProto, position: int, values: Floats) -> None:
    """Give one input of one node new values; the old constant may be shared, so it stays."""
    name = graph.make_name(f"{node.input[position]}/{node.output[0]}/smoothed")
    graph.proto.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype=np.float32), name))
    node.input[position] = name
