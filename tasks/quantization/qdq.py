"""Q/DQ nodes: they fix the precision of each layer for a strongly typed engine builder.

Weights are stored quantized, as an initializer behind a DequantizeLinear; activations go through QuantizeLinear and
DequantizeLinear with one symmetric scale per tensor. Nothing else in the graph is touched. The operators are those of
ONNX (onnx.ai/onnx/operators, QuantizeLinear and DequantizeLinear).
"""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tasks.calibration.ranges import INT8_MAX
from tasks.graphs.layers import Floats, Graph, Linear

INT4_MAX, FP8_MAX = 7, 448
# Smaller weights are 0: their scale would be denormal, which runtimes flush to 0 and divide by.
LEAST_WEIGHT = 1e-30
# Weights along K per int4 scale. 128 is usual; smaller blocks fit narrow layers. TensorRT for RTX builds with all.
INT4_BLOCKS = (128, 64, 32, 16)
# Shares of a block's largest |w| that are tried as its clip.
INT4_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)


@dataclass(frozen=True)
class StoredWeight:
    """A quantized weight as the graph stores it: values, scale, and the attributes of its DequantizeLinear."""

    values: onnx.TensorProto
    scale: Floats
    attributes: Mapping[str, Any]
    zero_point: onnx.TensorProto | None = None


WeightFormat = Callable[[Linear, Floats, str], StoredWeight]
"""Quantizes a layer's float32 weight, given in its own shape, and names what it stores."""


def round_int8_weight(layer: Linear, weight: Floats, name: str) -> StoredWeight:
    """Round a weight to nearest in symmetric int8, one scale per output channel."""
    matrix = layer.to_matrix(weight)
    scale = compute_column_scales(matrix, INT8_MAX)
    rounded = np.clip(np.rint(matrix / scale), -INT8_MAX, INT8_MAX).astype(np.int8)
    return store_int8_weight(layer, rounded, scale, weight.shape, name)


def store_int8_weight(
    layer: Linear, rounded: NDArray[np.int8], scale: Floats, shape: tuple[int, ...], name: str
) -> StoredWeight:
    """Store a rounded weight, int8 [K, N] with scales [N], in the weight's own `shape`."""
    values = numpy_helper.from_array(layer.from_matrix(rounded, shape), name)
    zeros = numpy_helper.from_array(np.zeros(len(scale), dtype=np.int8), f"{name}/zero_point")
    return StoredWeight(values, scale, {"axis": layer.columns}, zeros)


def widen_scales(stored: StoredWeight, least: Floats) -> StoredWeight:
    """Round an int8 weight again where its scale, float32 [N], is below `least`."""
    scale = np.maximum(stored.scale, least)
    if np.array_equal(scale, stored.scale):
        return stored
    values = numpy_helper.to_array(stored.values)
    shape = [-1 if axis == stored.attributes["axis"] else 1 for axis in range(values.ndim)]
    shrunk = np.rint(values * (stored.scale.astype(np.float64) / scale).reshape(shape)).astype(np.int8)
    return replace(stored, values=numpy_helper.from_array(shrunk, stored.values.name), scale=scale)


def round_fp8_weight(_layer: Linear, weight: Floats, name: str) -> StoredWeight:
    """Round a weight to float8 E4M3, one scale per tensor: TensorRT's FP8 MatMul needs that of both operands."""
    scale = np.float32(max(float(np.abs(weight).max()), LEAST_WEIGHT) / FP8_MAX)
    values = make_fp8_tensor(weight / scale, name)
    return StoredWeight(values, np.asarray(scale, dtype=np.float32), {})


