"""An encoder that also gives the keys and values which the decoder attends to, so that no step computes them again.

Optimum exports three graphs: the encoder, the decoder's first step, and its later steps with a past. The first step
differs from the later ones in computing those keys and values of what the encoder gave. That computation is cut out of
it and put behind the encoder; the graph of the later steps then serves as the first one too, with a past of no tokens.
"""

import numpy as np
import onnx
import onnx_ir
from onnx import helper, numpy_helper
from onnx.compose import add_prefix, merge_models
from onnx.utils import Extractor

from registry.errors import BadInput
from tasks.generation.parts import PAST, PRESENT

_HIDDEN, _ROWS = "encoder_hidden_states", "rows_of_encoder"
_PREFIX = "cross/"


def add_cross_attention(encoder: onnx.ModelProto, first_step: onnx.ModelProto) -> onnx.ModelProto:
    """Return the encoder with outputs past_key_values.N.encoder.key and .value instead of its hidden states.

    Raises:
        BadInput: the keys and values depend on more than what the encoder gave.
    """
    names = [output.name for output in first_step.graph.output if ".encoder." in output.name]
    _count_rows_of_encoder(first_step.graph)
    try:
        cross = Extractor(first_step).extract_model([_HIDDEN], names)
        onnx.checker.check_model(cross)
        merged = merge_models(
            encoder,
            add_prefix(cross, _PREFIX),
            io_map=[(encoder.graph.output[0].name, f"{_PREFIX}{_HIDDEN}")],
            outputs=[f"{_PREFIX}{name}" for name in names],
        )
    except (onnx.checker.ValidationError, ValueError) as error:
        raise BadInput(
            "the decoder does not compute its cross-attention's keys and values of the encoder's output alone: use a "
            "checkpoint of another architecture"
        ) from error
    named = onnx_ir.from_proto(merged)
    for value in named.graph.outputs:
        value.name = str(value.name).replace(f"{_PREFIX}{PRESENT}", PAST)
    return onnx_ir.to_proto(named)


def _count_rows_of_encoder(graph: onnx.GraphProto) -> None:
    """Take every number of rows that a decoder reads off its own tensors from the encoder's output instead.

    The first axis is the batch in all of them. The keys and values would else depend on the tokens by that number.
    """
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    constants |= {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    shapes = {node.output[0] for node in graph.node if node.op_type == "Shape" and not node.attribute}
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in shapes and _is_zero(constants.get(node.input[1])):
            node.input[0] = _ROWS
    graph.node.insert(0, helper.make_node("Shape", [_HIDDEN], [_ROWS]))


def _is_zero(index: "np.ndarray | None") -> bool:
    return index is not None and index.size == 1 and not index.any()
