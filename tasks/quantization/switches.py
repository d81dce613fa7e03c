"""One session for all mixes of a graph: each block runs in fp32 or int8 by a boolean input.

A block is the layers that read one tensor. They read the tensor or the tensor through Q/DQ, and their fp32 weight or
the weight rounded to int8. So this session holds every weight twice; the graph of a mix does not.
"""

import tempfile
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from tasks.calibration.rows import Feed
from tasks.graphs.files import write_graph
from tasks.graphs.layers import Floats, Graph, Linear, group_by_input
from tasks.graphs.session import choose_providers, exact_options
from tasks.quantization import qdq
from tasks.quantization.qdq import StoredWeight, WeightFormat
from tasks.quantization.scales import ActivationScale


class Switchboard:
    """A session that runs any mix of an fp32 graph's blocks in int8, without making the mix's graph."""

    def __init__(
        self,
        model: onnx.ModelProto,
        scales: Mapping[str, ActivationScale],
        weight_format: WeightFormat,
        judged: Sequence[str] = (),
    ) -> None:
        """Edit an fp32 graph in place and open it; `judged` are the tensors to return (none: all outputs)."""
        shown = [value.name for value in model.graph.output]
        self._judged = list(judged) or shown
        model.graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self._judged if name not in shown
        )
        self._switches = _add_switches(model, scales, weight_format)
        with tempfile.TemporaryDirectory() as folder:
            file = write_graph(model, Path(folder))
            self._session = ort.InferenceSession(file, exact_options(), providers=choose_providers())

    def run(self, feed: Feed, int8: AbstractSet[str]) -> list[Floats]:
        """Run a feed dict with the blocks of `int8` (by tensor) in int8 and all others in fp32."""
        switches = {name: np.asarray(tensor in int8) for tensor, name in self._switches.items()}
        return list(self._session.run(self._judged, {**feed, **switches}))


def _add_switches(
    model: onnx.ModelProto, scales: Mapping[str, ActivationScale], weight_format: WeightFormat
) -> dict[str, str]:
    """Give every block with a scale its boolean input; return the inputs' names by tensor."""
    graph = Graph(model)
    switches: dict[str, str] = {}
    nodes = graph.find_linear_nodes()
    model.graph.initializer.append(zero := qdq.make_int8_zero())
    for tensor, members in group_by_input(graph.list_linears()).items():
        if tensor not in scales:
            continue
        switch = switches[tensor] = graph.make_name(f"enginery/int8/{len(switches)}")
        model.graph.input.append(helper.make_tensor_value_info(switch, TensorProto.BOOL, []))
        source = _switch_input(graph, tensor, scales[tensor], switch, zero.name)
        for add, position in graph.find_residual_adds(tensor):
            add.input[position] = source
        for layer in members:
            nodes[layer].input[1] = _switch_weight(graph, layer, scales[tensor].smoothing, switch, weight_format)
            nodes[layer].input[0] = source
    return switches


def _switch_input(graph: Graph, tensor: str, scale: ActivationScale, switch: str, zero: str) -> str:
    """Switch between the tensor and the tensor smoothed and through Q/DQ; return the name of the result."""
    constants = {f"{switch}/scale": np.asarray(scale.scale, dtype=np.float32)}
    added, source = [], tensor
    if scale.smoothing is not None:
        constants[f"{switch}/factor"] = (1.0 / scale.smoothing.astype(np.float64)).astype(np.float32)
        source = f"{switch}/smoothed"
        added.append(helper.make_node("Mul", [tensor, f"{switch}/factor"], [source]))
    parameters = [f"{switch}/scale", zero]
    added += [
        helper.make_node("QuantizeLinear", [source, *parameters], [f"{switch}/quantized"]),
        helper.make_node("DequantizeLinear", [f"{switch}/quantized", *parameters], [f"{switch}/dequantized"]),
        helper.make_node("Where", [switch, f"{switch}/dequantized", tensor], [f"{switch}/input"]),
    ]
    graph.proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.insert_before_consumers(tensor, added)
    return f"{switch}/input"


def _switch_weight(
    graph: Graph, layer: Linear, smoothing: Floats | None, switch: str, weight_format: WeightFormat
) -> str:
    """Switch between the fp32 weight and the smoothed weight rounded to int8; return the name of the result."""
    weight, name = graph.read_weight(layer), f"{switch}/weight/{layer.index}"
    matrix = layer.to_matrix(weight)
    if smoothing is not None:
        matrix = matrix * smoothing[:, None]
    smoothed = np.ascontiguousarray(layer.from_matrix(matrix, weight.shape))
    stored = weight_format(layer, smoothed, name)
    graph.proto.graph.initializer.append(numpy_helper.from_array(_dequantize(stored), name))
    graph.proto.graph.node.insert(0, helper.make_node("Where", [switch, name, layer.weight], [f"{name}/chosen"]))
    # A Constant node that makes the weight must come before the Where that reads it.
    if (producer := graph.producers.get(layer.weight)) is not None:
        graph.proto.graph.node.remove(producer)
        graph.proto.graph.node.insert(0, producer)
    return f"{name}/chosen"


def _dequantize(stored: StoredWeight) -> Floats:
    values = numpy_helper.to_array(stored.values).astype(np.float32)
    shape = [-1 if axis == stored.attributes["axis"] else 1 for axis in range(values.ndim)]
    weight: Floats = values * stored.scale.reshape(shape)
    return weight
