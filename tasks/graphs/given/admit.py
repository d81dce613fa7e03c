"""A given graph made like an export: checked in full, cleaned, of a known opset, int64 in and float32 out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    NameFixPass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedOpsetsPass,
)

from registry.errors import BadInput, first_line
from registry.records import OnnxArtifact, Precision, fixed_batch
from tasks.graphs.compare import check_interface
from tasks.graphs.external_data import check_external_data
from tasks.graphs.files import list_tensors, make_artifact, write_graph
from tasks.graphs.given.refusals import BATCH, FLOAT_TYPES, check_given
from tasks.graphs.given.widen import GIVEN_IN, name_halves, widen_weights
from tasks.graphs.layers import walk_nodes
from tasks.graphs.prepare import CHANNEL_OPSET, convert_to_opset
from tasks.model_tasks import ModelTask
from tasks.model_tasks.contract import GraphInputs

FAILURES = (
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
)
AXIS_NAMES = {"batch": "batch_size", "sequence": "sequence_length"}


def admit_graph(graph: Path, task: ModelTask, sizes: Mapping[str, int], *, into: Path) -> OnnxArtifact:
    """Check a given graph, and write it to the empty folder `into` as an export of this task would be.

    Names and order of inputs and outputs stay. Ids of tokens become int64, other inputs and judged outputs float32, by
    a Cast each; those of a user's own task keep their types. Weights in float16 or bfloat16, and what is computed with
    them, become float32. Axes that are always of one size (`sizes`) get it.
    Documentation and metadata are dropped, and shapes inferred anew.

    Raises:
        BadInput: it is refused, ONNX's checker finds a fault, or its opset cannot be converted.
    """
    check_given(onnx.load(graph, load_external_data=False), task, sizes, str(graph))
    into.mkdir(parents=True, exist_ok=True)
    try:
        onnx.checker.check_model(graph)  # in full below, where shapes are no external data any more
        model = onnx.load(graph)
        made = _clean(model)
        check_interface(model, made, what=f"{graph}: its clean-up")
        halves = name_halves(made)
        if halves:
            judged = () if task.graph_inputs is None else task.judged_outputs
            widen_weights(made, free_inputs=task.graph_inputs is not None, free_outputs=judged)
        if task.graph_inputs is None:
            check_interface(model, made, what=f"{graph}: making its weights float32")
        del model
        if (taken := task.graph_inputs) is not None:
            made = _fix_axes(_retype(made, taken, task.judged_outputs), taken, sizes)
        file = write_graph(made, into)
        del made
        onnx.shape_inference.infer_shapes_path(str(file), strict_mode=True)
        _name_axes(file, task)
        onnx.checker.check_model(file, full_check=True)
        check_external_data(file)
    except FAILURES as error:
        raise BadInput(f"{graph} is not a valid ONNX graph ({first_line(error)[:300]}): export it again") from error
    _check_ranks(file, task, str(graph))
    return replace(make_artifact(into, Precision.FP32), exporter=f"{GIVEN_IN} {halves}" if halves else None)


def _clean(model: onnx.ModelProto) -> onnx.ModelProto:
    clean = onnx_ir.passes.Sequential(
        RemoveInitializersFromInputsPass(), NameFixPass(), ClearMetadataAndDocStringPass(), RemoveUnusedOpsetsPass()
    )
    made = convert_to_opset(onnx_ir.to_proto(clean(onnx_ir.from_proto(model)).model), CHANNEL_OPSET)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "metadata_props"):
        made.ClearField(field)
    # What the file says of the shapes between is not trusted.
    made.graph.ClearField("value_info")
    for node in walk_nodes(made.graph):
        for attribute in node.attribute:
            # An attribute of another kind would get a body by being asked for it.
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                body.ClearField("value_info")
    return made


def _retype(model: onnx.ModelProto, inputs: GraphInputs, judged: Sequence[int]) -> onnx.ModelProto:
    """Make ids of tokens int64, and other inputs and judged outputs float32, by a Cast each."""
    made = onnx_ir.from_proto(model)
    graph, single = made.graph, onnx_ir.DataType.FLOAT
    taken = onnx_ir.DataType.INT64 if inputs.are_tokens else single
    for value in graph.inputs:
        if value.dtype != taken:
            narrow = onnx_ir.node("Cast", [value], {"to": value.dtype}, name=f"{value.name}/cast")
            narrow.outputs[0].name = f"{value.name}/given"
            value.replace_all_uses_with(narrow.outputs[0])
            narrow.replace_input_with(0, value)
            value.dtype = taken
            graph.insert_before(graph[0], narrow)
    for position in judged[: len(graph.outputs)]:
        value = graph.outputs[position]
        if value.dtype != single and value.dtype in [onnx_ir.DataType(kind) for kind in FLOAT_TYPES]:
            cast = onnx_ir.node("Cast", [value], {"to": single}, name=f"{value.name}/cast")
            given, name = cast.outputs[0], value.name
            value.name, given.name, given.dtype, given.shape = f"{name}/given", name, single, value.shape
            graph.append(cast)
            graph.outputs[position] = given
    NameFixPass()(made)
    return onnx_ir.to_proto(made)


def _fix_axes(model: onnx.ModelProto, inputs: GraphInputs, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """Give input axes that are always of one size that size."""
    for value in model.graph.input:
        for axis, dimension in zip(inputs.axes, value.type.tensor_type.shape.dim, strict=True):
            if axis in sizes:
                dimension.dim_value = sizes[axis]
    return model


def _name_axes(file: Path, task: ModelTask) -> None:
    """Name the axes that rows differ in as an export does; profiles and Triton know them by these names."""
    model = onnx.load(file, load_external_data=False)
    names: dict[str, str] = {}
    given_axes = (BATCH,) if task.graph_inputs is None else task.graph_inputs.axes
    answer_axes = (BATCH,) if task.graph_inputs is None else task.answer_axes
    for value in model.graph.input:
        for axis, dimension in zip(given_axes, value.type.tensor_type.shape.dim, strict=False):
            if axis not in task.axes or dimension.HasField("dim_value"):
                continue
            names[dimension.dim_param] = dimension.dim_param = AXIS_NAMES[axis]
    names.pop("", None)
    for position, value in enumerate(model.graph.output):
        axes = answer_axes if position in task.judged_outputs else ()
        for index, dimension in enumerate(value.type.tensor_type.shape.dim):
            if dimension.HasField("dim_value"):
                continue
            known = AXIS_NAMES.get(axes[index]) if index < len(axes) else None
            if name := known or names.get(dimension.dim_param):
                dimension.dim_param = name
    model.graph.ClearField("value_info")
    file.write_bytes(model.SerializeToString(deterministic=True))


def _check_ranks(file: Path, task: ModelTask, where: str) -> None:
    """Check that the judged outputs have the axes of the task's answers.

    Raises:
        BadInput: another number of them, or one that rows differ in is fixed.
    """
    model = onnx.load(file, load_external_data=False)
    size = fixed_batch(list_tensors(model.graph.input))
    for value in model.graph.output[: len(task.judged_outputs)]:
        axes = value.type.tensor_type.shape.dim
        if task.graph_inputs is None:
            if not axes or (axes[0].HasField("dim_value") and axes[0].dim_value != size):
                there = f"has its first axis fixed at {axes[0].dim_value}" if axes else "has no axes"
                raise BadInput(
                    f"{where}: output {value.name} {there}, and a judged one has the batch there: export it so"
                )
            continue
        if not value.type.tensor_type.HasField("shape") or len(axes) != len(task.answer_axes):
            raise BadInput(
                f"{where}: output {value.name} has {len(axes)} axes, answers of {task.name} have "
                f"{len(task.answer_axes)} ({', '.join(task.answer_axes)}): export it so, as the first output"
            )
        for name, axis in zip(task.answer_axes, axes, strict=True):
            if name in AXIS_NAMES and axis.HasField("dim_value") and (name != BATCH or axis.dim_value != size):
                raise BadInput(
                    f"{where}: output {value.name} has its {name} axis fixed at {axis.dim_value}: export it with a "
                    "dynamic axis"
                )
