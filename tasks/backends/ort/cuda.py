"""ONNX Runtime on any NVIDIA GPU, by its CUDA execution provider.

Reference for the provider's options: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # numpy has no bfloat16
import numpy as np

from registry.digest import file_sha256
from registry.errors import BadInput, BuildError, Incompatible, first_line
from registry.host.gpu import local_compute_capability
from registry.records import GpuTarget
from tasks.backends.contract import Array, BuildInputs, BuiltEngine, PhaseTimes, check_feed, read_verified
from tasks.backends.cuda_memory import CudaMemory, count_bytes
from tasks.backends.ort.loading import (
    Provider,
    can_build,
    has_gpu_package,
    list_ort_errors,
    load_graph,
    tensor_names,
    version,
    write_engine,
)
from tasks.backends.precisions import why_unsupported as supports
from tasks.execution.progress import OnProgress
from tasks.graphs.session import exact_options

__all__ = ["OrtCudaSession", "build", "can_build", "can_run", "open_session", "supports", "version"]

_DTYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_, "tensor(bfloat16)": ml_dtypes.bfloat16,
}  # fmt: skip
# Of a run's option `gpu_graph_id`: run without capturing or replaying a CUDA graph.
_NO_GRAPH = "-1"
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


class OrtCudaSession:
    """A session of the CUDA execution provider with bound inputs and outputs, used from one thread at a time.

    With `cuda_graph` the second call captures a CUDA graph, and later ones replay it: all must have one shape.
    """

    def __init__(self, session: Any, memory: CudaMemory, *, cuda_graph: bool) -> None:
        self._session, self._memory, self._cuda_graph = session, memory, cuda_graph
        self.input_names, self.output_names = tensor_names(session)
        # The (shape, dtype) of each output: a captured graph writes to the addresses that it was captured with.
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._captured: list[tuple[tuple[int, ...], Any]] | None = None

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """Copy the feed to the GPU, run the graph, and copy its outputs back in the order of `output_names`.

        Raises:
            BadInput: the feed does not fit the graph.
            MeasurementError: the GPU failed.
        """
        check_feed(feed, self.input_names)
        self._check_shapes(feed)
        refusals: tuple[type[Exception], ...] = (
            RuntimeError,
            *list_ort_errors(),
        )  # RuntimeError where a bound tensor has the wrong type
        try:
            return self._run({name: np.asarray(feed[name]) for name in self.input_names})
        except refusals as error:
            raise BadInput(f"ONNX Runtime refused the feed: {first_line(error)}") from error

    def phase_times(self) -> PhaseTimes:
        """Return the times on the GPU of the last call's copies and of its work."""
        return self._memory.phase_times()

    def _check_shapes(self, feed: Mapping[str, Array]) -> None:
        """Refuse another shape than the one captured: ONNX Runtime would replay the graph on what lies in memory."""
        if not self._cuda_graph:
            return
        shapes = {name: array.shape for name, array in feed.items()}
        if shapes != (self._shapes or shapes):
            shown = ", ".join(f"{name} {list(shape)}" for name, shape in (self._shapes or {}).items())
            raise BadInput(f"this session's CUDA graph takes {shown} and nothing else: open one for the new shape")
        self._shapes = shapes

    def _run(self, feed: dict[str, Array]) -> list[Array]:
        memory, binding = self._memory, self._session.io_binding()
        memory.begin()
        for name, array in feed.items():
            binding.bind_input(name, "cuda", 0, _element(array), array.shape, memory.upload(name, array))
        memory.end_upload()
        self._bind_outputs(binding)
        self._session.run_with_iobinding(binding, self._run_options())
        memory.begin_download()
        values = binding.get_outputs()
        described = [(tuple(value.shape()), _DTYPES[value.data_type()]) for value in values]
        if self._cuda_graph:
            self._captured = described
        arrays = [
            memory.download(f"{name} on the host", value.data_ptr(), *kind)
            for name, value, kind in zip(self.output_names, values, described, strict=True)
        ]
        memory.finish()
        return [read() for read in arrays]

    def _bind_outputs(self, binding: Any) -> None:
        """Bind outputs to memory of ONNX Runtime's, or for a CUDA graph to our own, whose addresses stay."""
        if self._captured is None:
            for name in self.output_names:
                binding.bind_output(name, "cuda", 0)
            return
        for name, (shape, dtype) in zip(self.output_names, self._captured, strict=True):
            address = self._memory.reserve(name, count_bytes(shape, dtype))
            binding.bind_output(name, "cuda", 0, _element(np.empty(0, dtype)), shape, address)

    def _run_options(self) -> Any:
        import onnxruntime

        options = onnxruntime.RunOptions()
        # Work and copies are on one stream, so only the end of the call waits.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._cuda_graph and self._captured is None:
            options.add_run_config_entry("gpu_graph_id", _NO_GRAPH)
        return options


