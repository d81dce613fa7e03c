"""The layers of an ONNX graph whose weights are constants: what a quantizer works on."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Linear:
    """A MatMul, Gemm or Conv with a constant weight; `index` is its place among all of a graph.

    `columns` is the axis of `weight` that holds the output channels.
    """

    node: str
    op: str
    index: int
    input: str
    weight: str
    columns: int

    @property
    def name(self) -> str:
        """A unique name for what is added for this layer (ONNX nodes need not have one)."""
        return f"{self.node or self.op}/quantized_{self.index}"

    def to_matrix(self, weight: Floats) -> Floats:
        """Lay the weight out as [K, N]: what is summed over, by output channels."""
        return weight if self.columns else weight.reshape(weight.shape[0], -1).T

    def from_matrix(self, matrix: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Undo `to_matrix`."""
        return matrix if self.columns else np.ascontiguousarray(matrix.T).reshape(shape)


@dataclass
class Graph:
    """An ONNX graph with what is asked of it all the time: constants by name, producers, consumers."""

    proto: onnx.ModelProto
    constants: dict[str, onnx.TensorProto] = field(init=False)
    producers: dict[str, onnx.NodeProto] = field(init=False)
    consumers: dict[str, list[onnx.NodeProto]] = field(init=False)

    def __post_init__(self) -> None:
        self.constants = {tensor.name: tensor for tensor in self.proto.graph.initializer}
        self.producers, self.consumers = {}, {}
        for node in self.proto.graph.node:
            self.producers.update(dict.fromkeys(node.output, node))
            for name in dict.fromkeys(node.input):
                self.consumers.setdefault(name, []).append(node)
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t

    @property
    def output_names(self) -> set[str]:
        """Names of the graph's outputs."""
        return {output.name for output in self.proto.graph.output}

    def constant(self, name: str) -> Floats | None:
        """Return a float32 constant's values, or None when `name` is no such constant."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        return numpy_helper.to_array(tensor)

    def values(self, name: str) -> Floats:
        """Return a float32 constant's values.

        Raises:
            KeyError: `name` is no such constant.

        """
        values = self.constant(name)
        if values is None:
            raise KeyError(name)
        return values

    def weight(self, each: Linear) -> Floats:
        """Return a layer's weight as it lies in the graph."""
        return self.values(each.weight)

    def linears(self) -> tuple[Linear, ...]:
        """Every layer with a constant float32 weight, in graph order."""
        return tuple(self._linears())

    def _linears(self) -> Iterator[Linear]:
        index = 0
        for node in self.proto.graph.node:
            if node.op_type not in ("MatMul", "Gemm", "Conv"):
                continue
            # Only type and rank are looked at: the values may still be in another file.
            weight = self.constants.get(node.input[1])
            if weight is None or weight.data_type != onnx.TensorProto.FLOAT or _attribute(node, "transA"):
                continue
            if node.op_type != "Conv" and len(weight.dims) != 2:
                continue
            columns = 0 if node.op_type == "Conv" or _attribute(node, "transB") else 1
            yield Linear(node.name, node.op_type, index, node.input[0], node.input[1], columns)
            index += 1

    def linear_nodes(self) -> dict[Linear, onnx.NodeProto]:
        """Each layer with its node, to be edited in place."""
        by_io = {(node.op_type, *node.input[:2], node.name): node for node in self.proto.graph.node}
        return {each: by_io[each.op, each.input, each.weight, each.node] for each in self.linears()}

    def residual_adds(self, tensor: str) -> list[tuple[onnx.NodeProto, int]]:
        """(Add, input) that take a tensor around the Conv that reads it.

        There TensorRT adds an int8 tensor in the convolution itself; a float one it would have to keep beside it
        (NVIDIA TensorRT documentation, "Q/DQ Layer-Placement Recommendations": quantize the residual input).
        """
        readers = self.consumers.get(tensor, [])
        if not any(node.op_type == "Conv" for node in readers):
            return []
        return [
            (node, at)
            for node in readers
            if node.op_type == "Add"
            for at, name in enumerate(node.input)
            if name == tensor
        ]

    def insert_before_consumers(self, tensor: str, nodes: list[onnx.NodeProto]) -> None:
        """Put `nodes` right behind the producer of `tensor`, so that the order stays topological."""
        producer = self.producers.get(tensor)
        everything = list(self.proto.graph.node)
        at = everything.index(producer) + 1 if producer is not None else 0
        for offset, node in enumerate(nodes):
            self.proto.graph.node.insert(at + offset, node)

    def drop_unused_constants(self) -> None:
        """Remove constants that no node reads any more: float weights that were replaced."""
        used = {name for node in self.proto.graph.node for name in node.input} | self.output_names
        for node in [each for each in self.proto.graph.node if each.op_type == "Constant"]:
            if node.output[0] not in used:
                self.proto.graph.node.remove(node)
        kept = [tensor for tensor in self.proto.graph.initializer if tensor.name in used]
        del self.proto.graph.initializer[:]
        self.proto.graph.initializer.extend(kept)


def groups(linears: tuple[Linear, ...]) -> dict[str, tuple[Linear, ...]]:
    """Layers by the tensor they read: query, key and value share one scale of it."""
    found: dict[str, list[Linear]] = {}
    for each in linears:
        found.setdefault(each.input, []).append(each)
    return {tensor: tuple(members) for tensor, members in found.items()}


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)
