"""The W8A8 graph: smoothed, Q/DQ in front of every layer that does not stay fp32, weights stored as int8."""

from collections.abc import Mapping

import numpy as np
import onnx

from tasks.graphs.layers import Floats, Graph, Linear, group_by_input
from tasks.quantization import qdq
from tasks.quantization.scales import ActivationScale
from tasks.quantization.smoothquant import smooth_graph

# Half of what int32 holds: the products are added to the bias.
INT32_MAX = 2**30


def make_int8_graph(
    model: onnx.ModelProto,
    scales: Mapping[str, ActivationScale],
    *,
    weight_format: qdq.WeightFormat = qdq.round_int8_weight,
) -> onnx.ModelProto:
    """Quantize an fp32 graph in place; layers whose tensor has no entry in `scales` stay fp32."""
    graph = Graph(model)
    before_layers = graph.list_linears()
    before = group_by_input(before_layers)
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
    layer_steps = {
        layer.index: steps[renamed[layer.index]] for layer in before_layers if layer.index not in fp32_layers
    }
    least_scales = _find_least_scales(rest, layer_steps)

    def store_weight(layer: Linear, weight: Floats, name: str) -> qdq.StoredWeight:
        stored = weight_format(layer, weight, name)
        return qdq.widen_scales(stored, least_scales[layer.index]) if layer.index in least_scales else stored

    qdq.quantize_weights(rest, store_weight, keep=fp32_layers)
    return rest.proto


def _find_least_scales(graph: Graph, steps: Mapping[int, float]) -> dict[int, Floats]:
    """Find the weight scales, float32 [N], below which a layer's bias does not fit in int32; `steps` by layer.

    Builders store the bias of a Conv or Gemm as int32 in steps of input scale times weight scale: beside a channel
    whose weights are all but 0 it would saturate (ONNX Runtime, `_adjust_weight_scale_for_int32_bias`).
    """
    least = {}
    for layer, node in graph.find_linear_nodes().items():
        bias = graph.find_constant(node.input[2]) if layer.index in steps and len(node.input) > 2 else None
        if bias is not None and bias.ndim <= 1:
            smallest = np.abs(bias).astype(np.float64) / INT32_MAX / steps[layer.index]
            channels = graph.constants[layer.weight].dims[layer.columns]
            least[layer.index] = np.broadcast_to(smallest, channels).astype(np.float32)
    return least
