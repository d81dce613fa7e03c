"""Graphs as files: what an artifact records of them."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from registry.records import Precision
from tasks.graphs.files import GRAPH_FILE, make_artifact, save_graph


def make_relu(axes: list[str | int | None]) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_a_dynamic_axis_without_a_name_is_called_after_its_tensor(tmp_path: Path) -> None:
    save_graph(make_relu(["batch", None, 4]), tmp_path)
    artifact = make_artifact(tmp_path, Precision.FP32)
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in (*artifact.inputs, *artifact.outputs)] == [
        ("x", "float32", ("batch", "x_1", 4)),
        ("y", "float32", ("batch", "y_1", 4)),
    ]
    assert [file.path for file in artifact.files] == [GRAPH_FILE]
    assert artifact.opset == 18
