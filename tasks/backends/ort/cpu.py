"""ONNX Runtime on the CPU."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.errors import BadInput, BuildError, Incompatible, first_line
from registry.records import GpuTarget
from tasks.backends.contract import Array, BuildInputs, BuiltEngine, check_feed, read_verified
from tasks.backends.ort.loading import can_build, list_ort_errors, load_graph, tensor_names, version, write_engine
from tasks.backends.precisions import why_unsupported as supports
from tasks.execution.progress import OnProgress
from tasks.graphs.session import exact_options

__all__ = ["OrtSession", "build", "can_build", "can_run", "open_session", "supports", "version"]

# What builds engines runs them.
can_run = can_build
ONE_PER_CORE = 0  # of `intra_op_num_threads`


@dataclass(frozen=True)
class OrtSession:
    """A session of the CPU execution provider."""

    session: Any
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """Run the graph and return its outputs in the order of `output_names`; inputs are bound by name.

        Raises:
            BadInput: the feed does not fit the graph.
        """
        check_feed(feed, self.input_names)
        try:
            return list(self.session.run(self.output_names, dict(feed)))
        except list_ort_errors() as error:
            raise BadInput(f"ONNX Runtime refused the feed: {first_line(error)}") from error


def build(inputs: BuildInputs, *, into: Path, on_progress: OnProgress) -> BuiltEngine:
    """Copy the exact graph into one file, and load it once.

    Raises:
        BadInput: as `write_engine`.
        BuildError: as `write_engine`; or no kernel runs it, or ONNX Runtime cannot load it.
    """
    if reason := supports(inputs.onnx.precision, inputs.target):
        raise BuildError(reason)
    built = write_engine(inputs, into, on_progress)
    options = exact_options()
    options.intra_op_num_threads = 1
    graph = built.path.read_bytes()
    load_graph(graph, str(inputs.onnx.path), options, ["CPUExecutionProvider"], refusal=BuildError)
    return built


def open_session(
    engine: Path,
    expected_digest: str,
    *,
    target: GpuTarget,  # noqa: ARG001  # any CPU runs it
    backend_version: str,  # noqa: ARG001  # ONNX is portable between versions
) -> OrtSession:
    """Load a graph without external data, with one thread per core inside an operator.

    Raises:
        DigestMismatch: the file's bytes differ; ONNX Runtime has read none of them.
        Incompatible: ONNX Runtime cannot load it.
    """
    options = exact_options()
    options.intra_op_num_threads = ONE_PER_CORE
    # Threads spin for some 50 ms after a call, and engines that are measured in turn would slow each other down.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    graph = read_verified(engine, expected_digest)
    session = load_graph(graph, str(engine), options, ["CPUExecutionProvider"], refusal=Incompatible)
    return OrtSession(session, *tensor_names(session))
