"""The steps that a drawn graph takes: layers, and what stands around them as exporters and people write it.

A tensor is known by its shape: sizes, or "b" (rows), "t" (tokens of a row) and "n" (tokens of all rows in one axis).
"""

from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper

from tests.support.sketch import Shape, Sketch


def _has_channels(shape: Shape) -> bool:
    return len(shape) > 1 and isinstance(shape[-1], int)


def _is_map(shape: Shape) -> bool:
    return len(shape) in (3, 4) and all(isinstance(size, int) for size in shape[1:])


def _add_matmul(sketch: Sketch, x: str, shape: Shape) -> None:
    width = sketch.pick(5, 16, 32)
    sketch.add("MatMul", [x, sketch.weight(int(shape[-1]), width)], (*shape[:-1], width))


def _add_gemm(sketch: Sketch, x: str, shape: Shape) -> None:
    width, turned = sketch.pick(5, 16, 32), sketch.pick(0, 1)
    weight = sketch.weight(*((width, int(shape[-1])) if turned else (int(shape[-1]), width)))
    bias = sketch.pick([], [width], [1, width], [1])
    inputs = [x, weight, *([sketch.constant(sketch.values.standard_normal(bias).astype(np.float32))] if bias else [])]
    scaled = {key: sketch.pick(0.5, 2.0, 0.0) for key in ("alpha", "beta") if sketch.pick(False, False, True)}
    attributes = {"transB": turned, **scaled}
    if sketch.pick(False, False, False, True):
        inputs[0] = sketch.add("Transpose", [x], perm=[1, 0])
        attributes["transA"] = 1
    sketch.add("Gemm", inputs, (shape[0], width), **attributes)


