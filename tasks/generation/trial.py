"""The graphs of a generation run in ONNX Runtime: by the check of an export, and to draw a decoder's real inputs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.records import OnnxArtifact
from tasks.generation.greedy import Array, Feed, GreedySession
from tasks.generation.parts import split_graphs
from tasks.graphs.session import choose_providers, exact_options


@dataclass(frozen=True)
class GraphSession:
    """A graph in ONNX Runtime."""

    session: Any
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def run(self, feed: Feed) -> list[Array]:
        """Return the outputs in graph order."""
        return list(self.session.run(self.output_names, dict(feed)))


def open_graphs(onnx: OnnxArtifact, most: int) -> GreedySession:
    """Open the graphs of an artifact, to write at most `most` tokens for each row."""
    if onnx.generation is None:
        raise ValueError(f"{onnx.file} is one graph")
    sessions = {name: _open_graph(graph.path) for name, graph in split_graphs(onnx).items()}
    return GreedySession(sessions, onnx.generation, most)


def _open_graph(file: Path) -> GraphSession:
    import onnxruntime

    options = exact_options()
    options.log_severity_level = 3  # errors; they are raised too
    session = onnxruntime.InferenceSession(str(file), options, providers=choose_providers())
    inputs, outputs = (tuple(each.name for each in ends) for ends in (session.get_inputs(), session.get_outputs()))
    return GraphSession(session, inputs, outputs)
