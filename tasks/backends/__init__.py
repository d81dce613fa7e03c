"""Backends that build and run engines.

Call `build_engine` (build.py), then `open_engine`. Importing this package imports no vendor library.
"""

from collections.abc import Mapping
from types import MappingProxyType

from registry.records import Backend, EngineBuild
from tasks.backends.contract import BuilderBackend, BuildInputs, BuiltEngine, Session
from tasks.backends.ort import cpu, cuda
from tasks.backends.trt.builder import TensorRT

__all__ = ["BACKENDS", "BuildInputs", "BuilderBackend", "BuiltEngine", "Session", "open_engine"]

BACKENDS: Mapping[Backend, BuilderBackend] = MappingProxyType(
    {
        Backend.ONNXRUNTIME: cpu,
        Backend.ONNXRUNTIME_CUDA: cuda,
        Backend.TENSORRT: TensorRT(Backend.TENSORRT),
        Backend.TENSORRT_RTX: TensorRT(Backend.TENSORRT_RTX),
    }
)


def open_engine(build: EngineBuild) -> Session:
    """Load an engine with the backend that built it; raises what `BuilderBackend.open_session` raises."""
    return BACKENDS[build.backend].open_session(
        build.path, build.digest, target=build.target, backend_version=build.backend_version
    )
