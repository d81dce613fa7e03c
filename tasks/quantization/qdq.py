"""Q/DQ nodes: how a strongly typed engine builder is told the precision of a layer.

Weights are stored quantized, as an initializer behind a DequantizeLinear; activations go through
QuantizeLinear and DequantizeLinear with one symmetric scale a tensor. Nothing else in the graph is touched.
"""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

from tasks.calibration.ranges import INT8_MAX
from tasks.graphs.layers import Floats, Graph, Linear

INT4_MAX, FP8_MAX = 7, 448
# 128 is the usual size; smaller ones fit narrow layers. TensorRT-RTX builds with each of them.
INT4_BLOCKS = (128, 64, 32, 16)
INT4_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
# Lowest opsets that have the type: float8 in QuantizeLinear, int4 and blocks in DequantizeLinear.
FP8_OPSET, INT4_OPSET = 19, 21


@dataclass(frozen=True)
class StoredWeight:
    """A weight as it lies in the file, its scale, and the DequantizeLinear attributes that bring it back."""

    values: onnx.TensorProto
    scale: Floats
    attributes: Mapping[str, Any]
    zero_point: onnx.TensorProto | None = None


WeightFormat = Callable[[Linear, Floats, str], StoredWeight]


def int8_weight(each: Linear, weight: Floats, name: str) -> StoredWeight:
    """Symmetric int8, one scale for each output channel, rounded to nearest."""
    matrix = each.to_matrix(weight)
    scale = column_scale(matrix, INT8_MAX)
    rounded = np.clip(np.rint(matrix / scale), -INT8_MAX, INT8_MAX).astype(np.int8)
    return store_int8(each, rounded, scale, weight.shape, name)


def store_int8(
    each: Linear, rounded: NDArray[np.int8], scale: Floats, shape: tuple[int, ...], name: str
) -> StoredWeight:
    """Store what was rounded to int8 [K, N] with scales [N], in the weight's own shape."""
    values = numpy_helper.from_array(each.from_matrix(rounded, shape), name)
    zeros = numpy_helper.from_array(np.zeros(len(scale), dtype=np.int8), f"{name}/zero_point")
    return StoredWeight(values, scale, {"axis": each.columns}, zeros)


def fp8_weight(_each: Linear, weight: Floats, name: str) -> StoredWeight:
    """E4M3, one scale for the tensor: TensorRT's FP8 MatMul wants per-tensor scales of both operands."""
    scale = np.float32(max(float(np.abs(weight).max()), 1e-12) / FP8_MAX)
    values = fp8_tensor(weight / scale, name)
    return StoredWeight(values, np.asarray(scale, dtype=np.float32), {})


