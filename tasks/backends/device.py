"""The local CUDA device, asked through the driver: it heeds CUDA_VISIBLE_DEVICES and creates no context."""

import ctypes
from functools import cache

# The compute capability's two halves among the device attributes of cuda.h.
_MAJOR, _MINOR = 75, 76


@cache
def local_compute_capability() -> str | None:
    """Compute capability of the first visible GPU, like "8.9"; None where there is no driver or GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    failed = cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, 0)
    failed = failed or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, 0)
    return None if failed else f"{major.value}.{minor.value}"
