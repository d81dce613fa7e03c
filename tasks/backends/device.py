"""The local CUDA device, asked through the driver: it heeds CUDA_VISIBLE_DEVICES and creates no context."""

from registry.host.gpu import NoCudaLibrary, first_cuda_gpu


def local_compute_capability() -> str | None:
    """Compute capability of the first visible GPU, like "8.9"; None where there is no driver or GPU."""
    try:
        gpu = first_cuda_gpu()
    except NoCudaLibrary:
        return None
    return gpu.compute_capability if gpu else None
