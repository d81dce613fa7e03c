"""Which layers of a graph run at which precision, as a table: the graph holds the types, a backend only builds."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import onnx
from onnx import TensorProto

from tasks.graphs.layers import INTEGER_OPERATORS, Graph, Linear

LAYERS_FILE = "layers.csv"
_COLUMNS = ("name", "op", "weights", "activations", "shape", "macs")
# As recipes call them; others by ONNX's name.
_NAMES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.FLOAT8E4M3FN: "fp8",
}
# What ONNX Runtime's dynamic quantization adds to the name of a layer.
_SUFFIX = "_quant"
# What stands between a stored weight and its layer; behind anything else it is no weight, but an activation.
_STORAGE = ("DequantizeLinear", "QuantizeLinear", "Cast", "Transpose", "Identity", "Reshape")


@dataclass(frozen=True)
class LayerRow:
    """A layer with a constant weight: the types of its weights and activations, and the weight's shape, like "384x64".

    `macs` are its multiply-adds on one row; None where no rows were there to count.
    """

    name: str
    op: str
    weights: str
    activations: str
    shape: str
    macs: int | None


def list_layers(model: onnx.ModelProto, macs: Mapping[Linear, int]) -> tuple[LayerRow, ...]:
    """List the layers of a rewritten graph, in graph order; `macs` are those of the fp32 graph that it was made from.

    Layers are found by name. One whose name a rewrite changed has no MACs, rather than another layer's.
    """
    graph, counts = Graph(model), {layer.node: count for layer, count in macs.items() if layer.node}
    return tuple(
        LayerRow(
            node.name,
            node.op_type,
            _name_type(weight.data_type),
            _name_type(_find_activation_type(graph, node, weight)),
            "x".join(str(size) for size in weight.dims),
            counts.get(node.name, counts.get(node.name.removesuffix(_SUFFIX))),
        )
        for node, weight in _find_weights(graph)
    )


def _find_weights(graph: Graph) -> Iterator[tuple[onnx.NodeProto, TensorProto]]:
    for node in graph.proto.graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv", *INTEGER_OPERATORS):
            continue
        name = node.input[1]
        while (producer := graph.producers.get(name)) is not None and producer.op_type in _STORAGE:
            name = producer.input[0]
        if name in graph.constants:
            yield node, graph.constants[name]


def _find_activation_type(graph: Graph, node: onnx.NodeProto, weight: TensorProto) -> int:
    """Return the type that a layer's other factor has: that of its scale's zero point, or what weights become."""
    if node.op_type in INTEGER_OPERATORS:
        return TensorProto.UINT8  # DynamicQuantizeLinear has no other
    quantized = graph.producers.get(node.input[0])
    if quantized is not None and quantized.op_type == "DequantizeLinear":
        zero = graph.constants.get(quantized.input[2]) if len(quantized.input) > 2 else None
        return TensorProto.UINT8 if zero is None else zero.data_type  # ONNX's default
    dequantized = graph.producers.get(node.input[1])
    if dequantized is not None and dequantized.op_type == "DequantizeLinear":
        scale = graph.constants.get(dequantized.input[1])
        return TensorProto.FLOAT if scale is None else scale.data_type
    return weight.data_type


def _name_type(kind: int) -> str:
    return _NAMES.get(kind) or TensorProto.DataType.Name(kind).lower()


def compute_reduced_share(rows: Sequence[LayerRow]) -> float | None:
    """Return the share of the MACs in layers whose weights are not fp32; None where some were not counted."""
    counts = [(row.macs, row.weights) for row in rows if row.macs is not None]
    total = sum(macs for macs, _ in counts)
    if len(counts) < len(rows) or not total:
        return None
    return sum(macs for macs, weights in counts if weights != "fp32") / total


def layers_csv(rows: Sequence[LayerRow]) -> str:
    """Return a layer table as CSV, which a spreadsheet takes for text and never for formulas."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows([[_disarm(value) for value in asdict(row).values()] for row in rows])
    return text.getvalue()


def _disarm(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def parse_layers(text: str) -> tuple[LayerRow, ...]:
    """Parse what `layers_csv` returned."""
    return tuple(
        LayerRow(row["name"], row["op"], row["weights"], row["activations"], row["shape"], _parse_count(row["macs"]))
        for row in csv.DictReader(io.StringIO(text))
    )


def _parse_count(text: str) -> int | None:
    return int(text) if text else None
