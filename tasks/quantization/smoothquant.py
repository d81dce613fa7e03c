"""SmoothQuant (Xiao et al., arXiv 2211.10438): move the outliers of activations into the weights, exactly.

X W = (X diag(s)^-1) (diag(s) W) with s_j = amax|X_j|^alpha / amax|W_j|^(1 - alpha) (equation 4).
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tasks.graphs.layers import Floats, Graph


def smoothing_of(channel_amax: Floats, weight: Floats, alpha: float) -> Floats:
    """Compute s of equation 4, float32 [K]; channels that are dead in X or W keep 1."""
    weight_amax = np.abs(weight).max(axis=1)
    alive = (channel_amax > 0) & (weight_amax > 0)
    x = np.where(alive, channel_amax, 1.0).astype(np.float64)
    w = np.where(alive, weight_amax, 1.0).astype(np.float64)
    smoothing = np.where(alive, x**alpha / w ** (1.0 - alpha), 1.0)
    return np.clip(smoothing, 1e-5, 1e5).astype(np.float32)


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
            _replace(graph, node, position, graph.values(node.input[position]) * inverse)
    else:
        source = f"{tensor}/smoothed"
        graph.proto.graph.initializer.append(numpy_helper.from_array(inverse, f"{source}/factor"))
        multiply = helper.make_node("Mul", [tensor, f"{source}/factor"], [source], name=source)
        graph.insert_before_consumers(tensor, [multiply])
    for each, node in members.items():
        weight = graph.weight(each)
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
