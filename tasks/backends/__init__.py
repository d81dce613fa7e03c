"""Backends build and run engines; importing this imports no vendor library."""

from collections.abc import Mapping
from types import MappingProxyType

from registry.records import Backend, EngineBuild
from tasks.backends import ort
from tasks.backends.contract import BuilderBackend, BuiltEngine, Session
from tasks.backends.trt.builder import TensorRT

__all__ = ["BACKENDS", "BuilderBackend", "BuiltEngine", "Session", "open_engine"]

BACKENDS: Mapping[Backend, BuilderBackend] = MappingProxyType(
    {
        Backend.ONNXRUNTIME: ort,
        Backend.TENSORRT: TensorRT(Backend.TENSORRT),
        Backend.TENSORRT_RTX: TensorRT(Backend.TENSORRT_RTX),
    }
)


def open_engine(build: EngineBuild, *, threads: int | None = None) -> Session:
    """Load a built engine with the backend that built it; errors as in `BuilderBackend.open_session`."""
    return BACKENDS[build.backend].open_session(
        build.path, build.digest, target=build.target, backend_version=build.backend_version, threads=threads
    )
