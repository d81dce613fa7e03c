"""ONNX external data: weights in files beside the graph, whose names the graph chooses."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from registry.errors import BadInput


def check_external_data(graph: Path) -> tuple[Path, ...]:
    """The files that the graph's tensors live in, each a plain file in or below the graph's folder.

    ONNX Runtime and TensorRT would read any file that a graph names, and a hard link passes their checks.

    Raises:
        BadInput: a location is absolute, leaves the folder, is missing, or is a symbolic or hard link.
    """
    # A heavy import that the registry's listing commands, which import the backends, do not need.
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    # Functions hold nodes of their own, outside of the graph.
    tensors = [*_tensors(model.graph), *(found for body in model.functions for found in _node_tensors(body))]
    locations = {
        entry.value
        for tensor in tensors
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(_check_location(graph, location) for location in sorted(locations))


def _check_location(graph: Path, location: str) -> Path:
    advice = f"{graph}: external data {location!r}"
    path = PurePosixPath(location)
    if path.is_absolute() or PureWindowsPath(location).anchor or ".." in path.parts or not path.parts:
        raise BadInput(f"{advice} is not a file below the graph's folder; export the model again")
    file = graph.parent
    for part in path.parts:
        file = file / part
        if file.is_symlink():
            raise BadInput(f"{advice} is or goes through a symbolic link; put the file itself in its place")
    if not file.is_file():
        raise BadInput(f"{advice} is missing; export the model again")
    if file.stat().st_nlink > 1:
        raise BadInput(f"{advice} has a hard link elsewhere, which could change it; put a copy in its place")
    return file


def _tensors(graph: Any) -> Iterator[Any]:  # protobuf messages, of which onnx types only a part
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph)


def _node_tensors(body: Any) -> Iterator[Any]:
    for attribute in (attribute for node in body.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for subgraph in (attribute.g, *attribute.graphs):
            if subgraph.ByteSize():
                yield from _tensors(subgraph)
