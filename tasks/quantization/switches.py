"""One session that runs each block in fp32 or in int8, as it is told: all mixes of a graph, made once.

Every block (the layers that read one tensor) has a boolean input. Its layers read the tensor, or the tensor through
Q/DQ; and their fp32 weight, or the weight rounded to int8. Weights lie there twice, which the mixed graph's do not.
"""

import tempfile
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from tasks.calibration.rows import Feed
from tasks.graphs.files import write_graph
from tasks.graphs.layers import Floats, Graph, Linear, groups
from tasks.graphs.session import exact_options, providers
from tasks.quantization import qdq
from tasks.quantization.qdq import StoredWeight, WeightFormat
from tasks.quantization.scales import ActivationScale


class Switchboard:
    """Any mix of an fp32 graph's blocks in int8, run without making its graph."""

    def __init__(
        self,
        model: onnx.ModelProto,
        scales: Mapping[str, ActivationScale],
        weight_format: WeightFormat,
        output: str | None = None,
    ) -> None:
        """Take an fp32 graph, which is edited in place; `output` is the tensor to return (None: the first output)."""
        self._output = output or model.graph.output[0].name
        if self._output not in {each.name for each in model.graph.output}:
            model.graph.output.append(helper.make_tensor_value_info(self._output, TensorProto.FLOAT, None))
        self._switches = _add_switches(model, scales, weight_format)
        with tempfile.TemporaryDirectory() as folder:
            file = write_graph(model, Path(folder))
            self._session = ort.InferenceSession(file, exact_options(), providers=providers())

    @property
    def blocks(self) -> tuple[str, ...]:
        """The tensors that have a switch, in graph order."""
        return tuple(self._switches)

    def run(self, feed: Feed, int8: AbstractSet[str]) -> Floats:
        """Run rows with the blocks of `int8` in int8 and all others in fp32."""
        switches = {name: np.asarray(tensor in int8) for tensor, name in self._switches.items()}
        answer: Floats = self._session.run([self._output], {**feed, **switches})[0]
        return answer


def _add_switches(
    model: onnx.ModelProto, scales: Mapping[str, ActivationScale], weight_format: WeightFormat
) -> dict[str, str]:
    """Give every block with a scale its boolean input; their names by tensor."""
    graph = Graph(model)
    switches: dict[str, str] = {}
    nodes = graph.linear_nodes()
    model.graph.initializer.append(zero := qdq.int8_zero())
    for tensor, members in groups(graph.linears()).items():
        if tensor not in scales:
            continue
        switch = switches[tensor] = f"enginery/int8/{len(switches)}"
        model.graph.input.append(helper.make_tensor_value_info(switch, TensorProto.BOOL, []))
        chosen = _switch_input(graph, tensor, scales[tensor], switch, zero.name)
        for add, at in graph.residual_adds(tensor):
            add.input[at] = chosen
        for each in members:
            nodes[each].input[1] = _switch_weight(graph, each, scales[tensor].smoothing, switch, weight_format)
            nodes[each].input[0] = chosen
    return switches


def _switch_input(graph: Graph, tensor: str, scale: ActivationScale, switch: str, zero: str) -> str:
    """The tensor, or the tensor divided by its factors and through Q/DQ (the factors are in the rounded weight)."""
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
    graph: Graph, each: Linear, smoothing: Floats | None, switch: str, weight_format: WeightFormat
) -> str:
    weight, name = graph.weight(each), f"{switch}/weight/{each.index}"
    matrix = each.to_matrix(weight)
    if smoothing is not None:
        matrix = matrix * smoothing[:, None]
    smoothed = np.ascontiguousarray(each.from_matrix(matrix, weight.shape))
    stored = weight_format(each, smoothed, name)
    graph.proto.graph.initializer.append(numpy_helper.from_array(_dequantized(stored), name))
    graph.proto.graph.node.insert(0, helper.make_node("Where", [switch, name, each.weight], [f"{name}/chosen"]))
    # A weight from a Constant node has to be made before it is chosen.
    if (producer := graph.producers.get(each.weight)) is not None:
        graph.proto.graph.node.remove(producer)
        graph.proto.graph.node.insert(0, producer)
    return f"{name}/chosen"


def _dequantized(stored: StoredWeight) -> Floats:
    values = numpy_helper.to_array(stored.values).astype(np.float32)
    shape = [-1 if axis == stored.attributes["axis"] else 1 for axis in range(values.ndim)]
    weight: Floats = values * stored.scale.reshape(shape)
    return weight