def round_int4_weight(layer: Linear, weight: Floats, name: str) -> StoredWeight:
    """Round a weight to symmetric int4 in blocks along K; to int8 where no block size divides K, and for Conv.

    Each block is clipped to its least squared error.
    """
    matrix = layer.to_matrix(weight)
    rows, columns = matrix.shape
    block = next((size for size in INT4_BLOCKS if rows % size == 0), 0)
    if not block or layer.op == "Conv":
        return round_int8_weight(layer, weight, name)
    blocks = matrix.reshape(rows // block, block, columns)
    scale = _search_block_scales(blocks)
    rounded = np.clip(np.rint(blocks / scale), -INT4_MAX - 1, INT4_MAX).astype(np.int8).reshape(rows, columns)
    packed = _pack_int4(layer.from_matrix(rounded, weight.shape))
    values = helper.make_tensor(name, TensorProto.INT4, weight.shape, packed, raw=True)
    by_block = scale.reshape(rows // block, columns)
    stored_scale = by_block if layer.columns else np.ascontiguousarray(by_block.T)
    return StoredWeight(values, stored_scale, {"axis": 1 - layer.columns, "block_size": block})


def quantize_weights(graph: Graph, weight_format: WeightFormat, *, keep: AbstractSet[int] = frozenset()) -> None:
    """Replace each layer's weight by its stored form and a DequantizeLinear, in place.

    The layers of `keep`, by their index, stay as they are.
    """
    for layer, node in graph.find_linear_nodes().items():
        if layer.index in keep:
            continue
        name = graph.make_name(f"{layer.name}/weight")
        stored = weight_format(layer, graph.read_weight(layer), name)
        inputs = [name, graph.make_name(f"{name}/scale")]
        graph.proto.graph.initializer.append(stored.values)
        graph.proto.graph.initializer.append(numpy_helper.from_array(stored.scale, inputs[1]))
        if stored.zero_point is not None:
            stored.zero_point.name = graph.make_name(stored.zero_point.name)
            graph.proto.graph.initializer.append(stored.zero_point)
            inputs.append(stored.zero_point.name)
        output = graph.make_name(f"{name}/dequantized")
        dequantize = helper.make_node("DequantizeLinear", inputs, [output], name=output, **stored.attributes)
        graph.proto.graph.node.insert(0, dequantize)
        node.input[1] = output
    graph.drop_unused_constants()


def quantize_activations(
    graph: Graph, scales: Mapping[str, float], zero_point: onnx.TensorProto, *, keep: AbstractSet[int] = frozenset()
) -> None:
    """Insert Q/DQ with per-tensor `scales` in front of the layers that read each tensor, in place.

    Other readers of the tensor and the layers of `keep`, by their index, read the float tensor. Except a residual
    branch around a Conv: it reads the quantized tensor, as the Conv does (one around a MatMul does not: it carries the
    outliers). The tensor is quantized to the type of `zero_point`, a scalar 0.
    """
    nodes = {layer: node for layer, node in graph.find_linear_nodes().items() if layer.index not in keep}
    zero_point.name = graph.make_name(zero_point.name)
    graph.proto.graph.initializer.append(zero_point)
    for tensor in dict.fromkeys(layer.input for layer in nodes):
        prefix = graph.make_name(f"{tensor}/quantized")
        scale_name = graph.make_name(f"{prefix}/scale")
        step = numpy_helper.from_array(np.asarray(scales[tensor], dtype=np.float32), scale_name)
        graph.proto.graph.initializer.append(step)
        parameters = [step.name, zero_point.name]
        quantize = helper.make_node("QuantizeLinear", [tensor, *parameters], [prefix], name=prefix)
        output = graph.make_name(f"{prefix}/dequantized")
        dequantize = helper.make_node("DequantizeLinear", [prefix, *parameters], [output], name=output)
        graph.insert_before_consumers(tensor, [quantize, dequantize])
        for add, position in graph.find_residual_adds(tensor):
            add.input[position] = output
        for layer, node in nodes.items():
            if layer.input == tensor:
                node.input[0] = output


def make_int8_zero() -> onnx.TensorProto:
    """Make the zero point of every int8 activation."""
    return numpy_helper.from_array(np.asarray(0, dtype=np.int8), "enginery/int8_zero")


def make_fp8_zero() -> onnx.TensorProto:
    """Make the zero point of every float8 (E4M3) activation."""
    return make_fp8_tensor(np.zeros((), dtype=np.float32), "enginery/fp8_zero")


def make_fp8_tensor(values: Floats, name: str) -> onnx.TensorProto:
    """Store float32 values as float8 E4M3FN, clipped to [-448, 448]."""
    stored = np.clip(values, -FP8_MAX, FP8_MAX).astype(ml_dtypes.float8_e4m3fn)
    return helper.make_tensor(name, TensorProto.FLOAT8E4M3FN, values.shape, stored.tobytes(), raw=True)


def compute_column_scales(matrix: Floats, steps: int) -> Floats:
    """Compute a scale for each column of [K, N], float32 [N]: `steps` of it reach the largest |w|; never 0."""
    scale: Floats = np.maximum(np.abs(matrix).max(axis=0), LEAST_WEIGHT).astype(np.float32) / np.float32(steps)
    return scale


def _search_block_scales(blocks: Floats) -> Floats:
    """Search the scales [blocks, 1, N] of least squared error for weights [blocks, block, N]."""
    full = np.maximum(np.abs(blocks).max(axis=1, keepdims=True), LEAST_WEIGHT) / np.float32(INT4_MAX)
    best, least = full, np.full(full.shape, np.inf)
    for clip in INT4_CLIPS:
        scale = (full * np.float32(clip)).astype(np.float32)
        rounded = np.clip(np.rint(blocks / scale), -INT4_MAX - 1, INT4_MAX) * scale
        error = np.square(rounded - blocks).sum(axis=1, keepdims=True)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    scale32: Floats = best.astype(np.float32)
    return scale32


def _pack_int4(values: NDArray[np.int8]) -> bytes:
    """Pack two values per byte, the first in the low half (ONNX TensorProto, raw_data of INT4)."""
    flat = np.append(values.ravel(), np.zeros(values.size % 2, dtype=np.int8)).astype(np.uint8) & 0xF
    return (flat[0::2] | (flat[1::2] << 4)).tobytes()
