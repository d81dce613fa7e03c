"""The GPU of this process: the first one that CUDA shows to it, described through NVML.

The two count differently: NVML numbers every GPU of the machine by its PCI bus and ignores CUDA_VISIBLE_DEVICES; CUDA
takes the fastest one first by default (CUDA programming guide, "CUDA Environment Variables").
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
    """libcuda is missing here, so nobody can say which GPU CUDA would take."""


@dataclass(frozen=True)
class Gpu:
    """The local GPU and its driver: compute capability like "8.9"; `cuda` is the newest CUDA that the driver runs."""

    name: str
    compute_capability: str
    driver: str
    cuda: str


@dataclass(frozen=True)
class CudaGpu:
    """A GPU as the CUDA driver names it: compute capability like "8.9", PCI bus id like "0000:65:00.0"."""

    compute_capability: str
    pci_bus_id: str


def read_gpu() -> Gpu | None:
    """Describe the GPU that CUDA programs started here take.

    Returns:
        None where there is no driver or GPU, or where CUDA_VISIBLE_DEVICES hides every GPU.
    """
    try:
        handle = nvml_gpu()
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        name, driver = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlSystemGetDriverVersion()
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    except pynvml.NVMLError:
        return None
    return Gpu(str(name), f"{major}.{minor}", str(driver), f"{cuda // 1000}.{cuda % 1000 // 10}")


def local_compute_capability() -> str | None:
    """Return the compute capability that CUDA itself reports; None without libcuda or a visible GPU."""
    try:
        gpu = first_cuda_gpu()
    except NoCudaLibrary:
        return None
    return gpu.compute_capability if gpu else None


@cache
def first_cuda_gpu() -> CudaGpu | None:
    """Ask the CUDA driver for the GPU that programs started here take, without creating a context.

    Returns:
        None where CUDA programs see no GPU.

    Raises:
        NoCudaLibrary: libcuda is missing here.
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
    """Return NVML's handle of the GPU that CUDA programs started here take.

    Raises:
        pynvml.NVMLError: no driver, no GPU, or CUDA_VISIBLE_DEVICES hides them all.
    """
    pynvml.nvmlInit()
    # Starting CUDA takes 0.2 s and more: skip it where there is no choice.
    if "CUDA_VISIBLE_DEVICES" in os.environ or pynvml.nvmlDeviceGetCount() > 1:
        try:
            gpu = first_cuda_gpu()
        except NoCudaLibrary:  # a container with NVML and without CUDA
            return pynvml.nvmlDeviceGetHandleByIndex(0)
        if gpu is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return pynvml.nvmlDeviceGetHandleByPciBusId(gpu.pci_bus_id.encode())
    return pynvml.nvmlDeviceGetHandleByIndex(0)
