"""One session for all mixes gives what the graph of each mix gives."""

import onnx
import pytest

from tasks.graphs.layers import Graph
from tasks.quantization import qdq
from tasks.quantization.int8 import make_int8_graph
from tasks.quantization.switches import Switchboard
from tests.support.quantized_networks import CalibratedNetwork, ErrorGate, run_model


@pytest.mark.parametrize("kept", [0, 1, 2, 1000])
def test_a_switchboard_answers_as_the_graph_of_the_same_mix(network: CalibratedNetwork, kept: int) -> None:
    board = Switchboard(network.load(), network.scales, qdq.round_int8_weight)
    int8 = set(list(network.scales)[kept:])
    scales = {tensor: network.scales[tensor] for tensor in int8}
    graph = make_int8_graph(network.load(), scales) if int8 else network.load()
    for feed, exact in zip(network.held_out, run_model(graph, network.held_out), strict=True):
        # Folding factors into a LayerNormalization moves the last bit, and with it now and then an int8 step.
        assert ErrorGate(0).damage(0, [exact], board.run(feed, int8)) < (2e-4 if int8 else 1e-10)


def test_weights_of_constant_nodes_are_switched_too(bert: CalibratedNetwork) -> None:
    model = bert.load()
    weights = {layer.weight for layer in Graph(model).list_linears()}
    for tensor in [constant for constant in model.graph.initializer if constant.name in weights]:
        model.graph.initializer.remove(tensor)
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
    board = Switchboard(model, bert.scales, qdq.round_int8_weight)
    fp32_answers = run_model(bert.load(), bert.held_out)
    int8_answers = run_model(make_int8_graph(bert.load(), bert.scales), bert.held_out)
    for feed, fp32, int8 in zip(bert.held_out, fp32_answers, int8_answers, strict=True):
        assert ErrorGate(0).damage(0, [fp32], board.run(feed, set())) < 1e-10
        assert ErrorGate(0).damage(0, [int8], board.run(feed, set(bert.scales))) < 2e-4
