"""Two graphs of one model, the tensors that both have, and the pieces between them.

A piece is what computes one tensor from other tensors that both graphs have: fed with fp32's values it errs by itself,
and not by what came before it.
"""

import hashlib
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tasks.graphs.layers import Graph, list_read_tensors

Values = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Piece:
    """The nodes that compute `output`, in graph order, and the tensors that they are fed."""

    output: str
    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]


@dataclass
class OneGraph:
    """A graph with the types of its tensors."""

    model: onnx.ModelProto
    graph: Graph = field(init=False)
    types: dict[str, int] = field(init=False)
    _order: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        self.graph = Graph(self.model)
        values = (*inferred.input, *inferred.value_info, *inferred.output)
        kinds = {value.name: value.type.tensor_type.elem_type for value in values}
        self.types = {name: kind for name, kind in kinds.items() if kind not in (0, TensorProto.STRING)}
        self._order = {name: at for at, node in enumerate(self.model.graph.node) for name in node.output}

    @property
    def input_names(self) -> tuple[str, ...]:
        """The graph's inputs that are no constants."""
        return tuple(value.name for value in self.model.graph.input if value.name not in self.graph.constants)

    def cut(self, output: str, boundary: Container[str]) -> Piece:
        """Return what computes a tensor from those of `boundary`, itself not counted, and from the graph's inputs."""
        nodes, inputs, waiting, seen = dict[int, onnx.NodeProto](), dict[str, None](), [output], set[str]()
        while waiting:
            name = waiting.pop()
            producer = self.graph.producers.get(name)
            if name in seen or (name in self.graph.constants and producer is None) or not name:
                continue
            seen.add(name)
            if producer is None or (name != output and name in boundary):
                inputs[name] = None
                continue
            nodes[self._order[name]] = producer
            waiting += list(list_read_tensors(producer))
        return Piece(output, tuple(nodes[at] for at in sorted(nodes)), tuple(sorted(inputs)))

    def make_model(self, piece: Piece, values: Values) -> onnx.ModelProto:
        """Return a piece as a model of its own, with the fixed shapes of `values` and the constants that it reads.

        Raises:
            KeyError: a tensor's type could not be inferred.
        """
        made = {name for node in piece.nodes for name in node.output}
        read = dict.fromkeys(name for node in piece.nodes for name in list_read_tensors(node) if name not in made)
        constants = [self.graph.constants[name] for name in read if name in self.graph.constants]
        graph = helper.make_graph(
            piece.nodes,
            "piece",
            [self._describe(name, values) for name in piece.inputs],
            [self._describe(piece.output, values)],
            constants,
        )
        return helper.make_model(
            graph,
            opset_imports=self.model.opset_import,
            ir_version=self.model.ir_version,
            functions=[each for each in self.model.functions if each.name in {node.op_type for node in piece.nodes}],
        )

    def _describe(self, name: str, values: Values) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, self.types[name], values[name].shape)

    def signature(self, piece: Piece) -> list[tuple[str, ...]]:
        """Return what a piece computes, apart from the names: equal signatures are the same arithmetic."""
        return [
            (
                node.op_type,
                *sorted(attribute.SerializeToString(deterministic=True).hex() for attribute in node.attribute),
                *(self._digest(name) for name in node.input if name in self.graph.constants),
            )
            for node in piece.nodes
            if node.op_type != "Constant"
        ]

    def _digest(self, name: str) -> str:
        tensor = self.graph.constants[name]
        if tensor.data_type == TensorProto.STRING:
            return str(tensor.string_data)
        values = numpy_helper.to_array(tensor)
        return hashlib.sha256(values.tobytes() + f"{values.dtype}{values.shape}".encode()).hexdigest()


@dataclass(frozen=True)
class GraphPair:
    """The fp32 graph of a model, and another one that was made of it."""

    exact: OneGraph
    made: OneGraph

    def __post_init__(self) -> None:
        # ONNX infers nothing behind an operator of a vendor's.
        for name, kind in self.exact.types.items():
            self.made.types.setdefault(name, kind)

    @cached_property
    def shared(self) -> tuple[str, ...]:
        """The tensors that nodes of both graphs give and that stand for the same values, in the made graph's order.

        One that a float constant scales in another way, as smoothing folds its factor into a LayerNormalization, is
        none: its values differ, and what reads it undoes that.
        """
        return tuple(
            name for node in self.made.model.graph.node for name in node.output if name and self._is_shared(name, node)
        )

    def _is_shared(self, name: str, node: onnx.NodeProto) -> bool:
        exact = self.exact.graph.producers.get(name)
        if exact is None or "Constant" in (exact.op_type, node.op_type) or name not in self.exact.types:
            return False
        pairs = zip(exact.input, node.input, strict=False) if exact.op_type == node.op_type else ()
        return not any(self._differ(*pair) for pair in pairs)

    def _differ(self, exact: str, made: str) -> bool:
        before, after = self.exact.graph.find_constant(exact), self.made.graph.find_constant(made)
        return before is not None and after is not None and not np.array_equal(before, after, equal_nan=True)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the tensors that both graphs give."""
        names = (value.name for value in self.exact.model.graph.output)
        return tuple(name for name in names if name in self.made.graph.output_names and name in self.exact.types)

    def list_pieces(self) -> Iterator[Piece]:
        """Yield the pieces of the made graph that are not the same arithmetic as in fp32, in graph order."""
        boundary = {*self.shared, *self.exact.input_names}
        for name in dict.fromkeys((*self.shared, *self.outputs)):
            piece = self.made.cut(name, boundary)
            exact = self.exact.cut(name, boundary)
            if self.made.signature(piece) != self.exact.signature(exact):
                yield piece
