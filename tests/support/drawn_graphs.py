"""Small ONNX graphs that Hypothesis draws, with rows to calibrate them on and rows to judge them by."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.support.drawn_steps import STEPS
from tests.support.sketch import Shape, Sketch

Feeds = list[dict[str, NDArray[Any]]]
KINDS: dict[str, Shape] = {
    "tokens": ("b", "t", 16),
    "vector": ("b", 16),
    "signal": ("b", 4, 10),
    "image": ("b", 4, 6, 6),
    "ids": ("b", "t"),
}
WORDS = 9


@dataclass(frozen=True)
class DrawnGraph:
    """A graph with rows to calibrate it on, and rows to judge it by."""

    model: onnx.ModelProto
    rows: Feeds
    unseen: Feeds

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        """Show the graph as text where Hypothesis reports it."""
        printer.text("\n".join(line[:200] for line in onnx.printer.to_text(self.model).splitlines()))


def _add_outputs(sketch: Sketch, first: str) -> None:
    """Make the newest tensor an output, with some that others read, and some of whole numbers and truth values."""
    made = [name for name in sketch.shapes if name != first and len(sketch.shapes[name]) > 1] or [first]
    names = dict.fromkeys([made[-1], *(name for name in made if sketch.pick(False, False, False, True))])
    if first in names:
        names = {sketch.add("Neg", [first], sketch.shapes[first]): None}
    for name in names:
        sketch.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sketch.shapes[name]))
    last, shape = made[-1], sketch.shapes[made[-1]]
    other = sketch.pick("none", "none", "bool", "int64", "int32")
    if other == "bool":
        sketch.outputs.append(
            helper.make_tensor_value_info(
                sketch.add("Greater", [last, sketch.constant(np.float32(0.1))]), TensorProto.BOOL, shape
            )
        )
    elif other == "int64":
        largest = sketch.add("ArgMax", [last], axis=-1, keepdims=1)
        sketch.outputs.append(helper.make_tensor_value_info(largest, TensorProto.INT64, (*shape[:-1], 1)))
    elif other == "int32":
        size = sketch.add("Cast", [sketch.add("Shape", [last])], to=TensorProto.INT32)
        sketch.outputs.append(helper.make_tensor_value_info(size, TensorProto.INT32, (len(shape),)))


@st.composite
def drawn_graphs(draw: st.DrawFn) -> DrawnGraph:
    """Draw a graph of up to eight steps, with 24 rows to calibrate it on."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    sketch = Sketch(draw, draw(st.integers(11, 21)), np.random.default_rng(draw(st.integers(0, 2**16))))
    shape: Shape = KINDS[kind]
    dtype = TensorProto.INT64 if kind == "ids" else TensorProto.FLOAT
    first = "x"
    if kind == "ids":
        first = sketch.add("Gather", [sketch.weight(WORDS, 16), "x"], (*shape, 16))
    else:
        sketch.shapes["x"] = shape
    for number in range(draw(st.integers(2, 8))):
        steps = STEPS[:3] if number == 0 else STEPS
        fitting = [each for each in steps if any(each[1](shape) for shape in sketch.shapes.values())]
        fits, step = sketch.pick(*[each[1:] for each in fitting for _ in range(each[0])])
        if (x := sketch.find(fits)) is not None:
            step(sketch, x, sketch.shapes[x])
    _add_outputs(sketch, first)
    inputs = [helper.make_tensor_value_info("x", dtype, shape)]
    stored = [numpy_helper.from_array(values, name) for name, values in sketch.constants.items()]
    if draw(st.sampled_from((False, False, True))):
        inputs += [helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in stored]
    naming = draw(st.sampled_from(("none", "same", "own")))
    for number, node in enumerate(sketch.nodes):
        node.name = {"none": "", "same": "node", "own": f"{node.op_type}_{number}"}[naming]
    body = helper.make_graph(sketch.nodes, "drawn", inputs, sketch.outputs, stored)
    opsets = [helper.make_opsetid("", sketch.opset)]
    model = helper.make_model(
        body, opset_imports=opsets, ir_version=7 if sketch.opset < 15 else 8 if sketch.opset < 19 else 10
    )
    if draw(st.booleans()):
        model = onnx.shape_inference.infer_shapes(model)
    rows = [_draw_row(sketch.values, kind, 1 + at % 3) for at in range(24)]
    return DrawnGraph(model, rows, [_draw_rows(sketch.values, kind, rows) for rows in (1, 3, 5)])


def _draw_row(values: np.random.Generator, kind: str, tokens: int) -> dict[str, NDArray[Any]]:
    return _draw_rows(values, kind, 1, 2 * tokens)


def _draw_rows(values: np.random.Generator, kind: str, rows: int, tokens: int = 5) -> dict[str, NDArray[Any]]:
    shape = [{"b": rows, "t": tokens}.get(str(size)) or int(size) for size in KINDS[kind]]
    if kind == "ids":
        return {"x": values.integers(0, WORDS, shape)}
    return {"x": values.standard_normal(shape).astype(np.float32)}
