"""The GPU of this process: the first one that CUDA shows to it, and NVML's handle of the same one.

The two count differently: NVML numbers every GPU of the machine by its PCI bus and heeds no CUDA_VISIBLE_DEVICES; CUDA
takes the fastest one first, unless told otherwise (CUDA programming guide, "CUDA Environment Variables").
"""

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import pynvml

# The compute capability's two halves among the device attributes of cuda.h.
_MAJOR, _MINOR = 75, 76
_BUS_ID_BYTES = 32


class NoCudaLibrary(Exception):
    """There is no libcuda here, so nobody can say which GPU CUDA would take."""


@dataclass(frozen=True)
class CudaGpu:
    """A GPU as the CUDA driver names it: compute capability like "8.9", PCI bus id like "0000:65:00.0"."""

    compute_capability: str
    pci_bus_id: str


@cache
def first_cuda_gpu() -> CudaGpu | None:
    """The GPU that CUDA programs started here take, asked without a context; None where they see none.

    Raises:
        NoCudaLibrary: libcuda is not here.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise NoCudaLibrary(str(error)) from error
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    bus_id = ctypes.create_string_buffer(_BUS_ID_BYTES)
    failed = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        or cuda.cuDeviceGetPCIBusId(bus_id, _BUS_ID_BYTES, device)
    )
    return None if failed else CudaGpu(f"{major.value}.{minor.value}", bus_id.value.decode())


def nvml_gpu() -> Any:
    """NVML's handle of the GPU that CUDA programs started here take.

    Raises:
        pynvml.NVMLError: no driver, no GPU, or CUDA_VISIBLE_DEVICES hides them all.
    """
    pynvml.nvmlInit()
    # Starting CUDA takes 0.2 s and more: nobody waits for it where there is no choice.
    if "CUDA_VISIBLE_DEVICES" in os.environ or pynvml.nvmlDeviceGetCount() > 1:
        try:
            gpu = first_cuda_gpu()
        except NoCudaLibrary:  # a container that was given NVML alone
            return pynvml.nvmlDeviceGetHandleByIndex(0)
        if gpu is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return pynvml.nvmlDeviceGetHandleByPciBusId(gpu.pci_bus_id.encode())
    return pynvml.nvmlDeviceGetHandleByIndex(0)
