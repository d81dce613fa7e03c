"""The W8A8 graph: smoothed, Q/DQ in front of every layer that does not stay fp32, weights stored as int8."""

from collections.abc import Mapping

import onnx

from tasks.graphs.layers import Graph, group_by_input
from tasks.quantization import qdq
from tasks.quantization.scales import ActivationScale
from tasks.quantization.smoothquant import smooth_graph


def make_int8_graph(
    model: onnx.ModelProto,
    scales: Mapping[str, ActivationScale],
    *,
    weight_format: qdq.WeightFormat = qdq.round_int8_weight,
) -> onnx.ModelProto:
    """Quantize an fp32 graph in place; layers whose tensor has no entry in `scales` stay fp32."""
    graph = Graph(model)
    before = group_by_input(graph.list_linears())
    fp32_layers = {layer.index for tensor, members in before.items() if tensor not in scales for layer in members}
    # In graph order: scales read from a file in another order give the same bytes.
    quantized = [tensor for tensor in before if tensor in scales]
    factors = {tensor: scales[tensor].smoothing for tensor in quantized}
    smoothed = smooth_graph(graph, {tensor: factor for tensor, factor in factors.items() if factor is not None})
    # Smoothing renames tensors and keeps the order of layers: pair old and new names by the layer that reads them.
    renamed = {layer.index: layer.input for layer in smoothed.list_linears()}
    steps = {renamed[before[tensor][0].index]: scales[tensor].scale for tensor in quantized}
    qdq.quantize_activations(smoothed, steps, qdq.make_int8_zero(), keep=fp32_layers)
    rest = Graph(smoothed.proto)
    qdq.quantize_weights(rest, weight_format, keep=fp32_layers)
    return rest.proto
