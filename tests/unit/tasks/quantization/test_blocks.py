"""Blocks of a graph: their multiply-adds counted, and the cheapest set of them to keep in fp32."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import BadInput
from registry.records import OnnxArtifact, Precision
from tasks.graphs.files import make_artifact, save_graph
from tasks.graphs.layers import Graph, group_by_input
from tasks.graphs.session import exact_options
from tasks.quantization.blocks import (
    Block,
    compute_int8_share,
    compute_share,
    count_macs,
    measure_macs,
    solve_knapsack,
)
from tasks.quantization.quantize import quantize
from tests.support.quantized_networks import CalibratedNetwork


def test_macs_are_counted_as_matmul_and_conv_multiply(network: CalibratedNetwork) -> None:
    blocks = measure_macs(network.file, network.scales, network.held_out[0])
    graph, feed = Graph(network.load()), network.held_out[0]
    rows = len(next(iter(feed.values())))
    counted = {block.tensor: block.macs for block in blocks}
    layers = {node.output[0]: layer for layer, node in graph.find_linear_nodes().items()}
    model = network.load()
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in layers)
    session = ort.InferenceSession(model.SerializeToString(), exact_options(), providers=["CPUExecutionProvider"])
    outputs = dict(zip([output.name for output in session.get_outputs()], session.run(None, feed), strict=True))
    expected = dict.fromkeys(group_by_input(graph.list_linears()), 0)
    for name, layer in layers.items():
        weight = graph.read_weight(layer)
        # What is summed over for one value of the output: K, or channels of a group times the kernel.
        summed = weight.shape[0] if layer.op == "MatMul" else int(np.prod(weight.shape[1:]))
        expected[layer.input] += outputs[name].size // rows * summed
    assert counted == expected


@given(st.lists(st.tuples(st.integers(1, 10**9), st.floats(0, 1)), min_size=2, max_size=12), st.data())
def test_the_knapsack_keeps_fewer_macs_and_takes_as_much_damage(
    sizes: list[tuple[int, float]], data: st.DataObject
) -> None:
    blocks = [Block(f"t{index}", (index,), macs, damage) for index, (macs, damage) in enumerate(sizes)]
    prefix = {block.tensor for block in blocks if data.draw(st.booleans())}
    lighter = solve_knapsack(blocks, prefix)
    if lighter is None:
        return
    damage = {block.tensor: block.damage or 0.0 for block in blocks}
    assert compute_int8_share(blocks, lighter) > compute_int8_share(blocks, prefix)
    assert sum(damage[name] for name in lighter) >= sum(damage[name] for name in prefix) * (1 - 1e-5)


MIXED = """
<ir_version: 10, opset_import: ["" : 18]>
mixed (float[batch, sequence, 64] x) => (float[batch, sequence, 7] y) {
    hidden = MatMul (x, wide)
    y = MatMul (hidden, narrow)
}
"""


def make_mixed(folder: Path) -> OnnxArtifact:
    """Save two layers, of 64 x 64 and 64 x 7 multiply-adds per token."""
    model, random = onnx.parser.parse_model(MIXED), np.random.default_rng(0)
    for name, columns in (("wide", 64), ("narrow", 7)):
        weight = random.normal(size=(64, columns)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    folder.mkdir()
    save_graph(model, folder)
    return make_artifact(folder, Precision.FP32)


@pytest.mark.parametrize("precision", [precision for precision in Precision if precision is not Precision.FP32])
def test_a_graph_says_which_share_of_the_macs_its_precision_has(tmp_path: Path, precision: Precision) -> None:
    random = np.random.default_rng(1)
    feeds = [{"x": random.normal(size=(4, 5, 64)).astype(np.float32)} for _ in range(4)]
    source = make_mixed(tmp_path / "source")
    graph = quantize(source, precision, feeds, calibration_set_digest="c" * 64, into=tmp_path / "made")
    assert graph.macs_share == pytest.approx(1.0)
    assert source.macs_share is None


def test_a_layer_that_stays_float_is_not_in_the_share(tmp_path: Path) -> None:
    source = make_mixed(tmp_path / "source")
    macs = count_macs(source.path, {"x": np.zeros((2, 3, 64), dtype=np.float32)})
    assert list(macs.values()) == [3 * 64 * 64, 3 * 64 * 7]
    float_type, int8 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT8
    stored = [(int8, 64 * 64), (float_type, 64 * 7)]
    assert compute_share(macs, source.path, stored, int8) == pytest.approx(64 / 71)
    assert compute_share(macs, source.path, stored, float_type) == pytest.approx(7 / 71)
    assert compute_share(macs, source.path, [], int8) == 0.0


CONVOLUTIONS = """
<ir_version: 10, opset_import: ["" : 18]>
convolutions (float[batch, 3, 16, 16] x) => (float[batch, 5] y) {
    seen = Conv <pads = [1, 1, 1, 1]> (x, kernel)
    pooled = GlobalAveragePool (seen)
    flat = Flatten (pooled)
    y = MatMul (flat, classifier)
}
"""


@pytest.mark.parametrize("precision", [Precision.INT8_DYNAMIC, Precision.INT4_WEIGHT_ONLY])
def test_a_graph_whose_classifier_alone_has_the_precision_is_refused(tmp_path: Path, precision: Precision) -> None:
    model, random = onnx.parser.parse_model(CONVOLUTIONS), np.random.default_rng(0)
    for name, shape in (("kernel", (64, 3, 3, 3)), ("classifier", (64, 5))):
        weight = random.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    (tmp_path / "source").mkdir()
    save_graph(model, tmp_path / "source")
    source = make_artifact(tmp_path / "source", Precision.FP32)
    feeds = [{"x": random.normal(size=(2, 3, 16, 16)).astype(np.float32)}]
    with pytest.raises(BadInput, match=rf"only 0\.\d\d% of the multiply-adds .* would be {precision}"):
        quantize(source, precision, feeds, calibration_set_digest="c" * 64, into=tmp_path / "made")
