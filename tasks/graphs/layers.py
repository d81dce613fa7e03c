"""The layers of an ONNX graph with constant weights: what a quantizer works on."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Floats = NDArray[np.float32]
TRANSPOSE = "ConvTranspose"
# What ONNX Runtime's dynamic quantization makes of a MatMul.
INTEGER_OPERATORS = ("MatMulInteger", "DynamicQuantizeMatMul")


@dataclass(frozen=True)
class Linear:
    """A MatMul, Gemm or Conv with a constant weight.

    `index` counts the graph's layers from 0; `columns` is the axis of `weight` that holds the output channels.
    """

    node: str
    op: str
    index: int
    input: str
    weight: str
    columns: int

    @property
    def name(self) -> str:
        """A unique prefix for nodes and constants added for this layer (ONNX nodes need not have a name)."""
        return f"{self.node or self.op}/quantized_{self.index}"

    def to_matrix(self, weight: Floats) -> Floats:
        """Return the weight as [K, N]: K values are summed over for each of N output channels."""
        return weight if self.columns else weight.reshape(weight.shape[0], -1).T

    def from_matrix(self, matrix: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Undo `to_matrix`."""
        return matrix if self.columns else np.ascontiguousarray(matrix.T).reshape(shape)


@dataclass
class Graph:
    """An ONNX graph with its constants by name, and the producer and consumers of every tensor."""

    proto: onnx.ModelProto
    constants: dict[str, onnx.TensorProto] = field(init=False)
    producers: dict[str, onnx.NodeProto] = field(init=False)
    consumers: dict[str, list[onnx.NodeProto]] = field(init=False)
    _names: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.constants = {tensor.name: tensor for tensor in self.proto.graph.initializer}
        self.producers, self.consumers = {}, {}
        for node in self.proto.graph.node:
            self.producers.update(dict.fromkeys(node.output, node))
            for name in dict.fromkeys(list_read_tensors(node)):
                self.consumers.setdefault(name, []).append(node)
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        inputs = (value.name for value in self.proto.graph.input)
        self._names = {*self.constants, *self.producers, *self.consumers, *inputs}

    def make_name(self, wanted: str) -> str:
        """Return a name that no tensor of the graph has, as wanted or with a number behind it."""
        name, number = wanted, 1
        while name in self._names:
            name, number = f"{wanted}_{number}", number + 1
        self._names.add(name)
        return name

    @property
    def output_names(self) -> set[str]:
        """Names of the graph's outputs."""
        return {output.name for output in self.proto.graph.output}

    def find_constant(self, name: str) -> Floats | None:
        """Return a float32 constant's values, or None when `name` is not a float32 constant."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        return numpy_helper.to_array(tensor)

    def read_constant(self, name: str) -> Floats:
        """Return a float32 constant's values.

        Raises:
            KeyError: `name` is not a float32 constant.
        """
        values = self.find_constant(name)
        if values is None:
            raise KeyError(name)
        return values

    def read_weight(self, layer: Linear) -> Floats:
        """Return a layer's float32 weight in the shape that the graph stores."""
        return self.read_constant(layer.weight)

    def list_linears(self) -> tuple[Linear, ...]:
        """List the layers with a constant float32 weight, in graph order."""
        return tuple(layer for layer, _ in self._walk_linears())

    def _walk_linears(self) -> Iterator[tuple[Linear, onnx.NodeProto]]:
        index = 0
        for node in self.proto.graph.node:
            if node.op_type not in ("MatMul", "Gemm", "Conv"):
                continue
            # Type and rank alone decide: the values may still be in another file.
            weight = self.constants.get(node.input[1])
            if weight is None or weight.data_type != onnx.TensorProto.FLOAT or _read_attribute(node, "transA"):
                continue
            if (node.op_type != "Conv" and len(weight.dims) != 2) or 0 in weight.dims:
                continue
            columns = 0 if node.op_type == "Conv" or _read_attribute(node, "transB") else 1
            yield Linear(node.name, node.op_type, index, node.input[0], node.input[1], columns), node
            index += 1

    def list_transposes(self) -> tuple[Linear, ...]:
        """List the ConvTransposes with a constant weight, numbered from 0; quantizers leave them in float."""
        nodes = [
            node for node in self.proto.graph.node if node.op_type == TRANSPOSE and node.input[1] in self.constants
        ]
        return tuple(
            Linear(node.name, TRANSPOSE, index, node.input[0], node.input[1], 1) for index, node in enumerate(nodes)
        )

    def find_linear_nodes(self) -> dict[Linear, onnx.NodeProto]:
        """Return each layer with its node, which callers edit in place."""
        return dict(self._walk_linears())

    def find_residual_adds(self, tensor: str) -> list[tuple[onnx.NodeProto, int]]:
        """Return the Adds, each with its input's position, that take a tensor around the Conv that reads it.

        TensorRT adds an int8 residual inside the convolution; a float one would need a second copy of the tensor
        (NVIDIA TensorRT documentation, "Q/DQ Layer-Placement Recommendations": quantize the residual input).
        """
        readers = self.consumers.get(tensor, [])
        if not any(node.op_type == "Conv" for node in readers):
            return []
        return [
            (node, position)
            for node in readers
            if node.op_type == "Add"
            for position, name in enumerate(node.input)
            if name == tensor
        ]

    def insert_before_consumers(self, tensor: str, nodes: list[onnx.NodeProto]) -> None:
        """Insert `nodes` right after the producer of `tensor`, which keeps the order topological."""
        producer = self.producers.get(tensor)
        position = list(self.proto.graph.node).index(producer) + 1 if producer is not None else 0
        for offset, node in enumerate(nodes):
            self.proto.graph.node.insert(position + offset, node)

    def drop_unused_constants(self) -> None:
        """Remove constants that no node reads any more: the float weights that were replaced."""
        used = {name for node in self.proto.graph.node for name in list_read_tensors(node)} | self.output_names
        unused = [node for node in self.proto.graph.node if node.op_type == "Constant" and node.output[0] not in used]
        for node in unused:
            self.proto.graph.node.remove(node)
        initializers = [tensor for tensor in self.proto.graph.initializer if tensor.name in used]
        del self.proto.graph.initializer[:]
        self.proto.graph.initializer.extend(initializers)


def walk_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield a graph's nodes with those of its branches and bodies."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from walk_nodes(body)


def list_read_tensors(node: onnx.NodeProto) -> Iterator[str]:
    """List the tensors that a node reads, with those that the branches of an If or the body of a Loop read."""
    yield from node.input
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                yield from list_read_tensors(inner)
            yield from (output.name for output in body.output)


def list_stored_weights(model: onnx.ModelProto) -> list[tuple[int, int]]:
    """List the weight of each layer as it is stored, in graph order: (TensorProto.DataType, number of values)."""
    graph = Graph(model)
    weights = []
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv", TRANSPOSE, *INTEGER_OPERATORS):
            continue
        name = node.input[1]
        while name not in graph.constants and name in graph.producers and graph.producers[name].input:
            name = graph.producers[name].input[0]
        if name in graph.constants:
            weights.append((graph.constants[name].data_type, int(np.prod(graph.constants[name].dims))))
    return weights


def group_by_input(linears: tuple[Linear, ...]) -> dict[str, tuple[Linear, ...]]:
    """Group layers by the tensor they read: query, key and value share one scale of it."""
    groups: dict[str, list[Linear]] = {}
    for layer in linears:
        groups.setdefault(layer.input, []).append(layer)
    return {tensor: tuple(members) for tensor, members in groups.items()}


def _read_attribute(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)
