"""A CUDA stream with pinned host memory, device memory and events, through NVIDIA's own bindings (cuda-python).

Without torch: a serving host or a worker needs 8 MB for this instead of 2 GB. The source of every call's meaning is
the CUDA Runtime API's reference, "Memory Management", "Stream Management" and "Event Management".
"""

import ctypes
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from registry.errors import Incompatible, MeasurementError
from tasks.backends.contract import Array, PhaseTimes

_START, _UPLOADED, _COMPUTED, _DOWNLOADED = range(4)


@dataclass(frozen=True)
class _Buffer:
    """Pinned host memory and device memory of the same size in bytes; addresses."""

    size_bytes: int
    host: int
    device: int


class CudaMemory:
    """The buffers of a session by name, and the stream that fills and reads them, used from one thread at a time.

    A call is `begin`, `upload` of each input, `end_upload`, the engine's own work on `stream`, `begin_download`,
    `download` of each output, `finish`. The four events between them time its three phases on the GPU.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime  # late: only GPU hosts have it
        except ImportError as error:
            raise Incompatible(f"a GPU needs cuda-bindings ({error}): pip install enginery[cuda]") from error
        self._runtime: Any = runtime
        self._to_device = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._to_host = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        (stream,) = self._check(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking), refusal=Incompatible)
        self._events = [self._check(runtime.cudaEventCreate())[0] for _ in range(4)]
        self._stream = stream
        self._buffers: dict[str, _Buffer] = {}
        weakref.finalize(self, _free, runtime, self._buffers)

    @property
    def stream(self) -> int:
        """The address of the stream (cudaStream_t), on which an engine must run."""
        return int(self._stream)

    def begin(self) -> None:
        """Mark the start of a call."""
        self._record(_START)

    def upload(self, name: str, array: Array) -> int:
        """Copy an array through pinned memory to the device, in stream order; return its address there."""
        buffer = self._reserve(name, array.nbytes)
        np.copyto(_view(buffer.host, array.shape, array.dtype), array)
        self._check(
            self._runtime.cudaMemcpyAsync(buffer.device, buffer.host, array.nbytes, self._to_device, self._stream)
        )
        return buffer.device

    def end_upload(self) -> None:
        """Mark the end of the inputs' copies."""
        self._record(_UPLOADED)

    def reserve(self, name: str, size_bytes: int) -> int:
        """Return the device address of a buffer of at least that size."""
        return self._reserve(name, size_bytes).device

    def begin_download(self) -> None:
        """Mark the end of the engine's work."""
        self._record(_COMPUTED)

    def download(self, name: str, address: int, shape: tuple[int, ...], dtype: DTypeLike) -> Callable[[], Array]:
        """Copy a device tensor to pinned memory, in stream order; call the result after `finish` for the array."""
        size_bytes = count_bytes(shape, dtype)
        buffer = self._reserve(name, size_bytes)
        self._check(self._runtime.cudaMemcpyAsync(buffer.host, address, size_bytes, self._to_host, self._stream))
        # A copy: the next call fills the same pinned memory.
        return lambda: _view(buffer.host, shape, dtype).copy()

    def finish(self) -> None:
        """Mark the end of the outputs' copies, and wait for it.

        Raises:
            MeasurementError: the GPU failed during the call.
        """
        self._record(_DOWNLOADED)
        self._check(self._runtime.cudaStreamSynchronize(self._stream))

    def phase_times(self) -> PhaseTimes:
        """Return the times of the last call's phases, which CUDA's events resolve to 0.5 microseconds."""
        pairs = ((_START, _UPLOADED), (_UPLOADED, _COMPUTED), (_COMPUTED, _DOWNLOADED))
        spans = (
            self._check(self._runtime.cudaEventElapsedTime(self._events[start], self._events[end]))[0] / 1000
            for start, end in pairs
        )
        return PhaseTimes(*spans)

    def _reserve(self, name: str, size_bytes: int) -> _Buffer:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size_bytes < size_bytes:
            if buffer is not None:
                self._check(self._runtime.cudaStreamSynchronize(self._stream))
                _free(self._runtime, {name: self._buffers.pop(name)})
            size = max(size_bytes, 1)  # of an empty tensor, whose address must be one too
            (host,) = self._check(self._runtime.cudaHostAlloc(size, self._runtime.cudaHostAllocDefault))
            (device,) = self._check(self._runtime.cudaMalloc(size))
            buffer = self._buffers[name] = _Buffer(size, int(host), int(device))
        return buffer

    def _record(self, event: int) -> None:
        self._check(self._runtime.cudaEventRecord(self._events[event], self._stream))

    def _check(
        self, answer: tuple[Any, ...], *, refusal: type[Incompatible | MeasurementError] = MeasurementError
    ) -> tuple[Any, ...]:
        """Return what a call of the runtime returned beside its error code, or raise the error in CUDA's words."""
        error, *values = answer
        if error != self._runtime.cudaError_t.cudaSuccess:
            _, words = self._runtime.cudaGetErrorString(error)
            raise refusal(f"the GPU failed: {words.decode()}")
        return tuple(values)


def _view(address: int, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return a numpy array over memory that somebody else owns."""
    memory = (ctypes.c_uint8 * count_bytes(shape, dtype)).from_address(address)
    array: Array = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
    return array


def count_bytes(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    """Return the size of a dense tensor."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def _free(runtime: Any, buffers: dict[str, _Buffer]) -> None:
    for buffer in buffers.values():
        runtime.cudaFreeHost(buffer.host)
        runtime.cudaFree(buffer.device)
    buffers.clear()
