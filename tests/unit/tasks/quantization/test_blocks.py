"""Blocks of a graph: their multiply-adds counted, and the cheapest set of them to keep in fp32."""

import numpy as np
import onnx
import onnxruntime as ort
from hypothesis import given
from hypothesis import strategies as st

from tasks.graphs.layers import Graph, group_by_input
from tasks.graphs.session import exact_options
from tasks.quantization.blocks import Block, compute_int8_share, measure_macs, solve_knapsack
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
