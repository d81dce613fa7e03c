"""Graphs made fit for quantizers, by the passes and converters of ONNX's own libraries."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir
from onnx import version_converter
from onnx_ir.passes.common import NameFixPass, RemoveInitializersFromInputsPass, TopologicalSortPass

from registry.errors import BadInput, first_line
from tasks.graphs.files import read_opset, save_graph

# The lowest opsets with scales per channel, with float8 in QuantizeLinear, with int4 and blocks in DequantizeLinear.
CHANNEL_OPSET, FP8_OPSET, INT4_OPSET = 13, 19, 21


@contextmanager
def prepare_graph(file: Path) -> Iterator[Path]:
    """Yield the file of a graph that can be quantized.

    It has an opset with scales per channel, constants that are no inputs, and no two nodes of one name.

    Raises:
        BadInput: its opset is older and cannot be converted.
    """
    header = onnx.load(file, load_external_data=False)
    constants = {tensor.name for tensor in header.graph.initializer}
    node_names = [node.name for node in header.graph.node if node.name]
    is_ready = read_opset(header) >= CHANNEL_OPSET and len(set(node_names)) == len(node_names)
    if is_ready and not any(value.name in constants for value in header.graph.input):
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        yield save_graph(_convert_graph(onnx.load(file)), Path(folder))


def _convert_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    clean = onnx_ir.passes.Sequential(RemoveInitializersFromInputsPass(), NameFixPass())
    return convert_to_opset(onnx_ir.to_proto(clean(onnx_ir.from_proto(model)).model), CHANNEL_OPSET)


def convert_to_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Convert the graph to `opset`, with the IR version that it needs; a later graph stays as it is.

    Raises:
        BadInput: ONNX's version converter cannot.
    """
    if read_opset(model) >= opset:
        return model
    try:
        converted: onnx.ModelProto = version_converter.convert_version(model, opset)
    except RuntimeError as error:
        raise BadInput(
            f"the graph of opset {read_opset(model)} cannot be converted to {opset} ({first_line(error)[:200]}): "
            f"export it with opset {opset} or later"
        ) from error
    converted.ir_version = max(model.ir_version, 9 if opset < INT4_OPSET else 10)
    return converted


def sort_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Sort a graph's nodes by what they read, branches and bodies included, which ONNX Runtime's tools leave out."""
    sorted_model = onnx_ir.from_proto(model)
    TopologicalSortPass()(sorted_model)
    return onnx_ir.to_proto(sorted_model)


def number_tensors(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Put a number before the name of every tensor of a graph; return the graph, and the names by the new ones.

    ONNX Runtime's quantizer names what it adds after the tensors that are there ("x_scale" for "x"), whether or not
    the graph has such a tensor already.
    """
    numbered = onnx_ir.from_proto(model)
    names = {}
    for number, value in enumerate(list_values(numbered.graph)):
        if value.name:
            names[f"{number}:{value.name}"] = value.name
            value.name = f"{number}:{value.name}"
    return onnx_ir.to_proto(numbered), names


def list_values(graph: onnx_ir.Graph) -> list[onnx_ir.Value]:
    """List the tensors of a graph, each once: inputs, constants, and what its nodes give."""
    made = (output for node in graph for output in node.outputs)
    return list(dict.fromkeys((*graph.inputs, *graph.initializers.values(), *made)))
