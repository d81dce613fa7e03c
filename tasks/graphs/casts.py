"""fp32 graphs cast to mixed fp16 or bf16: by ModelOpt's AutoCast, or by ONNX Runtime's converter where that fails."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx

from registry.errors import BadInput
from tasks.graphs.files import save_graph
from tasks.graphs.prepare import sort_nodes


def cast_graph(file: Path, low_precision: str) -> onnx.ModelProto:
    """Cast the fp32 graph in a file to mixed "fp16" or "bf16"; inputs and outputs stay as they are.

    Raises:
        BadInput: ModelOpt cannot cast it, and ONNX Runtime has no converter to this precision.
    """
    # Imports torch, which takes seconds: only casts pay for it.
    import lief
    from modelopt.onnx.autocast import convert_to_mixed_precision

    # ModelOpt imports lief, which reports hundreds of leaked objects, none of them a fault, when its process ends.
    lief.disable_leak_warning()
    try:
        # A mask's lowest float32 becomes minus infinity, of which numpy warns.
        with silence_logs(), np.errstate(over="ignore"):
            graph: onnx.ModelProto = convert_to_mixed_precision(
                str(file), low_precision_type=low_precision, keep_io_types=True
            )
        with tempfile.TemporaryDirectory() as folder:
            save_graph(graph, Path(folder))
    except (KeyError, ValueError, onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        # ModelOpt 0.47 fails so on the branches of an If, which DeBERTa-v2 has: it finds their nodes by id(). In the
        # body of a Loop or Scan it casts weights and not what they are multiplied by, which the checker finds.
        if low_precision != "fp16":
            raise BadInput(
                f"ModelOpt's AutoCast cannot cast this graph to {low_precision} ({type(error).__name__}); "
                "leave this precision out, or export the model without control flow"
            ) from error
        return _convert_to_fp16(onnx.load(file))
    return graph


def _convert_to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Cast a graph to fp16, branches included, by ONNX Runtime's converter; inputs and outputs stay as they are.

    It keeps no value in fp32 that would overflow, which AutoCast does: `check_rewrite` finds what is lost by that.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with silence_logs():
        return sort_nodes(convert_float_to_float16(model, keep_io_types=True))


@contextmanager
def silence_logs() -> Iterator[None]:
    """Hide the logs of converters: they write a line or two per node, through handlers of their own."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
