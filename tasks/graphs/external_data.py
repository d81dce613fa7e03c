"""ONNX external data: weights in files beside the graph, under names that the graph chooses."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from registry.errors import BadInput


def check_external_data(graph: Path) -> tuple[Path, ...]:
    """Return the files that hold the graph's tensors; refuse any that is not a plain file below its folder.

    ONNX Runtime and TensorRT would read any file that a graph names, and a hard link passes their checks.

    Raises:
        BadInput: a location is absolute, leaves the folder, is missing, or is a symbolic or hard link.
    """
    # A heavy import, not needed by the listing commands that import the backends.
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    # Functions hold nodes of their own, outside of the graph.
    tensors = [*_walk_graph(model.graph), *(tensor for body in model.functions for tensor in _walk_nodes(body))]
    locations = {
        entry.value
        for tensor in tensors
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(_check_location(graph, location) for location in sorted(locations))


def _check_location(graph: Path, location: str) -> Path:
    place = f"{graph}: external data {location!r}"
    path = PurePosixPath(location)
    if path.is_absolute() or PureWindowsPath(location).anchor or ".." in path.parts or not path.parts:
        raise BadInput(f"{place} is not below the graph's folder; export the model again")
    file = graph.parent
    for part in path.parts:
        file = file / part
        if file.is_symlink():
            raise BadInput(f"{place} is, or lies behind, a symbolic link; replace the link by the file")
    if not file.is_file():
        raise BadInput(f"{place} is missing; export the model again")
    if file.stat().st_nlink > 1:
        raise BadInput(f"{place} has a hard link elsewhere, which could change it; replace it by a copy")
    return file


def _walk_graph(graph: Any) -> Iterator[Any]:  # protobuf messages, of which onnx types only a part
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _walk_nodes(graph)


def _walk_nodes(body: Any) -> Iterator[Any]:
    for attribute in (attribute for node in body.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for subgraph in (attribute.g, *attribute.graphs):
            if subgraph.ByteSize():
                yield from _walk_graph(subgraph)
