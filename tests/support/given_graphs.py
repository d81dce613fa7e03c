"""Tiny text graphs as people export them: ids and mask to logits, with what may differ between exporters."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH, CLASSES = 32, 16, 2
Axes = Sequence[str | int | None]


def make_classifier(
    *,
    names: tuple[str, str] = ("input_ids", "attention_mask"),
    ids: int = TensorProto.INT64,
    axes: Axes = ("batch", "seq"),
    answer: int = TensorProto.FLOAT,
    answer_axes: Axes | None = ("batch", CLASSES),
    opset: int = 17,
) -> onnx.ModelProto:
    """A classifier that embeds tokens, averages those that are no padding, and multiplies the mean."""
    draw = np.random.default_rng(0)
    embedding, weight = (
        numpy_helper.from_array(draw.normal(size=shape).astype(np.float32), name)
        for shape, name in (((VOCABULARY, WIDTH), "embedding"), ((WIDTH, CLASSES), "weight"))
    )
    axis = numpy_helper.from_array(np.array([2], np.int64), "axis")
    tokens = numpy_helper.from_array(np.array([1], np.int64), "tokens")
    nodes = [
        helper.make_node("Gather", ["embedding", names[0]], ["vectors"], name="gather"),
        helper.make_node("Cast", [names[1]], ["mask_float"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Unsqueeze", ["mask_float", "axis"], ["weights"], name="unsqueeze"),
        helper.make_node("Mul", ["vectors", "weights"], ["masked"], name="mul"),
        helper.make_node("ReduceSum", ["masked", "tokens"], ["sum"], keepdims=0, name="sum"),
        helper.make_node("ReduceSum", ["weights", "tokens"], ["count"], keepdims=0, name="count"),
        helper.make_node("Div", ["sum", "count"], ["mean"], name="div"),
        helper.make_node("MatMul", ["mean", "weight"], ["product"], name="matmul"),
        helper.make_node("Cast", ["product"], ["logits"], to=answer, name="answer"),
    ]
    inputs = [helper.make_tensor_value_info(name, ids, axes) for name in names]
    output = helper.make_tensor_value_info("logits", answer, answer_axes)
    graph = helper.make_graph(nodes, "classifier", inputs, [output], [embedding, weight, axis, tokens])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def save_classifier(file: Path, model: onnx.ModelProto | None = None, *, external: str | None = None) -> Path:
    """Write a graph; its embedding goes to the file `external`, if given."""
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(
        make_classifier() if model is None else model,
        str(file),
        save_as_external_data=external is not None,
        location=external,
        size_threshold=1024,
    )
    return file


def make_image_classifier(
    *,
    name: str = "images",
    kind: int = TensorProto.FLOAT,
    axes: Axes = ("n", 3, "h", "w"),
    classes: int = CLASSES,
    batch: str | int = "n",
) -> onnx.ModelProto:
    """A classifier of images: a convolution, the mean over height and width, and a product."""
    draw = np.random.default_rng(0)
    kernel, weight = (
        numpy_helper.from_array(draw.normal(size=shape).astype(np.float32), each)
        for shape, each in (((WIDTH, 3, 3, 3), "kernel"), ((WIDTH, classes), "weight"))
    )
    nodes = [
        helper.make_node("Cast", [name], ["pixels"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Conv", ["pixels", "kernel"], ["features"], name="conv"),
        helper.make_node("Relu", ["features"], ["active"], name="relu"),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["mean"], name="flatten"),
        helper.make_node("MatMul", ["mean", "weight"], ["logits"], name="matmul"),
    ]
    inputs = [helper.make_tensor_value_info(name, kind, axes)]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, (batch, classes))
    graph = helper.make_graph(nodes, "classifier", inputs, [output], [kernel, weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def make_detector(*, classes: int = CLASSES, edge: int = 16, patch: int = 4) -> onnx.ModelProto:
    """A network with the one output of Ultralytics': a box of 4 numbers and a score a class, at each patch."""
    draw, values = np.random.default_rng(0), 4 + classes
    weight = numpy_helper.from_array(draw.normal(size=(values, 3, patch, patch)).astype(np.float32), "weight")
    shape = numpy_helper.from_array(np.array([0, values, -1], np.int64), "shape")
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["features"], strides=[patch, patch], name="conv"),
        helper.make_node("Sigmoid", ["features"], ["scores"], name="sigmoid"),
        helper.make_node("Reshape", ["scores", "shape"], ["output0"], name="reshape"),
    ]
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ("batch", 3, edge, edge))]
    places = (edge // patch) ** 2
    output = helper.make_tensor_value_info("output0", TensorProto.FLOAT, ("batch", values, places))
    graph = helper.make_graph(nodes, "detector", inputs, [output], [weight, shape])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