def int4_weight(each: Linear, weight: Floats, name: str) -> StoredWeight:
    """Symmetric int4 in blocks along K, each clipped to its least squared error; int8 where no block fits."""
    matrix = each.to_matrix(weight)
    rows, columns = matrix.shape
    block = next((size for size in INT4_BLOCKS if rows % size == 0), 0)
    if not block or each.op == "Conv":
        return int8_weight(each, weight, name)
    blocks = matrix.reshape(rows // block, block, columns)
    scale = _best_block_scale(blocks)
    rounded = np.clip(np.rint(blocks / scale), -INT4_MAX - 1, INT4_MAX).astype(np.int8).reshape(rows, columns)
    packed = _pack_int4(each.from_matrix(rounded, weight.shape))
    values = helper.make_tensor(name, TensorProto.INT4, weight.shape, packed, raw=True)
    flat = scale.reshape(rows // block, columns)
    stored = flat if each.columns else np.ascontiguousarray(flat.T)
    return StoredWeight(values, stored, {"axis": 1 - each.columns, "block_size": block})


def quantize_weights(graph: Graph, weight_format: WeightFormat, *, keep: AbstractSet[int] = frozenset()) -> None:
    """Replace each layer's weight by its stored form and a DequantizeLinear, in place; not those of `keep`."""
    for each, node in graph.linear_nodes().items():
        if each.index in keep:
            continue
        weight = graph.weight(each)
        name = f"{each.name}/weight"
        stored = weight_format(each, weight, name)
        inputs = [name, f"{name}/scale"]
        graph.proto.graph.initializer.append(stored.values)
        graph.proto.graph.initializer.append(numpy_helper.from_array(stored.scale, inputs[1]))
        if stored.zero_point is not None:
            graph.proto.graph.initializer.append(stored.zero_point)
            inputs.append(stored.zero_point.name)
        output = f"{name}/dequantized"
        dequantize = helper.make_node("DequantizeLinear", inputs, [output], name=output, **stored.attributes)
        graph.proto.graph.node.insert(0, dequantize)
        node.input[1] = output
    graph.drop_unused_constants()


def quantize_activations(
    graph: Graph, scales: Mapping[str, float], zero_point: onnx.TensorProto, *, keep: AbstractSet[int] = frozenset()
) -> None:
    """Put Q/DQ with per-tensor `scales` in front of the layers that read each tensor, in place.

    Other readers of the tensor and the layers of `keep`, by their index, get the float one; but a residual branch
    around a Conv gets the quantized one, as the Conv does (one around a MatMul does not: there live the outliers). The
    type of `zero_point`, a scalar 0, is the type that the tensor is quantized to.
    """
    nodes = {each: node for each, node in graph.linear_nodes().items() if each.index not in keep}
    graph.proto.graph.initializer.append(zero_point)
    for tensor in dict.fromkeys(each.input for each in nodes):
        scale = scales[tensor]
        prefix = f"{tensor}/quantized"
        step = numpy_helper.from_array(np.asarray(scale, dtype=np.float32), f"{prefix}/scale")
        graph.proto.graph.initializer.append(step)
        parameters = [step.name, zero_point.name]
        quantize = helper.make_node("QuantizeLinear", [tensor, *parameters], [prefix], name=prefix)
        output = f"{prefix}/dequantized"
        dequantize = helper.make_node("DequantizeLinear", [prefix, *parameters], [output], name=output)
        graph.insert_before_consumers(tensor, [quantize, dequantize])
        for add, at in graph.residual_adds(tensor):
            add.input[at] = output
        for each, node in nodes.items():
            if each.input == tensor:
                node.input[0] = output


def int8_zero() -> onnx.TensorProto:
    """Make the zero point of every int8 activation."""
    return numpy_helper.from_array(np.asarray(0, dtype=np.int8), "enginery/int8_zero")


def fp8_zero() -> onnx.TensorProto:
    """Make the zero point of every float8 (E4M3) activation."""
    return fp8_tensor(np.zeros((), dtype=np.float32), "enginery/fp8_zero")


def fp8_tensor(values: Floats, name: str) -> onnx.TensorProto:
    """Values in [-448, 448] as float8 E4M3FN."""
    stored = np.clip(values, -FP8_MAX, FP8_MAX).astype(ml_dtypes.float8_e4m3fn)
    return helper.make_tensor(name, TensorProto.FLOAT8E4M3FN, values.shape, stored.tobytes(), raw=True)


def at_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Convert the graph to `opset` or later, with the IR version that goes with it."""
    current = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if current >= opset:
        return model
    converted: onnx.ModelProto = version_converter.convert_version(model, opset)
    converted.ir_version = max(model.ir_version, 9 if opset < INT4_OPSET else 10)
    return converted


def column_scale(matrix: Floats, steps: int) -> Floats:
    """One scale for each column of [K, N], so that `steps` of it reach the largest |w|; never 0."""
    scale: Floats = np.maximum(np.abs(matrix).max(axis=0), 1e-12).astype(np.float32) / np.float32(steps)
    return scale


def _best_block_scale(blocks: Floats) -> Floats:
    """Scales [blocks, 1, N] of least squared error for weights [blocks, block, N]."""
    full = np.maximum(np.abs(blocks).max(axis=1, keepdims=True), 1e-12) / np.float32(INT4_MAX)
    best, least = full, np.full(full.shape, np.inf)
    for clip in INT4_CLIPS:
        scale = (full * np.float32(clip)).astype(np.float32)
        rounded = np.clip(np.rint(blocks / scale), -INT4_MAX - 1, INT4_MAX) * scale
        error = np.square(rounded - blocks).sum(axis=1, keepdims=True)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    scale32: Floats = best.astype(np.float32)
    return scale32


def _pack_int4(values: NDArray[np.int8]) -> bytes:
    """Two values a byte, the first in the low half (ONNX TensorProto, raw_data of INT4)."""
    flat = np.append(values.ravel(), np.zeros(values.size % 2, dtype=np.int8)).astype(np.uint8) & 0xF
    return (flat[0::2] | (flat[1::2] << 4)).tobytes()
