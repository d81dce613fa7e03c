"""Move the outliers of activations into weights and biases: the fp32 graph stays the same mathematically.

SmoothQuant (Xiao et al., arXiv 2211.10438, equation 4) divides each channel by a factor, s_j = amax|X_j|^alpha /
amax|W_j|^(1 - alpha); Outlier Suppression+ (Wei et al., arXiv 2304.09145, equation 3) first shifts it by the middle z
of its range, since an outlier channel mostly lies on one side of 0:
X W + b = ((X - z) diag(s)^-1) (diag(s) W) + (b + z W).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tasks.linears import Floats, Graph, Linear

Edit = tuple[onnx.NodeProto, int]


@dataclass(frozen=True)
class Smoothing:
    """What a tensor's channels are divided by and, before that, shifted by: float32 [K] each."""

    factor: Floats
    shift: Floats

    def apply(self, values: Floats) -> Floats:
        """(x - z) / s."""
        return (values - self.shift) / self.factor


def smoothing_of(channel_amax: Floats, weight: Floats, alpha: float) -> Floats:
    """Compute s of equation 4, float32 [K]; channels that are dead in X or W keep 1."""
    weight_amax = np.abs(weight).max(axis=1)
    alive = (channel_amax > 0) & (weight_amax > 0)
    x = np.where(alive, channel_amax, 1.0).astype(np.float64)
    w = np.where(alive, weight_amax, 1.0).astype(np.float64)
    smoothing = np.where(alive, x**alpha / w ** (1.0 - alpha), 1.0)
    return np.clip(smoothing, 1e-5, 1e5).astype(np.float32)


def shiftable(graph: Graph, members: Sequence[Linear]) -> bool:
    """Whether every layer's bias can take up a shift: not a Conv (its padding is not shifted), nor a scaled Gemm."""
    nodes = graph.linear_nodes()
    return all(each.op == "MatMul" or (each.op == "Gemm" and _plain(graph, nodes[each])) for each in members)


def _plain(graph: Graph, gemm: onnx.NodeProto) -> bool:
    scaled = any(each.name in ("alpha", "beta") and each.f != 1.0 for each in gemm.attribute)
    return not scaled and (len(gemm.input) < 3 or graph.constant(gemm.input[2]) is not None)


def smooth(graph: Graph, smoothings: Mapping[str, Smoothing]) -> Graph:
    """Let each tensor of `smoothings` reach its layers shifted and divided; the outputs stay the same.

    The factor goes into the node that makes the tensor (LayerNormalization, or a multiplication by a constant)
    when nothing else reads it; otherwise a Mul and an Add in front of the layers do it, and other readers, such as a
    residual branch, keep the exact tensor.
    """
    for tensor, smoothing in smoothings.items():
        graph = _smooth_one(graph, tensor, smoothing)
    graph.drop_unused_constants()
    return graph


def _smooth_one(graph: Graph, tensor: str, smoothing: Smoothing) -> Graph:
    members = {each: node for each, node in graph.linear_nodes().items() if each.input == tensor}
    inverse = (1.0 / smoothing.factor.astype(np.float64)).astype(np.float32)
    offset = -smoothing.shift * inverse
    sole = tensor not in graph.output_names and len(graph.consumers[tensor]) == len(members)
    edits = _foldable(graph, tensor) if sole else []
    folded_shift = bool(edits) and _adds(*edits[-1])
    for node, position in edits:
        moved = offset if folded_shift and (node, position) == edits[-1] else np.float32(0)
        _replace(graph, node, position, graph.values(node.input[position]) * inverse + moved)
    left = [] if edits else [("Mul", inverse)]
    if smoothing.shift.any() and not folded_shift:
        left.append(("Add", offset))
    source = _insert(graph, tensor, left)
    for each, node in members.items():
        weight = graph.weight(each)
        matrix = each.to_matrix(weight)
        node.input[0] = source
        if smoothing.shift.any():
            _add_to_bias(graph, node, (smoothing.shift.astype(np.float64) @ matrix).astype(np.float32))
        _replace(graph, node, 1, each.from_matrix(matrix * smoothing.factor[:, None], weight.shape))
    return Graph(graph.proto)


def _insert(graph: Graph, tensor: str, operations: list[tuple[str, Floats]]) -> str:
    """Put nodes with a constant right behind `tensor`; the name of the last one's output."""
    nodes, source = [], tensor
    for op, constant in operations:
        output = f"{tensor}/smoothed/{op}"
        graph.proto.graph.initializer.append(numpy_helper.from_array(constant, f"{output}/constant"))
        nodes.append(helper.make_node(op, [source, f"{output}/constant"], [output], name=output))
        source = output
    graph.insert_before_consumers(tensor, nodes)
    return source


def _add_to_bias(graph: Graph, node: onnx.NodeProto, extra: Floats) -> None:
    """Add [N] to what a MatMul or Gemm gives: in the bias that it has, or in a new one."""
    product = node.output[0]
    readers = graph.consumers.get(product, [])
    if node.op_type == "Gemm":
        if len(node.input) > 2:
            _replace(graph, node, 2, graph.values(node.input[2]) + extra)
        else:
            node.input.append(f"{product}/shift")
            graph.proto.graph.initializer.append(numpy_helper.from_array(extra, node.input[2]))
        return
    if len(readers) == 1 and readers[0].op_type == "Add" and product not in graph.output_names:
        constants = [at for at, name in enumerate(readers[0].input) if _is_vector(graph, name)]
        if len(constants) == 1:
            _replace(graph, readers[0], constants[0], graph.values(readers[0].input[constants[0]]) + extra)
            return
    node.output[0] = f"{product}/unshifted"
    graph.proto.graph.initializer.append(numpy_helper.from_array(extra, f"{product}/shift"))
    add = helper.make_node("Add", [node.output[0], f"{product}/shift"], [product], name=f"{product}/shifted")
    graph.proto.graph.node.insert(list(graph.proto.graph.node).index(node) + 1, add)


def _foldable(graph: Graph, tensor: str) -> list[Edit]:
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


def _adds(node: onnx.NodeProto, position: int) -> bool:
    return node.op_type == "Add" or (node.op_type == "LayerNormalization" and position == 2)


def _is_vector(graph: Graph, name: str) -> bool:
    values = graph.constant(name)
    return values is not None and values.ndim <= 1


def _replace(graph: Graph, node: onnx.NodeProto, position: int, values: Floats) -> None:
    """Give one input of one node new values; the old constant may be shared and stays as it is."""
    name = f"{node.input[position]}/{node.output[0]}/smoothed"
    graph.proto.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype=np.float32), name))
    node.input[position] = name
