"""The W8A8 graph: smoothed, Q/DQ in front of every layer but those that stay fp32, weights stored as int8."""

from collections.abc import Mapping

import onnx

from tasks.graphs.layers import Graph, groups
from tasks.quantization import qdq
from tasks.quantization.scales import ActivationScale
from tasks.quantization.smoothquant import smooth


def int8_graph(
    model: onnx.ModelProto,
    scales: Mapping[str, ActivationScale],
    *,
    weight_format: qdq.WeightFormat = qdq.int8_weight,
) -> onnx.ModelProto:
    """Quantize an fp32 graph, in place, with the `scales` of its tensors; layers whose tensor has none stay fp32."""
    graph = Graph(model)
    before = groups(graph.linears())
    kept = {each.index for tensor, members in before.items() if tensor not in scales for each in members}
    # In graph order: scales that come from a file in another order give the same bytes.
    wanted = [tensor for tensor in before if tensor in scales]
    factors = {tensor: scales[tensor].smoothing for tensor in wanted}
    smoothed = smooth(graph, {tensor: factor for tensor, factor in factors.items() if factor is not None})
    # Layers keep their order while tensors get new names: pair old and new by the layer that reads them.
    now = {each.index: each.input for each in smoothed.linears()}
    steps = {now[before[tensor][0].index]: scales[tensor].scale for tensor in wanted}
    qdq.quantize_activations(smoothed, steps, qdq.int8_zero(), keep=kept)
    rest = Graph(smoothed.proto)
    qdq.quantize_weights(rest, weight_format, keep=kept)
    return rest.proto
