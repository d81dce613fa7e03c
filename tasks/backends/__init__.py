"""Backends that build and run engines.

Call `build_engine` (build.py), then `open_engine`. Importing this package imports no vendor library.
"""

from collections.abc import Mapping
from types import MappingProxyType

from registry.errors import DigestMismatch
from registry.records import NEW_TOKENS, Backend, EngineBuild, axis_name, fixed_batch, largest_axes
from tasks.backends.contract import BuilderBackend, BuildInputs, BuiltEngine, Session
from tasks.backends.ort import cpu, cuda
from tasks.backends.trt.builder import TensorRT
from tasks.backends.whole_batches import FixedBatchSession
from tasks.generation.greedy import GreedySession
from tasks.generation.parts import PARTS, digest_files

__all__ = ["BACKENDS", "BuildInputs", "BuilderBackend", "BuiltEngine", "Session", "open_cuda_graph", "open_engine"]

BACKENDS: Mapping[Backend, BuilderBackend] = MappingProxyType(
    {
        Backend.ONNXRUNTIME: cpu,
        Backend.ONNXRUNTIME_CUDA: cuda,
        Backend.TENSORRT: TensorRT(Backend.TENSORRT),
        Backend.TENSORRT_RTX: TensorRT(Backend.TENSORRT_RTX),
    }
)


def open_engine(build: EngineBuild, *, new_tokens: int | None = None) -> Session:
    """Load an engine with the backend that built it; raises what `BuilderBackend.open_session` raises.

    One that takes batches of one size only is fed so, whatever the rows. One of parts writes text: until a row ends, or
    exactly `new_tokens` of each row where that is given, to be timed.
    """
    if build.generation is None:
        session, size = _open_file(build, build.file, build.digest), fixed_batch(build.inputs)
        return session if size is None else FixedBatchSession(session, size)
    digests = {record.path: record.sha256 for record in build.files}
    parts = {part.name: part.file for part in build.generation.parts}
    if (
        digest_files(build.files, build.generation) != build.digest
        or set(parts.values()) != set(digests)
        or parts.keys() != PARTS
    ):
        raise DigestMismatch(
            f"{build.directory}: the engine's files are not those of its parts: fetch or build it again"
        )
    sessions = {name: _open_file(build, file, digests[file]) for name, file in parts.items()}
    most = new_tokens or largest_axes(build.profiles)[NEW_TOKENS]
    return GreedySession(sessions, build.generation, most, exactly=new_tokens is not None)


def open_cuda_graph(build: EngineBuild, sizes: Mapping[str, int]) -> Session | None:
    """Load an engine that replays a CUDA graph of one shape, by the sizes of named axes; None where there is none.

    Raises:
        Incompatible: a part of the engine cannot be captured.
    """
    if build.backend is not Backend.ONNXRUNTIME_CUDA or build.generation is not None:
        return None
    symbols = {size for tensor in build.inputs for size in tensor.shape if isinstance(size, str)}
    return cuda.open_session(
        build.path,
        build.digest,
        target=build.target,
        backend_version=build.backend_version,
        cuda_graph_of={symbol: sizes[axis_name(symbol)] for symbol in symbols},
    )


def _open_file(build: EngineBuild, file: str, digest: str) -> Session:
    return BACKENDS[build.backend].open_session(
        build.directory / file, digest, target=build.target, backend_version=build.backend_version
    )