def _add_conv(sketch: Sketch, x: str, shape: Shape) -> None:
    channels, spatial = int(shape[1]), len(shape) - 2
    groups = sketch.pick(1, 1, channels)
    width = channels * sketch.pick(1, 2)
    size = sketch.pick(1, 3)
    weight = sketch.weight(width, channels // groups, *[size] * spatial)
    bias = [sketch.vector(width)] if sketch.pick(False, True) else []
    padded = {"auto_pad": "SAME_UPPER"} if sketch.pick(False, True) else {"pads": [size // 2] * 2 * spatial}
    sketch.add("Conv", [x, weight, *bias], ("b", width, *shape[2:]), group=groups, **padded)


def _add_layer_normalization(sketch: Sketch, x: str, shape: Shape) -> None:
    width = int(shape[-1])
    if sketch.opset < 17:
        _add_rms(sketch, x, shape)
        return
    inputs = [x, sketch.vector(width, 1.0), *([sketch.vector(width)] if sketch.pick(True, True, False) else [])]
    outputs = sketch.pick(1, 1, 2, 3)
    sketch.add("LayerNormalization", inputs, shape, outputs, axis=sketch.pick(-1, len(shape) - 1))
    if outputs > 1:
        sketch.shapes[sketch.nodes[-1].output[outputs - 1]] = (*shape[:-1], 1)


def _add_rms(sketch: Sketch, x: str, shape: Shape) -> None:
    square = sketch.add("Pow", [x, sketch.constant(np.float32(2))])
    if sketch.opset < 18:
        mean = sketch.add("ReduceMean", [square], axes=[-1], keepdims=1)
    else:
        mean = sketch.add("ReduceMean", [square, sketch.constant(np.array([-1]))], keepdims=1)
    root = sketch.add("Sqrt", [sketch.add("Add", [mean, sketch.constant(np.float32(1e-5))])])
    normed = sketch.add("Div", [x, root], sketch.pick(None, shape))
    scaled = sketch.add("Mul", [normed, sketch.vector(int(shape[-1]), 1.0)], shape)
    if sketch.pick(False, True):
        sketch.add("Add", [sketch.vector(int(shape[-1])), scaled], shape)


def _add_batch_normalization(sketch: Sketch, x: str, shape: Shape) -> None:
    width = int(shape[1])
    variance = sketch.constant((sketch.values.random(width) + 0.5).astype(np.float32))
    parameters = [sketch.vector(width, 1.0), sketch.vector(width), sketch.vector(width), variance]
    sketch.add("BatchNormalization", [x, *parameters], shape)


def _add_activation(sketch: Sketch, x: str, shape: Shape) -> None:
    kinds = [
        "Relu",
        "Sigmoid",
        "Tanh",
        "Softmax",
        "Erf",
        "LeakyRelu",
        "Clip",
        *(["Gelu"] if sketch.opset >= 20 else []),
    ]
    kind = sketch.pick(*kinds)
    inputs = [x, "", sketch.constant(np.float32(3))] if kind == "Clip" else [x]
    sketch.add(kind, inputs, shape, **({"axis": -1} if kind == "Softmax" else {}))


def _add_turn(sketch: Sketch, x: str, shape: Shape) -> None:
    axes = [1, 0, *range(2, len(shape))]
    sketch.add("Transpose", [x], tuple(shape[axis] for axis in axes), perm=axes)


def _add_flat_tokens(sketch: Sketch, x: str, shape: Shape) -> None:
    flat = sketch.add("Reshape", [x, sketch.constant(np.array([-1, shape[-1]]))], ("n", shape[-1]))
    if sketch.pick(False, True):
        linear = sketch.add("MatMul", [flat, sketch.weight(int(shape[-1]), 12)], ("n", 12))
        target = sketch.add(
            "Concat",
            [
                sketch.add("Slice", [sketch.add("Shape", [x]), *(sketch.constant(np.array([end])) for end in (0, 2))]),
                sketch.constant(np.array([12])),
            ],
            axis=0,
        )
        sketch.add("Reshape", [linear, target], (*shape[:-1], 12))


def _add_heads(sketch: Sketch, x: str, shape: Shape) -> None:
    half = int(shape[-1]) // 2
    split = sketch.add("Reshape", [x, sketch.constant(np.array([0, -1, 2, half]))], (*shape[:-1], 2, half))
    turned = sketch.add("Transpose", [split], perm=[0, 2, 1, 3])
    product = sketch.add("MatMul", [turned, sketch.add("Transpose", [split], perm=[0, 2, 3, 1])])
    mixed = sketch.add("MatMul", [sketch.add("Softmax", [product], axis=-1), turned])
    joined = sketch.add("Transpose", [mixed], perm=[0, 2, 1, 3])
    sketch.add("Reshape", [joined, sketch.constant(np.array([0, 0, 2 * half]))], (*shape[:-1], 2 * half))


def _add_flatten(sketch: Sketch, x: str, shape: Shape) -> None:
    sketch.add("Flatten", [x], ("b", int(np.prod([int(size) for size in shape[1:]]))), axis=1)


def _add_first_token(sketch: Sketch, x: str, shape: Shape) -> None:
    sketch.add("Gather", [x, sketch.constant(np.array(0))], (shape[0], shape[2]), axis=1)


def _add_slice(sketch: Sketch, x: str, shape: Shape) -> None:
    half = max(1, int(shape[-1]) // 2)
    ends = (sketch.constant(np.array([value])) for value in (0, half, -1))
    sketch.add("Slice", [x, *ends], (*shape[:-1], half))


def _add_concat(sketch: Sketch, x: str, shape: Shape) -> None:
    other = sketch.find(lambda other: _has_channels(other) and other[:-1] == shape[:-1]) or x
    sketch.add("Concat", [x, other], (*shape[:-1], int(shape[-1]) + int(sketch.shapes[other][-1])), axis=-1)


def _add_residual(sketch: Sketch, x: str, shape: Shape) -> None:
    other = sketch.find(lambda other: other == shape) or x
    sketch.add(sketch.pick("Add", "Add", "Mul", "Sub"), [x, other], shape)


def _add_scaled(sketch: Sketch, x: str, shape: Shape) -> None:
    wide = [*[1] * (len(shape) - 1), int(shape[-1])]
    factor = sketch.pick(
        lambda: sketch.constant(np.float32(sketch.pick(0.1, 3.0, 1e-6))),
        lambda: sketch.vector(int(shape[-1]), 1.0),
        lambda: sketch.constant(sketch.values.standard_normal(wide).astype(np.float32)),
    )()
    inputs = [x, factor] if sketch.pick(False, True) else [factor, x]
    sketch.add(sketch.pick("Mul", "Mul", "Add"), inputs, shape)


def _add_identity(sketch: Sketch, x: str, shape: Shape) -> None:
    kind = sketch.pick("Identity", "Dropout")
    sketch.add(kind, [x], shape)


def _add_dead(sketch: Sketch, x: str, shape: Shape) -> None:
    far = sketch.add("Add", [x, sketch.constant(np.float32(-1e4))])
    sketch.add("Relu", [far], shape)


def _add_if(sketch: Sketch, x: str, shape: Shape) -> None:
    width = int(shape[-1])
    weight, bias = sketch.weight(width, width), sketch.vector(width)
    # By the size, which is exact: a sum near 0 would choose the other branch in int8.
    large = sketch.add("Greater", [sketch.add("Size", [x]), sketch.constant(np.array(sketch.pick(0, 100)))])
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT, shape)
    layer = [helper.make_node("MatMul", [x, weight], ["inner"]), helper.make_node("Add", ["inner", bias], ["result"])]
    branches = [
        helper.make_graph(body, "branch", [], [result])
        for body in (layer, [helper.make_node("Add", [x, bias], ["result"])])
    ]
    sketch.add("If", [large], shape, then_branch=branches[0], else_branch=branches[1])


def _add_loop(sketch: Sketch, x: str, shape: Shape) -> None:
    width = int(shape[-1])
    weight = sketch.weight(width, width)
    body = helper.make_graph(
        [helper.make_node("Identity", ["again"], ["go"]), helper.make_node("MatMul", ["state", weight], ["inner"]),
         helper.make_node("Tanh", ["inner"], ["next"])],
        "body",
        [helper.make_tensor_value_info("turn", TensorProto.INT64, []),
         helper.make_tensor_value_info("again", TensorProto.BOOL, []),
         helper.make_tensor_value_info("state", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("next", TensorProto.FLOAT, None)],
    )  # fmt: skip
    sketch.add("Loop", [sketch.constant(np.array(2)), sketch.constant(np.array(True)), x], shape, body=body)


def _add_scan(sketch: Sketch, x: str, shape: Shape) -> None:
    width = int(shape[-1])
    weight = sketch.weight(width, width)
    body = helper.make_graph(
        [helper.make_node("MatMul", ["token", weight], ["inner"]), helper.make_node("Tanh", ["inner"], ["made"])],
        "body",
        [helper.make_tensor_value_info("token", TensorProto.FLOAT, ("b", width))],
        [helper.make_tensor_value_info("made", TensorProto.FLOAT, ("b", width))],
    )
    sketch.add("Scan", [x], shape, body=body, num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1])


STEPS: tuple[tuple[int, Callable[[Shape], bool], Callable[[Sketch, str, Shape], None]], ...] = (
    (6, _has_channels, _add_matmul),
    (3, lambda shape: _has_channels(shape) and len(shape) == 2, _add_gemm),
    (5, lambda shape: _is_map(shape) and shape[0] == "b", _add_conv),
    (2, _has_channels, _add_layer_normalization),
    (1, _has_channels, _add_rms),
    (1, lambda shape: _is_map(shape) and shape[0] == "b", _add_batch_normalization),
    (3, lambda shape: len(shape) > 1, _add_activation),
    (1, lambda shape: len(shape) == 3 and _has_channels(shape), _add_turn),
    (1, lambda shape: len(shape) == 3 and _has_channels(shape), _add_flat_tokens),
    (1, lambda shape: shape[:2] == ("b", "t") and len(shape) == 3 and shape[2] in (12, 16), _add_heads),
    (1, lambda shape: _is_map(shape) and shape[0] == "b", _add_flatten),
    (1, lambda shape: len(shape) == 3 and _has_channels(shape), _add_first_token),
    (1, _has_channels, _add_slice),
    (1, _has_channels, _add_concat),
    (2, lambda shape: len(shape) > 1, _add_residual),
    (2, _has_channels, _add_scaled),
    (1, lambda shape: len(shape) > 1, _add_identity),
    (1, lambda shape: len(shape) > 1, _add_dead),
    (1, _has_channels, _add_if),
    (1, _has_channels, _add_loop),
    (1, lambda shape: shape[:2] == ("b", "t") and len(shape) == 3 and isinstance(shape[2], int), _add_scan),
)  # fmt: skip