def _element(array: Array) -> Any:
    """Return an array's dtype as ONNX Runtime's bindings take it: bfloat16, which it cannot name, as ONNX's number."""
    return _BFLOAT16 if array.dtype == ml_dtypes.bfloat16 else array.dtype


def can_run(target: GpuTarget) -> str | None:
    """Return None when onnxruntime-gpu and a GPU are here, else what is missing."""
    place = f"; run it on a worker of pool {target.work_pool}"
    if not has_gpu_package():
        return f"needs the onnxruntime-gpu package (pip install enginery[cuda]) and an NVIDIA GPU{place}"
    return None if local_compute_capability() else f"needs an NVIDIA GPU, and this machine has none{place}"


def build(inputs: BuildInputs, *, into: Path, on_progress: OnProgress) -> BuiltEngine:
    """Copy the exact graph into one file, and load it once where a GPU is here: the CPU lacks some of its kernels.

    Raises:
        BadInput: as `write_engine`.
        BuildError: as `write_engine`; or no kernel runs it, or ONNX Runtime cannot load it.
    """
    if reason := supports(inputs.onnx.precision, inputs.target):
        raise BuildError(reason)
    built = write_engine(inputs, into, on_progress)
    if can_run(inputs.target) is None:
        try:
            open_session(built.path, file_sha256(built.path), target=inputs.target, backend_version=version())
        except Incompatible as error:
            raise BuildError(str(error)) from error
    return built


def open_session(
    engine: Path,
    expected_digest: str,
    *,
    target: GpuTarget,
    backend_version: str,  # noqa: ARG001  # ONNX is portable between versions
    cuda_graph_of: Mapping[str, int] | None = None,
) -> OrtCudaSession:
    """Load a graph without external data onto the GPU that CUDA takes first.

    With the size of every dynamic axis in `cuda_graph_of`, by its name in the graph, the session takes this one shape
    and replays a CUDA graph of it. The axes are fixed as it loads: arithmetic on shapes runs on the CPU, which no CUDA
    graph can hold, and folds away where they are known.

    Raises:
        DigestMismatch: the file's bytes differ; ONNX Runtime has read none of them.
        Incompatible: no GPU or no onnxruntime-gpu here, ONNX Runtime cannot load it, or a CUDA graph is asked for and
            a part of the graph runs on the CPU.
    """
    if reason := can_run(target):
        raise Incompatible(f"{engine} {reason}")
    graph = read_verified(engine, expected_digest)
    import onnxruntime

    onnxruntime.preload_dlls()  # CUDA and cuDNN from their own wheels, where the system has none
    memory = CudaMemory()
    session_options = exact_options()
    for axis, size in (cuda_graph_of or {}).items():
        session_options.add_free_dimension_override_by_name(axis, size)
    options = {
        "device_id": "0",
        "user_compute_stream": str(memory.stream),
        "use_tf32": "0",  # what is called fp32 computes in fp32
        "enable_cuda_graph": str(int(cuda_graph_of is not None)),
    }
    providers: list[Provider] = [("CUDAExecutionProvider", options), "CPUExecutionProvider"]
    session = load_graph(graph, str(engine), session_options, providers, refusal=Incompatible)
    if session.get_providers()[0] != "CUDAExecutionProvider":
        # ONNX Runtime falls back to the CPU with no more than a line in its log.
        raise Incompatible(
            f"{engine}: ONNX Runtime {version()} cannot start CUDA here: it needs CUDA 13 and cuDNN 9 "
            "(pip install enginery[cuda]) and driver 580 or newer"
        )
    return OrtCudaSession(session, memory, cuda_graph=cuda_graph_of is not None)
