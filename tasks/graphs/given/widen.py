"""A given graph with weights in float16 or bfloat16, made float32: the reference that all precisions start from."""

from collections.abc import Container, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tasks.graphs.layers import walk_nodes

# What made the fp32 graph, where the given one was narrower.
GIVEN_IN = "float32 of weights given in"
HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
# Attributes that name the type of a node's output, or of its arithmetic.
TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype", "stash_type")


def name_halves(model: onnx.ModelProto) -> str:
    """Return the names of the types of a graph's weights that are narrower than float32; empty where none are."""
    kinds = {tensor.data_type for tensor in _list_tensors(model.graph)} & {*HALVES}
    return " and ".join(sorted(TensorProto.DataType.Name(kind).lower() for kind in kinds))


def widen_weights(model: onnx.ModelProto, *, free_inputs: bool, free_outputs: Container[int]) -> None:
    """Make all that a graph stores and computes in float16 or bfloat16 float32, in place.

    Its inputs and outputs keep their types, by a Cast each; but not the inputs where they are free, and not the outputs
    at `free_outputs`: those become float32.
    """
    graph = model.graph
    inputs = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    outputs = {value.name: value.type.tensor_type.elem_type for value in graph.output}
    _widen_graph(graph)
    taken = {name for node in walk_nodes(graph) for name in (*node.input, *node.output)}
    taken |= inputs.keys() | outputs.keys()
    for value in [] if free_inputs else graph.input:
        if (kind := inputs[value.name]) in HALVES:
            wide = _rename(graph, value.name, taken)
            value.type.tensor_type.elem_type = kind
            graph.node.insert(
                0, helper.make_node("Cast", [value.name], [wide], name=f"{wide}/cast", to=TensorProto.FLOAT)
            )
    for position, value in enumerate(graph.output):
        if (kind := outputs[value.name]) in HALVES and position not in free_outputs:
            wide = _rename(graph, value.name, taken)
            value.type.tensor_type.elem_type = kind
            graph.node.append(helper.make_node("Cast", [wide], [value.name], name=f"{wide}/cast", to=kind))


def _widen_graph(graph: onnx.GraphProto) -> None:
    graph.ClearField("value_info")
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in _list_tensors(graph):
        if tensor.data_type in HALVES:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if (
                attribute.type == onnx.AttributeProto.INT
                and attribute.name in TYPE_ATTRIBUTES
                and attribute.i in HALVES
            ):
                attribute.i = TensorProto.FLOAT
            for body in _bodies(attribute):
                _widen_graph(body)


def _list_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """List the constants of a graph: its initializers, and those in attributes, in branches and loops too."""
    yield from graph.initializer
    yield from (tensor.values for tensor in graph.sparse_initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors
            for body in _bodies(attribute):
                yield from _list_tensors(body)


def _bodies(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)


def _rename(graph: onnx.GraphProto, name: str, taken: set[str]) -> str:
    """Give a tensor another name wherever nodes read or write it, and return that."""
    wide = f"{name}/float32"
    while wide in taken:
        wide += "_"
    taken.add(wide)
    for node in walk_nodes(graph):
        for names in (node.input, node.output):
            for position, each in enumerate(names):
                if each == name:
                    names[position] = wide
    for tensor in graph.initializer:
        if tensor.name == name:
            tensor.name = wide
    return wide
