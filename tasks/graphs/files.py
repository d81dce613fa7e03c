"""A graph as a file: one message, or with external data where protobuf cannot hold it."""

from pathlib import Path

import onnx

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
