"""A graph as a file: one message, or with external data where protobuf cannot hold it."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx

from registry.digest import digest_of, record_tree
from registry.records import OnnxArtifact, Precision, Tensor

GRAPH_FILE = "model.onnx"
# A protobuf message ends at 2 GiB; the margin is for nodes and names.
SINGLE_FILE_BYTES = 1_900_000_000


def save_graph(model: onnx.ModelProto, into: Path) -> Path:
    """Write and check a graph in the folder `into`; the file."""
    file = write_graph(model, into)
    onnx.checker.check_model(file)
    return file


def write_graph(model: onnx.ModelProto, into: Path) -> Path:
    """Write a graph in the folder `into`, for a session of one's own; the file."""
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > SINGLE_FILE_BYTES
    file = into / GRAPH_FILE
    if large:
        onnx.save(model, file, save_as_external_data=True, location=f"{GRAPH_FILE}_data")
    else:
        file.write_bytes(model.SerializeToString(deterministic=True))
    return file


def _artifact(source: OnnxArtifact, precision: Precision, into: Path, calibration_set: str | None) -> OnnxArtifact:
    written = onnx.load(into / GRAPH_FILE, load_external_data=False)
    files = record_tree(into)
    return OnnxArtifact(
        file=GRAPH_FILE,
        files=files,
        digest=digest_of(files),
        precision=precision,
        opset=next(entry.version for entry in written.opset_import if entry.domain in ("", "ai.onnx")),
        inputs=tensors_of(written.graph.input),
        outputs=tensors_of(written.graph.output),
        quantized_from=source.digest,
        calibration_set=calibration_set,
        directory=into,
    )


def tensors_of(values: Iterable[onnx.ValueInfoProto]) -> tuple[Tensor, ...]:
    """List inputs or outputs as values; dynamic axes keep their names."""
    return tuple(
        Tensor(
            value.name,
            np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name,
            tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


def has_external_data(model: onnx.ModelProto) -> bool:
    """Whether weights lie in another file."""
    return any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
