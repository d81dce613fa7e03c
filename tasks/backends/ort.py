"""ONNX Runtime on the CPU: the engine is the ONNX graph itself, in one file."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from registry.errors import BadInput, BuildError, EngineryError, Incompatible, first_line
from registry.records import GpuTarget, Precision
from tasks.backends.contract import Array, BuildInputs, BuiltEngine, check_feed, read_verified
from tasks.backends.precisions import why_unsupported
from tasks.execution.progress import OnProgress
from tasks.graphs.external_data import check_external_data
from tasks.graphs.session import exact_options

# The limit of a protobuf message, and so of one ONNX file: protobuf.dev, "Proto Limits".
LARGEST_FILE_BYTES = 2**31 - 1
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
        except _list_ort_errors() as error:
            raise BadInput(f"ONNX Runtime refused the feed: {first_line(error)}") from error


def version() -> str:
    """Return the version of onnxruntime.

    Raises:
        Incompatible: it is not installed.
    """
    try:
        return installed_version("onnxruntime")
    except PackageNotFoundError:
        raise Incompatible("onnxruntime is not installed: pip install enginery[pipeline]") from None


def supports(precision: Precision, target: GpuTarget) -> str | None:
    """Return None, or the reason why CPU kernels gain nothing from a precision."""
    return why_unsupported(precision, target)


def can_build(target: GpuTarget) -> str | None:  # noqa: ARG001  # the Protocol's signature
    """Return None when the onnxruntime package is installed, else what is needed."""
    return None if find_spec("onnxruntime") else "needs the onnxruntime package: pip install enginery[pipeline]"


def can_run(target: GpuTarget) -> str | None:
    """Return the same as `can_build`."""
    return can_build(target)


def build(inputs: BuildInputs, *, into: Path, on_progress: OnProgress) -> BuiltEngine:
    """Copy the exact graph to `into`/engine.onnx (external data is embedded), and load it once.

    One graph runs all shapes, memory is allocated as it runs, and nothing is timed: profiles, workspace and timing
    caches are not used.

    Raises:
        BadInput: its external data is outside its folder, or a link.
        BuildError: one file cannot hold it, ONNX Runtime cannot load it, or it was cancelled.
    """
    onnx = inputs.onnx
    if reason := supports(onnx.precision, inputs.target):
        raise BuildError(reason)
    engine = into / "engine.onnx"
    external = check_external_data(onnx.path)
    if on_progress("copy", 0.0) is False:
        raise BuildError(f"{onnx.path}: the build was cancelled")
    if external:
        _embed_data(onnx.path, external, engine)
    else:
        shutil.copyfile(onnx.path, engine)
    on_progress("load", 0.5)
    _load_graph(engine.read_bytes(), str(onnx.path), threads=1, refusal=BuildError)
    on_progress("load", 1.0)
    return BuiltEngine(engine, onnx.inputs, onnx.outputs)


def _embed_data(graph: Path, external: tuple[Path, ...], engine: Path) -> None:
    size = sum(path.stat().st_size for path in (graph, *external))
    if size > LARGEST_FILE_BYTES:
        raise BuildError(
            f"{graph} and its external data are {size / 1e9:.1f} GB; one ONNX file holds at most "
            f"{LARGEST_FILE_BYTES / 1e9:.1f} GB: quantize the model, or build it for a GPU"
        )
    import onnx  # heavy, and most users of this module do not need it

    onnx.save(onnx.load(str(graph)), str(engine))


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
    return _load_graph(read_verified(engine, expected_digest), str(engine), threads=ONE_PER_CORE, refusal=Incompatible)


def _load_graph(graph: bytes, where: str, *, threads: int, refusal: type[EngineryError]) -> OrtSession:
    import onnxruntime  # a heavy vendor import: `enginery history` must not need it

    options = exact_options()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; they are raised too
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except _list_ort_errors() as error:
        raise refusal(f"{where}: ONNX Runtime {version()} cannot load it: {first_line(error)}") from error
    names = tuple(tuple(value.name for value in values) for values in (session.get_inputs(), session.get_outputs()))
    return OrtSession(session, *names)


def _list_ort_errors() -> tuple[type[Exception], ...]:
    """Return ONNX Runtime's exceptions, which share no base; it raises ValueError for a missing input."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    errors = (value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception))
    return (*errors, ValueError)
