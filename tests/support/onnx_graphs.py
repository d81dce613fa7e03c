"""Tiny ONNX graphs x [batch, sequence, 64] → y [batch, sequence, 64] = relu(x·W + b), in each precision."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from registry.digest import digest_of, record_tree
from registry.records import OnnxArtifact, Precision, Tensor

WIDTH = 64
BLOCK = 32
_OPSET = 21
_IO_DTYPES = {Precision.FP16: TensorProto.FLOAT16, Precision.BF16: TensorProto.BFLOAT16}


def save_graph(directory: Path, precision: Precision, *, external: str | None = None) -> OnnxArtifact:
    """Write a graph of the precision; its weights go to the file `external`, if given."""
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(
        make_model(precision),
        str(directory / "model.onnx"),
        save_as_external_data=external is not None,
        location=external,
        size_threshold=0,
    )
    return describe(directory, precision)


def describe(directory: Path, precision: Precision) -> OnnxArtifact:
    """Record a folder that holds model.onnx as an artifact."""
    files = record_tree(directory)
    dtype = str(helper.tensor_dtype_to_np_dtype(_IO_DTYPES.get(precision, TensorProto.FLOAT)))
    x, y = (Tensor(name, dtype, ("batch", "sequence", WIDTH)) for name in "xy")
    return OnnxArtifact("model.onnx", files, digest_of(files), precision, _OPSET, (x,), (y,), directory=directory)


def make_model(precision: Precision) -> onnx.ModelProto:
    dtype = _IO_DTYPES.get(precision, TensorProto.FLOAT)
    weight = np.random.default_rng(0).uniform(-1, 1, (WIDTH, WIDTH)).astype(np.float32)
    nodes, constants = _make_product(precision, weight, dtype)
    bias = numpy_helper.from_array(np.full(WIDTH, 0.5, helper.tensor_dtype_to_np_dtype(dtype)), "b")
    nodes += [
        helper.make_node("Add", ["product", "b"], ["sum"], name="add"),
        helper.make_node("Relu", ["sum"], ["y"], name="relu"),
    ]
    x, y = (helper.make_tensor_value_info(name, dtype, ["batch", "sequence", WIDTH]) for name in "xy")
    graph = helper.make_graph(nodes, "tiny", [x], [y], [*constants, bias])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)


def _make_product(
    precision: Precision, weight: NDArray[np.float32], dtype: int
) -> tuple[list[NodeProto], list[TensorProto]]:
    """Make the nodes and constants that compute `product` = x·W."""
    if precision is Precision.INT8_DYNAMIC:
        return _make_dynamic_product(weight)
    if precision in (Precision.FP32, Precision.FP16, Precision.BF16):
        constant = numpy_helper.from_array(weight.astype(helper.tensor_dtype_to_np_dtype(dtype)), "w")
        return [helper.make_node("MatMul", ["x", "w"], ["product"], name="matmul")], [constant]
    stored, scales, axis = _quantize(precision, weight)
    nodes = [helper.make_node("DequantizeLinear", ["wq", "ws"], ["w"], name="dq_w")]
    nodes[0].attribute.extend(helper.make_attribute(name, value) for name, value in axis.items())
    constants = [stored, numpy_helper.from_array(scales, "ws")]
    if stored.data_type == TensorProto.INT8:  # as the quantizers write it: see tasks/graphs/session.py
        nodes[0].input.append("wz")
        constants.append(numpy_helper.from_array(np.zeros(WIDTH, dtype=np.int8), "wz"))
    left = "x"
    if precision in (Precision.INT8, Precision.FP8):
        left = "xd"
        zero = helper.make_tensor("xz", stored.data_type, [], [0])
        constants += [numpy_helper.from_array(np.asarray(0.05, np.float32), "xs"), zero]
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], name="q_x"),
            helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], name="dq_x"),
        ]
    return [*nodes, helper.make_node("MatMul", [left, "w"], ["product"], name="matmul")], constants


def _quantize(
    precision: Precision, weight: NDArray[np.float32]
) -> tuple[TensorProto, NDArray[np.float32], dict[str, int]]:
    """Return the stored weight, its scales, and the attributes of the DequantizeLinear that reads both."""
    if precision is Precision.INT4_WEIGHT_ONLY:
        blocks = np.abs(weight).reshape(-1, BLOCK, WIDTH).max(axis=1) / 7
        levels = np.round(weight / np.repeat(blocks, BLOCK, axis=0)).astype(np.int8)
        stored = helper.make_tensor("wq", TensorProto.INT4, weight.shape, levels.ravel().tolist())
        return stored, blocks.astype(np.float32), {"axis": 0, "block_size": BLOCK}
    if precision is Precision.FP8:
        stored = helper.make_tensor("wq", TensorProto.FLOAT8E4M3FN, weight.shape, (weight * 400).ravel().tolist())
        return stored, np.asarray(1 / 400, dtype=np.float32), {}
    scales = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
    return numpy_helper.from_array(np.round(weight / scales).astype(np.int8), "wq"), scales, {"axis": 1}


def _make_dynamic_product(weight: NDArray[np.float32]) -> tuple[list[NodeProto], list[TensorProto]]:
    # 7 bits: with 8, x86 without VNNI saturates.
    scale = np.asarray(np.abs(weight).max() / 63, np.float32)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"], name="quantize_x"),
        helper.make_node("MatMulInteger", ["xq", "wq", "xz"], ["total"], name="matmul"),
        helper.make_node("Cast", ["total"], ["float"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Mul", ["xs", "ws"], ["scale"], name="scale"),
        helper.make_node("Mul", ["float", "scale"], ["product"], name="rescale"),
    ]
    stored = numpy_helper.from_array(np.round(weight / scale).astype(np.int8), "wq")
    return nodes, [stored, numpy_helper.from_array(scale, "ws")]
