"""What a given graph may not be: read from its nodes and its declarations, before any library runs it."""

from collections.abc import Mapping, Sequence

import onnx

from registry.errors import BadInput
from registry.records import axis_name
from tasks.graphs.given.widen import HALVES
from tasks.graphs.layers import INTEGER_OPERATORS, list_stored_weights, walk_nodes
from tasks.model_tasks import ModelTask
from tasks.model_tasks.contract import GraphInputs

OWN_DOMAINS = ("", "ai.onnx")
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinearMatMul", "QLinearConv", "ConvInteger", *INTEGER_OPERATORS)
TOKEN_TYPES = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
BATCH = "batch"
# What NumPy has a type for.
NUMBER_TYPES = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.BOOL,
    onnx.TensorProto.INT8,
    onnx.TensorProto.INT16,
    onnx.TensorProto.INT32,
    onnx.TensorProto.INT64,
    onnx.TensorProto.UINT8,
)
FLOAT_TYPES = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)


def check_given(model: onnx.ModelProto, task: ModelTask, sizes: Mapping[str, int], where: str) -> None:
    """Check that a graph has ONNX's own operators and weights of 16 or 32 bits, and takes what the task's rows give.

    `sizes` are those of axes which are always of one size.

    Raises:
        BadInput: it does not; `where` names the graph.
    """
    if not model.graph.node or not model.graph.output:
        raise BadInput(f"{where} is not an ONNX graph, it has no nodes or no outputs: export it again")
    _check_operators(model, where)
    _check_weights(model, where)
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if not inputs:
        raise BadInput(f"{where} has no inputs: export it again")
    _check_batches(inputs, where)
    if task.graph_inputs is None:
        _check_own_inputs(inputs, task.axes, where)
    else:
        _check_inputs(inputs, task.graph_inputs, task, sizes, where)
    if task.graph_inputs is None and len(model.graph.output) < len(task.judged_outputs):
        raise BadInput(
            f"{where} has {len(model.graph.output)} outputs, and {len(task.judged_outputs)} are judged: correct OUTPUTS"
        )
    for position, value in enumerate(model.graph.output):
        _check_output(value, task, where, is_judged=position in task.judged_outputs)


def _check_batches(inputs: Sequence[onnx.ValueInfoProto], where: str) -> None:
    """Check that the batch, the first axis, is dynamic in all inputs or fixed at one size in all."""
    firsts = {value.name: value.type.tensor_type.shape.dim[:1] for value in inputs}
    sizes = {name: axis.dim_value for name, axes in firsts.items() for axis in axes if axis.HasField("dim_value")}
    if sizes and (len(set(sizes.values())) > 1 or len(sizes) < len(inputs) or 0 in sizes.values()):
        shown = ", ".join(f"{name} {sizes.get(name, 'dynamic')}" for name in firsts)
        raise BadInput(f"{where} has different batch axes, the first of each input ({shown}): export it with one")


def _check_inputs(
    inputs: Sequence[onnx.ValueInfoProto], taken: GraphInputs, task: ModelTask, sizes: Mapping[str, int], where: str
) -> None:
    known, there = taken.names, ", ".join(f"{value.name!r:.60}" for value in inputs)
    if known and any(value.name not in known for value in inputs):
        wrong = f"inputs that rows of {task.name} do not give"
        raise BadInput(f"{where} has {wrong}: it has {there}, known are {', '.join(known)}: rename them")
    if not known and len(inputs) > 1:
        raise BadInput(f"{where} has inputs {there}, and a row of {task.name} gives one: export it with one")
    for value in inputs:
        _check_input(value, taken, task, sizes, where)


def _check_operators(model: onnx.ModelProto, where: str) -> None:
    if model.functions:
        names = _join({f"{body.domain}::{body.name}" for body in model.functions})
        raise BadInput(f"{where} has functions of its own ({names}): export it with them inlined")
    foreign = {f"{node.domain}::{node.op_type}" for node in walk_nodes(model.graph) if node.domain not in OWN_DOMAINS}
    if foreign:
        raise BadInput(f"{where} has operators that are not ONNX's own ({_join(foreign)}): export it without them")
    opset = next((entry.version for entry in model.opset_import if entry.domain in OWN_DOMAINS), 0)
    newest = onnx.defs.onnx_opset_version()
    if not 1 <= opset <= newest:
        raise BadInput(f"{where} has opset {opset}, known are 1 to {newest}: export it with one of these")
    if model.training_info:
        raise BadInput(f"{where} has steps of a training: export it for inference")


