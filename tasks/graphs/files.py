"""An ONNX graph as a file: written, read back as an artifact, its tensors and opset listed.

One protobuf message where that fits; weights as external data where it does not.
"""

from collections.abc import Iterable
from pathlib import Path

import onnx

from registry.digest import digest_of, record_tree
from registry.records import OnnxArtifact, Precision, Tensor

GRAPH_FILE = "model.onnx"
# A protobuf message ends at 2 GiB; the margin is for nodes and names.
SINGLE_FILE_BYTES = 1_900_000_000


def save_graph(model: onnx.ModelProto, into: Path) -> Path:
    """Write a graph to the folder `into`, check it in full with ONNX's checker, shapes too, and return the file."""
    file = write_graph(model, into)
    onnx.checker.check_model(file, full_check=True)
    return file


def write_graph(model: onnx.ModelProto, into: Path) -> Path:
    """Write a graph to the folder `into`, unchecked, and return the file."""
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > SINGLE_FILE_BYTES
    file = into / GRAPH_FILE
    if large:
        onnx.save(model, file, save_as_external_data=True, location=f"{GRAPH_FILE}_data")
    else:
        file.write_bytes(model.SerializeToString(deterministic=True))
    return file


def make_artifact(
    folder: Path, precision: Precision, *, quantized_from: str | None = None, calibration_set: str | None = None
) -> OnnxArtifact:
    """Record the graph in `folder`, and every file beside it, as an artifact.

    `quantized_from` is the digest of the fp32 graph, `calibration_set` that of the rows it was calibrated on.
    """
    model = onnx.load(folder / GRAPH_FILE, load_external_data=False)
    files = record_tree(folder)
    return OnnxArtifact(
        file=GRAPH_FILE,
        files=files,
        digest=digest_of(files),
        precision=precision,
        opset=read_opset(model),
        inputs=list_tensors(model.graph.input),
        outputs=list_tensors(model.graph.output),
        quantized_from=quantized_from,
        calibration_set=calibration_set,
        directory=folder,
    )


def list_tensors(values: Iterable[onnx.ValueInfoProto]) -> tuple[Tensor, ...]:
    """List a graph's inputs or outputs: name, numpy dtype and axes.

    A dynamic axis keeps its name; one without a name is called after its tensor and position.
    """
    return tuple(
        Tensor(
            value.name,
            str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
            tuple(
                axis.dim_value if axis.HasField("dim_value") else axis.dim_param or f"{value.name}_{position}"
                for position, axis in enumerate(value.type.tensor_type.shape.dim)
            ),
        )
        for value in values
    )


def read_opset(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that the graph uses."""
    opset: int = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return opset


def has_external_data(model: onnx.ModelProto) -> bool:
    """Return whether weights are stored in another file."""
    return any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
