"""Write and load the one ONNX file that is an engine of ONNX Runtime, on whichever execution provider."""

import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from registry.errors import BuildError, EngineryError, Incompatible, first_line
from registry.records import Backend, GpuTarget
from tasks.backends.contract import BuildInputs, BuiltEngine
from tasks.execution.progress import OnProgress
from tasks.graphs.external_data import check_external_data

CPU_PACKAGE, GPU_PACKAGE = "onnxruntime", "onnxruntime-gpu"
# The limit of a protobuf message, and so of one ONNX file: protobuf.dev, "Proto Limits".
LARGEST_FILE_BYTES = 2**31 - 1
Provider = str | tuple[str, dict[str, str]]


def can_build(target: GpuTarget) -> str | None:  # noqa: ARG001  # the Protocol's signature
    """Return None when one of ONNX Runtime's two packages is installed, else what is needed."""
    installed = _list_packages()
    if len(installed) > 1:
        return (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: pip uninstall both, "
            "then pip install enginery[cuda] on a machine with a GPU, or enginery[cpu]"
        )
    return None if installed else "needs the onnxruntime package: pip install enginery[cpu], or enginery[cuda]"


def has_gpu_package() -> bool:
    """Tell whether the installed ONNX Runtime is the one for GPUs."""
    return _list_packages() == [GPU_PACKAGE]


def version() -> str:
    """Return the version of the installed ONNX Runtime, of whichever package: that for GPUs runs on CPUs too.

    Raises:
        Incompatible: none is installed, or both packages are.
    """
    installed = _list_packages()
    if len(installed) != 1:
        raise Incompatible(f"ONNX Runtime {can_build(GpuTarget('here', Backend.ONNXRUNTIME))}")
    return installed_version(installed[0])


def write_engine(inputs: BuildInputs, into: Path, on_progress: OnProgress) -> BuiltEngine:
    """Copy the exact graph to `into`/engine.onnx; external data is embedded.

    One graph runs all shapes, memory is allocated as it runs, and nothing is timed: profiles, workspace and timing
    caches are not used.

    Raises:
        BadInput: its external data is outside its folder, or a link.
        BuildError: one file cannot hold it, or it was cancelled.
    """
    onnx = inputs.onnx
    engine = into / "engine.onnx"
    external = check_external_data(onnx.path)
    if on_progress("copy", 0.0) is False:
        raise BuildError(f"{onnx.path}: the build was cancelled")
    if external:
        _embed_data(onnx.path, external, engine)
    else:
        shutil.copyfile(onnx.path, engine)
    on_progress("copy", 1.0)
    return BuiltEngine(engine, onnx.inputs, onnx.outputs)


def load_graph(
    graph: bytes, where: str, options: Any, providers: Sequence[Provider], *, refusal: type[EngineryError]
) -> Any:
    """Load a graph without external data into an onnxruntime.InferenceSession; `refusal` where it cannot be."""
    import onnxruntime  # a heavy vendor import: `enginery history` must not need it

    options.log_severity_level = 3  # errors; they are raised too
    onnxruntime.set_default_logger_severity(3)  # it warns of each GPU that it finds not to be a plug-in
    try:
        return onnxruntime.InferenceSession(graph, options, providers=list(providers))
    except list_ort_errors() as error:
        raise refusal(f"{where}: ONNX Runtime {version()} cannot load it: {first_line(error)}") from error


def tensor_names(session: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of a session's inputs, and of its outputs."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    return tuple(value.name for value in inputs), tuple(value.name for value in outputs)


def list_ort_errors() -> tuple[type[Exception], ...]:
    """Return ONNX Runtime's exceptions, which share no base; it raises ValueError for a missing input."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    errors = (value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception))
    return (*errors, ValueError)


def _embed_data(graph: Path, external: tuple[Path, ...], engine: Path) -> None:
    size = sum(path.stat().st_size for path in (graph, *external))
    if size > LARGEST_FILE_BYTES:
        raise BuildError(
            f"{graph} and its external data are {size / 1e9:.1f} GB; one ONNX file holds at most "
            f"{LARGEST_FILE_BYTES / 1e9:.1f} GB: quantize the model, or build it for TensorRT"
        )
    import onnx  # heavy, and most users of this module do not need it

    onnx.save(onnx.load(str(graph)), str(engine))


def _list_packages() -> list[str]:
    return [package for package in (GPU_PACKAGE, CPU_PACKAGE) if _is_installed(package)]


def _is_installed(package: str) -> bool:
    try:
        installed_version(package)
    except PackageNotFoundError:
        return False
    return True