def _check_weights(model: onnx.ModelProto, where: str) -> None:
    quantized = {node.op_type for node in walk_nodes(model.graph) if node.op_type in QUANTIZED}
    if quantized:
        raise BadInput(
            f"{where} is quantized already ({_join(quantized)}): give the fp32 graph, which Enginery quantizes itself"
        )
    floats = (tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1)  # scalars are no weights
    kinds = {kind for kind, _ in list_stored_weights(model)} | {kind for kind in floats if kind in FLOAT_TYPES}
    if other := kinds - {onnx.TensorProto.FLOAT, *HALVES} - {onnx.TensorProto.INT64, onnx.TensorProto.INT32}:
        raise BadInput(
            f"{where} has weights in {_join({_name_type(kind) for kind in other})}: give the fp32 graph, the "
            "recipe's precisions say what is made of it"
        )


def _check_own_inputs(inputs: Sequence[onnx.ValueInfoProto], axes: Sequence[str], where: str) -> None:
    for value in inputs:
        _check_own_input(value, axes, where)
    named = {axis_name(axis.dim_param) for value in inputs for axis in value.type.tensor_type.shape.dim}
    if absent := sorted({*axes} - named - {BATCH}):
        raise BadInput(
            f"{where} has no dynamic axis {absent[0]}, and the profiles do: remove it from `profiles`, or export the "
            "graph with a dynamic axis of that name"
        )


def _check_own_input(value: onnx.ValueInfoProto, axes: Sequence[str], where: str) -> None:
    """Check an input of a user's own task: the batch comes first, and each other dynamic axis is in the profiles."""
    tensor, place = value.type.tensor_type, f"{where}: input {value.name}"
    if not value.type.HasField("tensor_type") or tensor.elem_type not in NUMBER_TYPES:
        raise BadInput(f"{place} is {_name_type(tensor.elem_type)}, rows give numbers: export it so")
    dimensions = tensor.shape.dim
    if not tensor.HasField("shape") or not dimensions:
        raise BadInput(f"{place} declares no axes, and the first axis of each input is the batch: export it so")
    for position, dimension in enumerate(dimensions[1:], start=1):
        if dimension.HasField("dim_value") or axis_name(dimension.dim_param) in {*axes} - {BATCH}:
            continue
        name = f"dynamic axis {dimension.dim_param}" if dimension.dim_param else "dynamic axis without a name"
        advice = "add it to `profiles`" if dimension.dim_param else "export it with a name that `profiles` have"
        raise BadInput(f"{place} has the {name} at position {position}: {advice}, or export it with a fixed size")


def _check_input(
    value: onnx.ValueInfoProto, taken: GraphInputs, task: ModelTask, sizes: Mapping[str, int], where: str
) -> None:
    tensor, place = value.type.tensor_type, f"{where}: input {value.name}"
    if tensor.elem_type not in (TOKEN_TYPES if taken.are_tokens else FLOAT_TYPES):
        wanted = "tokens are int64 or int32" if taken.are_tokens else f"rows of {task.name} are floats"
        raise BadInput(f"{place} is {_name_type(tensor.elem_type)}, {wanted}: export it so")
    axes = tensor.shape.dim
    if len(axes) != len(taken.axes):
        raise BadInput(
            f"{place} has {len(axes)} axes, rows of {task.name} have {len(taken.axes)} ({', '.join(taken.axes)}): "
            "export it so"
        )
    for name, axis in zip(taken.axes, axes, strict=True):
        if name not in task.axes and axis.HasField("dim_value") and axis.dim_value != sizes.get(name, axis.dim_value):
            raise BadInput(
                f"{place} has its {name} axis fixed at {axis.dim_value}, and the processor gives {sizes[name]}: give "
                "the graph's own processor"
            )
        if name in {*task.axes} - {BATCH} and axis.HasField("dim_value"):
            raise BadInput(
                f"{place} has its {name} axis fixed at {axis.dim_value}: export it with a dynamic axis, since rows "
                "differ in it"
            )


def _check_output(value: onnx.ValueInfoProto, task: ModelTask, where: str, *, is_judged: bool) -> None:
    tensor, place = value.type.tensor_type, f"{where}: output {value.name}"
    if not value.type.HasField("tensor_type"):
        raise BadInput(f"{place} is no tensor: export it without this output")
    if not tensor.HasField("shape"):  # ONNX's checker asks for them too
        raise BadInput(f"{place} declares no axes: export it with the shapes of its outputs")
    if task.graph_inputs is None:
        if is_judged and tensor.elem_type not in NUMBER_TYPES:
            raise BadInput(f"{place} is {_name_type(tensor.elem_type)}, answers are made of numbers: export it so")
    elif is_judged and tensor.elem_type not in FLOAT_TYPES:
        raise BadInput(f"{place} is {_name_type(tensor.elem_type)}, answers are read from floats: export its logits")


def _name_type(kind: int) -> str:
    known: dict[int, str] = {number: name for name, number in onnx.TensorProto.DataType.items()}
    return known.get(kind, f"type {kind}").lower()


def _join(names: set[str]) -> str:
    shown = [f"{name!r:.80}"[1:-1] for name in sorted(names)]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
